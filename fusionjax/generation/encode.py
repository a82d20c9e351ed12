"""Photos of a person, as the frozen UNet sees them: an identity."""

from collections.abc import Sequence

import jax
import numpy as np
from PIL import Image

from fusionjax.backend.compilation import full_memory_told
from fusionjax.generation import programs
from fusionjax.generation.runner import Runner
from fusionjax.identity import THUMBNAIL_SIDE, Identity
from fusionjax.pixels import to_unit


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
        base_fingerprint=base.fingerprint,
        reference=options.reference,
    )
