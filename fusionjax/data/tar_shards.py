"""Tar shards, as img2dataset and webdataset write them."""

import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fusionjax import schema
from fusionjax.data.picture import (
    CAPTIONS,
    ENDINGS,
    Picture,
    Unread,
    Unusable,
    decoded,
    first_of,
    person_of,
)
from fusionjax.errors import UserError


def read_tar(path: Path, column: str | None) -> Iterator[Picture | Unread]:
    """Samples as webdataset has them: files that follow each other under one name.

    Args:
        path: the shard.
        column: of the samples' .json, that names a person; None for the usual names.

    Yields:
        The pictures, and of those that cannot be read, why.
    """
    sample: dict[str, bytes] = {}
    stem = ""
    try:
        with tarfile.open(path, "r|") as shard:
            for member in shard:
                folder, _, file = member.name.rpartition("/")
                if not member.isfile() or file.startswith("."):  # ._a.png is no file of a sample's
                    continue
                name, _, ending = file.partition(".")
                if f"{folder}/{name}" != stem:
                    yield from _sample(path, column, stem, sample)
                    stem, sample = f"{folder}/{name}", {}
                opened = shard.extractfile(member)
                assert opened is not None
                sample[ending.lower()] = opened.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        yield from _sample(path, column, stem, sample)
        yield Unread(f"{path}", f"a shard that is cut off or damaged ({str(error)[:60]})")
        return
    yield from _sample(path, column, stem, sample)


def _sample(
    path: Path, column: str | None, stem: str, sample: Mapping[str, bytes]
) -> Iterator[Picture | Unread]:
    if not sample:
        return
    name = f"{path}/{stem.strip('/')}"
    content = next((sample[e[1:]] for e in ENDINGS if e[1:] in sample), None)
    about: dict[str, Any] = {}
    try:
        if "json" in sample:
            about = schema.typed(schema.parse_json(sample["json"], "it"), dict[str, Any])
        if content is None:
            status = about.get("status")
            failed = isinstance(status, str) and status != "success"
            raise Unusable("a link that was dead" if failed else "no picture in the sample")
        caption = decoded(sample["txt"]) if "txt" in sample else first_of(about, CAPTIONS)
    except UserError:
        yield Unread(name, "a .json that is none")
    except Unusable as why:
        yield Unread(name, str(why))
    else:
        yield Picture(name, content, caption, person_of(about, column))
