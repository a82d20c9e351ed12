"""Whatever pictures people have as a dataset to train on: read, cut, filtered, written in shards.

    source → part → picture → faces → record

Each part of a source is read by one process and written to a file of its own, whole or not at all,
so that a run that was stopped goes on where it was. When all are there the people are divided into
training and validation, near-duplicates dropped, and the shards written.

A record holds `image`, `caption`, `identity`, `face_boxes` [people, 4], and in `faces` the
person's face alone, once. Whose faces are shown with a picture as its references is no part of the
record but of `references-SPLIT.npz`: the numbers of the person's other records.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fusionjax.data.prepared import Dropped, Wishes, prepare_picture
from fusionjax.data.prepared import Prepared as Found
from fusionjax.data.report import KEPT, Examples, write_report
from fusionjax.data.sources import Part, Picture, parts_of, read_part
from fusionjax.errors import UserError, at_least, printable, shortened
from fusionjax.files import locked, whole_folder, write_whole

SPLITS = ("train", "validation")
SKIPPED = "skipped.tsv"
REPORT = "report.html"
_EXAMPLES = "examples.json"
PLAN = "prepare.json"
_SHARD = 2_000  # records
_ALIKE = 3  # bits of 64 in which two looks may differ and be one picture's
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is remembered of a record while the dataset is put together.

    Attributes:
        part: the number of its part, and
        number: its own in there.
        person: see `prepared.Prepared`.
        is_known: whether the source says who that is.
        look: as of `Prepared`.
        face_pixels: likewise.
    """

    part: int
    number: int
    person: str
    is_known: bool
    look: int
    face_pixels: int


def prepare(
    sources: Iterable[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    wishes: Wishes | None = None,
    *,
    column: str | None = None,
    validation_share: float = 0.05,
    max_references: int = 4,
    most_skipped: float = 0.5,
    keep_duplicates: bool = False,
    processes: int | None = None,
    share: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> collections.Counter[str] | None:
    """Writes a dataset.

    Args:
        sources: what `sources.parts_of` takes, of all kinds together.
        folder: where the dataset goes; must not be one yet. What is done is kept beside it, in
            `FOLDER.unfinished`, until all is done.
        wishes: what a picture must be to be kept.
        column: of tables, the one that names a picture's person.
        validation_share: share of the people (not of the pictures) kept for validation; at least
            one, and not all.
        max_references: most photos shown with a picture.
        most_skipped: the largest share of pictures that may be dropped.
        keep_duplicates: keep what looks like an earlier picture.
        processes: that read and cut at once; None is the machine's cores.
        share: (i, n) does the i-th of n shares of the parts and no more, i from 1, so that n
            machines with a common disk share the work; once all have, a call without it ends it.
        progress: called with the parts done and their number.

    Returns:
        How many pictures were dropped, by reason; None after a share.

    Raises:
        UserError: if a source is none, the folder is in use, or too much was dropped.
    """
    at_least(0, validation_share=validation_share, most_skipped=most_skipped)
    at_least(1, max_references=max_references)
    wishes, target = wishes or Wishes(), Path(folder)
    if target.exists():
        raise UserError(f"{str(target)!r} already exists; remove it or name another")
    parts = parts_of(map(Path, sources), column)
    work = target.with_name(f"{target.name}.unfinished")
    if share is None:
        parts_here, own = parts, work
    else:
        index, count = share
        if not 1 <= index <= count:
            raise UserError(f"the share is {index}/{count}; it must be I/N with 1 ≤ I ≤ N")
        parts_here, own = parts[index - 1 :: count], work / f"share-{index}-of-{count}"
    own.mkdir(parents=True, exist_ok=True)
    with locked(own):
        _check_same(work, wishes)
        _do_parts(parts_here, work, wishes, processes, progress)
        if share is not None:
            return None
        places = [work / part.digest() for part in parts]
        reasons = _assemble(
            target, places, validation_share, max_references, most_skipped, keep_duplicates
        )
    shutil.rmtree(work)
    return reasons


def _do_parts(
    parts: list[Part],
    work: Path,
    wishes: Wishes,
    processes: int | None,
    progress: Progress | None,
) -> None:
    """Does the parts that are not done yet."""
    pairs = [(part, work / part.digest()) for part in parts]
    waiting = [(part, place) for part, place in pairs if not place.exists()]
    done = len(parts) - len(waiting)
    for _ in _mapped(functools.partial(_do_part, wishes=wishes), waiting, processes):
        done += 1
        if progress is not None:
            progress(done, len(parts))


def _check_same(work: Path, wishes: Wishes) -> None:
    """Raises UserError if what is there already was cut otherwise."""
    now = json.dumps(dataclasses.asdict(wishes))
    if (work / PLAN).is_file() and (work / PLAN).read_text(encoding="utf-8") != now:
        raise UserError(
            f"{str(work)!r} holds what was done with other options; give those again, or remove it"
        )
    write_whole(work / PLAN, now)


def _mapped(
    do: Callable[[tuple[Part, Path]], None],
    waiting: list[tuple[Part, Path]],
    processes: int | None,
) -> Iterator[None]:
    processes = min(processes or os.cpu_count() or 1, len(waiting))
    if processes <= 1:
        yield from map(do, waiting)
        return
    ignored = signal.SIGINT, signal.SIG_IGN  # Ctrl-C is for the process that waits
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(processes, initializer=signal.signal, initargs=ignored) as pool:
        yield from pool.imap_unordered(do, waiting)


# --- one part -------------------------------------------------------------------------------------


def _do_part(job: tuple[Part, Path], wishes: Wishes) -> None:
    """Reads a part, and writes its records, their index and what was dropped; whole or nothing."""
    from array_record.python.array_record_module import ArrayRecordWriter

    part, place = job
    serialize = _serializer()
    with whole_folder(place) as beside:
        writer = ArrayRecordWriter(str(beside / "records"), "group_size:1")
        kept, dropped, examples = [], [], Examples()
        for picture in read_part(part):
            try:
                if not isinstance(picture, Picture):
                    raise Dropped(picture.reason)
                found = prepare_picture(picture, wishes)
            except Dropped as reason:
                dropped.append(f"{printable(picture.name)}\t{reason}\n")
                if isinstance(picture, Picture):
                    examples.add(str(reason), picture)
                continue
            examples.add(KEPT, found.image)
            writer.write(serialize(found))
            kept.append([found.person, found.face is not None, found.look, found.face_pixels])
        writer.close()
        (beside / _EXAMPLES).write_text(json.dumps(examples.found), encoding="utf-8")
        (beside / "index.json").write_text(json.dumps(kept), encoding="utf-8")
        (beside / SKIPPED).write_text("".join(dropped), encoding="utf-8")


def _serializer() -> Callable[[Found], bytes]:
    from tensorflow_datasets.core import example_serializer

    from fusionjax.data.builders import prepared_features

    fields = prepared_features()
    serializer = example_serializer.ExampleSerializer(fields.get_serialized_info())

    def serialize(found: Found) -> bytes:
        example = {
            "image": found.image,
            "faces": [] if found.face is None else [found.face],
            "caption": found.caption,
            "identity": found.person,
            "face_boxes": found.boxes,
        }
        message = serializer.get_tf_example(fields.encode_example(example))
        # The fields of a message have no order; the same picture should be the same bytes.
        return message.SerializeToString(deterministic=True)  # type: ignore[no-any-return]

    return serialize


# --- all parts ------------------------------------------------------------------------------------


def _assemble(
    target: Path,
    places: list[Path],
    validation_share: float,
    max_references: int,
    most_skipped: float,
    keep_duplicates: bool,
) -> collections.Counter[str]:
    lines = [line for place in places for line in _lines(place / SKIPPED)]
    entries = [
        Entry(part, number, *row)
        for part, place in enumerate(places)
        for number, row in enumerate(json.loads((place / "index.json").read_text(encoding="utf-8")))
    ]
    total = len(entries) + len(lines)
    if not keep_duplicates:
        entries, doubles = _without_doubles(entries)
        lines += [f"{printable(entry.person)}\tlooks like an earlier picture" for entry in doubles]
    reasons = collections.Counter(line.partition("\t")[2] for line in lines)
    if len(lines) > most_skipped * total:
        listed = target.with_name(f"{target.name}.skipped.tsv")
        write_whole(listed, "".join(f"{line}\n" for line in lines))
        told = ", ".join(f"{count} × {reason}" for reason, count in reasons.most_common(4))
        raise UserError(
            f"{len(lines)} of {total} pictures cannot be used ({shortened(told, 250)}), more than "
            f"the share of {most_skipped} (--most-skipped); they are listed in {str(listed)!r}"
        )
    splits = _divided(entries, validation_share)
    with whole_folder(target) as beside:
        shards = {
            name: _write_split(beside, name, chosen, places) for name, chosen in splits.items()
        }
        for name, chosen in splits.items():
            starts, numbers = _references(chosen, max_references)
            np.savez(beside / f"references-{name}.npz", starts=starts, numbers=numbers)
        _write_info(beside, shards)
        write_report(
            beside / REPORT,
            (json.loads((place / _EXAMPLES).read_text(encoding="utf-8")) for place in places),
            reasons,
            (entry.face_pixels for entry in entries),
            collections.Counter(entry.person for entry in entries),
        )
        (beside / SKIPPED).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return reasons


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


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


def _write_split(folder: Path, split: str, entries: list[Entry], places: list[Path]) -> list[int]:
    """Copies a split's records into its shards; returns how many each has."""
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    count = max(1, -(-len(entries) // _SHARD))
    lengths = []
    reader: Any = None
    open_part = -1
    for shard in range(count):
        chosen = entries[shard * _SHARD : (shard + 1) * _SHARD]
        path = folder / f"prepared-{split}.array_record-{shard:05d}-of-{count:05d}"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for entry in chosen:
            if entry.part != open_part:
                reader = ArrayRecordReader(str(places[entry.part] / "records"))
                open_part = entry.part
            writer.write(reader.read([entry.number])[0])
        writer.close()
        lengths.append(len(chosen))
    return lengths


def _write_info(folder: Path, shards: dict[str, list[int]]) -> None:
    import tensorflow_datasets as tfds

    from fusionjax.data.builders import Prepared

    info = Prepared(data_dir=str(folder)).info
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=Prepared.name, filetype_suffix="array_record"
    )
    splits = [
        tfds.core.SplitInfo(
            name=name,
            shard_lengths=lengths,
            num_bytes=sum(path.stat().st_size for path in folder.glob(f"{Prepared.name}-{name}.*")),
            filename_template=template.replace(split=name),
        )
        for name, lengths in shards.items()
    ]
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(folder)
