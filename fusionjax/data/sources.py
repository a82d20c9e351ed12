"""Where pictures come from: folders, tar shards, tables; recognised by what they are.

* a folder for each person: `ada/garden.jpg`, beside it `ada/garden.txt` with the caption;
* a folder of pictures: `garden.jpg` and `garden.txt`, or `garden.json` with a `caption`;
* tar shards, as img2dataset and webdataset write them: `0.jpg`, `0.txt`, `0.json` in a `.tar`,
  or unpacked in folders named 00000, 00001, …;
* tables: `metadata.jsonl` or `.csv` with `file_name` and `text`; JSON as IP-Adapter's, a list with
  `image_file` and `text`; `.parquet` and `.arrow` with the pictures' bytes.

A source is cut into parts, each of which one process reads in one go.
"""

import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fusionjax import schema
from fusionjax.data.picture import (
    CAPTIONS,
    ENDINGS,
    MOST_TEXT_BYTES,
    PICTURES,
    Picture,
    Unread,
    Unusable,
    decoded,
    first_of,
    person_of,
)
from fusionjax.data.tar_shards import read_tar
from fusionjax.errors import UserError, shortened, told
from fusionjax.files import has_ending, read_whole

PART = 500  # rows of a table that are one part; of a folder about so many pictures are
_TABLES = (".jsonl", ".csv", ".json", ".parquet", ".arrow")


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of a source.

    Attributes:
        kind: one of `folder`, `tar`, `table`, `parquet`, `arrow`.
        path: the folder or file.
        names: of a folder, its pictures; of a table, the numbers of the first row and of the one
            behind the last; of the others nothing.
        by_person: whether a folder's own folders are people.
        column: the column that names a picture's person, None for the usual names.
    """

    kind: str
    path: Path
    names: tuple[str, ...] = ()
    by_person: bool = False
    column: str | None = None

    def digest(self) -> str:
        """16 hex digits of which pictures and captions these are, without reading pictures."""
        about = [self.kind, str(self.path.resolve()), self.names, self.by_person, self.column]
        if self.kind == "folder":
            pictures = [self.path / name for name in self.names]
            files = [p.with_suffix(e) for p in pictures for e in (p.suffix, ".txt", ".json")]
        elif self.kind == "table":
            rows = _rows_of(self)
            about += rows
            files = [self.path.parent / name for row in rows if (name := _file_of(row))]
        else:
            files = [self.path]
        for file in files:
            with contextlib.suppress(OSError, ValueError):  # what is not there may come
                state = file.stat()
                about += [file.name, state.st_size, state.st_mtime_ns]
        return hashlib.blake2b(json.dumps(about).encode(), digest_size=8).hexdigest()


def parts_of(sources: Iterable[str | Path], column: str | None = None) -> list[Part]:
    """Cuts sources into parts.

    Args:
        sources: folders, tar shards, tables; of all kinds together.
        column: the tables' column that names a picture's person.

    Returns:
        The parts in order of the sources, and of the names in them.

    Raises:
        UserError: for what is nothing of the kind.
    """
    parts: list[Part] = []
    for source in map(Path, sources):
        found = list(_parts_of(source, column))
        if not found:
            raise UserError(
                f"{shortened(str(source), 200)} holds no pictures; it may be a folder of pictures "
                f"({', '.join(ENDINGS)}) or of people's folders, .tar shards, or a table "
                f"({', '.join(_TABLES)})"
            )
        parts += found
    return parts


def _parts_of(source: Path, column: str | None) -> Iterator[Part]:
    if source.is_file():
        if source.suffix == ".tar":
            yield Part("tar", source, column=column)
        elif source.suffix in (".parquet", ".arrow"):
            yield Part(source.suffix[1:], source, column=column)
        elif source.suffix in _TABLES:
            count = len(_rows(source, source.stat().st_mtime_ns))
            for start in range(0, count, PART):
                span = str(start), str(min(start + PART, count))
                yield Part("table", source, span, column=column)
        return
    if not source.is_dir():
        raise UserError(f"{shortened(str(source), 200)} does not exist")
    # A Mac puts ._a.tar beside a.tar, and .Trashes among people's folders.
    inside = sorted(path for path in source.iterdir() if not path.name.startswith("."))
    for path in inside:
        is_table = path.suffix in (".parquet", ".arrow") or path.name in (
            "metadata.jsonl",
            "metadata.csv",
        )
        if path.is_file() and (path.suffix == ".tar" or is_table):
            yield from _parts_of(path, column)
    if any(path.name in ("metadata.jsonl", "metadata.csv") for path in inside):
        return  # the pictures beside it are its rows'
    yield from _folders(source, sorted(_pictures_in(source)), by_person=False)
    people = [path for path in inside if path.is_dir()]
    by_person = not all(path.name.isdecimal() and len(path.name) == 5 for path in people)
    names = [f"{path.name}/{name}" for path in people for name in sorted(_pictures_in(path))]
    yield from _folders(source, names, by_person=by_person)


def _folders(folder: Path, names: list[str], *, by_person: bool) -> Iterator[Part]:
    """Cuts after names that say so themselves, so that a new one changes its own part alone."""
    part: list[str] = []
    for name in names:
        part.append(name)
        if zlib.crc32(name.encode("utf-8", "surrogateescape")) % PART == 0 or len(part) == 2 * PART:
            yield Part("folder", folder, tuple(part), by_person)
            part = []
    if part:
        yield Part("folder", folder, tuple(part), by_person)


def _pictures_in(folder: Path) -> Iterator[str]:
    return (path.name for path in folder.iterdir() if has_ending(path, ENDINGS))


def read_part(part: Part) -> Iterator[Picture | Unread]:
    """Reads a part's pictures one after the other, still encoded.

    Args:
        part: of `parts_of`.

    Yields:
        The pictures, and of those that cannot be read, why.

    Raises:
        UserError: if the part as a whole cannot be read.
    """
    if part.kind == "tar":
        yield from read_tar(part.path, part.column)
        return
    readers: dict[str, Any] = {"folder": _read_folder, "table": _read_table}
    yield from readers.get(part.kind, _read_columns)(part)


def _read_folder(part: Part) -> Iterator[Picture | Unread]:
    for name in part.names:
        path = part.path / name
        try:
            caption = _caption_beside(path)
        except Unusable as why:
            yield Unread(str(path), str(why))
            continue
        yield Picture(str(path), path, caption, name.split("/")[0] if part.by_person else None)


def _caption_beside(path: Path) -> str:
    words, about = path.with_suffix(".txt"), path.with_suffix(".json")
    try:
        if words.is_file():
            return decoded(read_whole(words, MOST_TEXT_BYTES))
        if about.is_file():
            return first_of(schema.read_json(about), CAPTIONS)
    except UserError as error:
        raise Unusable(f"a caption that cannot be read ({shortened(str(error), 80)})") from None
    return ""


def _beside(part: Part, name: str) -> Path:
    """The file that a row names."""
    path = part.path.parent / name
    if not path.is_file():
        raise Unusable("a row whose file does not exist")
    return path


# --- tables ---------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)  # its parts follow each other
def _rows(path: Path, changed: int) -> list[Any]:
    """The rows of a JSON, JSON lines or CSV table, as it was when it was changed last."""
    del changed
    content = read_whole(path, 2**31)
    if path.suffix == ".json":
        rows = schema.parse_json(content, str(path))
        if not isinstance(rows, list):
            raise UserError(f"{path} holds no list; IP-Adapter's JSON is a list of objects")
        return rows
    text = content.decode("utf-8-sig", "replace")  # Excel begins a table with a mark
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text, newline="")))
    return [line for line in text.split("\n") if line.strip()]


def _rows_of(part: Part) -> list[Any]:
    start, stop = map(int, part.names)
    return _rows(part.path, part.path.stat().st_mtime_ns)[start:stop]


def _check_column(part: Part) -> None:
    rows = _rows(part.path, part.path.stat().st_mtime_ns)
    if part.column is not None and not any(part.column in _values(row) for row in rows):
        raise UserError(
            f"{part.path} has no column {part.column!r}, but {told(list(_values(rows[0])))}"
        )


def _values(row: Any) -> dict[str, Any]:
    """A row by its columns; of what is none, nothing."""
    with contextlib.suppress(UserError):
        row = schema.parse_json(row, "the row") if isinstance(row, str) else row
    return row if isinstance(row, dict) else {}


def _file_of(row: Any) -> str:
    """The picture that a row names; nothing if it names none."""
    with contextlib.suppress(Unusable):
        return first_of(_values(row), PICTURES)
    return ""


def _read_table(part: Part) -> Iterator[Picture | Unread]:
    _check_column(part)
    for number, row in enumerate(_rows_of(part), int(part.names[0]) + 1):
        where = f"{part.path}, row {number}"
        try:
            values = schema.parse_json(row, "the row") if isinstance(row, str) else row
            if not isinstance(values, dict):
                raise Unusable("a row that is no object")
            file = first_of(values, PICTURES)
            if not file:
                raise Unusable(f"a row without {' or '.join(PICTURES[:2])}")
            path = _beside(part, file)
            caption, person = first_of(values, CAPTIONS), person_of(values, part.column)
        except UserError:
            yield Unread(where, "a row that is no JSON")
        except Unusable as why:
            yield Unread(where, str(why))
        else:
            yield Picture(str(path), path, caption, person)


def _read_columns(part: Part) -> Iterator[Picture | Unread]:
    """Parquet files, and those of `datasets`' saved folders."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        if part.kind == "parquet":
            batches = pq.ParquetFile(part.path).iter_batches(batch_size=64)
        else:
            batches = iter(pa.ipc.open_stream(pa.memory_map(str(part.path))))
        for batch in batches:
            _check_columns(part, batch.schema.names)
            for row in batch.to_pylist():
                number += 1
                yield _of_row(part, row, f"{part.path}, row {number}")
    except pa.ArrowException as error:
        raise UserError(f"{part.path} cannot be read ({shortened(str(error), 100)})") from None


def _check_columns(part: Part, names: list[str]) -> None:
    if not any(name in names for name in PICTURES):
        links = [name for name in names if name.lower() in ("url", "image_url", "link")]
        raise UserError(
            f"{part.path} holds links ({links[0]}) and no pictures; fetch them first: img2dataset "
            "--input_format parquet --output_format webdataset"
            if links
            else f"{part.path} has the columns {told(names)}, and none of {', '.join(PICTURES)}"
        )
    if part.column is not None and part.column not in names:
        raise UserError(f"{part.path} has no column {part.column!r}, but {told(names)}")


def _of_row(part: Part, row: Mapping[str, Any], where: str) -> Picture | Unread:
    value = next((row[name] for name in PICTURES if row.get(name) is not None), None)
    if isinstance(value, Mapping):  # as `datasets` stores pictures
        value = value.get("bytes") or value.get("path")
    try:
        if isinstance(value, str):
            value = _beside(part, value)
        if not isinstance(value, bytes | Path):
            raise Unusable("a row without a picture")
        caption, person = first_of(row, CAPTIONS), person_of(row, part.column)
    except Unusable as why:
        return Unread(where, str(why))
    return Picture(where, value, caption, person)
