"""Generates a file of requests, row by row, and goes on where it stopped."""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fusionjax.embedded import MINI_GUIDANCE
from fusionjax.errors import UserError
from fusionjax.options import Settings
from sample import formats as files
from sample.inputs import Remembered, checksums
from sample.job import Job
from sample.names import values_of
from sample.options import Options
from sample.progress import Bar, duration
from sample.studio import Studio, is_embedded

if TYPE_CHECKING:
    from fusionjax.generation.request import Request


class _Waiting(NamedTuple):
    """An image of a row that waits for others of its shape."""

    row: files.Row
    number: int
    request: "Request"
    job: Job


def run_requests(options: Options, within: Job, devices: Any = None) -> int:
    """Generates what a file of requests asks for.

    Args:
        options: the command line.
        within: its job.
        devices: to compute on; None is all that JAX finds.

    Returns:
        The exit status: 0, or 1 if rows failed.

    Raises:
        UserError: if the file or the models cannot be used.
    """
    from fusionjax.generation.scene import batch_key

    assert options.requests is not None
    if is_embedded(within) and within.guidance_scale is None:
        within = dataclasses.replace(within, guidance_scale=MINI_GUIDANCE)
    rows = list(files.read_requests(options.requests, within))
    if not rows:
        raise UserError(f"{options.requests} holds no requests")
    folder = options.written.folder
    folder.mkdir(parents=True, exist_ok=True)
    index, count = options.shared
    mine = rows[index - 1 :: count]
    log = _Results(folder, f"results-{index}-of-{count}.jsonl" if count > 1 else "results.jsonl")
    todo = [row for row in mine if not log.is_done(row)]
    bar = Bar(None if options.quiet else sys.stderr)
    share = f" of share {options.share}" if count > 1 else ""
    bar.say(f"{len(mine) - len(todo)} of {len(mine)} rows{share} are done already")
    bad = 0
    # A model that cannot be loaded is nobody's row; where no row can be painted none is needed.
    studio = Studio(within, options, bar, devices) if any(row.job for row in todo) else None
    batch = studio.batch_size if studio else 1
    waiting: dict[Any, list[_Waiting]] = {}
    began = time.perf_counter()

    def fail(row: files.Row, reason: str) -> None:
        nonlocal bad
        bad += 1
        print(f"row {row.number}: {reason}", file=sys.stderr)
        log.write(row, error=reason)

    def generate(settings: Settings, group: list[_Waiting], batch: int) -> None:
        assert studio is not None
        try:
            for row in _generate_group(studio, settings, group, batch, options, log):
                fail(row, "its image is not finite; use --dtype float32 or less guidance")
        except UserError as error:  # the other groups may still succeed
            for row in {item.row.number: item.row for item in group}.values():
                if log.expects(row):
                    fail(row, str(error))
        left = len(todo) - log.written
        seconds = (time.perf_counter() - began) / max(log.written, 1) * left
        bar.say(f"{log.written}/{len(todo)} rows" + (f", {duration(seconds)} left" if left else ""))

    for row in todo:
        try:
            if row.job is None or studio is None:
                raise UserError(row.error or "")
            if row.job.prompt is None:
                raise UserError("what shall be seen? The row has no prompt")
            job, settings = studio.resolved(row.job)
            if options.skip_bad_photos:
                job = studio.usable(job)
            requests = studio.requests(job, settings)
        except UserError as error:
            fail(row, str(error))
            continue
        log.expect(row, len(requests))
        group = waiting.setdefault(
            (settings, batch_key(requests[0], settings, studio.pipe.model)), []
        )
        for index, request in enumerate(requests):
            own = dataclasses.replace(job, seed=request.seed, num_images_per_prompt=1)
            group.append(_Waiting(row, index, request, own))
            if len(group) == batch:
                generate(settings, group, batch)
                group.clear()
    for (settings, _), group in waiting.items():
        if group:
            # Few shapes of the rest, so that little is compiled for it.
            generate(settings, group, min(batch, 1 << (len(group) - 1).bit_length()))
    if bad:
        print(f"{bad} of {len(mine)} rows failed", file=sys.stderr)
    return 1 if bad else 0


def _generate_group(
    studio: Studio,
    settings: Settings,
    group: list[_Waiting],
    batch: int,
    options: Options,
    log: "_Results",
) -> Iterator[files.Row]:
    """Generates and writes images; yields the rows whose images are not finite, once each."""
    out, remembered = options.written, Remembered(options.cache)
    done = studio.generate([item.request for item in group], settings, batch)
    for item, image in zip(group, done, strict=True):
        if image.pixels is None:
            if log.expects(item.row):
                yield item.row
            continue
        values = values_of(item.job, item.number, item.row.number, item.row.name)
        sums = checksums(item.job)
        path, again = out.path(values), 1
        while files.is_another(path, item.job, sums):
            again += 1
            path = out.path(values, again)
        if again > 1:
            print(
                f"row {item.row.number}: another picture has its name; written as {path.name}",
                file=sys.stderr,
            )
        files.write_picture(
            path, image.pixels, item.job, sums, studio.pipe.fingerprints,
            metadata=not options.no_metadata, quality=options.quality,
        )  # fmt: skip
        if not options.no_metadata:
            remembered.add(sums)
        name = path.relative_to(out.folder).as_posix()
        log.painted(item.row, item.number, name, item.job.seed)


class _Results:
    """`results.jsonl`: a line for each row that is done, written after its pictures.

    Args:
        folder: of the images.
        name: of the file that this process writes; the others' of the folder are read, so that
            rows are known which another share, or all in one, has done.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.written = 0  # lines of this run
        self._path = folder / name
        others = [_lines_of(p) for p in folder.glob("results*.jsonl") if p != self._path]
        self._lines = _lines_of(self._path)
        self._known = [self._lines, *others]
        self._pending: dict[int, list[tuple[int, str, int]]] = {}
        self._expected: dict[int, int] = {}
        if self._path.exists() and not self._path.read_bytes().endswith(b"\n"):
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def is_done(self, row: files.Row) -> bool:
        return any(self._says_done(lines.get(row.name, {}), row) for lines in self._known)

    def _says_done(self, about: dict[str, Any], row: files.Row) -> bool:
        names = about.get("pictures")
        return (
            about.get("request") == row.digest
            and isinstance(names, list)
            and bool(names)
            and all(isinstance(n, str) and (self._path.parent / n).is_file() for n in names)
        )

    def expect(self, row: files.Row, pictures: int) -> None:
        self._expected[row.number] = pictures

    def expects(self, row: files.Row) -> bool:
        """Whether the row's line is still to be written."""
        return row.number in self._expected

    def painted(self, row: files.Row, index: int, name: str, seed: int) -> None:
        pending = self._pending.setdefault(row.number, [])
        pending.append((index, name, seed))
        if len(pending) == self._expected.get(row.number):
            pending.sort()
            self.write(
                row,
                pictures=[name for _, name, _ in pending],
                seeds=[seed for *_, seed in pending],
            )

    def write(self, row: files.Row, **result: Any) -> None:
        about = {"row": row.number, "id": row.name, "request": row.digest, **result}
        self.written += 1
        self._expected.pop(row.number, None)
        if self._lines.get(row.name) == about:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(about, ensure_ascii=False) + "\n")


def _lines_of(path: Path) -> dict[str, dict[str, Any]]:
    """The last line of each row in a file of results, by the row's id; none if there is no file."""
    lines: dict[str, dict[str, Any]] = {}
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.splitlines():
        try:
            about = json.loads(line)
            lines[about["id"]] = about
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # cut off when the program was stopped: the row is painted again
    return lines
