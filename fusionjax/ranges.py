"""Ranges of what users choose: numbers, texts, sizes."""

import math
from collections.abc import Mapping
from typing import Any

from fusionjax.errors import UserError, told
from fusionjax.schema import typed

WATERMARK_BYTES = 8
"""Most of a watermark's text, in UTF-8."""
_LONGEST_TEXT = 20_000  # characters; a text encoder reads some 300


def check_texts(name: str, value: Any) -> None:
    for text in value if isinstance(value, tuple) else (value,):
        if not isinstance(text, str):
            continue
        if len(text) > _LONGEST_TEXT:
            raise UserError(
                f"{name} has {len(text):,} characters; it must have at most {_LONGEST_TEXT:,}"
            )
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise UserError(f"{name} is {told(text)}; it holds half a character (a surrogate)")


def check_number(
    name: str, value: float, low: float, high: float = math.inf, *, above: bool = False
) -> None:
    """Checks a number.

    Args:
        name: what it is called.
        value: the number.
        low: the least that it may be; with `above`, what it must be above.
        high: the most that it may be; +∞ itself is no number.
        above: see `low`.

    Raises:
        UserError: if it is out of range, NaN, or no number at all.
    """
    # Python compares whole numbers of any size, but does not make them floating-point ones.
    if low <= value <= high and value != math.inf and not (above and value == low):
        return
    if math.isinf(high):
        must = f"{'>' if above else '≥'} {low:g}"
    else:
        must = (
            f"in {'(' if above else '['}{low:g}, {high:g}]"
            if above
            else f"in {low:.10g}..{high:.10g}"
        )
    raise UserError(f"{name} is {told(value)}; it must be {must}")


def check_multiple(name: str, value: int, step: int) -> None:
    """Raises UserError, with the nearest ones, unless a size is a multiple of `step` pixels."""
    if value >= step and value % step == 0:
        return
    below = max(value // step, 1) * step
    nearest = f"{below} or {below + step}" if value > step else f"{step}"
    raise UserError(f"{name} is {value}; it must be a multiple of {step}, for example {nearest}")


def numbers_of(value: Any) -> list[tuple[str, Any]]:
    """The numbers in a value, and whose they are."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        return [(str(part), number) for part, number in value.items()]
    return [("", number) for number in (value if isinstance(value, list | tuple) else [value])]


def check_outpaint(value: Any) -> tuple[int, ...]:
    """What is added on the left, top, right and bottom; UserError if it is not four numbers."""
    borders = typed(value, tuple[int, ...], "outpaint")
    if len(borders) not in (0, 4) or min(borders, default=0) < 0:
        raise UserError(
            f"outpaint is {' '.join(map(str, borders))}; it must be four numbers of pixels ≥ 0: "
            "left, top, right, bottom"
        )
    return borders


def check_watermark(text: str) -> None:
    """Raises UserError if a watermark's text is too long, or holds a zero, which ends it."""
    if (count := len(text.encode())) > WATERMARK_BYTES:
        raise UserError(f"watermark is {told(text)}, {count} bytes; it may have {WATERMARK_BYTES}")
    if "\0" in text:
        raise UserError(f"watermark is {told(text)}; it must not hold the character 0")
