"""The one kind of error that a user can mend, and how values are told in it."""

import math
import reprlib
from typing import Any

_LONGEST = 500  # characters of a message
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 80, 80


class UserError(ValueError):
    """An input is wrong: the message names the thing, its value and the remedy, on one line.

    The command lines show it as `error: …` without a traceback. Whatever values are in it, it has
    at most 500 characters, and all of them can be printed.
    """

    def __init__(self, message: object = "") -> None:
        """Says what is wrong.

        Args:
            message: what is too long is left out of its middle.
        """
        text = printable(_middle_left_out(str(message)))
        super().__init__(_middle_left_out(text))


class NotFiniteWarning(UserWarning):
    """A picture that a number type could not hold: decoded again, or left out."""


def printable(text: str) -> str:
    """A text on one line, with escapes for what no terminal shows."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _middle_left_out(text: str) -> str:
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[: half - 3]} … {text[-half:]}"


def told(value: Any) -> str:
    """A value as Python writes it, cut so that it fits into a message, however large it is."""
    try:
        text = f"{value:g}" if isinstance(value, float) else _SHORT.repr(value)
    except (ValueError, OverflowError):  # Python refuses to write whole numbers of 4,300 digits
        return f"a whole number of {value.bit_length()} bits" if isinstance(value, int) else "odd"
    return shortened(text, 80)


def shortened(text: str, most: int = 20) -> str:
    """A text cut so that it fits into a message."""
    return text if len(text) <= most else f"{text[:most]}…"


def at_least(minimum: float, **values: float) -> None:
    """Checks arguments.

    Args:
        minimum: What none of them may be below.
        **values: By name; `__` stands for a dot.

    Raises:
        UserError: For the first that is smaller, NaN, or infinite.
    """
    for name, value in values.items():
        if not minimum <= value < math.inf:
            raise UserError(
                f"{name.replace('__', '.')} is {told(value)}; it must be at least {minimum}"
            )


def a_share(**values: float) -> None:
    """Checks arguments.

    Args:
        **values: By name; `__` stands for a dot.

    Raises:
        UserError: For the first that is not in [0, 1].
    """
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise UserError(f"{name.replace('__', '.')} is {told(value)}; it must be in [0, 1]")
