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
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fusionjax import schema
from fusionjax.errors import UserError, shortened, told
from fusionjax.files import read_whole

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif")
PART = 500  # rows of a table that are one part; of a folder about so many pictures are
_TABLES = (".jsonl", ".csv", ".json", ".parquet", ".arrow")
_PICTURES = ("file_name", "image_file", "image", "jpg", "png", "webp", "path")
_CAPTIONS = ("text", "caption", "TEXT", "txt", "prompt")
_PEOPLE = ("person", "identity", "person_id", "label")
_MOST_TEXT_BYTES = 1_000_000


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
        about = [self.kind, str(self.path), self.names, self.by_person, self.column]
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
            yield Part("tar", source)
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
    inside = sorted(source.iterdir())
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
    return (path.name for path in folder.iterdir() if path.suffix.lower() in ENDINGS)


def read_part(part: Part) -> Iterator[Picture | Unread]:
    """Reads a part's pictures one after the other, still encoded.

    Args:
        part: of `parts_of`.

    Yields:
        The pictures, and of those that cannot be read, why.

    Raises:
        UserError: if the part as a whole cannot be read.
    """
    readers: dict[str, Any] = {"folder": _read_folder, "tar": _read_tar, "table": _read_table}
    yield from readers.get(part.kind, _read_columns)(part)


def _read_folder(part: Part) -> Iterator[Picture | Unread]:
    for name in part.names:
        path = part.path / name
        try:
            caption = _caption_beside(path)
        except _Unusable as why:
            yield Unread(str(path), str(why))
            continue
        yield Picture(str(path), path, caption, name.split("/")[0] if part.by_person else None)


class _Unusable(Exception):
    """Why a picture cannot be used."""


def _caption_beside(path: Path) -> str:
    words, about = path.with_suffix(".txt"), path.with_suffix(".json")
    try:
        if words.is_file():
            return _decoded(read_whole(words, _MOST_TEXT_BYTES))
        if about.is_file():
            return _first(schema.read_json(about), _CAPTIONS)
    except UserError as error:
        raise _Unusable(f"a caption that cannot be read ({shortened(str(error), 80)})") from None
    return ""


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise _Unusable("a caption that is not UTF-8") from None


def _first(row: Mapping[str, Any], names: Iterable[str]) -> str:
    """The first of several columns that a row has, as text."""
    for name in names:
        value = row.get(name)
        if isinstance(value, bytes):
            return _decoded(value)
        if isinstance(value, str | int) and not isinstance(value, bool):
            return str(value).strip()
    return ""


# --- tar shards -----------------------------------------------------------------------------------


def _read_tar(part: Part) -> Iterator[Picture | Unread]:
    """Samples as webdataset has them: files that follow each other under one name."""
    sample: dict[str, bytes] = {}
    stem = ""
    try:
        with tarfile.open(part.path, "r|") as shard:
            for member in shard:
                if not member.isfile():
                    continue
                folder, _, file = member.name.rpartition("/")
                name, _, ending = file.partition(".")
                if f"{folder}/{name}" != stem:
                    yield from _sample(part, stem, sample)
                    stem, sample = f"{folder}/{name}", {}
                opened = shard.extractfile(member)
                assert opened is not None
                sample[ending.lower()] = opened.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        yield from _sample(part, stem, sample)
        yield Unread(f"{part.path}", f"a shard that is cut off or damaged ({str(error)[:60]})")
        return
    yield from _sample(part, stem, sample)


def _sample(part: Part, stem: str, sample: Mapping[str, bytes]) -> Iterator[Picture | Unread]:
    if not sample:
        return
    name = f"{part.path}/{stem.strip('/')}"
    content = next((sample[e[1:]] for e in ENDINGS if e[1:] in sample), None)
    about: dict[str, Any] = {}
    try:
        if "json" in sample:
            about = schema.typed(schema.parse_json(sample["json"], "it"), dict[str, Any])
        if content is None:
            status = about.get("status")
            failed = isinstance(status, str) and status != "success"
            raise _Unusable("a link that was dead" if failed else "no picture in the sample")
        caption = _decoded(sample["txt"]) if "txt" in sample else _first(about, _CAPTIONS)
    except UserError:
        yield Unread(name, "a .json that is none")
    except _Unusable as why:
        yield Unread(name, str(why))
    else:
        yield Picture(name, content, caption, _first(about, _PEOPLE) or None)


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
    lines = content.decode("utf-8", "replace").splitlines()
    if path.suffix == ".csv":
        return list(csv.DictReader(lines))
    return [line for line in lines if line.strip()]


def _rows_of(part: Part) -> list[Any]:
    start, stop = map(int, part.names)
    return _rows(part.path, part.path.stat().st_mtime_ns)[start:stop]


def _file_of(row: Any) -> str:
    """The picture that a row names; nothing if it names none."""
    try:
        values = schema.parse_json(row, "the row") if isinstance(row, str) else row
        return _first(values, _PICTURES) if isinstance(values, dict) else ""
    except (UserError, _Unusable):
        return ""


def _read_table(part: Part) -> Iterator[Picture | Unread]:
    for number, row in enumerate(_rows_of(part), int(part.names[0]) + 1):
        where = f"{part.path}, row {number}"
        try:
            values = schema.parse_json(row, "the row") if isinstance(row, str) else row
            if not isinstance(values, dict):
                raise _Unusable("a row that is no object")
            file = _first(values, _PICTURES)
            if not file:
                raise _Unusable(f"a row without {' or '.join(_PICTURES[:2])}")
            path = part.path.parent / file
            if not path.is_file():
                raise _Unusable("a row whose file does not exist")
            caption = _first(values, _CAPTIONS)
            person = _first(values, (part.column,) if part.column else _PEOPLE)
        except UserError:
            yield Unread(where, "a row that is no JSON")
        except _Unusable as why:
            yield Unread(where, str(why))
        else:
            yield Picture(str(path), path, caption, person or None)


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
    if not any(name in names for name in _PICTURES):
        links = [name for name in names if name.lower() in ("url", "image_url", "link")]
        raise UserError(
            f"{part.path} holds links ({links[0]}) and no pictures; fetch them first: img2dataset "
            "--input_format parquet --output_format webdataset"
            if links
            else f"{part.path} has the columns {told(names)}, and none of {', '.join(_PICTURES)}"
        )
    if part.column is not None and part.column not in names:
        raise UserError(f"{part.path} has no column {part.column!r}, but {told(names)}")


def _of_row(part: Part, row: Mapping[str, Any], where: str) -> Picture | Unread:
    value = next((row[name] for name in _PICTURES if row.get(name) is not None), None)
    if isinstance(value, Mapping):  # as `datasets` stores pictures
        value = value.get("bytes") or value.get("path")
    try:
        if isinstance(value, str):
            path = part.path.parent / value
            if not path.is_file():
                raise _Unusable("a row whose file does not exist")
            value = path
        if not isinstance(value, bytes | Path):
            raise _Unusable("a row without a picture")
        caption = _first(row, _CAPTIONS)
        person = _first(row, (part.column,) if part.column else _PEOPLE)
    except _Unusable as why:
        return Unread(where, str(why))
    return Picture(where, value, caption, person or None)
