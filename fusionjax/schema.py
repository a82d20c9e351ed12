"""Values from outside (JSON, YAML, keywords of a call) as the types that the code works with.

One way for every border: a border declares its type, with bounds, and what does not fit ends in a
`UserError` that names the thing, its value and what it must be. Nothing is guessed: a text is no
number, 1.5 is no whole number.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from fusionjax.errors import UserError, shortened, told
from fusionjax.files import read_whole

T = TypeVar("T")

_MOST_JSON_BYTES = 10_000_000
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "null": "nothing",
    "array": "a list",
    "object": "a mapping",
}

Name = Annotated[str, Meta(max_length=200)]


def whole(low: int, high: int) -> Any:
    """The type of whole numbers in low..high."""
    return Annotated[int, Meta(ge=low, le=high)]


def real(low: float, high: float, *, above: bool = False) -> Any:
    """The type of numbers in [low, high], or (low, high] with `above`; never NaN."""
    return Annotated[float, Meta(gt=low, le=high) if above else Meta(ge=low, le=high)]


def parse_json(text: str | bytes, where: str) -> Any:
    """Parses JSON.

    Args:
        text: it.
        where: how to name it in errors.

    Raises:
        UserError: if it is none, or nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(f"{where} is nested too deeply to be read") from None
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({shortened(str(error), 120)})") from None


def read_json(path: str | os.PathLike[str], kind: type[T] | Any = dict[str, Any]) -> T:
    """Reads a JSON file as a type.

    Args:
        path: the file.
        kind: the type; any object by default.

    Raises:
        UserError: if the file cannot be read, is not JSON, or holds something else.
    """
    where = shortened(os.fspath(path), 120)
    content = read_whole(path, _MOST_JSON_BYTES)
    value = parse_json(content, where)
    if not isinstance(value, dict):
        raise UserError(f"{where} holds no JSON object; copy it again from its source")
    return typed(value, kind, where)


def typed(value: Any, kind: Any, where: str = "") -> Any:
    """A value as a type.

    Args:
        value: of plain Python: numbers, texts, lists, mappings; NumPy's numbers too.
        kind: the type, with bounds (`typing.Annotated` with `msgspec.Meta`).
        where: goes before the name of a part that does not fit; for a value without parts, its
            name.

    Returns:
        The value, of that type.

    Raises:
        UserError: if it does not fit.
    """
    try:
        return msgspec.convert(_plain(value), kind, strict=True)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, UserError):  # of the type's own making
            raise UserError(f"{where}: {error.__cause__}" if where else error.__cause__) from None
        raise UserError(_said(str(error), value, where)) from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply to be read") from None
    except UnicodeEncodeError as error:  # msgspec writes keys as UTF-8
        raise UserError(
            f"{where or 'it'} has the key {told(error.object)}, half a character"
        ) from None


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's; without importing NumPy."""
    return value.item() if type(value).__module__ == "numpy" and not value.shape else value


_PLACE = re.compile(r"^(?P<said>.*?)(?: - at `(?P<key>key in )?\$(?P<place>.*)`)?$", re.DOTALL)


def _said(message: str, value: Any, where: str) -> str:
    """msgspec's words with the value that they are about."""
    match = _PLACE.match(message)
    assert match is not None
    said, place = match["said"], (match["place"] or "").lstrip(".")
    name = f"{where}: {place}" if where and place else where or place or "it"
    must = said.partition(", got")[0].removeprefix("Expected ")
    must = re.sub(
        r"`([^`]*)`", lambda m: " or ".join(_WORDS.get(w, w) for w in m[1].split(" | ")), must
    )
    if said.startswith(("Expected", "Invalid enum")):
        found = _at(value, place)
        if said.startswith("Invalid enum"):
            return f"{name} is {told(found)}, which is not known"
        return f"{name} is {told(found)}; it must be {must}"
    if said == "Number out of range":
        said = "a number is out of range"
    return f"{name}: {said.replace('`', '')}"


def _at(value: Any, place: str) -> Any:
    """The part of a value that msgspec's path leads to, as far as it can be followed."""
    for part in re.findall(r"\[(?:\d+|\.\.\.)\]|[^.\[\]]+", place):
        try:
            if isinstance(value, Mapping):
                value = value[part] if part != "[...]" else next(iter(value.values()))
            elif isinstance(value, Sequence) and part[1:-1].isdecimal():
                value = value[int(part[1:-1])]
        except (KeyError, IndexError, StopIteration):
            break
    return value
