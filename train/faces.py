"""What a picture's face boxes say for training: where the loss counts more, who sees which photo.

A face box is ymin, xmin, ymax, xmax as fractions of the picture, in [0, 1].
Legend: p people, h w rows and columns of the latents.
"""

import numpy as np
from jaxtyping import Float

# The middle of a head's box, hair included, where eyes, glasses and mouth are: top, left, bottom,
# right as fractions of the box.
_FEATURES = np.array([0.4, 0.2, 0.85, 0.8], np.float32)


def box_weight(
    boxes: Float[np.ndarray, "p 4"], size: tuple[int, int], inside: float
) -> Float[np.ndarray, "h w"]:
    """1 outside all boxes, `inside` in every latent cell that one touches.

    Args:
        boxes: Face boxes.
        size: Rows and columns of the latents.
        inside: The weight in a box.

    Returns:
        The weights.
    """
    weight = np.ones(size, np.float32)
    for top, left, bottom, right in zip(
        *np.floor(boxes[:, :2] * size + 1e-6).astype(int).T,
        *np.ceil(boxes[:, 2:] * size - 1e-6).astype(int).T,
        strict=True,
    ):
        weight[top:bottom, left:right] = inside
    return weight


def features_boxes(boxes: Float[np.ndarray, "p 4"]) -> Float[np.ndarray, "p 4"]:
    """The part of each head's box where its eyes and mouth are.

    Args:
        boxes: Of heads with their hair.

    Returns:
        The smaller boxes.
    """
    start, side = np.tile(boxes[:, :2], 2), np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    return start + _FEATURES * side


def nearest_face(
    boxes: Float[np.ndarray, "p 4"], size: tuple[int, int], people: int
) -> Float[np.ndarray, "people h w"]:
    """A mask for each person: the latent cells that are nearer to their face than to another's.

    Args:
        boxes: Face boxes of 1 to `people` people.
        size: Rows and columns of the latents.
        people: How many masks; those of nobody are zero, as is that of somebody who is alone.

    Returns:
        The masks, 0 or 1.
    """
    masks = np.zeros((people, *size), np.float32)
    if len(boxes) > 1:
        y, x = ((np.arange(side) + 0.5) / side for side in size)
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2
        distance = np.hypot(
            y[None, :, None] - middle[:, 0, None, None], x[None, None, :] - middle[:, 1, None, None]
        )
        np.put_along_axis(masks, distance.argmin(0)[None], 1.0, axis=0)
    return masks
