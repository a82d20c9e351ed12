"""A base model without weights: shapes only, for dry runs."""

import json
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import unflatten_dict

from fusionjax import schema
from fusionjax.backend.param_shapes import param_shapes
from fusionjax.diffusion.noise_schedule import NoiseSchedule
from fusionjax.interop import configs
from fusionjax.models.base import BaseModel

STAND_IN = "no folder on this machine: Stable Diffusion 1.5's sizes stand for it"
"""What a dry run says of a source of which it knows nothing."""

# Stable Diffusion 1.5, where the named base is not on this machine.
_SD15: dict[str, dict[str, Any]] = {
    "unet": {
        "sample_size": 64,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
    "vae": {
        "sample_size": 512,
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": 32,
        "scaling_factor": 0.18215,
    },
    "text_encoder": {
        "model_type": "clip_text_model",
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
    },
}


def is_here(source: str) -> bool:
    """Whether a source is a diffusers folder on this machine; for others SD 1.5 stands."""
    return (Path(source) / "unet" / "config.json").is_file()


def abstract_base(source: str, dtype: Any) -> BaseModel:
    """The modules of a base model and the shapes of its weights.

    Args:
        source: a diffusers folder; anything else stands for Stable Diffusion 1.5.
        dtype: of weights and computation.

    Returns:
        A model whose parameters are `jax.ShapeDtypeStruct`s and that has no tokenizer.
    """
    folder = Path(source)
    known = is_here(source)

    def config(part: str) -> dict[str, Any]:
        return schema.read_json(folder / part / "config.json") if known else _SD15[part]

    unet: Any = configs.unet_from_config(config("unet"), "unet", dtype)
    vae: Any = configs.vae_from_config(config("vae"), "vae", dtype)
    text: Any = configs.text_encoder_from_config(config("text_encoder"), "text_encoder", dtype)
    shapes = {
        name: unflatten_dict(param_shapes(module))
        for name, module in {"unet": unet, "vae": vae, "text_encoder": text}.items()
    }
    schedule = folder / "scheduler" / "scheduler_config.json"
    return BaseModel(
        tokenizer=None,  # type: ignore[arg-type]
        text_encoder=text,
        vae=vae,
        unet=unet,
        params=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes),
        schedule=NoiseSchedule.from_config(json.loads(schedule.read_text()))
        if schedule.is_file()
        else NoiseSchedule(),
        source=source,
    )
