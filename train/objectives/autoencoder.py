"""The autoencoder: its latents are the principal components of the pictures' patches.

Learning encoder and decoder against each other takes long to leave the few directions in which
pictures vary most. Here the latents are settled beforehand: the leading principal components of
patches as large as a latent cell. The encoder learns to compute them, the decoder learns to invert
them (it sees the neighbours too, so it does better than the linear inverse), and a base model's
latents do not depend on how far either has come.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from fusionjax.backend.flax_apply import applied
from fusionjax.backend.flax_classes import FlaxAutoencoderKL
from fusionjax.data.records import open_records
from fusionjax.errors import UserError
from fusionjax.pixels import decode_image, to_bytes, to_unit
from train.config import AutoencoderRun
from train.export import load_vae, save_module
from train.preview import tile
from train.step import Batch, Metrics, Params

LOG_VARIANCE = -6.0  # of the encoder's posterior
PICTURES = 1500  # that the principal components are taken of


class AutoencoderObjective:
    """See `train.objectives.Objective`."""

    def __init__(self, config: AutoencoderRun) -> None:
        self.config = config
        self._patch = 2 ** (len(config.block_out_channels) - 1)
        self.frozen: Any = self._principal_components()
        levels = len(config.block_out_channels)
        self.model: Any = FlaxAutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_num_groups,
            sample_size=config.crop_px,
            dtype=jnp.bfloat16 if config.precision == "bfloat16" else jnp.float32,
        )
        self._watched = self._pictures(config.validation.examples)
        self._reconstruct = jax.jit(self._reconstruct_)

    def source(self, split: str) -> Any:
        return open_records(self.config.data.folder, split)

    def make(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        image = decode_image(example["image"])
        side = self.config.crop_px
        if min(image.shape[:2]) < side:
            raise UserError(f"crop_px is {side}; a picture has {image.shape[1]}x{image.shape[0]}")
        top = int(rng.integers(image.shape[0] - side + 1))
        left = int(rng.integers(image.shape[1] - side + 1))
        crop = image[top : top + side, left : left + side]
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        return {"image": to_unit(crop)}

    def batch_shapes(self) -> dict[str, Any]:
        side = self.config.crop_px
        shape = (self.config.batch_size, side, side, 3)
        return {"image": jax.ShapeDtypeStruct(shape, jnp.float32)}

    def init(self, key: jax.Array, frozen: Any) -> Params:
        del frozen
        params = self.model.init_weights(key)
        # A start at which the branches add nothing learns several times faster: gradients reach
        # the latents through the shortcuts alone. The lower half of quant_conv's outputs is the
        # posterior's log-variance: with little noise the decoder sees the picture at once.
        flat = flatten_dict(params)
        for path, x in flat.items():
            if path[-2:] in {("conv2", "kernel"), ("proj_attn", "kernel")}:
                flat[path] = jnp.zeros_like(x)
        bias = flat["quant_conv", "bias"]
        flat["quant_conv", "bias"] = bias.at[bias.size // 2 :].set(LOG_VARIANCE)
        return unflatten_dict(flat)

    def read(self, source: str) -> Params:
        return load_vae(Path(source) / "vae")[1]

    def loss(
        self, params: Params, frozen: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        config, image = self.config, batch["image"]
        latents = principal_latents(frozen, image)
        encoded = self._encode(params, image)
        encoder_error = jnp.square(encoded.mean - latents).mean()
        spread = jnp.square(encoded.logvar - LOG_VARIANCE).mean()

        # The sampler's latents are not exact either.
        noise = config.latent_noise * jax.random.normal(key, latents.shape)
        decoded = self._decode(params, latents + noise)
        l1 = jnp.abs(decoded - image).mean()
        mse = jnp.square(decoded - image).mean((1, 2, 3))
        edges = sum(
            jnp.abs(jnp.diff(decoded, axis=axis) - jnp.diff(image, axis=axis)).mean()
            for axis in (1, 2)
        )
        decoder_error = l1 + config.mse_weight * mse.mean() + config.edge_weight * edges
        psnr = (-10 * jnp.log10(mse / 4 + 1e-12)).mean()  # pictures span -1..1
        return decoder_error + encoder_error + 0.01 * spread, {
            "l1": l1,
            "edges": jnp.asarray(edges),
            "encoder_error": encoder_error,
            "psnr_db": psnr,
        }

    def grid(self, params: Params) -> np.ndarray:
        rows = self._watched[: self.config.validation.grid_rows * 4]
        return tile([rows, self._reconstruct(params, rows)], columns=12)

    def describe(self) -> dict[str, Any]:
        return {}

    def export(self, params: Params, folder: Path) -> None:
        """Writes `vae/` and what was measured."""
        shown = self._reconstruct(params, self._watched)
        error = np.square(to_bytes(shown).astype(np.float64) - to_bytes(self._watched))
        psnr = 10 * np.log10(255**2 / np.maximum(error.mean((1, 2, 3)), 1e-9))
        save_module(
            folder / "vae",
            self.model,
            params,
            scaling_factor=1.0,  # the principal components are scaled to variance 1
            sample_size=int(self._watched.shape[1]),
        )
        (folder / "measured.json").write_text(
            json.dumps({"validation_psnr_db": float(psnr.mean())}, indent=2) + "\n"
        )

    def how_to_use(self, folder: Path) -> str:
        return f"python -m train configs/mini_base.py --autoencoder {folder}"

    def _encode(self, params: Params, image: jax.Array) -> Any:
        channels_first = jnp.transpose(image, (0, 3, 1, 2))
        return applied(
            self.model, params, channels_first, method=type(self.model).encode
        ).latent_dist

    def _decode(self, params: Params, latents: jax.Array) -> jax.Array:
        decoded = applied(self.model, params, latents, method=type(self.model).decode).sample
        return jnp.transpose(decoded, (0, 2, 3, 1)).astype(jnp.float32)

    def _reconstruct_(self, params: Params, image: jax.Array) -> jax.Array:
        return self._decode(params, self._encode(params, image).mean)

    def _principal_components(self) -> dict[str, np.ndarray]:
        """Fits the latents to pictures spread over the training split."""
        source = self.source(self.config.data.train_split)
        count = min(PICTURES, len(source))
        images = np.stack(
            [
                to_unit(decode_image(source[int(i)]["image"]))
                for i in np.linspace(0, len(source) - 1, count).astype(int)
            ]
        )
        return principal_components(images, self._patch, self.config.latent_channels)

    def _pictures(self, count: int) -> np.ndarray:
        source = self.source(self.config.data.validation_split)
        chosen = [source[i] for i in range(min(count, len(source)))]
        return np.stack([to_unit(decode_image(example["image"])) for example in chosen])


def principal_components(images: np.ndarray, patch: int, count: int) -> dict[str, np.ndarray]:
    """The leading principal components of square patches.

    Args:
        images: [n, H, W, 3], sides multiples of `patch`.
        patch: side in pixels.
        count: how many components.

    Returns:
        `mean` [patch, patch, 3] and `basis` [patch, patch, 3, count]. Latents are the patch less
        the mean, times the basis. They have variance 1 on average; the square roots of the
        components' standard deviations remain, so that what matters more is larger.
    """
    n, height, width, channels = images.shape
    patches = images.reshape(n, height // patch, patch, width // patch, patch, channels)
    flat = patches.transpose(0, 1, 3, 2, 4, 5).reshape(-1, patch * patch * channels)
    mean = flat.mean(0, dtype=np.float64)
    centred = flat - mean
    variances, vectors = np.linalg.eigh(centred.T @ centred / len(flat))
    variances, vectors = variances[::-1][:count], vectors[:, ::-1][:, :count]
    # An eigenvector's sign is arbitrary: its largest entry shall be positive.
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), np.arange(count)])
    scale = variances**-0.25  # standard deviation s becomes sqrt(s)
    scale /= np.sqrt((variances * scale**2).mean())
    return {
        "mean": mean.reshape(patch, patch, channels).astype(np.float32),
        "basis": (vectors * scale).reshape(patch, patch, channels, count).astype(np.float32),
    }


def principal_latents(components: Any, images: Any) -> jax.Array:
    """Latents [b, h, w, c] of pictures [b, H, W, 3]; see `principal_components`."""
    patch = components["mean"].shape[0]
    n, height, width, channels = images.shape
    patches = images.reshape(n, height // patch, patch, width // patch, patch, channels)
    centred = patches - components["mean"].reshape(1, 1, patch, 1, patch, channels)
    return jnp.einsum("nhpwqc,pqcd->nhwd", centred, components["basis"])
