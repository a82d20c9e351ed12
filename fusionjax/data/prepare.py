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
import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fusionjax.data.assemble import INDEX, PLAN, Assembly, Division, Finished, Part, remembered
from fusionjax.data.picture import Picture
from fusionjax.data.prepared import Dropped, Wishes, prepare_picture
from fusionjax.data.prepared import Prepared as Found
from fusionjax.data.report import KEPT, Examples
from fusionjax.data.sources import Part as Source
from fusionjax.data.sources import parts_of, read_part
from fusionjax.errors import UserError, at_least, printable, shortened, told
from fusionjax.files import (
    check_room,
    locked,
    put_back,
    size_of,
    take_place,
    wait_for_shares,
    whole_folder,
    write_whole,
)

_WHOLE, _REPLACED = "whole", "replaced"
Progress = Callable[[int, int], None]


def prepare(
    sources: Iterable[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    wishes: Wishes | None = None,
    *,
    column: str | None = None,
    processes: int | None = None,
    share: tuple[int, int] | None = None,
    forget: bool = False,
    progress: Progress | None = None,
    tell: Callable[[str], object] = lambda _: None,
    **division: Any,
) -> collections.Counter[str] | None:
    """Writes a dataset, or brings one up to date with its sources.

    Args:
        sources: what `sources.parts_of` takes, of all kinds together.
        folder: where the dataset goes. One that was prepared from the same sources with the same
            wishes is brought up to date: only what is new is read. What is done is kept beside it,
            in `FOLDER.unfinished`, until all is done.
        wishes: what a picture must be to be kept.
        column: of tables, the one that names a picture's person.
        processes: that read and cut at once; None is the machine's cores.
        share: (i, n) does the i-th of n shares of the parts and no more, i from 1, so that n
            machines with a common disk share the work; once all have, a call without it ends it.
        forget: leave out what an earlier dataset has of sources that are not named now.
        progress: called with the parts done and their number.
        tell: is told what of an earlier dataset is kept.
        **division: of `assemble.Division`.

    Returns:
        How many pictures were dropped, by reason; None after a share.

    Raises:
        UserError: if a source is none, the folder is something else's, or too much was dropped.
    """
    how = Division(**division)
    if processes is not None:
        at_least(1, processes=processes)
    index, count = share or (1, 1)
    if not 1 <= index <= count:
        raise UserError(f"the share is {index}/{count}; it must be I/N with 1 ≤ I ≤ N")
    wishes, target = wishes or Wishes(), _target(Path(folder))
    named = {source.resolve(): source for source in map(Path, sources)}  # each once
    _check_apart(target, named)
    plan: dict[str, Any] = {
        "wishes": dataclasses.asdict(wishes),
        "sources": sorted(map(str, named)),
    }
    work = target.with_name(f"{target.name}.unfinished")
    put_back(target, work / _REPLACED)
    earlier = Finished(target) if target.exists() else None
    if earlier is not None:
        _check_extends(target, earlier.plan, plan, forget=forget)
    parts = {part.digest(): part for part in parts_of(named.values(), column)}
    own = work if share is None else work / f"share-{index}-of-{count}"
    own.mkdir(parents=True, exist_ok=True)
    with locked(own):
        _check_same(work, plan["wishes"])
        if share is None:
            wait_for_shares(work)
        known = dict(earlier.parts) if earlier is not None else {}
        while True:
            missing = [digest for digest in parts if digest not in known]
            mine = {digest: parts[digest] for digest in missing[index - 1 :: count]}
            _do_parts(mine, work, wishes, processes, progress)
            if share is not None:
                return None
            found = {d: known[d] if d in known else Part.of_folder(work / d) for d in parts}
            assembly = Assembly(found, earlier, how)
            if not assembly.lacking:
                break
            for digest in assembly.lacking:
                del known[digest]
        plan |= {"division": dataclasses.asdict(how), "parts": list(parts)}
        if earlier is not None:
            gone = len(earlier.parts.keys() - parts.keys())
            tell(
                f"{_counted(len(parts) - len(missing))} as before, {len(missing)} new, {gone} gone"
            )
        if earlier is None or earlier.plan != plan:
            listed = target.with_name(f"{target.name}.skipped.tsv")
            shutil.rmtree(work / _WHOLE, ignore_errors=True)  # of a run that was killed
            assembly.write(work / _WHOLE, listed, plan)
            take_place(work / _WHOLE, target, work / _REPLACED)
    shutil.rmtree(work)
    return assembly.reasons


def _counted(parts: int) -> str:
    return f"{parts:,} part{'s' * (parts != 1)} of its sources"


def _target(folder: Path) -> Path:
    """Where the dataset goes: what a link points to, so that the link stays."""
    if folder.is_symlink():
        return folder.resolve()
    if not folder.name:
        raise UserError(
            f"the dataset is {str(folder)!r}, which is no name of its own; name a folder"
        )
    return folder


def _check_apart(target: Path, sources: Iterable[Path]) -> None:
    """Raises UserError if the dataset would lie in a source, and be read the next time."""
    for source in sources:
        if target.resolve().is_relative_to(source):
            raise UserError(
                f"{str(target)!r} lies in the source {shortened(str(source), 150)}; name a dataset "
                "outside of it"
            )
    if target.is_file():
        raise UserError(
            f"{str(target)!r} is a file; the dataset's folder is named last, behind the sources"
        )


def _check_extends(
    target: Path, before: dict[str, Any], now: dict[str, Any], *, forget: bool
) -> None:
    """Raises UserError if a dataset was prepared otherwise, or from what is not named now."""
    first = _with_defaults(before["wishes"])
    for name, value in now["wishes"].items():
        if (was := first[name]) != value:
            raise UserError(
                f"{str(target)!r} was prepared with {name} {told(was)}, not {told(value)}; "
                "remove it or name another"
            )
    others = [path for path in before["sources"] if path not in now["sources"]]
    if others and not forget:
        raise UserError(
            f"{str(target)!r} was prepared from {shortened(others[0], 200)} too, which is not "
            f"named now{f' ({len(others)} such)' if len(others) > 1 else ''}; name all its "
            "sources, or add --forget to leave its pictures out"
        )


def _do_parts(
    parts: dict[str, Source],
    work: Path,
    wishes: Wishes,
    processes: int | None,
    progress: Progress | None,
) -> None:
    """Does the parts that are not done yet."""
    pairs = [(part, work / digest) for digest, part in parts.items()]
    waiting = [(part, place) for part, place in pairs if not place.exists()]
    done = len(parts) - len(waiting)
    sizes: list[int] = []
    for size in _mapped(functools.partial(_do_part, wishes=wishes), waiting, processes):
        done += 1
        sizes.append(size)
        if len(sizes) >= min(3, len(waiting)):
            # All parts are about as large, and the dataset is written when they all are.
            check_room(work, sum(sizes) // len(sizes) * (2 * len(parts) - done))
        if progress is not None:
            progress(done, len(parts))


def _check_same(work: Path, wishes: dict[str, Any]) -> None:
    """Raises UserError if what is there already was cut otherwise."""
    plan = work / PLAN
    if plan.is_file() and _with_defaults(json.loads(plan.read_text(encoding="utf-8"))) != wishes:
        raise UserError(
            f"{str(work)!r} holds what was done with other options; give those again, or remove it"
        )
    write_whole(plan, json.dumps(wishes))


def _with_defaults(wishes: dict[str, Any]) -> dict[str, Any]:
    """Wishes that were written down, perhaps before there was one of today's."""
    return dataclasses.asdict(Wishes()) | wishes


def _mapped(
    do: Callable[[tuple[Source, Path]], int],
    waiting: list[tuple[Source, Path]],
    processes: int | None,
) -> Iterator[int]:
    processes = min(processes or os.cpu_count() or 1, len(waiting))
    if processes <= 1:
        yield from map(do, waiting)
        return
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(processes, initializer=_begin_worker) as pool, _orderly_end():
        yield from pool.imap_unordered(do, waiting)


@contextlib.contextmanager
def _orderly_end() -> Iterator[None]:
    """Inside, SIGTERM ends the workers too, which would say at length that nobody listens."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _begin_worker() -> None:
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    cv2.setNumThreads(1)  # the processes are as many as the cores


# --- one part -------------------------------------------------------------------------------------


def _do_part(job: tuple[Source, Path], wishes: Wishes) -> int:
    """Reads a part, and writes its records, their index and what was dropped; whole or nothing.

    Returns:
        The bytes that it takes.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    part, place = job
    serialize = _serializer()
    with whole_folder(place, or_there=True) as beside:
        writer = ArrayRecordWriter(str(beside / "records"), "group_size:1")
        kept, dropped, examples = [], [], Examples()
        for picture in read_part(part):
            try:
                if not isinstance(picture, Picture):
                    raise Dropped(picture.reason)
                found = prepare_picture(picture, wishes)
            except Dropped as reason:
                dropped.append(f"{printable(picture.name)}\t{reason}")
                if isinstance(picture, Picture):
                    examples.add(str(reason), picture)
                continue
            examples.add(KEPT, found.image)
            writer.write(serialize(found))
            kept.append(remembered(found))
        writer.close()
        index = {"kept": kept, "skipped": dropped, "examples": examples.found}
        (beside / INDEX).write_text(json.dumps(index), encoding="utf-8")
    return size_of(place)


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
