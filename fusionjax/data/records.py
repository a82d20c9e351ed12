"""The examples of a TFDS dataset, read from its folder with their pictures still encoded."""

import bisect
import contextlib
import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from fusionjax import schema
from fusionjax.errors import UserError
from fusionjax.files import write_whole

Example = dict[str, Any]
_DATA_FILES = (".array_record", ".tfrecord", "references-")
_LINKS = "references-{}.npz"  # beside a split whose records do not hold their references


def dataset_info(folder: str | Path) -> Path:
    """The file that says what the TFDS dataset in a folder holds.

    Raises:
        UserError: if there is no dataset.
    """
    info = Path(folder) / "dataset_info.json"
    if not info.is_file():
        raise UserError(
            f"data.folder is {str(folder)!r}; it holds no dataset_info.json: name the folder "
            "of a TFDS dataset, or build one first"
        )
    return info


def content_digest(folder: Path, remembered: Path | None) -> str:
    """16 hex digits of what a dataset's files hold, whatever they are dated.

    Args:
        folder: the dataset's.
        remembered: a file in which each file's size, date and digest are kept, so that only what
            changed is read again; None remembers nothing.

    Returns:
        The digest.
    """
    known: dict[str, list[Any]] = {}
    if remembered is not None and remembered.is_file():
        known = schema.read_json(remembered, dict[str, list[Any]])
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and any(word in path.name for word in _DATA_FILES):
            state = path.stat()
            about = [state.st_size, state.st_mtime_ns]
            if known.get(path.name, [])[:2] == about:
                found[path.name] = known[path.name]
                continue
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8))
            found[path.name] = [*about, digest.hexdigest()]
    if remembered is not None and found != known:
        with contextlib.suppress(OSError):  # then they are read again the next time
            write_whole(remembered, json.dumps(found))
    digests = json.dumps({name: row[2] for name, row in found.items()})
    return hashlib.blake2b(digests.encode(), digest_size=8).hexdigest()


def open_records(folder: str | Path, split: str) -> Any:
    """Opens one split of a TFDS ArrayRecord dataset; pictures stay encoded.

    Args:
        folder: the folder that holds `dataset_info.json`.
        split: a split's name, slice or sum, such as `train`, `train[:100]` or `train+scenes`.

    Returns:
        A random-access source of examples: `len(source)`, `source[i]`.

    Raises:
        UserError: if there is no such dataset or split.
    """
    dataset_info(folder)
    import tensorflow_datasets as tfds

    class Encoded(tfds.decode.SkipDecoding):
        """Leaves a picture's bytes as they are, in a sequence too."""

        def decode_batch_example_np(self, example: Any) -> Any:
            return example

    builder = tfds.builder_from_directory(str(folder))
    known = sorted(builder.info.splits)
    for name in re.split(r"\s*\+\s*", re.sub(r"\[.*?\]", "", split)):
        if name not in known:
            raise UserError(
                f"split {name!r} is not in {str(folder)!r}; there are {', '.join(known)}"
            )
    encoded = {
        key: Encoded()
        for key, feature in builder.info.features.items()
        if isinstance(getattr(feature, "feature", feature), tfds.features.Image)
    }
    source = functools.partial(builder.as_data_source, decoders=encoded or None)
    if not any((Path(folder) / _LINKS.format(name)).is_file() for name in known):
        return source(split)
    spans = tfds.core.ReadInstruction.from_spec(split).to_absolute(builder.info.splits)
    return _Linked([_Span(source(s.splitname), Path(folder), s) for s in spans])


class _Span:
    """A slice of a split whose records' references are others of its records."""

    def __init__(self, source: Any, folder: Path, span: Any) -> None:
        self._source, name = source, span.splitname
        with np.load(folder / _LINKS.format(name)) as links:
            self._starts, self._numbers = links["starts"], links["numbers"]
        numbers = range(len(source))[span.from_ : span.to]
        self.start, self.stop = numbers.start, numbers.stop

    def read(self, number: int) -> Example:
        example = dict(self._source[number])
        linked = self._numbers[self._starts[number] : self._starts[number + 1]]
        example.pop("faces")
        example["references"] = [self._source[int(other)]["faces"][0] for other in linked]
        example["owners"] = [0] * len(linked)
        return example


class _Linked:
    """Slices one after the other, each example with its references."""

    def __init__(self, spans: list[_Span]) -> None:
        self._spans = spans
        self._ends = np.cumsum([span.stop - span.start for span in spans]).tolist()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Example:
        if not 0 <= (index := index.__index__()) < len(self):
            raise IndexError(index)
        place = bisect.bisect_right(self._ends, index)
        before = self._ends[place - 1] if place else 0
        span = self._spans[place]
        return span.read(span.start + index - before)
