"""The base model: UNet and text encoder learn together to denoise cached latents."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fusionjax.backend.flax_classes import (
    CLIPTextConfig,
    CLIPTokenizer,
    FlaxCLIPTextModule,
    FlaxUNet2DConditionModel,
)
from fusionjax.data.cache import made_from, text
from fusionjax.data.records import open_records
from fusionjax.diffusion.noise_schedule import (
    NoiseSchedule,
    add_noise,
    min_snr_weight,
    random_timesteps,
    target,
)
from fusionjax.diffusion.samplers import plan
from fusionjax.embedded import base_source
from fusionjax.errors import UserError
from fusionjax.generation.model import Model
from fusionjax.models.base import BaseModel
from fusionjax.pixels import decode_image, to_unit
from fusionjax.unet import FusionUNet
from train.config import BaseRun
from train.examples import cached_latents
from train.export import load_vae
from train.faces import box_weight, features_boxes
from train.preview import preview, preview_scene, tile
from train.step import Batch, Metrics, Params


class BaseModelObjective:
    """See `train.objectives.Objective`."""

    def __init__(self, config: BaseRun, mesh: Mesh) -> None:
        self.config = config
        self.frozen: Any = {}
        self._mesh = mesh
        self.base = _new_base(config)
        self._model = Model(self.base, FusionUNet(self.base.unet))
        self._empty = jnp.asarray(self.base.tokenize([""]))
        self._plan = plan(self.base.schedule, "ddim", 20)
        self._compiled_grid = jax.jit(self._grid)

    def source(self, split: str) -> Any:
        """The cached latents of a split; they are computed at first use."""
        data = self.config.data.folder
        about = made_from(self.base, data)
        return cached_latents(
            self.base,
            self._mesh,
            data=data,
            split=split,
            folder=Path(f"{data}-latents-{about['autoencoder']}"),
            made_from=about,
            with_references=False,
            most_skipped=self.config.data.most_skipped,
        )

    def make(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        del rng
        latents, heads = example["latents"], example["face_boxes"]
        size = latents.shape[:2]
        return {
            "latents": latents,
            "tokens": example["tokens"],
            "weight": box_weight(heads, size, self.config.face_weight)
            * box_weight(features_boxes(heads), size, self.config.features_weight),
        }

    def batch_shapes(self) -> dict[str, Any]:
        count, unet = self.config.batch_size, self.base.unet
        grid = (unet.sample_size, unet.sample_size)
        return {
            "latents": jax.ShapeDtypeStruct((count, *grid, unet.in_channels), jnp.float32),
            "weight": jax.ShapeDtypeStruct((count, *grid), jnp.float32),
            "tokens": jax.ShapeDtypeStruct((count, self._empty.shape[1]), jnp.int32),
        }

    def init(self, key: jax.Array, frozen: Any) -> Params:
        del frozen
        unet_key, text_key = jax.random.split(key)
        ids = jnp.zeros((1, self._empty.shape[1]), jnp.int32)
        return {
            "unet": self.base.unet.init_weights(unet_key),
            "text_encoder": self.base.text_encoder.init(
                text_key, ids, jnp.ones_like(ids), jnp.arange(ids.shape[1])[None]
            )["params"],
        }

    def read(self, source: str) -> Params:
        params = BaseModel.from_pretrained(base_source(source)).params
        return {name: params[name] for name in ("unet", "text_encoder")}

    def loss(
        self, params: Params, frozen: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        schedule = self.base.schedule
        clean = batch["latents"]
        count = clean.shape[0]
        noise_key, time_key, drop_key = jax.random.split(key, 3)
        noise = jax.random.normal(noise_key, clean.shape)
        t = random_timesteps(schedule, time_key, count)
        drop = jax.random.bernoulli(drop_key, self.config.caption_dropout, (count, 1))
        tokens = jnp.where(drop, self._empty, batch["tokens"])
        states = jnp.asarray(self.base.encode_text(params, tokens))
        answer = self._model.fusion(params["unet"], add_noise(schedule, clean, noise, t), t, states)
        error = jnp.square(answer - target(schedule, clean, noise, t)).mean(-1)
        weight = batch["weight"]
        each = (weight * error).sum((1, 2)) / weight.sum((1, 2))
        loss = (min_snr_weight(schedule, t, self.config.min_snr_gamma) * each).mean()
        words = self._words_loss(params["text_encoder"], batch["tokens"], states, drop[:, 0])
        return loss + self.config.words_weight * words, {"mse": error.mean(), "words": words}

    def _words_loss(
        self, text_encoder: Params, tokens: Any, states: Any, dropped: Any
    ) -> jax.Array:
        """How badly the states after a caption tell its words: a cross-entropy, at least 0.

        Most of a caption's 77 places come after its end, and attention that has learnt nothing
        yet looks mostly there: what those states hold, the UNet can use at once. Each word's
        probability is by the similarity of their mean to the word's own embedding.
        """
        end = self.base.tokenizer.eos_token_id
        after = jnp.cumsum(tokens == end, axis=1) > 0
        started = jnp.arange(tokens.shape[1])[None] > 0
        word = (~after & started).astype(jnp.float32)
        summary = (states * after[..., None]).sum(1) / after.sum(1, keepdims=True)
        embedding = text_encoder["text_model"]["embeddings"]["token_embedding"]["embedding"]
        told = jax.nn.log_softmax(summary @ embedding.T)
        each = -(jnp.take_along_axis(told, tokens, axis=1) * word).sum(1)
        each /= jnp.maximum(word.sum(1), 1)
        return (each * ~dropped).mean()

    def grid(self, params: Params) -> np.ndarray:
        """Pictures of the validation split over what the model paints to their captions."""
        records = open_records(self.config.data.folder, self.config.data.validation_split)
        columns = 12
        count = min(columns * self.config.validation.grid_rows, len(records))
        # Far apart, since the pictures of one person lie side by side.
        chosen = [records[i * (len(records) // count)] for i in range(count)]
        real = np.stack([to_unit(decode_image(example["image"])) for example in chosen])
        tokens = self.base.tokenize([text(example["caption"]) for example in chosen])
        return tile([real, self._compiled_grid(params, tokens)], columns=columns)

    def describe(self) -> dict[str, Any]:
        return {}

    def export(self, params: Params, folder: Path) -> None:
        """Writes `base/`: the whole model as a diffusers folder, float16."""
        trained = dataclasses.replace(self.base, params={**self.base.params, **params})
        trained.save_pretrained(folder / "base")

    def how_to_use(self, folder: Path) -> str:
        return f"python -m train mini --base {folder}/base"

    def _grid(self, params: Params, tokens: jax.Array) -> jax.Array:
        scene = preview_scene(tokens, self._empty, self._plan, self.config.guidance_scale)
        grid = (self.base.unet.sample_size,) * 2
        latents = preview(self._model, {"base": params}, scene, self._plan, grid)
        return jnp.asarray(self.base.decode(self.base.params, latents))


def _new_base(config: BaseRun) -> BaseModel:
    """The model's modules, with the trained autoencoder and nothing else yet."""
    vae, vae_params = load_vae(Path(config.autoencoder) / "vae")
    if not (Path(config.tokenizer) / "vocab.json").is_file():
        raise UserError(f"tokenizer is {config.tokenizer!r}; it holds no vocab.json")
    tokenizer = CLIPTokenizer.from_pretrained(config.tokenizer)
    levels = len(config.block_out_channels)
    plain = levels - config.attention_levels
    unet: Any = FlaxUNet2DConditionModel(
        sample_size=vae.sample_size // 2 ** (len(vae.block_out_channels) - 1),
        in_channels=vae.latent_channels,
        out_channels=vae.latent_channels,
        down_block_types=("CrossAttnDownBlock2D",) * config.attention_levels
        + ("DownBlock2D",) * plain,
        up_block_types=("UpBlock2D",) * plain + ("CrossAttnUpBlock2D",) * config.attention_levels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        attention_head_dim=config.attention_heads,
        cross_attention_dim=config.text_features,
        dtype=jnp.bfloat16 if config.precision == "bfloat16" else jnp.float32,
    )
    text_encoder = FlaxCLIPTextModule(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.text_features,
            intermediate_size=4 * config.text_features,
            projection_dim=config.text_features,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_heads,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return BaseModel(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae,
        unet=unet,
        params={"vae": vae_params},
        schedule=NoiseSchedule(prediction_type=config.prediction_type),
    )
