"""A picture as a source has it, and how its caption and its person are read there."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ENDINGS = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif",
)  # fmt: skip
PICTURES = ("file_name", "image_file", "image", "jpg", "png", "webp", "path")
CAPTIONS = ("text", "caption", "TEXT", "txt", "prompt")
PEOPLE = ("person", "identity", "person_id", "label")
MOST_TEXT_BYTES = 1_000_000


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture as its source has it.

    Attributes:
        name: where it was found, for people to read; unlike all others' of the sources.
        content: the encoded picture, or the file that holds it.
        caption: what is said of it; empty if nothing is.
        person: whose picture it is, where the source says so.
    """

    name: str
    content: bytes | Path
    caption: str
    person: str | None = None


@dataclasses.dataclass(frozen=True)
class Unread:
    """A picture that the source names and does not have, and why."""

    name: str
    reason: str


class Unusable(Exception):
    """Why a picture cannot be used."""


def decoded(content: bytes) -> str:
    """A caption's bytes as text.

    Raises:
        Unusable: if they are not UTF-8.
    """
    try:
        return content.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise Unusable("a caption that is not UTF-8") from None


def first_of(row: Mapping[str, Any], names: Iterable[str]) -> str:
    """The first of several columns that a row has, as text."""
    for name in names:
        value = row.get(name)
        if isinstance(value, bytes):
            return decoded(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # as pandas writes whole numbers beside missing ones
        if isinstance(value, str | int) and not isinstance(value, bool):
            return str(value).strip()
    return ""


def person_of(row: Mapping[str, Any], column: str | None) -> str | None:
    """Whose picture a row says that it is; None if it does not.

    Args:
        row: by columns.
        column: that says so; None for the usual names.
    """
    return first_of(row, (column,) if column else PEOPLE) or None
