"""A base model as one thing: tokenizer, text encoder, VAE, UNet and noise schedule.

Legend: b batch, t text tokens, d features, h w latent grid, H W image pixels, c latent channels.
Images lie in [-1, 1]; latents are multiplied by the VAE's scaling factor, so their variance is
about one.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array as JaxArray
from jaxtyping import Float, Int, Key
from safetensors.numpy import save_file

from fusionjax.backend.flax_apply import applied
from fusionjax.backend.flax_unet import decoder_ends_in_float32
from fusionjax.diffusion.noise_schedule import NoiseSchedule
from fusionjax.errors import UserError
from fusionjax.interop import configs, names, sources
from fusionjax.interop.fingerprint import Fingerprint
from fusionjax.interop.lora_source import find_lora, parse_all
from fusionjax.models import loading

Array = JaxArray | np.ndarray
Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class BaseModel:
    """A Stable Diffusion 1.x model: modules, parameters and what goes with them.

    Attributes:
        tokenizer: turns prompts into token ids; None where there are no weights either.
        text_encoder: the CLIP text encoder, a `FlaxCLIPTextModule`.
        vae: the autoencoder, a `FlaxAutoencoderKL`.
        unet: the denoiser, a `FlaxUNet2DConditionModel`; run it through `fusionjax.FusionUNet`.
        params: their parameters under "text_encoder", "vae", "unet".
        schedule: the noise schedule that the UNet was trained with.
        source: where it was loaded from, as the user named it.
        recorded_fingerprint: the fingerprint taken at load, before any rounding to another type.
        origin: its files and the LoRAs merged into it; None if it was put together in Python.
    """

    tokenizer: Any
    text_encoder: Any
    vae: Any
    unet: Any
    params: Params
    schedule: NoiseSchedule
    source: str = ""
    recorded_fingerprint: str | None = None
    origin: loading.Origin | None = None

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        dtype: Any = jnp.float32,
        vae: str | os.PathLike[str] | None = None,
        lora: Any = (),
        tokenizer: str | os.PathLike[str] | None = None,
        prediction_type: str | None = None,
    ) -> "BaseModel":
        """Loads a base model, one tensor at a time.

        Args:
            source: a diffusers folder (safetensors or Flax weights), one `.safetensors` file in
                the original layout, or a name on the Hugging Face hub: `owner/name`, or
                `owner/name/file.safetensors`.
            dtype: the type of the parameters and of the computation.
            vae: replaces the VAE (or stands in for a missing one): a folder, file or name.
            lora: a LoRA, merged into UNet and text encoder: a file (`.safetensors` may be left
                out), a folder or a name on the hub, with a strength as `FILE:0.8`, `FILE=0.8` or
                `(file, 0.8)`; or several in this order, as a list or as strengths by file.
            tokenizer: a folder with `vocab.json` and `merges.txt`, or `tokenizer.json`. A single
                file has none; without this, a folder `tokenizer` beside it is used, or else
                CLIP's own.
            prediction_type: what the UNet predicts, where the source does not tell it rightly.

        Returns:
            The model.

        Raises:
            UserError: if something is missing, left over, damaged, or of another kind.
        """
        loras = [(find_lora(name), strength) for name, strength in parse_all(lora)]
        return cls(**loading.load(source, dtype, vae, loras, tokenizer, prediction_type))

    def with_loras(self, loras: Sequence[tuple[Path, float]]) -> "BaseModel":
        """The same base with other LoRAs in place of those that are merged into it.

        Only the weights that a LoRA changes, or has changed, are read again from the base's files,
        so the result is what `from_pretrained` gives; all others are shared with this one.

        Args:
            loras: files and strengths.

        Returns:
            The model.

        Raises:
            UserError: as `from_pretrained`, if the base was not loaded from files, or these are no
                longer what they were.
        """
        if self.origin is None:
            raise UserError(
                "this base was put together in Python; save it (save_pretrained) and load that, so "
                "that LoRAs can be taken out again"
            )
        params, origin = loading.with_loras(self.params, self.origin, loras)
        fingerprint = origin.fingerprint.hexdigest()
        return dataclasses.replace(
            self, params=params, origin=origin, recorded_fingerprint=fingerprint
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
            path = root / part / f"{sources.WEIGHTS[part]}.safetensors"
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
        fingerprint = Fingerprint()
        for path, leaf in flatten_dict(self.params["unet"]).items():
            layout = names.to_torch_layout(path, np.asarray(leaf))
            fingerprint.add(names.torch_name(path), layout)
        return fingerprint.hexdigest()

    @property
    def identity_fingerprint(self) -> str:
        """What identities depend on: `fingerprint`, and what LoRAs made of the text encoder."""
        text = None if self.origin is None else self.origin.text_digest
        return self.fingerprint if text is None else f"{self.fingerprint}+{text}"

    @property
    def latent_channels(self) -> int:
        """Channels of the VAE's latents."""
        return int(self.vae.latent_channels)

    @property
    def is_inpainting(self) -> bool:
        """Whether the UNet also reads where to paint, and what is known of the image elsewhere."""
        return bool(self.unet.in_channels == 2 * self.latent_channels + 1)

    @property
    def picture_side(self) -> int:
        """Side of the square pictures that the model was trained on, in pixels."""
        return int(self.unet.sample_size * self.vae_scale_factor)

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

    def encode_text(
        self, params: Params, token_ids: Int[Array, "b t"], *, clip_skip: int | None = None
    ) -> Float[Array, "b t d"]:
        """The text states that the UNet's cross-attention reads.

        Args:
            params: `self.params` or a tree like it.
            token_ids: from `tokenize`.
            clip_skip: how many of the last layers are left out.

        Returns:
            The last hidden state that is not left out, after the final layer norm.
        """
        positions = jnp.broadcast_to(jnp.arange(token_ids.shape[1]), token_ids.shape)
        output = applied(
            self.text_encoder,
            params["text_encoder"],
            token_ids,
            jnp.ones_like(token_ids),
            positions,
            output_hidden_states=bool(clip_skip),
        )
        if not clip_skip:
            return output.last_hidden_state
        epsilon = self.text_encoder.config.layer_norm_eps
        norm = nn.LayerNorm(epsilon=epsilon, dtype=self.text_encoder.dtype)
        weights = params["text_encoder"]["text_model"]["final_layer_norm"]
        normed: Any = norm.apply({"params": weights}, output.hidden_states[-1 - clip_skip])
        return normed

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
        posterior = self._posterior(params, images)
        latents = posterior.mean if key is None else posterior.sample(key)
        return latents * self.vae.scaling_factor

    def encode_posterior(
        self, params: Params, images: Float[Array, "b H W 3"]
    ) -> Float[Array, "b h w c2"]:
        """Images as the mean and standard deviation of their scaled latents, one behind the other.

        Args:
            params: as for `encode_image`, and so are the images.
            images: see there.

        Returns:
            Twice the latents' channels.

        Raises:
            UserError: as `encode_image`.
        """
        posterior = self._posterior(params, images)
        both = jnp.concatenate([posterior.mean, posterior.std], axis=-1)
        return both * self.vae.scaling_factor

    def _posterior(self, params: Params, images: Float[Array, "b H W 3"]) -> Any:
        factor = self.vae_scale_factor
        if images.shape[1] % factor or images.shape[2] % factor:
            raise UserError(
                f"an image has {images.shape[1]}×{images.shape[2]} pixels; "
                f"both sides must be multiples of {factor}"
            )
        return applied(
            self.vae, params["vae"], images.transpose(0, 3, 1, 2), method=type(self.vae).encode
        ).latent_dist

    def decode(self, params: Params, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        """Scaled latents as images.

        Args:
            params: `self.params` or a tree like it.
            latents: as `encode_image` returns them.

        Returns:
            Images, nominally in [-1, 1] but not clipped; float32, and so is the computation from
            the decoder's last norm on.
        """
        with nn.intercept_methods(decoder_ends_in_float32):
            output = applied(
                self.vae,
                params["vae"],
                latents / self.vae.scaling_factor,
                method=type(self.vae).decode,
            )
        return output.sample.transpose(0, 2, 3, 1)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
