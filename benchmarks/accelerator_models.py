"""Stable Diffusion 1.5 with random weights, made on the host in seconds, and its small twin."""

import dataclasses
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from benchmarks.unet import SMALL
from fusionjax.backend.devices import default_dtype
from fusionjax.faces import Faces
from fusionjax.models.abstract_base import abstract_base
from fusionjax.models.base import BaseModel
from fusionjax.unet import FusionUNet

_SMALL = {
    "unet": {**SMALL, "sample_size": 16, "attention_head_dim": 4},
    "vae": {
        "sample_size": 128,
        "block_out_channels": [32, 32, 32, 32],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 16,
        "scaling_factor": 0.18215,
    },
    "text_encoder": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
    },
}


@functools.cache
def source(*, small: bool) -> str:
    """What `abstract_base` and a run's `base` take for a model of that size."""
    if not small:
        return "stable-diffusion-v1-5/stable-diffusion-v1-5"
    folder = tempfile.TemporaryDirectory(prefix="fusionjax-small-")
    _KEPT.append(folder)
    for part, config in _SMALL.items():
        path = Path(folder.name) / part
        path.mkdir()
        (path / "config.json").write_text(json.dumps(config))
    return folder.name


_KEPT: list[Any] = []  # temporary folders, until the process ends


def sixteen_bits(device: jax.Device) -> str:
    """The 16-bit type that a device is fast in; a CPU is in neither."""
    own = default_dtype([device])
    return "bfloat16" if own == "float32" else own


def random_base(dtype: Any, *, small: bool, parts: tuple[str, ...]) -> BaseModel:
    """A base model whose named parts have random weights on the default device."""
    base = abstract_base(source(small=small), jnp.dtype(dtype))
    return dataclasses.replace(
        base, params={part: random_like(base.params[part]) for part in parts}
    )


def random_like(shapes: Any) -> Any:
    """Weights at the scale of a trained network, drawn on the host: no program is compiled."""
    flat = {
        path: jax.device_put(_weight(path[-1], shape, number))
        for number, (path, shape) in enumerate(flatten_dict(shapes).items())
    }
    return unflatten_dict(flat)


def _weight(name: str, shape: jax.ShapeDtypeStruct, number: int) -> np.ndarray:
    start = number * 7919 % len(_normals())
    values = np.resize(np.roll(_normals(), -start), shape.shape)
    if shape.ndim == 1:
        values = 0.1 * values + (name == "scale")
    else:
        values = values * np.float32((shape.size / shape.shape[-1]) ** -0.5)
    return values.astype(shape.dtype)


@functools.cache
def _normals() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(2**22 - 3, np.float32)


def normal(seed: int, shape: tuple[int, ...], dtype: Any = np.float32) -> jax.Array:
    """Unit noise from the host."""
    drawn = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return jax.device_put(drawn.astype(dtype))


def random_faces(unet: FusionUNet, params: Any, photos: int, batch: int) -> Faces:
    """What `FusionUNet.faces` gives for a person of so many photos, drawn instead of computed."""
    side, channels = unet.unet.sample_size, unet.unet.in_channels
    dtype = unet.unet.dtype

    def faces(params: Any, photos: Any, text: Any, strength: Any) -> Faces:
        states = unet.reference_states(params, photos, text)
        fusion = unet.init(jax.random.key(0), params)
        return unet.faces(fusion, states, strength, height=side, width=side)

    shapes = jax.eval_shape(
        faces,
        params,
        jax.ShapeDtypeStruct((batch, photos, side, side, channels), dtype),
        jax.ShapeDtypeStruct((1, 77, unet.unet.cross_attention_dim), dtype),
        jax.ShapeDtypeStruct((batch, photos), jnp.float32),
    )
    return Faces(
        keys={name: normal(1, x.shape, x.dtype) for name, x in shapes.keys.items()},
        values={name: normal(2, x.shape, x.dtype) for name, x in shapes.values.items()},
        bias={name: jnp.zeros(x.shape, x.dtype) for name, x in shapes.bias.items()},
    )
