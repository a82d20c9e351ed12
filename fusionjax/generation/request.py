"""What one image shall show, and what all images of a batch share."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from fusionjax import photos as photo_files
from fusionjax.errors import UserError
from fusionjax.identity import Identity

LARGEST_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """What one picture shall show. All of it is data: no value compiles anything.

    Attributes:
        prompt: what is seen.
        negative_prompt: what is not.
        identities: the people in it.
        face_strength: λ of each identity; 0 is the base model, 1 the trained strength.
        face_steps: the share of the steps, from and until, in which faces act.
        layer_strength: factors on λ by layer name.
        masks: where each identity is, [i, H, W] in [0, 1]. None: no regions.
        seed: of all noise.
        guidance_scale: of the classifier-free guidance; 1 is none.
        face_guidance_scale: None guides text and faces as one. A number guides by the text with
            `guidance_scale` and by the faces with this, for one more UNet pass a step.
        latents: the starting noise, [h, w, c], in place of the seed's.
        image: a picture to start from, [H, W, 3] in [-1, 1]; how far to leave it is
            `Settings.image_strength`.
        paint_where: with an image: 1 where it is painted anew, 0 where it stays, [H, W].
        control_image: the ControlNet's input, [H, W, 3] in [0, 1].
        control_strength: a factor on the ControlNet's answer.
    """

    prompt: str
    negative_prompt: str = ""
    identities: Sequence[Identity] = ()
    face_strength: Sequence[float] | float = 1.0
    face_steps: tuple[float, float] = (0.0, 1.0)
    layer_strength: Mapping[str, float] = dataclasses.field(default_factory=dict)
    masks: np.ndarray | None = None
    seed: int = 0
    guidance_scale: float = 7.5
    face_guidance_scale: float | None = None
    latents: np.ndarray | None = None
    image: np.ndarray | None = None
    paint_where: np.ndarray | None = None
    control_image: np.ndarray | None = None
    control_strength: float = 1.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """What pictures painted together share; height, width and steps decide what is compiled.

    Attributes:
        height: in pixels.
        width: in pixels.
        steps: noise levels to visit.
        scheduler: one of `schedulers.SCHEDULERS`.
        image_strength: with `Picture.image`: the share of the steps that is run, in (0, 1].
        faces_in_negative: show the faces to the guidance's negative branch too.
    """

    height: int
    width: int
    steps: int = 30
    scheduler: str = "dpmpp_2m"
    image_strength: float = 0.8
    faces_in_negative: bool = False


class Output(NamedTuple):
    """What was painted.

    Attributes:
        images: the pictures; None in place of one that is not finite (a warning tells).
        latents: [b, h, w, c], before decoding.
        seeds: each picture's seed.
        attention_share: where it was asked for: [b, rows, columns, 1 + r], the share of the
            attention that each place gave to the text and to each photo (of all identities, in
            order), mean of layers, heads and the steps looked at; else None.
    """

    images: list[Image.Image | None]
    latents: Float[np.ndarray, "b h w c"]
    seeds: list[int]
    attention_share: np.ndarray | None = None


def fit_image(
    source: photo_files.PhotoSource, size: tuple[int, int], *, behind: str = "white"
) -> np.ndarray:
    """Reads a picture and scales it to the size that is painted.

    Args:
        source: see `photos.read_photo`.
        size: width and height in pixels.
        behind: the colour behind what is transparent.

    Returns:
        [H, W, 3] in [0, 1].

    Raises:
        UserError: if it cannot be read, or its sides are to each other as no crop could mend.
    """
    image = photo_files.read_photo(source, behind=behind)
    if image.size != size:
        wide, high = image.width / size[0], image.height / size[1]
        if max(wide, high) > 1.02 * min(wide, high):
            raise UserError(
                f"the image has {image.width}×{image.height} pixels (width × height), which is "
                f"another shape than {size[0]}×{size[1]}; cut it or set the size"
            )
        image = image.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(image, np.float32) / 255


def fit_mask(source: photo_files.PhotoSource, size: tuple[int, int]) -> Float[np.ndarray, "H W"]:
    """Reads a mask picture and scales it to the size that is painted; transparent is black.

    Args:
        source: see `photos.read_photo`.
        size: width and height in pixels.

    Returns:
        Brightness in [0, 1].

    Raises:
        UserError: as `fit_image`.
    """
    return fit_image(source, size, behind="black").mean(-1)


def box_mask(box: Sequence[float], height: int, width: int) -> Float[np.ndarray, "H W"]:
    """A mask that is 1 inside a box.

    Args:
        box: left, top, right, bottom as fractions of the picture, in [0, 1].
        height: of the picture in pixels.
        width: of the picture in pixels.

    Returns:
        The mask; every pixel that the box touches is in it.

    Raises:
        UserError: if the box is not four numbers in order.
    """
    values = [float(value) for value in box]
    if len(values) != 4 or not (
        0 <= values[0] < values[2] <= 1 and 0 <= values[1] < values[3] <= 1
    ):
        raise UserError(
            f"the box is {list(box)}; it must be left, top, right, bottom with "
            "0 ≤ left < right ≤ 1 and 0 ≤ top < bottom ≤ 1"
        )
    mask = np.zeros((height, width), np.float32)
    left, top, right, bottom = values
    mask[
        int(np.floor(top * height)) : int(np.ceil(bottom * height)),
        int(np.floor(left * width)) : int(np.ceil(right * width)),
    ] = 1
    return mask
