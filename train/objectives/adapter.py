"""The adapter: kf and vf learn to carry a face through the frozen UNet.

Equations 1 to 6 are `FusionUNet`'s; here is what they are trained on: the picture's latents are
noised, photos of the same person go through the frozen UNet, and the answer is compared with the
base's own target.
"""

import dataclasses
import functools
import shlex
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from fusionjax.backend.devices import default_implementation
from fusionjax.data.batches import stacked
from fusionjax.data.cache import made_from
from fusionjax.diffusion.noise_schedule import add_noise, min_snr_weight, random_timesteps, target
from fusionjax.diffusion.samplers import plan
from fusionjax.embedded import MINI, base_source
from fusionjax.errors import UserError
from fusionjax.generation.model import Model
from fusionjax.generation.scene import People
from fusionjax.interop.adapter_file import save_adapter
from fusionjax.masks import log_strength
from fusionjax.models.abstract_base import abstract_base
from fusionjax.models.adapter import load_adapter
from fusionjax.models.base import BaseModel
from fusionjax.sheet import stacked as stacked_sheets
from fusionjax.unet import FusionUNet
from train.config import AdapterRun
from train.examples import cached_latents, shapes_with_references, with_references
from train.own_grid import OwnGrid, read_own
from train.preview import preview, preview_scene, tile
from train.step import Batch, Metrics, Params

DTYPES: dict[str, Any] = {
    "float32": jnp.float32,
    "bfloat16": jnp.bfloat16,
    "float16": jnp.float16,
}


class AdapterObjective:
    """See `train.objectives.Objective`."""

    def __init__(self, config: AdapterRun, mesh: Mesh, *, abstract: bool = False) -> None:
        """Loads the base.

        Args:
            config: the run.
            mesh: where it will run.
            abstract: load shapes only, for a dry run.
        """
        self.config = config
        self._mesh = mesh
        self._dtype = DTYPES[config.precision]
        source = base_source(config.base)
        self.base = (
            abstract_base(source, self._dtype)
            if abstract
            else _on_host(BaseModel.from_pretrained(source, dtype=self._dtype))
        )
        if self.base.is_inpainting:
            raise UserError(
                f"{config.base} is an inpainting model; train on the base that it was made of, "
                "whose adapters it can use"
            )
        attention = config.attention or default_implementation(
            config.precision, list(mesh.devices.flat)
        )
        self.fusion = FusionUNet(
            self.base.unet,
            config.fusion,
            attention=attention,
            remat=config.remat,
            mesh=mesh if mesh.size > 1 else None,
        )
        # The picture grids are few pictures on one device, whatever the mesh.
        self._alone = Model(
            self.base, FusionUNet(self.base.unet, config.fusion, attention=attention)
        )
        needed = ("unet",) if config.text_states else ("unet", "text_encoder")
        self.frozen: Any = {name: self.base.params[name] for name in needed}
        self._empty = self._empty_text(abstract=abstract)
        self._plan = plan(self.base.schedule, "ddim", 20)
        self._compiled_grid = jax.jit(self._grid)
        self._compiled_pictures = jax.jit(self._pictures, static_argnames="with_people")
        own = None if abstract else read_own(config.validation, config.references)
        self._own = own and OwnGrid(own, self.base, config.references)

    def source(self, split: str) -> Any:
        """The cached latents of a split; they are computed at first use."""
        data = self.config.data
        return cached_latents(
            self.base,
            self._mesh,
            data=data.folder,
            split=split,
            folder=self._cache_folder,
            made_from=self._made_from,
            with_references=True,
            text_states=self.config.text_states,
            posterior=self.config.sample_posterior,
            most_skipped=data.most_skipped,
            most_people=self.config.people,
        )

    @functools.cached_property
    def _made_from(self) -> dict[str, str]:
        """Of the caches; it reads all of the autoencoder, and the grids ask for a source too."""
        config = self.config
        return made_from(
            self.base,
            config.data.folder,
            self._cache_folder,
            text_states=config.text_states,
            posterior=config.sample_posterior,
        )

    @property
    def _cache_folder(self) -> Path:
        return Path(self.config.cache or f"{self.config.data.folder}-latents")

    def make(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        return with_references(example, rng, self.config)

    def batch_shapes(self) -> dict[str, Any]:
        return shapes_with_references(self.config, self.base.unet, self._empty)

    def init(self, key: jax.Array, frozen: Any) -> Params:
        return self.fusion.init(key, frozen["unet"])

    def read(self, source: str) -> Params:
        return load_adapter(source).params

    def loss(
        self, params: Params, frozen: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        config, schedule = self.config, self.base.schedule
        clean = batch["latents"]
        count, height, width, _ = clean.shape
        noise_key, time_key, drop_key, photo_key = jax.random.split(key, 4)

        # The picture, noised to a time of its own.
        noise = jax.random.normal(noise_key, clean.shape)
        t = random_timesteps(schedule, time_key, count)
        noisy = add_noise(schedule, clean, noise, t)

        # What it is shown: text, faces, both or neither.
        draw = jax.random.uniform(drop_key, (count,))
        text_end = config.text_dropout
        faces_end = text_end + config.faces_dropout
        both_end = faces_end + config.both_dropout
        no_text = (draw < text_end) | ((draw >= faces_end) & (draw < both_end))
        no_faces = (draw >= text_end) & (draw < both_end)
        text = batch["text"]
        dropped = no_text.reshape(-1, *[1] * (text.ndim - 1))
        states = self._text(frozen, jnp.where(dropped, self._empty, text))
        faces = self._faces(
            params,
            frozen,
            batch["references"],
            batch["present"] * ~no_faces[:, None],
            t,
            photo_key,
            (height, width),
            batch.get("masks"),
            batch.get("owner"),
        )

        answer = self.fusion(frozen["unet"], noisy.astype(self._dtype), t, states, faces)
        error = jnp.square(answer.astype(jnp.float32) - target(schedule, clean, noise, t)).mean(-1)
        weight = batch["weight"]
        each = (weight * error).sum((1, 2)) / weight.sum((1, 2))
        loss = (min_snr_weight(schedule, t, config.min_snr_gamma) * each).mean()
        return loss, {"mse": error.mean(), **_by_time(error.mean((1, 2)), t, schedule)}

    def grid(self, params: Params) -> np.ndarray:
        """Rows of: a photo, the true picture, with adapter, without; the same noise for both.

        Below it what `validation.prompts` and `validation.photos` ask for.
        """
        source = self.source(self.config.data.validation_split)
        count = min(6 * self.config.validation.grid_rows, len(source))
        chosen = [source[i * (len(source) // count)] for i in range(count)]
        made = [self.make(example, np.random.default_rng(0)) for example in chosen]
        tokens = np.stack([example["tokens"] for example in chosen])
        shown = self._compiled_grid(params, self.base.params, stacked(made), tokens)
        sheet = tile([np.asarray(x) for x in shown], columns=min(count, 12))
        if self._own is None:
            return sheet
        own = self._own.paint(functools.partial(self._compiled_pictures, params, self.base.params))
        return np.asarray(stacked_sheets([Image.fromarray(sheet), own]))

    def describe(self) -> dict[str, Any]:
        return {
            "base": base_source(self.config.base),
            "base_fingerprint": self.base.fingerprint,
            "fusion": self.config.fusion.to_json(),
        }

    def export(self, params: Params, folder: Path) -> None:
        """Writes `adapter.safetensors`, which PyTorch reads too."""
        save_adapter(
            folder / "adapter.safetensors",
            params,
            self.config.fusion,
            base=self.config.base,
            base_fingerprint=self.base.fingerprint,
        )

    def how_to_use(self, folder: Path) -> str:
        line = f"python -m sample --fusion {shlex.quote(str(folder))}"
        if self.config.base == MINI:  # it has people of its own
            return line
        return f'{line} --face PHOTO.jpg --prompt "a person in a garden"'

    def _empty_text(self, *, abstract: bool) -> jax.Array:
        """The empty caption as a batch holds captions: token ids [1, t], or cached text states."""
        length = self.base.text_encoder.config.max_position_embeddings
        if abstract:
            tokens = jnp.zeros((1, length), jnp.int32)
        else:
            tokens = jnp.asarray(self.base.tokenize([""]))
        if not self.config.text_states:
            return tokens
        if abstract:
            states = jax.eval_shape(self.base.encode_text, self.base.params, tokens)
            return jnp.zeros(states.shape, jnp.float16)
        return jnp.asarray(self.base.encode_text(self.base.params, tokens), jnp.float16)

    def _text(self, frozen: Any, text: jax.Array) -> jax.Array:
        if self.config.text_states:
            return text.astype(self._dtype)
        return jnp.asarray(self.base.encode_text(frozen, text))

    def _faces(
        self,
        params: Params,
        frozen: Any,
        references: jax.Array,
        strength: jax.Array,
        t: jax.Array,
        key: jax.Array,
        size: tuple[int, int],
        masks: jax.Array | None = None,
        owner: jax.Array | None = None,
    ) -> Any:
        """The reference pass (frozen, without text) and equation 2."""
        empty = self._text(frozen, self._empty)
        times = None
        if self.config.fusion.reference == "matched":
            times, most = t, references.shape[1]
            flat = references.reshape(-1, *references.shape[2:])
            noise = jax.random.normal(key, flat.shape)
            references = add_noise(self.base.schedule, flat, noise, jnp.repeat(t, most)).reshape(
                references.shape
            )
        hidden = self.fusion.reference_states(
            frozen["unet"], references.astype(self._dtype), empty, times
        )
        height, width = size
        return self.fusion.faces(
            params, hidden, strength, height=height, width=width, masks=masks, owner=owner
        )

    def _grid(
        self, params: Params, frozen: Any, batch: Batch, tokens: jax.Array
    ) -> tuple[jax.Array, ...]:
        """First photos, true images, generated with the adapter and without, [n, H, W, 3] each."""

        rows = [
            batch["references"][:, 0],
            batch["latents"],
            self._painted(params, frozen, batch, tokens, with_people=True),
            self._painted(params, frozen, batch, tokens, with_people=False),
        ]
        return tuple(jnp.split(self._shown(frozen, jnp.concatenate(rows)), len(rows)))

    def _pictures(
        self, params: Params, frozen: Any, batch: Batch, tokens: jax.Array, *, with_people: bool
    ) -> jax.Array:
        """Images of the batch's people, or of nobody, each from its own noise, [n, H, W, 3]."""
        painted = self._painted(params, frozen, batch, tokens, with_people=with_people)
        return self._shown(frozen, painted)

    def _shown(self, frozen: Any, latents: jax.Array) -> jax.Array:
        """Latents as images, one after the other: a large autoencoder holds no batch at once."""

        def one(latents: jax.Array) -> jax.Array:
            decoded = self.base.decode(frozen, latents[None].astype(self._dtype))
            return jnp.asarray(decoded[0], jnp.float32)

        return jax.lax.map(one, latents)

    def _painted(
        self, params: Params, frozen: Any, batch: Batch, tokens: jax.Array, *, with_people: bool
    ) -> jax.Array:
        """The latents of `_pictures`."""
        photos, present = batch["references"], batch["present"]
        count, _, *grid, _ = photos.shape
        empty = jnp.asarray(self.base.tokenize([""]))
        scene = preview_scene(tokens, empty, self._plan, self.config.guidance_scale)
        if with_people:
            matched = self.config.fusion.reference == "matched"
            states: Any = {}
            if not matched:
                text: Any = self.base.encode_text(frozen, empty)
                states = self._alone.fusion.reference_states(
                    frozen["unet"], photos.astype(self._dtype), text
                )
            of_steps = (count, len(self._plan), photos.shape[1])
            people = People(
                states=states,
                photos=photos if matched else None,
                owner=batch.get("owner", jnp.zeros(present.shape, jnp.int32)),
                masks=batch.get("masks"),
                strength=jnp.broadcast_to(log_strength(present)[:, None], of_steps),
                layer_strength={layer: jnp.zeros(count) for layer in self._alone.fusion.layers},
            )
            scene = scene._replace(people=people)
        weights = {"base": frozen, "fusion": params}
        return preview(self._alone, weights, scene, self._plan, grid)


def _on_host(base: BaseModel) -> BaseModel:
    """The base with its weights in the host's memory: the loop brings to the devices what the step
    needs, as the mesh says, and the rest (autoencoder, perhaps text encoder) is used now and then.
    """
    return dataclasses.replace(base, params=jax.device_get(base.params))


def _by_time(error: jax.Array, t: jax.Array, schedule: Any, buckets: int = 4) -> Metrics:
    """Mean error by quarter of the timesteps, as `train.step.Metrics` has means over a share."""
    bucket = t * buckets // schedule.num_train_timesteps
    inside = (bucket[None] == jnp.arange(buckets)[:, None]).astype(jnp.float32)
    return {
        name: value
        for number in range(buckets)
        for name, value in {
            f"mse_t{number}": (inside[number] * error).mean(),
            f"mse_t{number}_share": inside[number].mean(),
        }.items()
    }
