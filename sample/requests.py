"""Paints a file of requests, row by row, and goes on where it stopped."""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fusionjax.embedded import MINI_GUIDANCE
from fusionjax.errors import UserError
from sample import formats as files
from sample.job import BATCH_PER_DEVICE, Job
from sample.options import Options
from sample.progress import Bar, duration
from sample.studio import Studio, is_embedded

if TYPE_CHECKING:
    from fusionjax.generation.request import Picture, Settings


class _Waiting(NamedTuple):
    """A picture of a request that waits for others of its shape."""

    request: files.Request
    number: int
    picture: "Picture"
    job: Job


def run_requests(options: Options, within: Job) -> int:
    assert options.requests is not None
    if is_embedded(within) and within.guidance_scale is None:
        within = dataclasses.replace(within, guidance_scale=MINI_GUIDANCE)
    requests = list(files.read_requests(options.requests, within))
    if not requests:
        raise UserError(f"{options.requests} holds no requests")
    options.output.mkdir(parents=True, exist_ok=True)
    log = _Results(options.output / "results.jsonl")
    todo = [request for request in requests if not log.is_done(request)]
    bar = Bar(None if options.quiet else sys.stderr)
    bar.say(f"{len(requests) - len(todo)} of {len(requests)} rows are done already")
    bad = 0
    # A model that cannot be loaded is nobody's row; where no row can be painted none is needed.
    studio = Studio(within, options, bar) if any(r.job for r in todo) else None
    batch = options.batch_size or BATCH_PER_DEVICE * (studio.devices if studio else 1)
    waiting: dict[Any, list[_Waiting]] = {}
    began = time.perf_counter()

    def fail(request: files.Request, reason: str) -> None:
        nonlocal bad
        bad += 1
        print(f"row {request.number}: {reason}", file=sys.stderr)
        log.write(request, error=reason)

    def paint(settings: "Settings", group: list[_Waiting], batch: int) -> None:
        assert studio is not None
        try:
            for request in _paint_group(studio, settings, group, batch, options, log):
                fail(request, "its picture is not finite; use --dtype float32 or less guidance")
        except UserError as error:  # the other groups may still be painted
            for request in {item.request.number: item.request for item in group}.values():
                if log.expects(request):
                    fail(request, str(error))
        left = len(todo) - log.written
        seconds = (time.perf_counter() - began) / max(log.written, 1) * left
        bar.say(f"{log.written}/{len(todo)} rows" + (f", {duration(seconds)} left" if left else ""))

    for request in todo:
        try:
            if request.job is None or studio is None:
                raise UserError(request.error or "")
            if request.job.prompt is None:
                raise UserError("what shall be painted? The row has no prompt")
            job, settings = studio.settled(request.job)
            pictures = studio.pictures(job, settings)
        except UserError as error:
            fail(request, str(error))
            continue
        log.expect(request, len(pictures))
        group = waiting.setdefault((settings, _shape_of(pictures[0])), [])
        for index, picture in enumerate(pictures):
            own = dataclasses.replace(job, seed=picture.seed, num_images=1)
            group.append(_Waiting(request, index, picture, own))
            if len(group) == batch:
                paint(settings, group, batch)
                group.clear()
    for (settings, _), group in waiting.items():
        if group:
            # Few shapes of the rest, so that little is compiled for it.
            paint(settings, group, min(batch, 1 << (len(group) - 1).bit_length()))
    if bad:
        print(f"{bad} of {len(requests)} rows could not be painted", file=sys.stderr)
    return 1 if bad else 0


def _shape_of(picture: "Picture") -> tuple[Any, ...]:
    """What decides, besides the settings, which pictures can be painted together."""
    references = sum(len(person) for person in picture.identities)
    return (
        1 << max(references - 1, 0).bit_length() if references else 0,
        picture.masks is not None,
        picture.image is not None,
        picture.control_image is not None,
        1 if picture.guidance_scale == 1 else 2 if picture.face_guidance_scale is None else 3,
    )


def _paint_group(
    studio: Studio,
    settings: "Settings",
    group: list[_Waiting],
    batch: int,
    options: Options,
    log: "_Results",
) -> Iterator[files.Request]:
    """Paints and writes pictures; yields the requests whose pictures are not finite, once each."""
    for i, image, _ in studio.painted([item.picture for item in group], settings, batch):
        item = group[i]
        if image is None:
            if log.expects(item.request):
                yield item.request
            continue
        path = options.output / f"{item.request.name}_{item.number:03d}.png"
        sums = files.checksums(item.job)
        files.write_picture(path, image, item.job, sums, studio.pipe.fingerprints)
        log.painted(item.request, item.number, path.name, item.job.seed)


class _Results:
    """`results.jsonl`: a line for each row that is done, written after its pictures."""

    def __init__(self, path: Path) -> None:
        self.written = 0  # lines of this run
        self._path = path
        self._lines: dict[str, dict[str, Any]] = {}
        self._pending: dict[int, list[tuple[int, str, int]]] = {}
        self._expected: dict[int, int] = {}
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for line in text.splitlines():
            try:
                about = json.loads(line)
                self._lines[about["id"]] = about
            except (ValueError, KeyError, TypeError):
                continue  # cut off when the program was stopped: the row is painted again
        if text and not text.endswith("\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def is_done(self, request: files.Request) -> bool:
        about = self._lines.get(request.name, {})
        return (
            about.get("request") == request.digest
            and "pictures" in about
            and all((self._path.parent / name).is_file() for name in about["pictures"])
        )

    def expect(self, request: files.Request, pictures: int) -> None:
        self._expected[request.number] = pictures

    def expects(self, request: files.Request) -> bool:
        """Whether the row's line is still to be written."""
        return request.number in self._expected

    def painted(self, request: files.Request, index: int, name: str, seed: int) -> None:
        pending = self._pending.setdefault(request.number, [])
        pending.append((index, name, seed))
        if len(pending) == self._expected.get(request.number):
            pending.sort()
            self.write(
                request,
                pictures=[name for _, name, _ in pending],
                seeds=[seed for *_, seed in pending],
            )

    def write(self, request: files.Request, **result: Any) -> None:
        about = {"row": request.number, "id": request.name, "request": request.digest, **result}
        self.written += 1
        self._expected.pop(request.number, None)
        if self._lines.get(request.name) == about:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(about, ensure_ascii=False) + "\n")
