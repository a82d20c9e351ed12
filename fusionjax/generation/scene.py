"""A batch as arrays: from pictures to what the programs read."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fusionjax.backend.blockwise import INVISIBLE
from fusionjax.generation.request import Picture


class People(NamedTuple):
    """The people of a batch.

    Attributes:
        states: hf by layer, [m, r, k, D]; empty for the reference option `matched`.
        photos: photos' latents [m, r, h, w, c] for `matched`, else None.
        owner: the identity that each reference shows, [b, r].
        masks: [b, i, H, W] or None.
        log_strength: log λ, [s, b, r].
        layer_log: log of the layers' factors, [layers, b].
    """

    states: dict[str, np.ndarray]
    photos: np.ndarray | None
    owner: np.ndarray
    masks: np.ndarray | None
    log_strength: np.ndarray
    layer_log: np.ndarray


def branches(pictures: Sequence[Picture], people: bool) -> tuple[int, np.ndarray]:
    """How many branches the guidance has, and their weights in the answer, [g, b].

    With u the answer to the negative prompt, t to the prompt and f to the prompt and the faces:
    u + g (f - u), or with a face guidance of its own u + g (t - u) + g_f (f - t).
    """
    text = np.array([picture.guidance_scale for picture in pictures], np.float32)
    if people and any(picture.face_guidance_scale is not None for picture in pictures):
        faces = np.array(
            [
                picture.guidance_scale if picture.face_guidance_scale is None
                else picture.face_guidance_scale
                for picture in pictures
            ],
            np.float32,
        )  # fmt: skip
        return 3, np.stack([1 - text, text - faces, faces])
    if (text == 1).all():
        return 1, np.ones((1, len(pictures)), np.float32)
    return 2, np.stack([1 - text, text])


def devices_for(pictures: int, available: int) -> int:
    """As many devices as have work when each takes the same number of pictures."""
    per_device = -(-pictures // available)
    return -(-pictures // per_device)


def padded_photos(count: int) -> int:
    """The next power of two: people come and go within it without compiling."""
    return 1 << (count - 1).bit_length()


def same_people(one: Picture, other: Picture) -> bool:
    return len(one.identities) == len(other.identities) and all(
        a.states is b.states and a.latents is b.latents
        for a, b in zip(one.identities, other.identities, strict=True)
    )


def log_strength(strength: np.ndarray) -> np.ndarray:
    """log λ, float32, with log 0 = INVISIBLE."""
    visible = strength > 0
    return np.where(visible, np.log(np.where(visible, strength, 1)), INVISIBLE).astype(np.float32)
