"""Photos of a person, as the frozen UNet sees them: an identity."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from fusionjax.backend.compilation import full_memory_told
from fusionjax.errors import UserError
from fusionjax.generation import programs
from fusionjax.generation.generate import Progress
from fusionjax.generation.request import Request
from fusionjax.generation.runner import Runner
from fusionjax.identity import THUMBNAIL_SIDE, Identity
from fusionjax.options import Settings
from fusionjax.pixels import to_unit

PORTRAIT = "a portrait of a person"


def encode_photos(runner: Runner, images: Sequence[Image.Image]) -> Identity:
    """Runs prepared photos of one person through the UNet, one after the other.

    Args:
        runner: of the model.
        images: squares of `Model.photo_side`.

    Returns:
        The person; each photo has weight 1.

    Raises:
        UserError: if the memory does not hold it.
    """
    base, options = runner.model.base, runner.model.fusion.options
    empty = base.tokenize([""])
    latents, states = [], []
    for image in images:
        with full_memory_told(
            "the memory does not hold a photo's pass through the UNet; use a 16-bit dtype"
        ):
            found = runner.run(programs.encode_photo, 1, to_unit(image)[None], empty)
            seen = jax.device_get(found)
        latents.append(np.asarray(seen[0]))
        states.append({layer: np.asarray(h) for layer, h in seen[1].items()})
    side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    return Identity(
        states={layer: np.concatenate([each[layer] for each in states]) for layer in states[0]},
        latents=np.concatenate(latents),
        thumbnails=np.stack(
            [np.asarray(image.resize(side, Image.Resampling.LANCZOS)) for image in images]
        ),
        weights=(1.0,) * len(images),
        base_fingerprint=base.identity_fingerprint,
        reference=options.reference,
    )


def fresh_identity(
    pipe: Any,
    seed: int,
    looks: str = PORTRAIT,
    *,
    guidance_scale: float = 7.5,
    progress: Progress | None = None,
) -> Identity:
    """A person who does not exist: the base model makes a portrait, which is their photo.

    Args:
        pipe: the pipeline.
        seed: another seed is another person.
        looks: the prompt of the portrait.
        guidance_scale: of the portrait.
        progress: hears of it, see `__call__`.

    Returns:
        The person, the same for the same arguments.

    Raises:
        UserError: if the seed or the scale is out of range, or the portrait is not finite.
    """
    side = pipe.photo_side
    blank = None if pipe.controlnet is None else np.zeros((side, side, 3), np.float32)
    portrait = Request(looks, seed=seed, guidance_scale=guidance_scale, control_image=blank)
    portrait = dataclasses.replace(portrait, controlnet_conditioning_scale=0)
    image = pipe.generate([portrait], Settings(height=side, width=side), progress=progress).images[
        0
    ]
    if image is None:
        raise UserError(f"the portrait of seed {seed} is not finite; use dtype float32")
    return pipe.encode_identity(image, crop="none")
