"""Draws the mini world's people, alone and side by side, and knows where their faces are.

The drawings are avatars from `python-avatars` (MIT) rasterised by `resvg-py`. Everything is a
function of its arguments and of a NumPy generator, so the same seed draws the same picture.

Axes: i people in a picture, h w pixels.
"""

import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import python_avatars as avatars
import resvg_py
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageFilter

from fusionjax.mini.captions import scene_caption
from fusionjax.mini.people import (
    CLOTHES,
    CLOTHES_COLORS,
    EXPRESSIONS,
    FACIAL_HAIR,
    GLASSES,
    HAIR,
    HAIR_COLORS,
    MIDDLE_X,
    SKINS,
    Circumstance,
    Person,
)
from fusionjax.mini.places import background_svg

PICTURE_PIXELS = 64

_UNIFORM_COLORS = {
    "chef's jacket": "#FFFFFF",
    "suit and tie": "#C0272D",
    "sailor shirt": "url(#stripes)",
}
# The head with its hair, and the figure's middle, in the avatar's own units (264 wide, 280 high).
_HEAD = (50.0, 8.0, 214.0, 198.0)
# For two and three people: picture sides per avatar unit, the figures' middles, the view's top.
_PLACES: dict[int, tuple[float, tuple[float, ...], float]] = {
    2: (1 / 300, (0.27, 0.73), -50.0),
    3: (1 / 400, (0.19, 0.5, 0.81), -124.0),
}


@dataclass(frozen=True)
class Scene:
    """A picture of several people.

    Attributes:
        image: The picture, [height, width, 3].
        caption: What one sees, from left to right.
        people: Who is in it, from left to right.
        circumstances: What each does and wears; the background and style are those of the first.
        masks: Where each person is seen, [people, height, width].
        face_boxes: Each head's ymin, xmin, ymax, xmax as fractions of the picture.
    """

    image: UInt8[np.ndarray, "h w 3"]
    caption: str
    people: tuple[Person, ...]
    circumstances: tuple[Circumstance, ...]
    masks: Bool[np.ndarray, "i h w"]
    face_boxes: Float[np.ndarray, "i 4"]


def draw(
    person: Person, circumstance: Circumstance, pixels: int = PICTURE_PIXELS
) -> UInt8[np.ndarray, "h w 3"]:
    """Draws one person.

    Args:
        person: Who.
        circumstance: How, and where.
        pixels: Height and width of the picture.

    Returns:
        The picture.
    """
    figure = _figure(person, circumstance, circumstance.view, pixels)
    canvas = _background(circumstance.background, pixels).copy()
    canvas.alpha_composite(figure)
    return _apply_style(canvas.convert("RGB"), circumstance.style)


def face_box(circumstance: Circumstance, *, clip: bool = True) -> tuple[float, float, float, float]:
    """Where the head with its hair is.

    Args:
        circumstance: The picture's circumstance; only the framing matters.
        clip: Whether the box ends where the picture ends.

    Returns:
        ymin, xmin, ymax, xmax as fractions of the picture; clipped, they are inside [0, 1].
    """
    left, top, side = circumstance.view
    box = np.array([_HEAD[1] - top, _HEAD[0] - left, _HEAD[3] - top, _HEAD[2] - left]) / side
    ymin, xmin, ymax, xmax = (float(value) for value in (np.clip(box, 0, 1) if clip else box))
    return ymin, xmin, ymax, xmax


def draw_scene(
    persons: Sequence[Person],
    circumstances: Sequence[Circumstance],
    rng: np.random.Generator,
    pixels: int = PICTURE_PIXELS,
    *,
    identity_share: float = 0.5,
) -> Scene:
    """Draws two or three people next to each other.

    Args:
        persons: Who, from left to right.
        circumstances: One for each person; background and style are those of the first.
        rng: The wording of the caption is drawn from it.
        pixels: Height and width of the picture.
        identity_share: The probability with which some of the people's traits are told.

    Returns:
        The scene. A person's mask is what is seen of them: someone in front is cut out of it.

    Raises:
        ValueError: If there are not two or three people, or not a circumstance for each.
    """
    if len(persons) not in _PLACES or len(circumstances) != len(persons):
        raise ValueError(
            f"got {len(persons)} people and {len(circumstances)} circumstances; "
            "a scene has two or three people and a circumstance for each"
        )
    first = circumstances[0]
    together = tuple(
        replace(each, background=first.background, style=first.style) for each in circumstances
    )
    canvas = _background(first.background, pixels).copy()
    masks = np.zeros((len(persons), pixels, pixels), bool)
    boxes = []
    scale, centres, top = _PLACES[len(persons)]
    for index, (person, circumstance, centre) in enumerate(
        zip(persons, together, centres, strict=True)
    ):
        side = 1 / scale
        view = (
            MIDDLE_X + circumstance.shift_x - centre * side,
            top + circumstance.shift_y,
            side,
        )
        figure = _figure(person, circumstance, view, pixels)
        seen = np.asarray(figure)[..., 3] > 127
        masks &= ~seen
        masks[index] = seen
        canvas.alpha_composite(figure)
        box = (_HEAD[1] - view[1], _HEAD[0] - view[0], _HEAD[3] - view[1], _HEAD[2] - view[0])
        boxes.append(np.clip(np.array(box) / side, 0, 1))
    image = _apply_style(canvas.convert("RGB"), first.style)
    caption = scene_caption(persons, together, rng, identity_share=identity_share)
    return Scene(
        image, caption, tuple(persons), together, masks, np.stack(boxes).astype(np.float32)
    )


def scene_boxes(number: int) -> Float[np.ndarray, "i 4"]:
    """Where the heads are in a picture of two or three people, before small shifts.

    Args:
        number: How many people.

    Returns:
        ymin, xmin, ymax, xmax of each head from left to right, as fractions; may reach outside.
    """
    scale, centres, top = _PLACES[number]
    left, upper, right, lower = _HEAD
    return np.array(
        [
            (
                (upper - top) * scale,
                centre + (left - MIDDLE_X) * scale,
                (lower - top) * scale,
                centre + (right - MIDDLE_X) * scale,
            )
            for centre in centres
        ],
        np.float32,
    )


def scene_regions(number: int, pixels: int = PICTURE_PIXELS) -> Bool[np.ndarray, "i h w"]:
    """The region of each person in a picture of two or three: upright stripes that share it out.

    Args:
        number: How many people.
        pixels: Height and width of the picture.

    Returns:
        A mask for each person, from left to right; each pixel is in exactly one.
    """
    _, centres, _ = _PLACES[number]
    column = (np.arange(pixels) + 0.5) / pixels
    nearest = np.abs(column[None, :] - np.array(centres)[:, None]).argmin(axis=0)
    stripes = nearest[None, None, :] == np.arange(number)[:, None, None]
    return np.broadcast_to(stripes, (number, pixels, pixels)).copy()


def png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Encodes a picture as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


_TEARS = "".join(
    f'<path d="M{x} 122 C{x - 8} 136 {x - 8} 150 {x} 150 C{x + 8} 150 {x + 8} 136 {x} 122 Z" '
    'fill="#4FC3F7" stroke="#FFFFFF" stroke-width="1.5"/>'
    for x in (104, 160)
)
_BUTTONS = "".join(
    f'<circle cx="{x}" cy="{y}" r="5" fill="#2A2E33"/>' for x in (114, 150) for y in (212, 236, 260)
)
_STRIPES = (
    '<defs><pattern id="stripes" width="264" height="20" patternUnits="userSpaceOnUse">'
    '<rect width="264" height="20" fill="#FFFFFF"/>'
    '<rect y="4" width="264" height="9" fill="#1F3F8F"/></pattern></defs>'
)
_FACE = '<g id="transparent_Face"'
_SVG_SIZE = 'width="264px" height="280px" viewBox="0 0 264 280"'


def _figure(
    person: Person, circumstance: Circumstance, view: tuple[float, float, float], pixels: int
) -> Image.Image:
    """A person alone, on a transparent ground, seen through a square view (left, top, side)."""
    eyes, eyebrows, mouth = EXPRESSIONS[circumstance.expression]
    clothes = circumstance.clothes
    color = _UNIFORM_COLORS.get(clothes) or CLOTHES_COLORS.get(
        circumstance.clothes_color, "#FFFFFF"
    )
    svg = avatars.Avatar(
        style=avatars.AvatarStyle.TRANSPARENT,
        top=HAIR[person.hair][0],
        hair_color=HAIR_COLORS[person.hair_color],
        facial_hair=FACIAL_HAIR[person.facial_hair][0],
        facial_hair_color=HAIR_COLORS[person.hair_color],
        skin_color=SKINS[person.skin],
        accessory=GLASSES[person.glasses][0],
        eyes=eyes,
        eyebrows=eyebrows,
        mouth=mouth,
        nose=avatars.NoseType.DEFAULT,
        clothing=CLOTHES[clothes][0],
        clothing_color=color,
    ).render()
    left, top, side = view
    if svg.count(_SVG_SIZE) != 1 or svg.count(_FACE) != 1:
        raise RuntimeError(
            "python-avatars arranges its drawings in an unknown way; install version 1.4.1"
        )
    svg = svg.replace(
        _SVG_SIZE,
        f'width="{pixels}" height="{pixels}" viewBox="{left:.2f} {top:.2f} {side:.2f} {side:.2f}"',
    )
    if clothes == "chef's jacket":
        svg = svg.replace(_FACE, f"{_BUTTONS}{_FACE}")
    extra = _TEARS if circumstance.expression == "crying" else ""
    svg = svg.replace("</svg>", f"{extra}{_STRIPES}</svg>")
    return _rasterise(svg, pixels)


@functools.lru_cache(maxsize=64)
def _background(name: str, pixels: int) -> Image.Image:
    return _rasterise(background_svg(name), pixels)


def _rasterise(svg: str, pixels: int) -> Image.Image:
    data = resvg_py.svg_to_bytes(
        svg_string=svg, width=pixels, height=pixels, skip_system_fonts=True
    )
    return Image.open(io.BytesIO(data)).convert("RGBA")


def _apply_style(image: Image.Image, style: str) -> UInt8[np.ndarray, "h w 3"]:
    """The picture as line art, faded film or watercolour, or as it is."""
    if style == "line art":
        smooth = np.asarray(image.filter(ImageFilter.GaussianBlur(0.6)), np.float32)
        dy = np.abs(np.diff(smooth, axis=0, append=smooth[-1:])).max(-1)
        dx = np.abs(np.diff(smooth, axis=1, append=smooth[:, -1:])).max(-1)
        ink = np.clip((np.maximum(dx, dy) - 6) * 4, 0, 225)
        return np.repeat((255 - ink).astype(np.uint8)[..., None], 3, -1)
    if style == "faded film":
        values = np.asarray(image, np.float32)
        grey = values.mean(-1, keepdims=True)
        washed = (0.55 * values + 0.45 * grey) * 0.62
        return np.clip(washed + np.array([84.0, 66.0, 44.0]), 0, 255).astype(np.uint8)
    if style == "watercolour":
        values = np.asarray(image.filter(ImageFilter.ModeFilter(3)), np.float32)
        height, width = values.shape[:2]
        y, x = np.mgrid[:height, :width] * (96 / height)
        paper = (
            9 * np.sin(x * 0.31 + 2 * np.sin(y * 0.17)) * np.sin(y * 0.27 + 2 * np.sin(x * 0.13))
        )
        return np.clip(values * 0.8 + 50 + paper[..., None], 0, 255).astype(np.uint8)
    return np.asarray(image)
