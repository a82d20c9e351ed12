"""A glance at a picture while it is made: its latents as colours, without the decoder.

A photo's latents and its pixels are known of every person who was encoded (`Identity.latents`,
`Identity.thumbnails`), so the colours come from a least-squares fit of one to the other, for
whatever decoder the base has.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

from fusionjax.identity import Identity

_SIDE = 320  # the longer one as it is shown, in pixels
_LEAST = 1e-3  # keeps the fit from following what only one photo has


def fit_colours(people: Sequence[Identity]) -> Float[np.ndarray, "d 3"] | None:
    """What takes latents, and a one, to red, green and blue in [0, 1]; None without a photo."""
    pairs = [
        (latents, picture)
        for person in people
        for latents, picture in zip(person.latents, person.thumbnails, strict=True)
    ]
    if not pairs:
        return None
    x = np.concatenate([_with_one(latents) for latents, _ in pairs])
    small = [Image.fromarray(p).resize(z.shape[1::-1], Image.Resampling.BOX) for z, p in pairs]
    y = np.concatenate([np.asarray(image).reshape(-1, 3) / 255 for image in small])
    square = x.T @ x + _LEAST * len(x) * np.eye(x.shape[1])
    return np.linalg.solve(square, x.T @ y).astype(np.float32)


def glance(latents: Float[np.ndarray, "b h w c"], colours: Float[np.ndarray, "d 3"]) -> Image.Image:
    """The images side by side, as far as they have got.

    Args:
        latents: of them, after a step.
        colours: from `fit_colours`.
    """
    row = np.concatenate(list(latents[:4]), axis=1).astype(np.float32)
    shown = (_with_one(row) @ colours).reshape(*row.shape[:2], 3)
    levels = np.round(np.nan_to_num(np.clip(shown, 0, 1)) * 255).astype(np.uint8)
    scale = _SIDE / max(latents.shape[1:3])
    size = (round(row.shape[1] * scale), round(row.shape[0] * scale))
    return Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC)


def _with_one(latents: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "hw d"]:
    flat = latents.reshape(-1, latents.shape[-1]).astype(np.float32)
    return np.concatenate([flat, np.ones((len(flat), 1), np.float32)], 1)
