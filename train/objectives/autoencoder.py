"""The autoencoder: L1 on pixels and on edges, a tiny KL.

L1 with an edge term keeps flat-coloured drawings flat and their lines sharp.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from diffusers import FlaxAutoencoderKL

from fusionjax.data.pipeline import decode_image, open_records, to_bytes, to_unit
from fusionjax.errors import UserError
from fusionjax.flax_compat import quiet_diffusers
from train.config import AutoencoderRun
from train.export import save_module
from train.grids import tile
from train.step import Batch, Metrics, Params


class AutoencoderObjective:
    """See `train.objectives.Objective`."""

    def __init__(self, config: AutoencoderRun) -> None:
        quiet_diffusers()
        self.config = config
        self.frozen: Any = {}
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

    def init(self, key: jax.Array) -> Params:
        return self.model.init_weights(key)

    def loss(
        self, params: Params, frozen: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        image = batch["image"]
        encoded = self.model.apply(
            {"params": params}, jnp.transpose(image, (0, 3, 1, 2)), method=self.model.encode
        ).latent_dist
        decoded = self._decode(params, encoded.sample(key))
        l1 = jnp.abs(decoded - image).mean()
        edges = sum(
            jnp.abs(jnp.diff(decoded, axis=axis) - jnp.diff(image, axis=axis)).mean()
            for axis in (1, 2)
        )
        kl = encoded.kl().mean() / np.prod(encoded.mean.shape[1:])
        total = l1 + self.config.edge_weight * edges + self.config.kl_weight * kl
        mse = jnp.square(decoded - image).mean((1, 2, 3)) / 4  # pictures span -1..1
        psnr = (-10 * jnp.log10(mse + 1e-12)).mean()
        return total, {"l1": l1, "edges": edges, "kl": kl, "psnr_db": psnr}

    def grid(self, params: Params) -> np.ndarray:
        rows = self._watched[: self.config.validation.grid_rows * 4]
        return tile([rows, self._reconstruct(params, rows)[0]], columns=12)

    def describe(self) -> dict[str, Any]:
        return {}

    def export(self, params: Params, folder: Path) -> None:
        """Writes `vae/` (with the measured scaling_factor) and what was measured."""
        shown, spread = self._reconstruct(params, self._watched)
        error = np.square(to_bytes(shown).astype(np.float64) - to_bytes(self._watched))
        psnr = 10 * np.log10(255**2 / np.maximum(error.mean((1, 2, 3)), 1e-9))
        save_module(
            folder / "vae",
            self.model,
            params,
            scaling_factor=float(1 / spread),
            sample_size=int(self._watched.shape[1]),
        )
        (folder / "measured.json").write_text(
            json.dumps({"validation_psnr_db": float(psnr.mean())}, indent=2) + "\n"
        )

    def how_to_use(self, folder: Path) -> str:
        return f"python -m train configs/mini_base.py --autoencoder {folder}"

    def _decode(self, params: Params, latents: jax.Array) -> jax.Array:
        decoded = self.model.apply({"params": params}, latents, method=self.model.decode).sample
        return jnp.transpose(decoded, (0, 2, 3, 1)).astype(jnp.float32)

    def _reconstruct_(self, params: Params, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        encoded = self.model.apply(
            {"params": params}, jnp.transpose(image, (0, 3, 1, 2)), method=self.model.encode
        ).latent_dist
        return self._decode(params, encoded.mean), encoded.mean.std()

    def _pictures(self, count: int) -> np.ndarray:
        source = self.source(self.config.data.validation_split)
        chosen = [source[i] for i in range(min(count, len(source)))]
        return np.stack([to_unit(decode_image(example["image"])) for example in chosen])
