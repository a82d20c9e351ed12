"""One model, loaded once, and those who wait for it: a job comes in, news of it goes out.

Each job has a thread of its own, which waits for its turn and then generates; the page reads the
news as they come. A job is stopped while it waits, or between two of its steps.
"""

import collections
import dataclasses
import queue
import secrets
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fusionjax.errors import UserError
from fusionjax.files import full_disk_told
from fusionjax.photos import read_photo
from sample.device import chosen
from sample.formats import write_picture
from sample.inputs import checksums, file_of, pictures_of
from sample.job import Job, Person, even_batch
from sample.options import Options
from sample.progress import Bar, duration
from sample.sheet import share_map
from sample.studio import Studio, completed, is_embedded
from sample.web import asked
from sample.web.line import Line, Place, cost
from sample.web.preview import fit_colours, glance
from sample.web.scene import write_scene

_SECONDS = 0.5  # between two glances at a picture
_UNHEARD = 30  # news that nobody takes: who asked is gone
_KEPT = 400  # folders of drawings and pictures, of all visitors


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a visitor may ask for.

    Attributes:
        pixels: of a picture, after all passes.
        images: of a job.
        photo_pixels: of an upload.
        waiting: jobs that wait for their turn.
    """

    pixels: int = 2048 * 2048
    images: int = 16
    photo_pixels: int = 50_000_000
    waiting: int = 20


class Done(NamedTuple):
    """What a job has come to.

    Attributes:
        job: with every value settled.
        pictures: as files, each with its text.
        seeds: of the pictures.
        maps: where photos were attended to, beside each picture, where that was asked for.
        scene: the archive that repeats them.
    """

    job: Job
    pictures: list[Path]
    seeds: list[int]
    maps: list[Path]
    scene: Path


class News(NamedTuple):
    """How a job is getting on.

    Attributes:
        line: to show; empty leaves what is shown.
        share: of the steps, in [0, 1].
        glance: at the pictures.
        warning: that the visitor shall see.
        done: at the end of a painted job.
        person: at the end of an encoded one, the file.
    """

    line: str = ""
    share: float | None = None
    glance: Image.Image | None = None
    warning: str = ""
    done: Done | None = None
    person: Path | None = None

    @property
    def is_last(self) -> bool:
        return self.done is not None or self.person is not None


class StoppedError(Exception):
    """A job was stopped by who asked for it."""


class _Bar(Bar):
    """Passes progress on to whoever's job it is."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.news: queue.Queue[Any] | None = None
        self.place: Place | None = None

    def __call__(self, stage: str, done: int, of: int, seconds: float) -> None:
        if self.news is not None and stage == "steps":
            if self.place is not None:
                self.place.seconds_left = seconds * (of - done)
            left = f", {duration(seconds * (of - done))} left" if done < of else ""
            self.news.put(News(f"step {done} of {of}{left}", done / of))

    def compiling(self, program: str) -> None:
        if self.news is not None:
            self.news.put(News(f"compiling ({program}); this happens once for each size"))

    def say(self, line: str) -> None:
        if self.news is None:
            super().say(line)
        else:
            self.news.put(News(line))


class Painter:
    """A studio that several visitors use.

    Args:
        options: the command line: devices, batches, cache.
        models: names the models.
        folder: that all uploads and pictures lie in.
        people: a folder of saved people, or None.
        limits: of what may be asked for.
    """

    def __init__(
        self, options: Options, models: Job, folder: Path, people: Path | None, limits: Limits
    ) -> None:
        self._bar = _Bar()
        self.models, self.folder, self.people, self.limits = models, folder, people, limits
        devices = chosen(options.device) if options.device else None
        self._studio = Studio(models, options, self._bar, devices)
        self.side = self._studio.pipe.photo_side
        self.is_embedded = is_embedded(models)
        self._line = Line(limits.waiting)
        self._heard = threading.local()
        self._folders: collections.deque[Path] = collections.deque()
        warnings.showwarning = self._hear

    def job(self, values: Any, files: Mapping[str, Path]) -> Job:
        """Reads what is asked for, see `asked.job_of`; saved people can be named too."""
        people = asked.saved_people(self.people)
        job = completed(asked.job_of(values, {**people, **files}, self.models))
        self.check(job)
        return job

    def check(self, job: Job) -> None:
        """Raises UserError for more than may be asked for, and for files that are gone."""
        most = self.limits
        pixels = (job.height or self.side) * (job.width or self.side) * (job.upscale or 1) ** 2
        if pixels > most.pixels:
            raise UserError(
                f"{pixels:,.0f} pixels are asked for; {most.pixels:,} are the most here"
            )
        if job.num_images_per_prompt > most.images:
            raise UserError(
                f"{job.num_images_per_prompt} images are asked for; {most.images} are the most here"
            )
        self._heard.files = _files_of(job)
        for file in self._heard.files:
            asked.check_pixels(Path(file), most.photo_pixels)

    def bare(self, message: Any) -> str:
        """A message, or an error's, without folders; see `asked.bare`."""
        files = getattr(self._heard, "files", ())
        return asked.bare(str(message), (self.folder, self.people), files)

    def photo(self, path: Path) -> Image.Image:
        """A photo, as it is read.

        Raises:
            UserError: if it cannot be, or is too large.
        """
        self._heard.files = [str(path)]
        asked.check_pixels(path, self.limits.photo_pixels)
        return read_photo(path)

    def crops(self, faces: list[Path], crop: str) -> tuple[Image.Image, list[str]]:
        """What is cut out of photos, as a sheet, and what there is to say about them."""
        from sample.crops import crops_of, crops_sheet

        for face in faces:
            asked.check_pixels(face, self.limits.photo_pixels)
        lines: list[str] = []
        self._heard.lines, self._heard.files = lines, list(map(str, faces))
        crops = crops_of(Person(faces=tuple(self._heard.files)), self.side, crop)
        reasons = [self.bare(each.reason) for each in crops if each.reason]
        return crops_sheet([crops]), lines + reasons

    def paint(
        self, job: Job, attention: bool = False, stop: threading.Event | None = None
    ) -> Iterator[News]:
        """Generates a job.

        Args:
            job: from `job`.
            attention: also draw where photos were attended to.
            stop: ends it after the next step.

        Yields:
            News, the last of which has `done`.

        Raises:
            UserError: if something is wrong with it, or too many wait.
            StoppedError: if it was stopped.
        """
        stop = stop or threading.Event()

        def work(news: Any) -> News:
            return News(done=self._painted(job, attention, stop, news))

        yield from self._in_turn(job, work, cost(job, self.side), stop)

    def encode(self, job: Job, stop: threading.Event) -> Iterator[News]:
        """Encodes the one person of a job, as `paint`; the last of the news has `person`."""

        def work(news: Any) -> News:
            path = self.new_folder() / "person.safetensors"
            self._studio.people(job)[0].save(path)
            return News(person=path)

        yield from self._in_turn(job, work, cost(job, self.side), stop, is_usual=False)

    def _in_turn(
        self, job: Job, work: Callable[[Any], News], cost: float, stop: threading.Event,
        is_usual: bool = True,
    ) -> Iterator[News]:  # fmt: skip
        """Waits, and works in a thread of its own; how long others wait is told by usual work."""
        news: queue.Queue[Any] = queue.Queue()
        place = self._line.enter(cost)

        def thread() -> None:
            self._heard.news, self._heard.files = news, _files_of(job)
            seconds = None
            try:
                self._wait(place, stop, news)
                self._bar.news, self._bar.place = news, place
                runner = self._studio.pipe.runner
                began = time.monotonic() - runner.compile_seconds
                with full_disk_told():
                    last = work(news)
                if is_usual:
                    seconds = time.monotonic() - runner.compile_seconds - began
                news.put(last)
            except UserError as error:
                news.put(UserError(self.bare(error)))
            except BaseException as error:  # whatever it is, the page must hear that this ended
                news.put(error)
            finally:
                if place.began is not None:
                    self._bar.news = self._bar.place = None
                self._line.leave(place, seconds)

        threading.Thread(target=thread, daemon=True).start()
        try:
            while True:
                item = news.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if item.is_last:
                    return
        finally:  # also where nobody listens any more
            stop.set()

    def _wait(self, place: Place, stop: threading.Event, news: Any) -> None:
        """Until it is this place's turn; meanwhile how long it will be is told each second."""
        pause = 0.0
        while not self._line.wait(place, pause):
            pause = 1.0
            if stop.is_set() or news.qsize() > _UNHEARD:
                raise StoppedError
            news.put(News(self._line.told(place)))

    def _painted(self, job: Job, attention: bool, stop: threading.Event, news: Any) -> Done:
        if stop.is_set():
            raise StoppedError
        news.put(News("it begins"))
        studio = self._studio
        job, settings = studio.resolved(job)
        requests = studio.requests(job, settings)
        people = studio.people(job)
        colours, last = fit_colours(people), 0.0

        def after_step(step: int, timestep: float, latents: Any) -> Any:
            nonlocal last
            if stop.is_set():
                raise StoppedError
            if colours is not None and time.monotonic() - last > _SECONDS:
                last = time.monotonic()
                news.put(News(glance=glance(np.asarray(latents), colours)))
            return latents

        folder = self.new_folder()
        sums, models = checksums(job), studio.pipe.fingerprints
        pictures, seeds, maps = [], [], []
        done = studio.generate(
            requests, settings, even_batch(len(requests), studio.batch_size),
            attention_share=attention and bool(people), on_step_end=after_step,
        )  # fmt: skip
        for index, each in enumerate(done):
            if each.pixels is None:
                continue  # a warning tells
            own = dataclasses.replace(job, seed=requests[index].seed, num_images_per_prompt=1)
            path = folder / f"{index + 1:02d}_seed{own.seed}.png"
            write_picture(path, each.pixels, own, sums, models)
            pictures.append(path)
            seeds.append(own.seed)
            if each.attention_share is not None:
                maps.append(path.with_name(f"{path.stem}_attention.png"))
                picture = Image.fromarray(each.pixels)
                share_map(picture, each.attention_share, own, people).save(maps[-1])
        if not pictures:
            raise UserError(
                "no image is finite; a smaller guidance scale or a smaller face strength may help"
            )
        scene = folder / "scene.zip"
        write_scene(scene, job)
        return Done(job, pictures, seeds, maps, scene)

    def new_folder(self) -> Path:
        """A folder under a name that nobody guesses; the oldest are removed."""
        self._folders.append(self.folder / secrets.token_hex(16))
        self._folders[-1].mkdir()
        while len(self._folders) > _KEPT:
            shutil.rmtree(self._folders.popleft(), ignore_errors=True)
        return self._folders[-1]

    def _hear(self, message: Any, category: Any, *_: Any, **__: Any) -> None:
        """Brings a warning to whom it concerns."""
        if (news := getattr(self._heard, "news", None)) is not None:
            news.put(News(warning=self.bare(message)))
        elif (lines := getattr(self._heard, "lines", None)) is not None:
            lines.append(self.bare(message))
        else:
            print(f"warning: {message}", file=sys.stderr)


def _files_of(job: Job) -> list[str]:
    return [file_of(path) for path in pictures_of(job)]
