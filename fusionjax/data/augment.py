"""Another view of a face from the same picture, for people of whom there is only one.

Without it an adapter could learn to copy pixels from the photo into the picture.
"""

import numpy as np
from jaxtyping import Float, UInt8

LARGEST_ROTATION_DEG = 12.0
SCALE_RANGE = (0.85, 1.2)
LARGEST_SHIFT = 0.06  # of the side
BRIGHTNESS_RANGE = (0.85, 1.15)
CONTRAST_RANGE = (0.85, 1.15)
SATURATION_RANGE = (0.75, 1.25)
FACE_MARGIN = 0.35  # of the box's longer side, on every side


def face_square(
    image: UInt8[np.ndarray, "H W 3"], box: Float[np.ndarray, "4"], side: int
) -> UInt8[np.ndarray, "side side 3"]:
    """Cuts the square around a face box, with a margin, and scales it.

    Args:
        image: the picture.
        box: ymin, xmin, ymax, xmax in [0, 1].
        side: of the result in pixels.

    Returns:
        The square; where it reaches over the picture's edge, the edge's pixels are repeated.

    Raises:
        ValueError: if the box is empty or outside the picture.
    """
    import cv2  # here: training on cached latents needs none of it

    height, width = image.shape[:2]
    top, left, bottom, right = (
        float(v) * size for v, size in zip(np.clip(box, 0, 1), (height, width) * 2, strict=True)
    )
    if bottom - top < 1 or right - left < 1:
        raise ValueError("the face's box has no size")
    extent = max(bottom - top, right - left) * (1 + 2 * FACE_MARGIN)
    y, x = (top + bottom - extent) / 2, (left + right - extent) / 2
    scale = side / extent
    to_square = np.array([[scale, 0, -x * scale], [0, scale, -y * scale]], np.float32)
    shrinking = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.warpAffine(
        image, to_square, (side, side), flags=shrinking, borderMode=cv2.BORDER_REPLICATE
    )


def augment(
    image: UInt8[np.ndarray, "H W 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """Flips, turns, scales, shifts and recolours a picture, all a little.

    Args:
        image: a face's square.
        rng: decides by how much.

    Returns:
        The picture, same size.
    """
    import cv2

    height, width = image.shape[:2]
    if rng.random() < 0.5:
        image = np.ascontiguousarray(image[:, ::-1])
    matrix = cv2.getRotationMatrix2D(
        (width / 2, height / 2),
        rng.uniform(-LARGEST_ROTATION_DEG, LARGEST_ROTATION_DEG),
        rng.uniform(*SCALE_RANGE),
    )
    shift = rng.uniform(-LARGEST_SHIFT, LARGEST_SHIFT, 2) * np.array([width, height])
    matrix = matrix + np.stack([np.zeros(2), np.zeros(2), shift], axis=1)
    image = cv2.warpAffine(
        image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    colours = image.astype(np.float32)
    grey = colours.mean(-1, keepdims=True)
    colours = grey + (colours - grey) * rng.uniform(*SATURATION_RANGE)
    middle = colours.mean()
    colours = middle + (colours - middle) * rng.uniform(*CONTRAST_RANGE)
    return np.clip(np.round(colours * rng.uniform(*BRIGHTNESS_RANGE)), 0, 255).astype(np.uint8)
