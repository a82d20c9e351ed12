"""A curve through points with intervals, drawn with Pillow."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from fusionjax.evaluation.metrics import Interval

SIZE = (720, 480)
AREA = (72, 40, 700, 420)  # left, top, right, bottom of what lies between the axes
_INK, _FAINT, _LINE, _OTHER = "#282828", "#9A9A9A", "#2F6FD6", "#C93305"
_RADIUS = 4


class Point(NamedTuple):
    """A point with a name beside it; y has its interval."""

    name: str
    x: float
    y: Interval


def nice_range(values: Sequence[float]) -> tuple[float, float, float]:
    """An axis: its ends, multiples of a step of 1, 2 or 5 times a power of ten, and the step.

    Args:
        values: what it must hold; at least one.

    Returns:
        The lower end, the upper end, and the step, of which there are three to ten between them.
    """
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
        low, high = low - max(abs(low), 1) / 10, high + max(abs(high), 1) / 10
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * 5 >= high - low)
    return math.floor(low / step + 1e-6) * step, math.ceil(high / step - 1e-6) * step, step


def draw(
    points: Sequence[Point],
    *,
    others: Sequence[Point] = (),
    levels: Mapping[str, float] | None = None,
    x_name: str,
    y_name: str,
) -> Image.Image:
    """Draws a curve.

    Args:
        points: what the curve goes through, in this order.
        others: further points, which no line joins.
        levels: heights with a name, as lines across.
        x_name: what lies to the right.
        y_name: what lies upwards.

    Returns:
        The drawing; pixel x of a value v is linear between the ends of `nice_range`.
    """
    levels = levels or {}
    every = [*points, *others]
    across = nice_range([point.x for point in every])
    up = nice_range([*(value for point in every for value in point.y), *levels.values()])
    canvas, font = Image.new("RGB", SIZE, "white"), ImageFont.load_default(13)
    pen = ImageDraw.Draw(canvas)
    left, top, right, bottom = AREA

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - across[0]) / (across[1] - across[0]) * (right - left),
            bottom - (y - up[0]) / (up[1] - up[0]) * (bottom - top),
        )

    for value in _steps(across):
        x, _ = at(value, up[0])
        pen.line([(x, bottom), (x, bottom + 4)], _INK)
        pen.text((x, bottom + 7), f"{value:.4g}", _INK, font, anchor="ma")
    for value in _steps(up):
        _, y = at(across[0], value)
        pen.line([(left - 4, y), (left, y)], _INK)
        pen.text((left - 8, y), f"{value:.4g}", _INK, font, anchor="rm")
    pen.line([(left, top), (left, bottom), (right, bottom)], _INK)
    pen.text(((left + right) / 2, bottom + 30), x_name, _INK, font, anchor="ma")
    pen.text((8, 10), y_name, _INK, font)
    for name, value in levels.items():
        _, y = at(across[0], value)
        for start in range(left, right, 8):
            pen.line([(start, y), (start + 3, y)], _FAINT)
        pen.text((right, y - 2), name, _FAINT, font, anchor="rs")
    pen.line([at(point.x, point.y.mean) for point in points], _LINE, 2)
    for color, group in ((_LINE, points), (_OTHER, others)):
        for point in group:
            x, y = at(point.x, point.y.mean)
            pen.line([at(point.x, point.y.low), at(point.x, point.y.high)], color)
            pen.ellipse((x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS), color)
            pen.text((x + 7, y - 5), point.name, _INK, font, anchor="ls")
    return canvas


def _steps(axis: tuple[float, float, float]) -> list[float]:
    low, high, step = axis
    return [low + n * step for n in range(round((high - low) / step) + 1)]
