"""Where people are, as it is drawn on the page: a canvas, and a colour for each person."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from fusionjax.errors import UserError, told
from fusionjax.regions import check_box

COLOURS = ("#e4572e", "#2e86de", "#2ca25f", "#9b59b6")
"""Of the people, far from each other."""
_CANVAS_SIDE = 640  # the longer one as it is shown, in pixels
_PAPER, _LINE = (250, 250, 250), (226, 226, 226)


def canvas(width: int, height: int) -> Image.Image:
    """Paper to draw on, with lines at quarters, in a picture's shape."""
    scale = _CANVAS_SIDE / max(width, height)
    paper = Image.new("RGB", (round(width * scale), round(height * scale)), _PAPER)
    for share in (0.25, 0.5, 0.75):
        x, y = round(paper.width * share), round(paper.height * share)
        paper.paste(_LINE, (x, 0, x + 1, paper.height))
        paper.paste(_LINE, (0, y, paper.width, y + 1))
    return paper


def drawn_masks(layers: Sequence[Image.Image], people: int) -> list[Image.Image | None]:
    """Takes a drawing apart.

    Args:
        layers: of the canvas, transparent where nothing is drawn; an upper one covers a lower one.
        people: how many there are.

    Returns:
        For each person a picture, white where most of a pixel is nearest to the person's colour;
        None where nothing is. All are None if nothing at all is drawn.
    """
    if not layers:
        return [None] * people
    whole = Image.new("RGBA", layers[0].size)
    for layer in layers:
        whole.alpha_composite(layer.convert("RGBA").resize(whole.size))
    pixels = np.asarray(whole).astype(int)
    colours = np.array([_rgb(colour) for colour in COLOURS])
    distance = ((pixels[..., None, :3] - colours) ** 2).sum(-1)
    nearest = np.where(pixels[..., 3] >= 128, distance.argmin(-1), -1)
    masks = [(nearest == number) for number in range(people)]
    return [
        Image.fromarray((mask * 255).astype(np.uint8)) if mask.any() else None for mask in masks
    ]


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour.removeprefix("#")))


def read_box(text: str) -> tuple[float, ...]:
    """A box as it is typed: four numbers, with commas or spaces between them; nothing is none.

    Raises:
        UserError: for anything else.
    """
    words: Any = text.replace(",", " ").split()
    try:
        return check_box([float(word) for word in words]) if words else ()
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"a box is {told(text)}; give left top right bottom, as 0 0 0.5 1"
        ) from None
