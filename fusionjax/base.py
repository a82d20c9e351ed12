"""A base model as one thing: tokenizer, text encoder, VAE, UNet and noise schedule.

Legend: b batch, t text tokens, d features, h w latent grid, H W image pixels, c latent channels.
Images lie in [-1, 1]; latents are multiplied by the VAE's scaling factor, so their variance is
about one.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from diffusers import FlaxAutoencoderKL, FlaxUNet2DConditionModel
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int, Key
from safetensors.numpy import save_file
from transformers import CLIPTokenizer
from transformers.models.clip.modeling_flax_clip import FlaxCLIPTextModule

from fusionjax.diffusion import NoiseSchedule
from fusionjax.errors import UserError
from fusionjax.flax_compat import quiet_diffusers
from fusionjax.interop import configs, names
from fusionjax.interop.safetensors_file import SafetensorsFile

Params = dict[str, Any]

_WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
_BUFFERS = ("text_model.embeddings.position_ids",)  # not parameters, in older files
_FINGERPRINT_SAMPLES = 1024


@dataclasses.dataclass(frozen=True)
class BaseModel:
    """A Stable Diffusion 1.x model: modules, parameters and what goes with them.

    Attributes:
        tokenizer: turns prompts into token ids.
        text_encoder: the CLIP text encoder's Flax module.
        vae: the autoencoder's Flax module.
        unet: the denoiser's Flax module; run it through `fusionjax.FusionUNet`.
        params: their parameters under "text_encoder", "vae", "unet".
        schedule: the noise schedule that the UNet was trained with.
        source: where it was loaded from, as the user named it.
        recorded_fingerprint: the fingerprint taken at load, before any rounding to another type.
    """

    tokenizer: CLIPTokenizer
    text_encoder: FlaxCLIPTextModule
    vae: FlaxAutoencoderKL
    unet: FlaxUNet2DConditionModel
    params: Params
    schedule: NoiseSchedule
    source: str = ""
    recorded_fingerprint: str | None = None

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike[str], *, dtype: Any = jnp.float32
    ) -> "BaseModel":
        """Loads a base model.

        Args:
            source: a diffusers folder with safetensors.
            dtype: the type of the parameters and of the computation.

        Returns:
            The model.

        Raises:
            UserError: if something is missing, damaged, or of another kind.
        """
        quiet_diffusers()
        folder = Path(source)
        if not folder.is_dir():
            raise UserError(f"{source} is not a folder")
        builders = {
            "text_encoder": configs.text_encoder_from_config,
            "vae": configs.vae_from_config,
            "unet": configs.unet_from_config,
        }
        modules, params = {}, {}
        sampler = _Fingerprint()
        for part, build in builders.items():
            config_path = folder / part / "config.json"
            modules[part] = build(configs.read_json(config_path), str(config_path), dtype)
            with SafetensorsFile(folder / part / f"{_WEIGHTS[part]}.safetensors") as file:
                params[part] = _fill(
                    modules[part], file, dtype, sampler if part == "unet" else None
                )
        scheduler = configs.read_json(folder / "scheduler" / "scheduler_config.json")
        return cls(
            tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            text_encoder=modules["text_encoder"],
            vae=modules["vae"],
            unet=modules["unet"],
            params=params,
            schedule=NoiseSchedule.from_config(scheduler),
            source=os.fspath(source),
            recorded_fingerprint=sampler.hexdigest(),
        )

    def save_pretrained(self, folder: str | os.PathLike[str], dtype: Any = jnp.float16) -> None:
        """Writes the diffusers folder layout with PyTorch's names, so that PyTorch loads it too.

        Args:
            folder: where to; made if it does not exist.
            dtype: the type of the weights in the files, float16 or float32.
        """
        root = Path(folder)
        modules = {"text_encoder": self.text_encoder, "vae": self.vae, "unet": self.unet}
        for part, module in modules.items():
            (root / part).mkdir(parents=True, exist_ok=True)
            _write_json(root / part / "config.json", configs.to_config(module))
            state = names.to_torch_state(self.params[part], dtype)
            path = root / part / f"{_WEIGHTS[part]}.safetensors"
            save_file(state, path, metadata={"format": "pt"})
        self.tokenizer.save_pretrained(root / "tokenizer")
        (root / "scheduler").mkdir(exist_ok=True)
        _write_json(root / "scheduler" / "scheduler_config.json", self.schedule.to_config())
        _write_json(
            root / "model_index.json",
            {
                "_class_name": "StableDiffusionPipeline",
                "feature_extractor": [None, None],
                "image_encoder": [None, None],
                "requires_safety_checker": False,
                "safety_checker": [None, None],
                "scheduler": ["diffusers", self.schedule.to_config()["_class_name"]],
                "text_encoder": ["transformers", "CLIPTextModel"],
                "tokenizer": ["transformers", "CLIPTokenizer"],
                "unet": ["diffusers", "UNet2DConditionModel"],
                "vae": ["diffusers", "AutoencoderKL"],
            },
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits that tell one UNet's weights from another's.

        They are taken over a sample of every parameter, rounded to float16, so a model has the
        same fingerprint in float32 and in float16, whatever type it is loaded in. A merged LoRA
        changes it; the text encoder and the VAE do not.
        """
        if self.recorded_fingerprint is not None:
            return self.recorded_fingerprint
        sampler = _Fingerprint()
        for path, leaf in flatten_dict(self.params["unet"]).items():
            sampler.add(path, np.asarray(leaf))
        return sampler.hexdigest()

    @property
    def vae_scale_factor(self) -> int:
        """Image pixels per latent along one side: 8."""
        return 2 ** (len(self.vae.block_out_channels) - 1)

    def tokenize(self, prompts: Sequence[str]) -> Int[np.ndarray, "b t"]:
        """Turns prompts into token ids, padded and cut to the text encoder's length.

        Args:
            prompts: b prompts.

        Returns:
            int32 ids; t is 77 for Stable Diffusion.
        """
        encoded = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.text_encoder.config.max_position_embeddings,
            truncation=True,
            return_tensors="np",
        )
        return encoded["input_ids"].astype(np.int32)

    def encode_text(self, params: Params, token_ids: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """The text states that the UNet's cross-attention reads.

        Args:
            params: `self.params` or a tree like it.
            token_ids: from `tokenize`.

        Returns:
            The last hidden state after the final layer norm.
        """
        positions = jnp.broadcast_to(jnp.arange(token_ids.shape[1]), token_ids.shape)
        output = self.text_encoder.apply(
            {"params": params["text_encoder"]}, token_ids, jnp.ones_like(token_ids), positions
        )
        return output.last_hidden_state

    def encode_image(
        self,
        params: Params,
        images: Float[Array, "b H W 3"],
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Images as scaled latents.

        Args:
            params: `self.params` or a tree like it.
            images: in [-1, 1]; H and W are multiples of `vae_scale_factor`.
            key: draws from the VAE's posterior; without one its mean is returned.

        Returns:
            Latents, h = H / 8 and w = W / 8.

        Raises:
            UserError: if the size does not divide.
        """
        factor = self.vae_scale_factor
        if images.shape[1] % factor or images.shape[2] % factor:
            raise UserError(
                f"an image has {images.shape[1]}×{images.shape[2]} pixels; "
                f"both sides must be multiples of {factor}"
            )
        posterior = self.vae.apply(
            {"params": params["vae"]}, images.transpose(0, 3, 1, 2), method=self.vae.encode
        ).latent_dist
        latents = posterior.mean if key is None else posterior.sample(key)
        return latents * self.vae.scaling_factor

    def decode(self, params: Params, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        """Scaled latents as images.

        Args:
            params: `self.params` or a tree like it.
            latents: as `encode_image` returns them.

        Returns:
            Images, nominally in [-1, 1] but not clipped.
        """
        output = self.vae.apply(
            {"params": params["vae"]}, latents / self.vae.scaling_factor, method=self.vae.decode
        )
        return output.sample.transpose(0, 2, 3, 1)


class _Fingerprint:
    """Collects samples of named parameters; the order of adding does not matter."""

    def __init__(self) -> None:
        self._digests: dict[str, bytes] = {}

    def add(self, path: names.ParamPath, array: np.ndarray) -> None:
        flat = array.reshape(-1)
        sample = flat[:: max(1, flat.size // _FINGERPRINT_SAMPLES)].astype(np.float32)
        with np.errstate(over="ignore"):
            rounded = sample.astype("<f2").tobytes()
        digest = hashlib.blake2b(f"{array.shape}".encode() + rounded, digest_size=16)
        self._digests["/".join(path)] = digest.digest()

    def hexdigest(self) -> str:
        total = hashlib.blake2b(digest_size=8)
        for name in sorted(self._digests):
            total.update(name.encode() + self._digests[name])
        return total.hexdigest()


def _fill(module: Any, file: SafetensorsFile, dtype: Any, sampler: _Fingerprint | None) -> Params:
    """The module's parameters from a file with PyTorch's names, one tensor at a time."""
    wanted = names.torch_names(module)
    missing = [name for name in wanted if name not in file]
    unused = [name for name in file if name not in wanted and name not in _BUFFERS]
    if missing or unused:
        raise UserError(
            f"{file.path} does not fit its config.json; missing: {missing[:3]}, "
            f"left over: {unused[:3]}"
        )
    filled: dict[names.ParamPath, jax.Array] = {}
    for name, (path, shape) in wanted.items():
        array = names.to_flax_layout(path, file.read(name), len(shape))
        if array.shape != shape:
            raise UserError(f"{file.path}: {name} has shape {file[name]}, not {shape} (Flax)")
        if sampler is not None:
            sampler.add(path, array)
        filled[path] = jnp.asarray(np.ascontiguousarray(array, dtype))
    return unflatten_dict(filled)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
