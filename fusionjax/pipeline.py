"""From a prompt and people to pictures.

    pipe = FusionPipeline.from_pretrained(base, fusion=adapter)
    person = pipe.encode_identity(["a.jpg", "b.jpg"])
    pipe("an astronaut in a garden", identities=[person], seed=0).images[0].save("out.png")

A few programs are compiled for a number of pictures and a size (`painting.py`): prompts, people
and masks to what the UNet attends to; a `lax.scan` over the sampler's steps; latents to pixels.
Prompts, people (up to the padded number), strengths, masks, seeds, guidance and the sampler's
table are data, so changing them compiles nothing.

Every picture draws its noise from its own seed, so it is the same alone, in a batch, and on any
number of devices.

Legend: b pictures, m people sets (b, or 1 where all pictures show the same), g branches of the
guidance, s steps, r references, i identities, k tokens of a photo, h w latent grid, c latent
channels, H W pixels, D features of a layer.
"""

import functools
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from PIL import Image

from fusionjax import masks as masking
from fusionjax import photos as photo_files
from fusionjax import pixels
from fusionjax.backend.compilation import full_memory_told
from fusionjax.backend.devices import (
    check_dtype,
    check_implementation,
    default_dtype,
    default_implementation,
)
from fusionjax.diffusion import samplers as schedulers
from fusionjax.embedded import MINI_BASE, MINI_FUSION
from fusionjax.errors import NotFiniteWarning, UserError
from fusionjax.generation.generate import REPORTS, Clock, Progress, of_many, of_seeds
from fusionjax.generation.programs import Programs
from fusionjax.generation.request import LARGEST_SEED, Output, Picture, Settings, fit_image
from fusionjax.generation.runner import Runner
from fusionjax.generation.scene import (
    People,
    devices_for,
    log_strength,
    padded_photos,
    same_people,
)
from fusionjax.generation.scene import (
    branches as guidance_branches,
)
from fusionjax.identity import THUMBNAIL_SIDE, Identity
from fusionjax.interop.adapter_file import Adapter, check_fits
from fusionjax.interop.fingerprint import Fingerprint
from fusionjax.models.base import BaseModel
from fusionjax.options import FusionOptions, Implementation
from fusionjax.unet import FusionUNet

PORTRAIT = "a portrait of a person"


class FusionPipeline:
    """A base model, an adapter, and the compiled programs that paint with them.

    Attributes:
        base: the base model.
        fusion: its UNet, able to see faces.
        fusion_params: the adapter's kf and vf; None paints from text alone.
        runner: the compiled programs; it counts compilations and their seconds.
    """

    def __init__(
        self,
        base: BaseModel,
        fusion_params: Mapping[str, Mapping[str, Any]] | None = None,
        options: FusionOptions | None = None,
        *,
        controlnet: Any = None,
        devices: Sequence[jax.Device] | None = None,
        attention: Implementation | None = None,
    ) -> None:
        """Puts a pipeline together from its parts.

        Args:
            base: the base model.
            fusion_params: the adapter's kf and vf.
            options: as the adapter was trained.
            controlnet: a `fusionjax.models.controlnet.ControlNet`.
            devices: pictures are spread over these; None is every local device.
            attention: implementation for all layers, None for the platform's fastest.
        """
        devices = jax.local_devices() if devices is None else list(devices)
        check_implementation(attention, base.unet.dtype, devices)
        self.base = base
        self.fusion = FusionUNet(
            base.unet,
            options,
            attention=attention or default_implementation(base.unet.dtype, devices),
        )
        self.fusion_params = fusion_params
        self.controlnet = controlnet
        if controlnet is not None:
            controlnet.check_fits(base.unet, base.vae_scale_factor)
        params = {
            "base": base.params,
            "fusion": fusion_params,
            "controlnet": None if controlnet is None else controlnet.params,
        }
        self.runner = Runner(
            Programs(base, self.fusion, controlnet),
            params,
            devices,
        )

    @classmethod
    def from_pretrained(
        cls,
        base: str | os.PathLike[str] | None = None,
        fusion: str | os.PathLike[str] | None = None,
        *,
        dtype: Any = None,
        controlnet: str | os.PathLike[str] | None = None,
        devices: Sequence[jax.Device] | None = None,
        attention: Implementation | None = None,
        **base_options: Any,
    ) -> "FusionPipeline":
        """Loads a base model and an adapter.

        Args:
            base: whatever `BaseModel.from_pretrained` takes. None is the base that the adapter
                was trained on, and without an adapter the embedded mini model.
            fusion: a run's folder, one of its steps, or an exported `.safetensors`. None is no
                adapter, except for the embedded mini model, which has its own.
            dtype: type of the weights and of the computation; None is what the devices are fastest
                in: bfloat16 (float16 on GPUs before Ampere), and float32 on a CPU.
            controlnet: a ControlNet's diffusers folder, file or hub id.
            devices: as for the constructor.
            attention: likewise.
            **base_options: for `BaseModel.from_pretrained` (`vae`, `lora`).

        Returns:
            The pipeline.

        Raises:
            UserError: if something is missing or does not fit, or the devices cannot do it.
        """
        dtype = jnp.dtype(default_dtype(devices) if dtype is None else dtype)
        check_dtype(dtype, devices)
        check_implementation(attention, dtype, devices)
        adapter: Adapter | None = None
        if base is None and fusion is None:
            base, fusion = MINI_BASE, MINI_FUSION
        from fusionjax.embedded import base_source
        from fusionjax.models.adapter import load_adapter

        if base is not None:
            base = base_source(os.fspath(base))
            if fusion is None and Path(base).resolve() == MINI_BASE.resolve():
                fusion = MINI_FUSION
        if fusion is not None:
            adapter = load_adapter(os.fspath(fusion))
        if base is None:
            assert adapter is not None
            if not adapter.base:
                raise UserError(f"{fusion} does not say which base it was trained on; pass base")
            base = adapter.base
        model = BaseModel.from_pretrained(base, dtype=dtype, **base_options)
        network = None
        if controlnet is not None:
            from fusionjax.models.controlnet import ControlNet

            network = ControlNet.from_pretrained(controlnet, dtype=dtype)
        pipe = cls(
            model,
            None if adapter is None else adapter.params,
            None if adapter is None else adapter.options,
            controlnet=network,
            devices=devices,
            attention=attention,
        )
        if adapter is not None:
            check_fits(adapter, pipe.fusion.layers, model.fingerprint, str(fusion))
        return pipe

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """A short name for the weights of `base` (its UNet) and, if there is one, of `fusion`."""
        prints = {"base": self.base.fingerprint}
        if self.fusion_params is not None:
            adapter = Fingerprint()
            for layer, pair in self.fusion_params.items():
                for name, matrix in pair.items():
                    adapter.add(f"{layer}.{name}", np.asarray(matrix))
            prints["fusion"] = adapter.hexdigest()
        return prints

    @property
    def photo_side(self) -> int:
        """Side of the square photos that the base model looks at, in pixels."""
        return self.base.unet.sample_size * self.base.vae_scale_factor

    def encode_identity(
        self,
        photos: photo_files.PhotoSource | Sequence[photo_files.PhotoSource],
        *,
        crop: str = "auto",
        weights: Sequence[float] | None = None,
    ) -> Identity:
        """Runs a person's photos through the frozen UNet, once.

        Args:
            photos: one photo or several of the same person, see `photos.read_photo`.
            crop: `auto` or `none`, see `photos.prepare_photo`.
            weights: λ of each photo; None is 1 for each.

        Returns:
            The person.

        Raises:
            UserError: if there is no photo, one cannot be used, or the weights do not fit.
        """
        if isinstance(photos, str | os.PathLike | Image.Image | np.ndarray):
            photos = [photos]
        if not photos:
            raise UserError("no photos are given; a person needs at least one")
        images = [photo_files.prepare_photo(photo, self.photo_side, crop) for photo in photos]
        latents, states = [], []
        empty = self.base.tokenize([""])
        for image in images:
            x = {"image": pixels.to_array(image)[None], "empty_ids": empty}
            with full_memory_told(
                "the memory does not hold a photo's pass through the UNet; use a 16-bit dtype"
            ):
                seen = jax.device_get(self.runner.run("photo", 1, x))
            latents.append(np.asarray(seen["latents"]))
            states.append({layer: np.asarray(h) for layer, h in seen["states"].items()})
        thumbnails = [
            np.asarray(image.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS))
            for image in images
        ]
        identity = Identity(
            states={layer: np.concatenate([each[layer] for each in states]) for layer in states[0]},
            latents=np.concatenate(latents),
            thumbnails=np.stack(thumbnails),
            weights=(1.0,) * len(images),
            base_fingerprint=self.base.fingerprint,
            reference=self.fusion.options.reference,
        )
        return identity if weights is None else identity.weighted(weights)

    def fresh_identity(
        self,
        seed: int,
        looks: str = PORTRAIT,
        *,
        guidance_scale: float = 7.5,
        progress: Progress | None = None,
    ) -> Identity:
        """A person who does not exist: the base model paints a portrait, which is their photo.

        Args:
            seed: another seed is another person.
            looks: the prompt of the portrait.
            guidance_scale: of the portrait.
            progress: hears of the painting, see `__call__`.

        Returns:
            The person, the same for the same arguments.

        Raises:
            UserError: if the seed or the scale is out of range, or the portrait is not finite.
        """
        side = self.photo_side
        blank = None if self.controlnet is None else np.zeros((side, side, 3), np.float32)
        portrait = Picture(
            looks, seed=seed, guidance_scale=guidance_scale, control_image=blank, control_strength=0
        )
        image = self.paint([portrait], Settings(side, side), progress=progress).images[0]
        if image is None:
            raise UserError(f"the portrait of seed {seed} is not finite; use dtype float32")
        return self.encode_identity(image, crop="none")

    def __call__(
        self,
        prompt: str | Sequence[str],
        identities: Identity | Sequence[Identity] = (),
        *,
        masks: Any = None,
        negative_prompt: str = "",
        num_inference_steps: int = 30,
        guidance_scale: float = 7.5,
        face_guidance_scale: float | None = None,
        face_strength: float | Sequence[float] = 1.0,
        face_steps: tuple[float, float] = (0.0, 1.0),
        layer_strength: Mapping[str, float] | None = None,
        faces_in_negative: bool = False,
        num_images_per_prompt: int = 1,
        seed: int = 0,
        height: int | None = None,
        width: int | None = None,
        scheduler: str = "dpmpp_2m",
        latents: np.ndarray | jax.Array | None = None,
        image: photo_files.PhotoSource | None = None,
        image_strength: float = 0.8,
        paint_where: photo_files.PhotoSource | None = None,
        control_image: photo_files.PhotoSource | None = None,
        control_strength: float = 1.0,
        batch_size: int | None = None,
        attention_share: bool = False,
        progress: Progress | None = None,
    ) -> Output:
        """Paints pictures of people.

        Args:
            prompt: what is seen; several prompts give pictures of the same people.
            identities: the people, or one person, from `encode_identity`, `Identity.load` or
                `Identity.mix`.
            masks: where each person is: an array [i, height, width] in [0, 1]. A place in no
                mask sees everybody, a place in two sees nobody (the paper's equation 7).
            negative_prompt: what shall not be seen.
            num_inference_steps: noise levels to visit.
            guidance_scale: of the classifier-free guidance, ≥ 1; 1 is none.
            face_guidance_scale: guides by the faces separately, see `Picture`.
            face_strength: λ ≥ 0 of the faces, one for all or one for each identity; 0 is exactly
                the base model.
            face_steps: from which to which share of the steps the faces act.
            layer_strength: factors on λ by layer name (`pipe.fusion.layers`).
            faces_in_negative: show the faces to the negative branch too.
            num_images_per_prompt: pictures for each prompt.
            seed: of the first picture; the next have the next numbers. In [0, 2³²).
            height: in pixels; None is the base's own size.
            width: in pixels.
            scheduler: one of `schedulers.SCHEDULERS`.
            latents: unit-variance starting noise [b, h, w, c] in place of the seeds'.
            image: a picture to start from (image to image).
            image_strength: how far to leave it: the share of the steps to run, in (0, 1].
            paint_where: a mask picture: white is painted anew, black stays (inpainting).
            control_image: the ControlNet's input.
            control_strength: a factor on the ControlNet's answer.
            batch_size: pictures to paint at once; None is all.
            attention_share: measure how much each place attended to each photo.
            progress: called as `progress(stage, done, of, seconds)`.

        Returns:
            The pictures, prompt by prompt, with latents and seeds.

        Raises:
            UserError: if an argument is wrong, before anything is compiled.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise UserError("no prompt is given")
        if num_images_per_prompt < 1:
            raise UserError(f"num_images_per_prompt is {num_images_per_prompt}; it must be ≥ 1")
        settings = Settings(
            height=self.photo_side if height is None else height,
            width=self.photo_side if width is None else width,
            steps=num_inference_steps,
            scheduler=scheduler,
            image_strength=image_strength,
            faces_in_negative=faces_in_negative,
        )
        self.check_settings(settings)
        count = len(prompts) * num_images_per_prompt
        grid = self._grid(settings)
        if latents is not None:
            latents = np.asarray(latents, np.float32)
            expected = (count, *grid, self.base.unet.in_channels)
            if latents.shape != expected:
                raise UserError(f"latents have shape {latents.shape}; they must be {expected}")
        size = (settings.width, settings.height)
        people = (identities,) if isinstance(identities, Identity) else tuple(identities)
        pictures = [
            Picture(
                prompt=prompts[i // num_images_per_prompt],
                negative_prompt=negative_prompt,
                identities=people,
                face_strength=face_strength,
                face_steps=face_steps,
                layer_strength=layer_strength or {},
                masks=None if masks is None else np.asarray(masks, np.float32),
                seed=seed + i,
                guidance_scale=guidance_scale,
                face_guidance_scale=face_guidance_scale,
                latents=None if latents is None else latents[i],
                image=None if image is None else fit_image(image, size) * 2 - 1,
                paint_where=None if paint_where is None else fit_image(paint_where, size).mean(-1),
                control_image=None if control_image is None else fit_image(control_image, size),
                control_strength=control_strength,
            )
            for i in range(count)
        ]
        return self.paint(
            pictures,
            settings,
            batch_size=batch_size,
            attention_share=attention_share,
            progress=progress,
        )

    def paint(
        self,
        pictures: Sequence[Picture],
        settings: Settings,
        *,
        batch_size: int | None = None,
        attention_share: bool = False,
        progress: Progress | None = None,
    ) -> Output:
        """Paints pictures that may differ in everything but their `Settings`.

        Args:
            pictures: what to paint.
            settings: what they share.
            batch_size: pictures to paint at once; None is all. The last batch is filled up, so
                that nothing is compiled for it.
            attention_share: see `Output`.
            progress: called as `progress(stage, done, of, seconds)`.

        Returns:
            The pictures in the order given.

        Raises:
            UserError: if a picture or a setting is wrong, before anything is compiled.
        """
        if not pictures:
            raise UserError("no pictures are asked for")
        if batch_size is not None and batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it must be ≥ 1")
        for picture in pictures:
            self.check(picture, settings)
        if attention_share:
            self._check_attention_share(pictures)
        self._check_alike(pictures)
        size = min(batch_size or len(pictures), len(pictures))
        outputs: list[Any] = []
        for start in range(0, len(pictures), size):
            chunk = list(pictures[start : start + size])
            report = of_many(progress, len(outputs), -(-len(pictures) // size))
            filled = chunk + chunk[-1:] * (size - len(chunk))
            outputs.append(self._paint_batch(filled, len(chunk), settings, attention_share, report))
        shares = [share for *_, share in outputs if share is not None]
        return Output(
            images=[
                None if pixels is None else Image.fromarray(pixels)
                for images, *_ in outputs
                for pixels in images
            ],
            latents=np.concatenate([latents for _, latents, _ in outputs]),
            seeds=[picture.seed for picture in pictures],
            attention_share=np.concatenate(shares) if shares else None,
        )

    def check(self, picture: Picture, settings: Settings) -> None:
        """Checks all that can be wrong with a picture, without compiling anything.

        Args:
            picture: what to paint.
            settings: and how.

        Raises:
            UserError: if something is wrong.

        Warns:
            UserWarning: if a prompt is too long; it says what is left out.
        """
        self.check_settings(settings)
        self._check_picture(picture, settings)

    # --- a batch ---------------------------------------------------------------------------------

    def _paint_batch(
        self,
        pictures: list[Picture],
        wanted: int,
        settings: Settings,
        attention_share: bool,
        progress: Progress | None,
    ) -> tuple[list[np.ndarray | None], np.ndarray, np.ndarray | None]:
        clock = Clock(self.runner, progress)
        devices = devices_for(len(pictures), len(self.runner.devices))
        per_device = -(-len(pictures) // devices)
        pictures = pictures + pictures[-1:] * (per_device * devices - len(pictures))
        plan = schedulers.plan(
            self.base.schedule,
            settings.scheduler,
            settings.steps,
            image_strength=settings.image_strength if pictures[0].image is not None else None,
        )
        people = self._people(pictures, plan, settings)
        branches, mix = guidance_branches(pictures, people is not None)
        x = {
            "mix": mix,
            "seeds": np.array([picture.seed for picture in pictures], np.uint32),
            **self._look(pictures, people, devices, settings),
            **self._known(pictures, devices, settings),
            **self._control(pictures),
        }
        x["start_noise"] = self._noise(pictures, x["seeds"], devices, settings)
        x["rows"] = {"row": plan.rows, **self._faces_by_row(people, plan)}
        x["start_levels"] = np.array([plan.start_clean, plan.start_noise], np.float32)
        x["carry"] = self.runner.run("start", devices, x)["carry"]

        done, shares = 0, []
        segment = len(plan)
        if progress is not None or attention_share:
            segment = -(-len(plan) // REPORTS)
        while done < len(plan):
            if attention_share:
                x["now"] = jax.tree.map(lambda column, row=done: column[row], x["rows"])
                shares.append(np.asarray(self.runner.run("share", devices, x)["share"]))
            clock.start()
            x["span"] = np.array([done, min(done + segment, len(plan))], np.int32)
            x["carry"] = self.runner.run(
                "steps", devices, x, branches=branches, in_negative=settings.faces_in_negative
            )["carry"]
            done = int(x["span"][1])
            clock.stop("steps", done, len(plan), x["carry"])
        clock.start()
        images = self._decoded(devices, x, wanted)
        clock.stop("decode", wanted, wanted, x["carry"])
        latents = np.asarray(x["carry"].latents)
        share = np.mean(shares, 0)[:wanted] if shares else None
        return images, latents[:wanted], share

    def _decoded(self, devices: int, x: dict[str, Any], wanted: int) -> list[np.ndarray | None]:
        """The first pictures' pixels; None where a picture is not finite, which is told."""
        decoded = self.runner.run("decode", devices, x)
        finite, images = (np.array(decoded[name])[:wanted] for name in ("finite", "images"))
        latents = np.asarray(x["carry"].latents)[:wanted]
        again = ~finite & np.isfinite(latents).all((1, 2, 3))
        if again.any() and self.base.vae.dtype != jnp.float32:
            warnings.warn(
                f"{of_seeds(x['seeds'], again)} not finite in "
                f"{jnp.dtype(self.base.vae.dtype).name}: decoded again in float32",
                NotFiniteWarning,
                stacklevel=6,
            )
            decoded = self.runner.run("decode", devices, x, in_float32=True)
            finite[again] = np.asarray(decoded["finite"])[:wanted][again]
            images[again] = np.asarray(decoded["images"])[:wanted][again]
        if not finite.all():
            warnings.warn(
                f"{of_seeds(x['seeds'], ~finite)} not finite, and left out; dtype float32, a "
                "smaller guidance scale or a smaller face strength may help",
                NotFiniteWarning,
                stacklevel=6,
            )
        return [image if good else None for image, good in zip(images, finite, strict=True)]

    def _noise(
        self, pictures: list[Picture], seeds: np.ndarray, devices: int, settings: Settings
    ) -> Float[Array, "b h w c"] | Float[np.ndarray, "b h w c"]:
        drawn = self.runner.run("noise", devices, {"seeds": seeds}, grid=self._grid(settings))[
            "start_noise"
        ]
        if all(picture.latents is None for picture in pictures):
            return drawn
        return np.stack(
            [
                np.asarray(noise if picture.latents is None else picture.latents, np.float32)
                for picture, noise in zip(pictures, np.asarray(drawn), strict=True)
            ]
        )

    def _look(
        self, pictures: list[Picture], people: "People | None", devices: int, settings: Settings
    ) -> dict[str, Any]:
        """What the UNet attends to, by the program of that name."""
        x: dict[str, Any] = {
            "negative_ids": self.base.tokenize([picture.negative_prompt for picture in pictures]),
            "ids": self.base.tokenize([picture.prompt for picture in pictures]),
        }
        if people is None:
            return self.runner.run("look", devices, x, grid=self._grid(settings))
        x |= {"states": people.states, "owner": people.owner}
        if people.masks is not None:
            x["masks"] = people.masks
        if people.photos is not None:
            x["empty_ids"] = self.base.tokenize([""])
        look = self.runner.run("look", devices, x, grid=self._grid(settings))
        if people.photos is not None:
            look["photos"] = people.photos
        return {**look, "layer_log": people.layer_log}

    def _known(self, pictures: list[Picture], devices: int, settings: Settings) -> dict[str, Any]:
        """The given pictures' latents, and where they shall stay, [b, h, w, 1]."""
        images = [picture.image for picture in pictures if picture.image is not None]
        if not images:
            return {}
        grid = self._grid(settings)
        factor = self.base.vae_scale_factor
        keep = np.zeros((len(pictures), *grid, 1), np.float32)
        for row, picture in zip(keep, pictures, strict=True):
            if picture.paint_where is not None:  # a latent is painted if any of its pixels is
                cells = picture.paint_where.reshape(grid[0], factor, grid[1], factor)
                row[..., 0] = 1 - cells.max((1, 3))
        x = {"images": np.stack(images).astype(np.float32)}
        return {"known": self.runner.run("image", devices, x)["known"], "keep": keep}

    def _control(self, pictures: list[Picture]) -> dict[str, np.ndarray]:
        images = [p.control_image for p in pictures if p.control_image is not None]
        if not images:
            return {}
        return {
            "control_image": np.stack(images).astype(np.float32),
            "control_strength": np.array([p.control_strength for p in pictures], np.float32),
        }

    def _faces_by_row(self, people: "People | None", plan: schedulers.Plan) -> dict[str, Any]:
        if people is None:
            return {}
        if people.photos is None:
            return {"log_strength": people.log_strength}
        # Shares of photo and noise at each row's timestep, for the reference option `matched`.
        a = np.interp(
            plan.rows.timesteps,
            np.arange(self.base.schedule.num_train_timesteps),
            self.base.schedule.alphas_cumprod,
        )
        levels = np.stack([np.sqrt(a), np.sqrt(1 - a)], -1).astype(np.float32)
        return {"log_strength": people.log_strength, "photo_levels": levels}

    def _people(
        self, pictures: list[Picture], plan: schedulers.Plan, settings: Settings
    ) -> "People | None":
        """The people of a batch, padded; None where there are none."""
        longest = max(sum(len(person) for person in p.identities) for p in pictures)
        if longest == 0:
            return None
        references = padded_photos(longest)
        shared = all(same_people(picture, pictures[0]) for picture in pictures)
        sets = [picture.identities for picture in (pictures[:1] if shared else pictures)]
        example = next(person for people in sets for person in people)

        def stacked(arrays: list[list[np.ndarray]], like: np.ndarray) -> np.ndarray:
            out = np.zeros((len(sets), references, *like.shape[1:]), like.dtype)
            for row, own in zip(out, arrays, strict=True):
                if own:
                    joined = np.concatenate(own)
                    row[: len(joined)] = joined
            return out

        states, photos = {}, None
        if self.fusion.options.reference == "clean":
            for layer in self.fusion.layers:
                arrays = [[person.states[layer] for person in people] for people in sets]
                states[layer] = stacked(arrays, example.states[layer])
        else:
            arrays = [[person.latents for person in people] for people in sets]
            photos = stacked(arrays, example.latents)

        strength = np.zeros((len(plan), len(pictures), references), np.float32)
        owner = np.zeros((len(pictures), references), np.int32)
        fractions = np.arange(len(plan)) / len(plan)
        for j, picture in enumerate(pictures):
            first, until = picture.face_steps
            active = (fractions >= first) & (fractions < until)
            factors = np.broadcast_to(picture.face_strength, len(picture.identities))
            at = 0
            for i, (person, factor) in enumerate(zip(picture.identities, factors, strict=True)):
                these = slice(at, at + len(person))
                strength[:, j, these] = active[:, None] * factor * np.array(person.weights)
                owner[j, these] = i
                at += len(person)

        masks = None
        if pictures[0].masks is not None:
            identities = padded_photos(max(len(picture.identities) for picture in pictures))
            size = (settings.height, settings.width)
            masks = np.zeros((len(pictures), identities, *size), np.float32)
            for row, picture in zip(masks, pictures, strict=True):
                assert picture.masks is not None  # `_check_alike`
                row[: len(picture.masks)] = picture.masks

        factors = np.array(
            [[p.layer_strength.get(layer, 1.0) for p in pictures] for layer in self.fusion.layers]
        )
        return People(states, photos, owner, masks, log_strength(strength), log_strength(factors))

    def _grid(self, settings: Settings) -> tuple[int, int]:
        factor = self.base.vae_scale_factor
        return settings.height // factor, settings.width // factor

    # --- what can be wrong -----------------------------------------------------------------------

    def check_settings(self, settings: Settings) -> None:
        """Raises UserError for a size or a sampler that the base cannot do."""
        step = self.base.vae_scale_factor * 2 ** (len(self.base.unet.down_block_types) - 1)
        for name in ("height", "width"):
            value = getattr(settings, name)
            if value < step or value % step:
                nearest = max(round(value / step), 1) * step
                raise UserError(
                    f"{name} is {value}; it must be a multiple of {step}, for example {nearest}"
                )
        schedulers.plan(self.base.schedule, settings.scheduler, settings.steps)

    def _check_picture(self, picture: Picture, settings: Settings) -> None:
        if not 0 <= picture.seed <= LARGEST_SEED:
            raise UserError(f"seed is {picture.seed}; it must be in 0..{LARGEST_SEED}")
        for name in ("guidance_scale", "face_guidance_scale"):
            value = getattr(picture, name)
            if value is not None and not (np.isfinite(value) and value >= 1):
                raise UserError(f"{name} is {value}; it must be a finite number ≥ 1 (1 is none)")
        if settings.faces_in_negative and picture.face_guidance_scale is not None:
            raise UserError(
                "face_guidance_scale needs a branch without the faces, and faces_in_negative "
                "leaves none; give one of them"
            )
        start, end = picture.face_steps
        if not 0 <= start <= end <= 1:
            raise UserError(
                f"face_steps are {start} to {end}; they must satisfy 0 ≤ from ≤ until ≤ 1"
            )
        self._check_prompt(picture.prompt, "the prompt")
        self._check_prompt(picture.negative_prompt, "the negative prompt")
        self._check_people(picture, settings)
        if picture.paint_where is not None:
            if picture.image is None:
                raise UserError("paint_where is given without an image to paint in")
            if not picture.paint_where.any():
                raise UserError("paint_where is black everywhere: nothing would be painted")
        if picture.image is not None:
            schedulers.plan(
                self.base.schedule, settings.scheduler, settings.steps,
                image_strength=settings.image_strength,
            )  # fmt: skip
        if picture.control_image is not None and self.controlnet is None:
            raise UserError("a control image is given, but no ControlNet is loaded")
        if self.controlnet is not None and picture.control_image is None:
            raise UserError("a ControlNet is loaded, but no control image is given")
        if not (np.isfinite(picture.control_strength) and picture.control_strength >= 0):
            raise UserError(
                f"control_strength is {picture.control_strength}; it must be a finite number ≥ 0"
            )

    def _check_people(self, picture: Picture, settings: Settings) -> None:
        if picture.identities and self.fusion_params is None:
            raise UserError(
                "identities are given, but no adapter is loaded; pass fusion (--fusion) with a "
                "run's folder or an exported .safetensors"
            )
        for number, person in enumerate(picture.identities):
            person.check_fits(
                self.base.fingerprint, self.fusion.options.reference, f"identity {number}"
            )
        strengths = np.asarray(picture.face_strength, np.float64)
        masking.check_strength(strengths, "face_strength")
        if strengths.ndim and strengths.shape != (len(picture.identities),):
            raise UserError(
                f"face_strength has {strengths.size} numbers for {len(picture.identities)} "
                "identities; give one for each, or one for all"
            )
        for layer, factor in picture.layer_strength.items():
            if layer not in self.fusion.layers:
                raise UserError(
                    f"layer_strength names {layer!r}; the layers are "
                    f"{', '.join(self.fusion.layers)}"
                )
            masking.check_strength(factor, f"layer_strength of {layer}")
        if picture.masks is None:
            return
        masking.check_masks(
            picture.masks,
            identities=len(picture.identities),
            height=settings.height,
            width=settings.width,
        )
        for number, mask in enumerate(picture.masks):
            if not mask.any():
                raise UserError(
                    f"mask {number} is empty: its person would have no place; give it some pixels "
                    "or leave the person out"
                )
            others = np.delete(picture.masks, number, 0).max(0, initial=0)
            if (np.minimum(mask, 1 - others) <= 0).all():
                warnings.warn(
                    f"mask {number} lies within the others' masks: its person is not seen there, "
                    "for where masks overlap no face is",
                    stacklevel=5,
                )

    def _check_attention_share(self, pictures: Sequence[Picture]) -> None:
        if self.fusion.options.fusion != "concat" or self.fusion.options.reference != "clean":
            raise UserError(
                "attention shares exist for adapters with fusion='concat' and reference='clean'"
            )
        if not all(picture.identities for picture in pictures):
            raise UserError("attention shares are asked for, but a picture shows no identity")
        if any(picture.control_image is not None for picture in pictures):
            raise UserError("attention shares do not see a ControlNet; leave one of them out")

    @staticmethod
    def _check_alike(pictures: Sequence[Picture]) -> None:
        """Pictures of one batch either all have masks, images and so on, or none has."""
        for name in ("masks", "image", "control_image"):
            given = {getattr(picture, name) is not None for picture in pictures}
            if len(given) > 1:
                raise UserError(f"some pictures have {name} and some do not; paint them separately")

    def _check_prompt(self, prompt: str, name: str) -> None:
        """Warns of a prompt that the text encoder cannot take in whole."""
        longest = self.base.text_encoder.config.max_position_embeddings
        ids = self.base.tokenizer(prompt, truncation=False, verbose=False)["input_ids"]
        if len(ids) > longest:
            cut = self.base.tokenizer.decode(ids[longest - 1 : -1]).strip()
            warnings.warn(
                f"{name} is longer than {longest - 2} tokens; left out: “{cut}”", stacklevel=5
            )
