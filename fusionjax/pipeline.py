"""From a prompt and people to images.

    pipe = FusionPipeline.from_pretrained(base, fusion=adapter)
    person = pipe.encode_identity(["a.jpg", "b.jpg"])
    pipe("an astronaut in a garden", identities=[person], seed=0).images[0].save("out.png")

A few programs are compiled for a number of images and a size (`generation/programs.py`): a photo to
what the UNet sees in it; prompts, people and masks to what it attends to; the sampler's steps;
latents to pixels. Prompts, people (up to the padded number), strengths, masks, seeds, guidance and
the sampler's table are data, so changing them compiles nothing.

Every image draws its noise from its own seed, so it is the same alone, in a batch, and on any
number of devices.
"""

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusionjax.backend.devices import (
    check_dtype,
    check_implementation,
    default_dtype,
    default_implementation,
)
from fusionjax.embedded import MINI_FUSION
from fusionjax.errors import UserError
from fusionjax.generation import request as requesting
from fusionjax.generation.encode import encode_photos, fresh_identity
from fusionjax.generation.generate import (
    OUTPUT_TYPES,
    Generated,
    Progress,
    to_output,
)
from fusionjax.generation.keywords import CallbackOnStepEnd, read_call, show_options, step_end_of
from fusionjax.generation.loras import LoraMethods
from fusionjax.generation.model import Model
from fusionjax.generation.passes import generate_passes
from fusionjax.generation.request import Output, Request
from fusionjax.generation.runner import Runner
from fusionjax.generation.vocabulary import load_textual_inversion
from fusionjax.identity import Identity
from fusionjax.interop.adapter_file import adapter_fingerprint, check_fits
from fusionjax.models.adapter import find_models
from fusionjax.models.base import BaseModel
from fusionjax.options import FusionOptions, Implementation, Settings, not_one_of, unknown_name
from fusionjax.photos import PhotoSource, prepare_photo
from fusionjax.schema import typed, whole
from fusionjax.unet import FusionUNet


class FusionPipeline(LoraMethods):
    """A base model, an adapter, and the compiled programs that generate with them.

    Attributes:
        base: the base model.
        fusion: its UNet, able to see faces; `fusion.layers` names the layers.
        controlnet: the ControlNet or None.
        model: the three together.
        fusion_params: the adapter's kf and vf; None generates from text alone.
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
            devices: images are spread over these; None is every local device.
            attention: implementation for all layers, None for the platform's fastest.
        """
        devices = jax.local_devices() if devices is None else list(devices)
        check_implementation(attention, base.unet.dtype, devices)
        fusion = FusionUNet(
            base.unet,
            options,
            attention=attention or default_implementation(base.unet.dtype, devices),
        )
        if controlnet is not None:
            controlnet.check_fits(base.unet, base.vae_scale_factor)
        self.base, self.fusion, self.controlnet = base, fusion, controlnet
        self.model = Model(base, fusion, controlnet)
        self.fusion_params = fusion_params
        params = {
            "base": base.params,
            "fusion": fusion_params,
            "controlnet": None if controlnet is None else controlnet.params,
        }
        self.runner = Runner(self.model, params, devices)

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
            **base_options: for `BaseModel.from_pretrained` (`vae`, `lora`, …).

        Returns:
            The pipeline.

        Raises:
            UserError: if something is missing or does not fit, or the devices cannot do it.
        """
        for name in base_options:
            if name not in (known := ("vae", "lora", "tokenizer", "prediction_type")):
                raise UserError(unknown_name(name, known))
        dtype = default_dtype(devices) if dtype is None else dtype
        check_dtype(dtype, devices)
        dtype = jnp.dtype(dtype)
        check_implementation(attention, dtype, devices)
        base, adapter = find_models(base, fusion)
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
            name = str(fusion or MINI_FUSION)
            check_fits(adapter, pipe.fusion.layers, model.fingerprint, name, dtype)
        return pipe

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """A short name for the weights of `base` (its UNet) and, if there is one, of `fusion`."""
        prints = {"base": self.base.fingerprint}
        if self.fusion_params is not None:
            prints["fusion"] = adapter_fingerprint(self.fusion_params)
        return prints

    @property
    def photo_side(self) -> int:
        """Side of the square photos that the base model looks at, in pixels."""
        return self.model.photo_side

    def encode_identity(
        self,
        photos: PhotoSource | Sequence[PhotoSource],
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
        given: Any = photos if isinstance(photos, list | tuple) else [photos]
        if not given:
            raise UserError("no photos are given; a person needs at least one")
        images = [prepare_photo(photo, self.photo_side, crop) for photo in given]
        identity = encode_photos(self.runner, images)
        return identity if weights is None else identity.weighted(weights)

    fresh_identity = fresh_identity
    load_textual_inversion = load_textual_inversion

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        identities: Identity | Sequence[Identity] | Sequence[Sequence[Identity]] = (),
        *,
        masks: Any = None,
        negative_prompt: str | Sequence[str] | None = "",
        prompt_embeds: np.ndarray | jax.Array | None = None,
        negative_prompt_embeds: np.ndarray | jax.Array | None = None,
        face_strength: float | Sequence[float] | Sequence[Sequence[float]] = 1.0,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] = 0,
        generator: Any = None,
        latents: np.ndarray | jax.Array | None = None,
        image: PhotoSource | None = None,
        mask_image: PhotoSource | None = None,
        control_image: PhotoSource | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        batch_size: int | None = None,
        attention_share: bool = False,
        progress: Progress | None = None,
        callback_on_step_end: CallbackOnStepEnd | None = None,
        **options: Any,
    ) -> Output | tuple[Any, None]:
        """Generates images of people. Names are diffusers'.

        Args:
            prompt: what is seen; several prompts give images of the same people.
            identities: the people, or one person, from `encode_identity`, `Identity.load` or
                `Identity.mix`; or a list of people for each prompt.
            masks: where each person is: numbers [i, height, width] in [0, 1], Pillow images, boxes
                (as fractions). A place in no mask sees everybody, in two nobody (equation 7). With
                people for each prompt: such a list for each, or one for all.
            negative_prompt: what shall not be seen; one, or one for each prompt.
            prompt_embeds: text states [p, t, d] in place of the prompts, as from
                `BaseModel.encode_text`; t is 77, or as many for both prompts of an image.
            negative_prompt_embeds: likewise; one, or one for each prompt.
            face_strength: λ ≥ 0 of the faces, one for all or one for each identity; 0 is exactly
                the base model. With people for each prompt also a list for each.
            num_images_per_prompt: images of each prompt.
            seed: of the first image; the next have the next numbers; or a list, one for each
                image. In [0, 2³²).
            generator: in its place a number, a NumPy, PyTorch or JAX generator or key, or a list
                of them, one for each image.
            latents: unit-variance starting noise [b, h, w, c] in place of the seeds'.
            image: an image to start from (image to image).
            mask_image: white is painted anew, black stays (inpainting).
            control_image: the ControlNet's input.
            output_type: `pil`; `np`, an array [b, H, W, 3] in [0, 1]; or `latent`.
            return_dict: False returns (images, None), as diffusers does.
            batch_size: images to generate at once; None is all.
            attention_share: measure how much each place attended to each photo.
            progress: called as `progress(stage, done, of, seconds)`.
            callback_on_step_end: called as diffusers does, with the pipeline, the step, its
                timestep and {"latents": [b, h, w, c]}; what it returns under "latents" is gone on
                with.
            **options: the fields of `fusionjax.options.Description` and `Settings`, which say
                what they are: `num_inference_steps`, `guidance_scale`, `height`, `scheduler`, …

        Returns:
            The images, prompt by prompt, with latents and seeds.

        Raises:
            UserError: if an argument is wrong, before anything is compiled.
        """
        if output_type not in OUTPUT_TYPES:
            raise UserError(not_one_of("output_type", output_type, OUTPUT_TYPES))
        requests, settings = read_call(
            self.model,
            prompt,
            negative_prompt,
            num_images_per_prompt,
            seed if generator is None else generator,
            latents,
            options,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            identities=identities,
            face_strength=face_strength,
            masks=masks,
            image=image,
            mask_image=mask_image,
            control_image=control_image,
        )
        output = self.generate(
            requests,
            settings,
            batch_size=batch_size,
            attention_share=attention_share,
            progress=progress,
            on_step_end=step_end_of(self, callback_on_step_end),
            output_type=output_type,
        )
        return output if return_dict else (output.images, None)

    def generate(
        self,
        requests: Sequence[Request],
        settings: Settings,
        *,
        batch_size: int | None = None,
        output_type: str = "pil",
        **how: Any,
    ) -> Output:
        """Generates images that may differ in everything but their `Settings`.

        Args:
            requests: what they show.
            settings: what they share.
            batch_size: images at once; None is all. The last batch is filled up, so that nothing is
                compiled for it.
            output_type: as in `__call__`.
            **how: see `generation.generate.generate_each`.

        Returns:
            The images in the order given.

        Raises:
            UserError: if a request or a setting is wrong, before anything is compiled.
        """
        if not requests:
            raise UserError("no images are asked for")
        batch_size = typed(batch_size, whole(1, 2**20) | None, "batch_size")
        for request in requests:
            self.check(request, settings)
        requesting.check_alike(requests)
        size = min(batch_size or len(requests), len(requests))
        done = list(self.generate_each(requests, settings, batch_size=size, **how))
        return to_output(done, requests, output_type)

    def generate_each(
        self, requests: Sequence[Request], settings: Settings, *, batch_size: int, **how: Any
    ) -> Iterator[Generated]:
        """Generates requests that `check` has accepted; images come as soon as a batch is done.

        Args:
            requests: what the images show.
            settings: what they share.
            batch_size: images at once.
            **how: see `generation.generate.generate_each`.

        Returns:
            The images, in the order of the requests.
        """
        if how.get("attention_share"):
            requesting.check_attention_share(requests, self.model)
        return generate_passes(self.runner, requests, settings, batch_size=batch_size, **how)

    def check(self, request: Request, settings: Settings) -> None:
        """Checks all that can be wrong with a request, without compiling anything.

        Args:
            request: what is to be generated.
            settings: and how.

        Raises:
            UserError: if something is wrong.

        Warns:
            UserWarning: if a prompt is too long; it says what is left out.
        """
        adapter = self.fusion_params is not None
        requesting.check_request(request, settings, self.model, adapter=adapter)


show_options(FusionPipeline.__call__)
