"""Where images are written, and what their files are called."""

import dataclasses
import datetime
import difflib
import itertools
import re
import string
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fusionjax.errors import UserError, told
from sample.images import SUFFIXES, suffix_of
from sample.job import Job

FIELDS = {
    "index": "the next free number in the folder; with --requests the row's number",
    "seed": "the image's seed",
    "number": "of the image among those of its request, from 000",
    "id": "the row's id (--requests)",
    "date": "2026-01-31",
    "time": "235959",
    "prompt": "the prompt's beginning",
    "width": "in pixels",
    "height": "in pixels",
}
_NUMBERS = {"index": "04d", "number": "03d", "seed": "d", "width": "d", "height": "d"}
_OF_JOB, _OF_ROW = "{index}_seed{seed}", "{id}_{number}"
_NOT_WRITTEN = (".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".svg", ".pdf")
_LONGEST_PROMPT = 60  # characters of it in a name
_LONGEST_NAME = 240  # bytes: file systems allow 255, and a sheet's name is longer


@dataclasses.dataclass(frozen=True)
class Output:
    """A folder and the names in it.

    Attributes:
        folder: for the images.
        pattern: of their names, with the fields of `FIELDS` and without an ending.
        suffix: the ending, with its dot.
        began: the date and time of all names.
    """

    folder: Path
    pattern: str
    suffix: str
    began: datetime.datetime = dataclasses.field(default_factory=datetime.datetime.now)

    @classmethod
    def of(
        cls, output: Path, name: str | None, format: str | None, *, of_rows: bool = False
    ) -> "Output":
        """Reads what a command line says.

        Args:
            output: a folder; or an image's name, which ends in one of `SUFFIXES`.
            name: the pattern, with such an ending or without; None is the usual one.
            format: one of `images.FORMATS`; None is what the name says, else PNG.
            of_rows: images are of the rows of a requests file.

        Raises:
            UserError: for an unknown field, and for what is no name.
        """
        if output.suffix.lower() in _NOT_WRITTEN and not output.is_dir():
            raise UserError(
                f"--output is {output}, and {output.suffix} is not written here; end it in "
                f"{', '.join(SUFFIXES)}, or name a folder"
            )
        flag = "--output-name"
        if output.suffix.lower() in SUFFIXES and not output.is_dir():
            if name is not None:
                raise UserError(
                    f"--output is the image {output}, and --output-name is {name}; name a folder "
                    "with --output"
                )
            output, name, flag = output.parent, output.name, "--output"
        pattern, ending = name or (_OF_ROW if of_rows else _OF_JOB), ""
        if Path(pattern).suffix.lower() in SUFFIXES:
            ending = Path(pattern).suffix
            pattern = pattern.removesuffix(ending)
        wanted = SUFFIXES.get(f".{format}") if format else None
        if wanted and ending and SUFFIXES[ending.lower()] != wanted:
            raise UserError(f"{flag} ends in {ending}, and --format is {format}; give one of them")
        if name is not None:
            _check(flag, name, pattern, of_rows)
        read = cls(output, pattern, ending or suffix_of(wanted or "png"))
        if of_rows and not {"id", "index"} & read._fields:
            raise UserError(
                f"{flag} is {told(name)}, the same for all rows; it needs {{id}} or {{index}}"
            )
        return read

    @property
    def _fields(self) -> set[str]:
        return {field for _, field, *_ in string.Formatter().parse(self.pattern) if field}

    def path(self, values: Mapping[str, Any], again: int = 1) -> Path:
        """An image's place.

        Args:
            values: of the fields that are not the same for all.
            again: from 2 on, another name for the same fields.
        """
        shared = {"date": f"{self.began:%Y-%m-%d}", "time": f"{self.began:%H%M%S}"}
        values = {**shared, **values, "prompt": _short(values.get("prompt") or "")}
        pattern = self.pattern
        if again > 1:
            by_id = "id" in self._fields and "{id}" in pattern
            pattern = pattern.replace("{id}", f"{{id}}-{again}") if by_id else f"{pattern}-{again}"
        filled = "".join(
            text + (format(values[name], spec or _NUMBERS.get(name, "")) if name else "")
            for text, name, spec, _ in string.Formatter().parse(pattern)
        )
        folder, slash, last = filled.rpartition("/")
        last = last.encode()[:_LONGEST_NAME].decode(errors="ignore")
        return self.folder / f"{folder}{slash}{last}{self.suffix}"

    def write(self, values: dict[str, Any], write: Callable[[Path], None]) -> Path:
        """Writes an image under a name that is free, whoever writes to the folder meanwhile.

        Args:
            values: of the fields; `index` is the least that is tried.
            write: writes to a place; raises FileExistsError if that is taken.

        Returns:
            The place.
        """
        counts = "index" in self._fields
        for more in itertools.count():
            tried = {**values, "index": values["index"] + more} if counts else values
            path = self.path(tried, 1 if counts else more + 1)
            if path.exists():
                continue
            try:
                write(path)
            except FileExistsError:
                continue
            if more and not counts:
                print(f"{self.path(values)} is there already; written as {path}", file=sys.stderr)
            return path
        raise AssertionError("numbers do not end")

    def beside(self, path: Path, what: str) -> "Output":
        """The name of what belongs to an image: `image_what.png`."""
        return dataclasses.replace(self, folder=path.parent, pattern=_meant(f"{path.stem}_{what}"))

    def of_sheet(self, path: Path) -> "Output":
        """The name of the sheet of images, of which `path` is the first."""
        if self.pattern != _OF_JOB:
            return self.beside(path, "sheet")
        return dataclasses.replace(self, pattern="{index}_sheet")


def values_of(job: Job, number: int, index: int, id: str = "") -> dict[str, Any]:
    """The fields of an image's name; see `FIELDS`.

    Args:
        job: of this one image, resolved.
        number: of the image among those of its request, from 0.
        index: see `FIELDS`.
        id: of the row.
    """
    return {
        "index": index, "seed": job.seed, "number": number, "id": id, "prompt": job.prompt,
        "width": job.width, "height": job.height,
    }  # fmt: skip


def _meant(text: str) -> str:
    """A text as a pattern that means it as it is."""
    return text.replace("{", "{{").replace("}", "}}")


def next_number(folder: Path) -> int:
    """The first number from which no image `0001_…` is in a folder."""
    images = (path for path in folder.glob("[0-9]*_*") if path.suffix.lower() in SUFFIXES)
    taken = [path.name.partition("_")[0] for path in images]
    return max((int(name) for name in taken if name.isdecimal()), default=0) + 1


def _check(flag: str, name: str, pattern: str, of_rows: bool) -> None:
    try:
        parts = list(string.Formatter().parse(pattern))
    except ValueError as error:
        raise UserError(
            f"{flag} is {told(name)}: {error}; a brace that is meant is written twice"
        ) from None
    for _, field, spec, conversion in parts:
        if field is None:
            continue
        if field not in FIELDS:
            close = difflib.get_close_matches(field, FIELDS, 1)
            known = "there are " + ", ".join(f"{{{known}}}" for known in FIELDS)
            hint = f"did you mean {{{close[0]}}}?" if close else known
            raise UserError(f"{flag} has the field {told(field)}, which is not known; {hint}")
        if field == "id" and not of_rows:
            raise UserError(
                f"{flag} has the field {{id}}, which rows have; it goes with --requests"
            )
        if conversion or (spec and not (field in _NUMBERS and re.fullmatch(r"0?[1-9]?d?", spec))):
            raise UserError(f"{flag} is {told(name)}; only numbers take digits, as in {{index:06}}")
    of_no_file = any(piece in ("", ".", "..") for piece in pattern.split("/"))
    if of_no_file or "\\" in name or not name.isprintable():
        raise UserError(f"{flag} is {told(name)}; it must be a name within the folder (--output)")
    if len(name.encode()) > _LONGEST_NAME:
        raise UserError(f"{flag} has {len(name.encode())} bytes; files' names have 255 at most")


def _short(prompt: str) -> str:
    words = re.sub(r"[^\w]+", "-", prompt.lower())[:_LONGEST_PROMPT]
    while len(words.encode()) > 2 * _LONGEST_PROMPT:
        words = words[:-1]
    return words.strip("-") or "image"
