"""Where in the picture the loss counts more."""

import numpy as np
from jaxtyping import Float

# The middle of a head's box, hair included, where eyes, glasses and mouth are: top, left, bottom,
# right as fractions of the box.
_FEATURES = np.array([0.4, 0.2, 0.85, 0.8], np.float32)


def box_weight(
    box: Float[np.ndarray, " 4"], size: tuple[int, int], inside: float
) -> Float[np.ndarray, "h w"]:
    """1 outside a box, `inside` in every latent cell that it touches.

    Args:
        box: ymin, xmin, ymax, xmax as fractions of the picture.
        size: rows and columns of the latents.
        inside: the weight in the box.

    Returns:
        The weights.
    """
    weight = np.ones(size, np.float32)
    top, left = np.floor(box[:2] * size + 1e-6).astype(int)
    bottom, right = np.ceil(box[2:] * size - 1e-6).astype(int)
    weight[max(top, 0) : bottom, max(left, 0) : right] = inside
    return weight


def features_box(box: Float[np.ndarray, " 4"]) -> Float[np.ndarray, " 4"]:
    """The part of a head's box where its eyes and mouth are.

    Args:
        box: ymin, xmin, ymax, xmax of the head with its hair.

    Returns:
        The smaller box, likewise.
    """
    start, side = np.tile(box[:2], 2), np.tile(box[2:] - box[:2], 2)
    return start + _FEATURES * side
