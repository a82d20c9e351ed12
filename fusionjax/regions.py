"""Where people are in an image: as numbers, as pictures, and as boxes; the same in JAX and PyTorch.

Axes: i identities, H W the image's pixels.
"""

from typing import Any

import numpy as np
from PIL import Image

from fusionjax.errors import UserError, told

_LARGEST_SKEW = 1.02  # of a picture's shape to the image's, which rounded sides may have


def read_regions(masks: Any) -> list[Any]:
    """Checks everybody's regions, see `read_region`.

    Args:
        masks: one for each person; a single picture is the first one's.
    """
    given = [masks] if isinstance(masks, Image.Image) else masks
    if not hasattr(given, "__iter__"):
        raise UserError(f"masks is {told(masks)}; give one for each person")
    return [read_region(mask, number) for number, mask in enumerate(given)]


def read_region(mask: Any, number: int) -> np.ndarray | Image.Image | tuple[float, ...]:
    """Checks one person's region without knowing the image's size.

    Args:
        mask: a Pillow image, white where the person is (transparent is black); numbers [H, W] in
            [0, 1], bools, or grey levels as uint8; or a box: left, top, right, bottom as fractions
            of the image.
        number: the person's, for messages.

    Returns:
        The picture in 8-bit grey, the numbers in float32, or the box.

    Raises:
        UserError: if it is none of these, holds values outside [0, 1] or nothing at all.
    """
    region: Any
    if isinstance(mask, Image.Image):
        black = Image.new("RGBA", mask.size, "black")
        image = Image.alpha_composite(black, mask.convert("RGBA")).convert("RGB")
        region = Image.fromarray(np.round(np.asarray(image, np.float32).mean(-1)).astype(np.uint8))
        any_set = bool(np.asarray(region).any())
    else:
        values = _numbers(mask, number)
        if values.ndim == 1:
            return check_box(mask)  # not in float32, which may touch a pixel more
        region, any_set = values, bool(values.any())
    if not any_set:
        raise UserError(
            f"mask {number} is empty: its person would have no place; give it some pixels or leave "
            "the person out"
        )
    return region


def _numbers(mask: Any, number: int) -> np.ndarray:
    if hasattr(mask, "detach"):  # PyTorch's, on whatever device
        mask = mask.detach().cpu()
    values: Any
    try:
        given: Any = np.asarray(mask)
        values = given.astype(np.float32)
    except (ValueError, TypeError, OverflowError):
        values = given = np.zeros(())
    if values.ndim != 2 and values.shape != (4,):
        raise UserError(
            f"mask {number} is {told(mask)} of shape {values.shape}; it must be a Pillow image, "
            "numbers [height, width], or a box of left, top, right, bottom as fractions"
        )
    if given.dtype == np.uint8 and values.max(initial=0) > 1:
        values /= 255
    if not ((values >= 0) & (values <= 1)).all():
        raise UserError(
            f"masks hold values outside [0, 1]: mask {number} has {values.min():g} to "
            f"{values.max():g}"
        )
    return values


def region_at(region: Any, height: int, width: int) -> np.ndarray:
    """A region as numbers.

    Args:
        region: as `read_region` gives it.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        [H, W] in [0, 1]; numbers are passed on in the size that they have.

    Raises:
        UserError: if a picture has another shape than the image.
    """
    if isinstance(region, tuple):
        return box_mask(region, height, width)
    if not isinstance(region, Image.Image):
        return np.asarray(region)
    if region.size != (width, height):
        wide, high = region.width / width, region.height / height
        if max(wide, high) > _LARGEST_SKEW * min(wide, high):
            raise UserError(
                f"a mask has {region.width}×{region.height} pixels (width × height), which is "
                f"another shape than {width}×{height}; cut it"
            )
        region = region.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(region, np.float32) / 255


def of_other_kinds(masks: Any) -> bool:
    """Whether masks are not simply numbers [i, H, W]."""
    if isinstance(masks, list | tuple):
        return any(_is_of_other_kind(mask) for mask in masks)
    shape: Any = getattr(masks, "shape", ())
    if isinstance(masks, Image.Image):
        return True
    return getattr(masks, "dtype", None) == np.uint8 or (len(shape) == 2 and shape[1] == 4)


def _is_of_other_kind(mask: Any) -> bool:
    if isinstance(mask, Image.Image) or getattr(mask, "dtype", None) == np.uint8:
        return True
    try:
        return np.shape(mask) == (4,)
    except ValueError:  # rows of different lengths
        return False


def check_box(box: Any) -> tuple[float, ...]:
    """Raises UserError unless a box is left, top, right, bottom in order, in [0, 1]."""
    values = tuple(float(value) for value in box)
    if len(values) != 4 or not (
        0 <= values[0] < values[2] <= 1 and 0 <= values[1] < values[3] <= 1
    ):
        raise UserError(
            f"the box is {list(box)}; it must be left, top, right, bottom with "
            "0 ≤ left < right ≤ 1 and 0 ≤ top < bottom ≤ 1"
        )
    return values


def box_mask(box: Any, height: int, width: int) -> np.ndarray:
    """A mask that is 1 inside a box.

    Args:
        box: left, top, right, bottom as fractions of the image, in [0, 1].
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        The mask [H, W], float32; every pixel that the box touches is in it.

    Raises:
        UserError: if the box is not four numbers in order.
    """
    left, top, right, bottom = check_box(box)
    mask = np.zeros((height, width), np.float32)
    mask[
        int(np.floor(top * height)) : int(np.ceil(bottom * height)),
        int(np.floor(left * width)) : int(np.ceil(right * width)),
    ] = 1
    return mask
