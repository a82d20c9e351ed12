"""Parts put together as a dataset: who is in which split, whose faces are whose references.

A dataset remembers the parts that it was made of, so that when its sources grow only what is new is
read: the rest is taken from its own records.
"""

import base64
import collections
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fusionjax import schema
from fusionjax.data.clusters import clusters
from fusionjax.data.prepared import Prepared
from fusionjax.data.report import write_report
from fusionjax.errors import UserError, a_share, at_least, printable, shortened
from fusionjax.files import whole_folder, write_whole
from fusionjax.options import check_number

SPLITS = ("train", "validation")
SKIPPED = "skipped.tsv"
REPORT = "report.html"
PLAN = "prepare.json"  # how a dataset was prepared
INDEX = "index.json"  # what is in a part
_PARTS = "parts.json"  # what is in each of a dataset's parts, and where
_SHARD = 2_000  # records
_ALIKE = 3  # bits of 64 in which two looks may differ and be one picture's


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """What is remembered of a record while the dataset is put together.

    Attributes:
        part: the number of its part, and
        number: its own in there.
        person: see `prepared.Prepared`.
        is_known: whether the source says who that is.
        look: as of `Prepared`.
        face_pixels: likewise.
        likeness: likewise, as text.
    """

    part: int
    number: int
    person: str
    is_known: bool
    look: int
    face_pixels: int
    likeness: str = ""


def remembered(found: Prepared) -> list[Any]:
    """What is kept of a record for its `Entry`, as JSON values."""
    likeness = b"" if found.likeness is None else found.likeness.tobytes()
    # Whose face is kept alone is known, or will be.
    is_known = found.face is not None and not likeness
    text = base64.b85encode(likeness).decode()
    return [found.person, is_known, found.look, found.face_pixels, text]


@dataclasses.dataclass(frozen=True)
class Division:
    """How records become splits.

    Attributes:
        validation_share: share of the people (not of the pictures) kept for validation; at least
            one, and not all.
        max_references: most photos shown with a picture.
        most_skipped: the largest share of pictures that may be dropped.
        keep_duplicates: keep what looks like an earlier picture.
        same_person: from which mean similarity faces are one person's, where they are compared;
            from -1 to 1.
    """

    validation_share: float = 0.05
    max_references: int = 4
    most_skipped: float = 0.5
    keep_duplicates: bool = False
    same_person: float = 0.5

    def __post_init__(self) -> None:
        a_share(validation_share=self.validation_share, most_skipped=self.most_skipped)
        at_least(1, max_references=self.max_references)
        check_number("same_person", self.same_person, -1, 1)


class Part:
    """What is in a part, wherever its records lie.

    Attributes:
        kept: of each record what an `Entry` says of it.
        skipped: the lines of what was dropped.
        examples: for the report.
        records: where each record lies in the dataset that the part is of; None for one that it
            does not hold. A part of no dataset yet has no such list.
    """

    def __init__(self, index: Mapping[str, Any], folder: Path | None) -> None:
        """Takes what was written of a part; `folder` is the part's own, if it has one."""
        self.kept: list[Any] = index["kept"]
        self.skipped: list[str] = index["skipped"]
        self.examples: dict[str, list[str]] = index["examples"]
        self.records: list[Any] | None = index.get("records")
        self._folder = folder
        self._reader: Any = None

    @classmethod
    def of_folder(cls, folder: Path) -> "Part":
        """One that lies in a folder of its own."""
        return cls(schema.parse_json((folder / INDEX).read_bytes(), str(folder)), folder)

    def read(self, number: int) -> bytes:
        """A record, of a part in a folder of its own."""
        from array_record.python.array_record_module import ArrayRecordReader

        if self._reader is None:
            self._reader = ArrayRecordReader(str(self._folder / "records"))  # type: ignore[operator]
        return self._reader.read([number])[0]  # type: ignore[no-any-return]

    def close(self) -> None:
        """Closes the file of records, if it is open."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class Finished:
    """A dataset that was put together here.

    Attributes:
        plan: how.
        parts: what it was made of, by digest.
    """

    def __init__(self, folder: Path) -> None:
        """Opens one.

        Raises:
            UserError: if the folder is none.
        """
        if not ((folder / PLAN).is_file() and (folder / _PARTS).is_file()):
            raise UserError(f"{str(folder)!r} already exists; remove it or name another")
        self._folder = folder
        self.plan: dict[str, Any] = schema.read_json(folder / PLAN)
        found = schema.parse_json((folder / _PARTS).read_bytes(), str(folder / _PARTS))
        self.parts = {digest: Part(index, None) for digest, index in found.items()}
        self._readers: dict[str, Any] = {}

    def read(self, split: str, number: int) -> bytes:
        """A record of a split."""
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        if split not in self._readers:
            shards = sorted(self._folder.glob(f"*-{split}.array_record-*"))
            self._readers[split] = ArrayRecordDataSource([str(path) for path in shards])
        return self._readers[split][number]  # type: ignore[no-any-return]


class Assembly:
    """What a dataset is to be, decided and not yet written.

    Attributes:
        reasons: how many pictures are dropped, by reason.
        lacking: digests of parts of an earlier dataset that have a record which it did not keep
            and this one needs; they must be prepared again.
    """

    def __init__(
        self, parts: Mapping[str, Part], earlier: Finished | None, division: Division
    ) -> None:
        """Decides what is in it.

        Args:
            parts: by digest, in the order of the sources.
            earlier: the dataset that some of the parts are of.
            division: how records become splits.
        """
        self._parts, self._earlier, self._division = parts, earlier, division
        self._list = list(parts.values())
        entries = [
            Entry(number, place, *row)
            for number, part in enumerate(self._list)
            for place, row in enumerate(part.kept)
        ]
        self._lines = [line for part in self._list for line in part.skipped]
        self._total = len(entries) + len(self._lines)
        if not division.keep_duplicates:
            entries, doubles = _without_doubles(entries)
            self._lines += [
                f"{printable(entry.person)}\tlooks like an earlier picture" for entry in doubles
            ]
        self._entries = entries = _with_people(entries, division.same_person)
        self.reasons = collections.Counter(line.partition("\t")[2] for line in self._lines)
        digests = list(parts)
        self.lacking = {
            digests[entry.part]
            for entry in entries
            if (records := self._list[entry.part].records) and records[entry.number] is None
        }

    def write(self, folder: Path, listed: Path, plan: Mapping[str, Any]) -> None:
        """Writes the dataset, whole or not at all.

        Args:
            folder: must not be there.
            listed: where what is dropped is listed if it is too much.
            plan: how it was prepared.

        Raises:
            UserError: if too much is dropped, or there are not two people.
        """
        division, lines = self._division, "".join(f"{line}\n" for line in self._lines)
        if len(self._lines) > division.most_skipped * self._total:
            write_whole(listed, lines)
            told = ", ".join(f"{count} × {why}" for why, count in self.reasons.most_common(4))
            raise UserError(
                f"{len(self._lines)} of {self._total} pictures cannot be used "
                f"({shortened(told, 250)}), more than the share of {division.most_skipped} "
                f"(--most-skipped); they are listed in {str(listed)!r}"
            )
        splits = _divided(self._entries, division.validation_share)
        places = {
            (entry.part, entry.number): (split, number)
            for split, chosen in splits.items()
            for number, entry in enumerate(chosen)
        }
        with whole_folder(folder) as beside:
            shards = {name: self._write_split(beside, name, of) for name, of in splits.items()}
            for name, chosen in splits.items():
                starts, numbers = _references(chosen, division.max_references)
                np.savez(beside / f"references-{name}.npz", starts=starts, numbers=numbers)
            _write_info(beside, shards)
            shown = write_report(
                beside / REPORT,
                [part.examples for part in self._list],
                self.reasons,
                (entry.face_pixels for entry in self._entries),
                collections.Counter(entry.person for entry in self._entries),
            )
            found = {
                digest: {
                    "kept": part.kept,
                    "skipped": part.skipped,
                    "examples": examples,
                    "records": [places.get((number, row)) for row in range(len(part.kept))],
                }
                for number, ((digest, part), examples) in enumerate(
                    zip(self._parts.items(), shown, strict=True)
                )
            }
            (beside / _PARTS).write_text(json.dumps(found), encoding="utf-8")
            (beside / PLAN).write_text(json.dumps(plan), encoding="utf-8")
            (beside / SKIPPED).write_text(lines, encoding="utf-8")

    def _write_split(self, folder: Path, split: str, entries: list[Entry]) -> list[int]:
        """Copies a split's records into its shards; returns how many each has."""
        from array_record.python.array_record_module import ArrayRecordWriter

        count = max(1, -(-len(entries) // _SHARD))
        lengths = []
        last: Part | None = None
        for shard in range(count):
            chosen = entries[shard * _SHARD : (shard + 1) * _SHARD]
            path = folder / f"prepared-{split}.array_record-{shard:05d}-of-{count:05d}"
            writer = ArrayRecordWriter(str(path), "group_size:1")
            for entry in chosen:
                part = self._list[entry.part]
                if last is not None and last is not part:
                    last.close()  # their number is not bounded
                last = part
                if part.records is None:
                    writer.write(part.read(entry.number))
                else:
                    assert self._earlier is not None
                    writer.write(self._earlier.read(*part.records[entry.number]))
            writer.close()
            lengths.append(len(chosen))
        return lengths


def _without_doubles(entries: list[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Tells apart what looks like an earlier picture of the same person, or of nobody known.

    Two looks that differ in at most three bits agree in one of four sixteenths.
    """
    kept, doubles = list[Entry](), list[Entry]()
    seen: dict[tuple[Any, ...], list[int]] = collections.defaultdict(list)
    for entry in entries:
        person = entry.person if entry.is_known else None
        keys = [(person, band, entry.look >> 16 * band & 0xFFFF) for band in range(4)]
        if any((entry.look ^ other).bit_count() <= _ALIKE for key in keys for other in seen[key]):
            doubles.append(entry)
            continue
        kept.append(entry)
        for key in keys:
            seen[key].append(entry.look)
    return kept, doubles


def _with_people(entries: list[Entry], same_person: float) -> list[Entry]:
    """Entries with the person that their faces were found to be, where they are compared.

    Clusters have the name of their first picture.
    """
    compared = [number for number, entry in enumerate(entries) if entry.likeness]
    if not compared:
        return entries
    likenesses = np.stack(
        [np.frombuffer(base64.b85decode(entries[n].likeness), np.float16) for n in compared]
    )
    entries, names = list(entries), dict[int, str]()
    for number, label in zip(compared, clusters(likenesses, same_person), strict=True):
        name = names.setdefault(int(label), entries[number].person)
        entries[number] = dataclasses.replace(entries[number], person=name, is_known=True)
    return entries


def _divided(entries: list[Entry], validation_share: float) -> dict[str, list[Entry]]:
    """Entries by split: people by a number that depends on their name alone, at least one each."""
    people = {entry.person for entry in entries}
    if len(people) < 2:
        raise UserError(
            f"there are usable pictures of {len(people)} person; at least two are needed, one of "
            "them for validation"
        )
    validation = held_out(people, validation_share)
    return {
        "train": [entry for entry in entries if entry.person not in validation],
        "validation": [entry for entry in entries if entry.person in validation],
    }


def held_out(people: Iterable[str], share: float) -> set[str]:
    """The people kept for validation: at least one, and not all, whatever the share.

    Args:
        people: two or more.
        share: of them.
    """
    by_share = sorted(people, key=_share_of)
    count = sum(_share_of(person) < share for person in by_share)
    return set(by_share[: min(max(count, 1), len(by_share) - 1)])


def _share_of(person: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.blake2b(person.encode(), digest_size=4).digest()) / 2**32


def _references(entries: list[Entry], most: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the person's other records in the split, one record after the other."""
    of_person: dict[str, list[int]] = collections.defaultdict(list)
    for number, entry in enumerate(entries):
        if entry.is_known:
            of_person[entry.person].append(number)
    starts, numbers = [0], list[int]()
    for number, entry in enumerate(entries):
        others = of_person.get(entry.person, [])
        if number in others:  # from the next one on, so that all are shown equally often
            place = others.index(number)
            others = [*others[place + 1 :], *others[:place]]
        numbers += others[:most]
        starts.append(len(numbers))
    return np.asarray(starts, np.int64), np.asarray(numbers, np.int32)


def _write_info(folder: Path, shards: dict[str, list[int]]) -> None:
    import tensorflow_datasets as tfds

    from fusionjax.data import builders

    info = builders.Prepared(data_dir=str(folder)).info
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=builders.Prepared.name, filetype_suffix="array_record"
    )
    splits = [
        tfds.core.SplitInfo(
            name=name,
            shard_lengths=lengths,
            num_bytes=sum(
                path.stat().st_size for path in folder.glob(f"{builders.Prepared.name}-{name}.*")
            ),
            filename_template=template.replace(split=name),
        )
        for name, lengths in shards.items()
    ]
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(folder)
