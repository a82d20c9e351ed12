"""An image to start from: brought to size, masked, enlarged at its sides, put back under the seam.

Legend: H W pixels of the image that is generated.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageFilter

from fusionjax.errors import UserError
from fusionjax.generation.request import fit_image, fit_mask
from fusionjax.options import check_outpaint
from fusionjax.photos import PhotoSource, read_photo
from fusionjax.ranges import check_multiple


def starting_point(
    image: PhotoSource | None,
    mask_image: PhotoSource | None,
    size: tuple[int, int],
    outpaint: tuple[int, ...] = (),
    mask_blur: float = 0.0,
) -> dict[str, Any]:
    """Reads what an image starts from.

    What outpainting adds repeats the image's outermost pixels, and is painted. With a soft edge the
    edge lies within the image: of what was added nothing is seen through it.

    Args:
        image: to start from, or None.
        mask_image: white where it is painted anew, or None; of the image's shape.
        size: width and height of what is generated.
        outpaint: what is added to the image on the left, top, right and bottom, in pixels.
        mask_blur: of the request.

    Returns:
        `image`, `mask_image` and `outpaint` of a `Request`.

    Raises:
        UserError: as `fit_image`; or if there is no image to enlarge.
    """
    if not any(outpaint):
        return {
            "image": None if image is None else fit_image(image, size) * 2 - 1,
            "mask_image": None if mask_image is None else fit_mask(mask_image, size),
            "outpaint": (),
        }
    if image is None:
        raise UserError("outpaint is given without an image to enlarge")
    left, top, right, bottom = outpaint
    within = (size[0] - left - right, size[1] - top - bottom)
    if min(within) < 1:
        raise UserError(
            f"outpaint is {' '.join(map(str, outpaint))}, which leaves nothing of "
            f"{size[0]}×{size[1]} pixels (width × height); set a larger size or add less"
        )
    inner = np.zeros(within[::-1], np.float32)
    if mask_image is not None:
        inner = fit_mask(mask_image, within)
    edge = math.ceil(3 * mask_blur) + 1 if mask_blur else 0  # all that the blur reaches
    inner = inner.copy()
    inner[: edge if top else 0] = inner[within[1] - (edge if bottom else 0) :] = 1
    inner[:, : edge if left else 0] = inner[:, within[0] - (edge if right else 0) :] = 1
    around = ((top, bottom), (left, right))
    return {
        "image": np.pad(fit_image(image, within) * 2 - 1, (*around, (0, 0)), "edge"),
        "mask_image": np.pad(inner, around, constant_values=1),
        "outpaint": (),
    }


def outpainted_size(image: PhotoSource | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The size of an enlarged image whose own size is kept, for whichever side is not given.

    Args:
        image: to start from.
        options: `outpaint`, `height` and `width`, where they are given.

    Returns:
        `height` and `width`; nothing without an image and outpainting.

    Raises:
        UserError: if a side is no multiple of 8.
    """
    outpaint = check_outpaint(options.get("outpaint") or ())
    if image is None or not any(outpaint):
        return {}
    own = read_photo(image)
    left, top, right, bottom = outpaint
    size = {"height": own.height + top + bottom, "width": own.width + left + right}
    size = {name: side for name, side in size.items() if options.get(name) is None}
    for name, side in size.items():
        check_multiple(f"{name} of the image and what outpaint adds", side, 8)
    return size


def blurred(mask: Float[np.ndarray, "H W"], radius: float) -> Float[np.ndarray, "H W"]:
    """A mask with a soft edge, as diffusers' `VaeImageProcessor.blur` makes it.

    Args:
        mask: in [0, 1].
        radius: the Gaussian's standard deviation in pixels; 0 leaves the mask as it is.
    """
    if not radius:
        return mask
    levels = Image.fromarray(np.round(mask * 255).astype(np.uint8))
    return np.asarray(levels.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255
