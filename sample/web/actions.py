"""What the page's buttons do. All of it goes through `Painter`."""

import contextlib
import dataclasses
import html
import json
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import gradio as gr

from fusionjax.errors import UserError, told
from fusionjax.options import LARGEST_SEED, MOST_IMAGES
from sample.images import text_of
from sample.job import RANDOM, Job
from sample.web.asked import saved_people, uploaded
from sample.web.painter import News, Painter, StoppedError
from sample.web.places import COLOURS, canvas, drawn_masks, read_box

PEOPLE = len(COLOURS)
_FIELDS = {field.name: field for field in dataclasses.fields(Job)}


class Results(NamedTuple):
    """Where on the page a job shows what comes of it: gradio's components."""

    status: Any
    glance: Any
    gallery: Any
    scene: Any
    seed: Any


@dataclasses.dataclass
class Visitor:
    """What is kept of a visitor while the page is open."""

    stop: threading.Event | None = None
    job: Job | None = None
    pictures: list[Path] = dataclasses.field(default_factory=list)


class Actions:
    """The buttons' functions, which gradio calls with what stands on the page.

    Args:
        painter: does what it asks for.
        options: names of the options, in the page's order.
        shown: where results are.
    """

    def __init__(self, painter: Painter, options: tuple[str, ...], shown: Results) -> None:
        self.painter, self.options, self.shown = painter, options, shown
        self._visitors: dict[str, Visitor] = {}

    def show_rows(self, count: str) -> list[Any]:
        return [gr.update(visible=number < int(count)) for number in range(PEOPLE)]

    def show_crops(self, photos: list[str] | None, saved: str, crop: str) -> Any:
        with self._told():
            faces = self._faces_of(photos, saved)
            if not faces:
                return gr.update(value=None, visible=False)
            sheet, lines = self.painter.crops(faces, crop)
        for line in lines:
            gr.Warning(html.escape(self.painter.bare(line)))
        return gr.update(value=sheet, visible=True)

    def _faces_of(self, photos: list[str] | None, saved: str) -> list[Path]:
        faces = [uploaded(photo, self.painter.folder) for photo in photos or ()]
        people = saved_people(self.painter.people)
        if saved and saved not in people:
            raise UserError(
                f"{saved!r} is no saved person; there are {', '.join(people) or 'none'}"
            )
        return faces + ([people[saved]] if saved else [])

    def choose(self, count: str, chosen: gr.SelectData) -> list[Any]:
        """A saved person who is clicked on is the last of those shown."""
        name = chosen.value.get("caption", "") if isinstance(chosen.value, dict) else ""
        last = max(int(count), 1) - 1
        return [gr.update(value=name) if n == last else gr.update() for n in range(PEOPLE)]

    def new_canvas(self, *sides: str) -> Any:
        """Paper in the picture's shape, and nothing drawn on it; what is no size is told later."""
        try:
            read = [_read("height", side) or self.painter.side for side in sides]
        except UserError:
            return gr.update()
        if min(read) < 8 or max(read) > 8 * min(read):
            return gr.update()
        paper = canvas(read[1], read[0])
        return gr.ImageEditor(value=paper, canvas_size=paper.size)

    def paint(self, request: gr.Request, count: str, *values: Any) -> Iterator[dict[Any, Any]]:
        rows = [values[4 * n : 4 * n + 4] for n in range(PEOPLE)][: int(count)]
        drawn, attention, *rest = values[4 * PEOPLE :]
        with self._told():
            asked, files = self._asked(dict(zip(self.options, rest, strict=True)), rows, drawn)
            job = self.painter.job(asked, files)
        yield from self._painting(job, attention, self._visitor(request))

    def _asked(
        self, options: dict[str, Any], rows: list[Any], drawn: Any
    ) -> tuple[dict[str, Any], dict[str, Path]]:
        """The page's inputs as a scene, and the files that it names."""
        asked = {name: _read(name, value) for name, value in options.items()}
        asked = {name: value for name, value in asked.items() if value is not None}
        files: dict[str, Path] = {}
        people: list[dict[str, Any]] = []
        masks = drawn_masks((drawn or {}).get("layers") or (), len(rows))
        for number, ((photos, saved, strength, box, *_), mask) in enumerate(
            zip(rows, masks, strict=True), 1
        ):
            faces = self._faces_of(photos, saved)
            if not faces:
                raise UserError(f"person {number} has no photo; give one, or choose a saved person")
            files |= {str(face): face for face in faces}
            person = {"faces": [str(face) for face in faces], "strength": strength}
            if place := read_box(box or ""):
                person["box"] = place
            elif mask is not None:
                path = self.painter.new_folder() / f"place{number}.png"
                mask.save(path)
                files[str(path)] = path
                person["mask"] = str(path)
            people.append(person)
        return {**asked, "people": people}, files

    def paint_again(self, attention: bool, request: gr.Request) -> Iterator[dict[Any, Any]]:
        visitor = self._visitor(request)
        if visitor.job is None:
            raise gr.Error("nothing has been painted yet", print_exception=False)
        seed = secrets.randbelow(LARGEST_SEED - MOST_IMAGES)
        yield from self._painting(dataclasses.replace(visitor.job, seed=seed), attention, visitor)

    def _painting(self, job: Job, attention: bool, visitor: Visitor) -> Iterator[dict[Any, Any]]:
        visitor.stop = stop = threading.Event()
        line, share = "it begins", 0.0
        yield {self.shown.status: status(line, share), self.shown.seed: str(job.seed)}
        try:
            with self._told():
                for news in self.painter.paint(job, attention=attention, stop=stop):
                    line, share = news.line or line, news.share or share
                    if news.warning:
                        gr.Warning(html.escape(self.painter.bare(news.warning)))
                    yield self._shown(news, line, share, visitor)
        except StoppedError:
            yield {
                self.shown.status: status("stopped"),
                self.shown.glance: gr.update(visible=False),
            }
        except gr.Error as error:
            yield {
                self.shown.status: status(f"error: {error.message}"),
                self.shown.glance: gr.update(visible=False),
            }
            raise

    def _shown(self, news: News, line: str, share: float, visitor: Visitor) -> dict[Any, Any]:
        if news.done is None:
            shown: dict[Any, Any] = {
                self.shown.status: status(html.escape(self.painter.bare(line)), share)
            }
            if news.glance is not None:
                shown[self.shown.glance] = gr.update(value=news.glance, visible=True)
            return shown
        visitor.job = news.done.job
        visitor.pictures = [*news.done.pictures, *news.done.maps, *visitor.pictures][:40]
        count = len(news.done.pictures)
        return {
            self.shown.status: status(
                f"{count} picture{'s' * (count > 1)}, seed {news.done.job.seed}"
            ),
            self.shown.glance: gr.update(value=None, visible=False),
            self.shown.gallery: gr.update(value=[str(p) for p in visitor.pictures if p.is_file()]),
            self.shown.scene: gr.update(value=str(news.done.scene), visible=True),
        }

    def stop(self, request: gr.Request) -> str:
        visitor = self._visitor(request)
        if visitor.stop is None or visitor.stop.is_set():
            return status("nothing is being painted")
        visitor.stop.set()
        return status("stopping after this step …")

    def show_text(self, chosen: gr.SelectData, request: gr.Request) -> str:
        pictures = [p for p in self._visitor(request).pictures if p.is_file()]
        if not isinstance(chosen.index, int) or chosen.index >= len(pictures):
            return ""
        with self._told():
            text = text_of(pictures[chosen.index])
        return json.dumps(json.loads(text), indent=1, ensure_ascii=False) if text else ""

    def _visitor(self, request: gr.Request) -> Visitor:
        return self._visitors.setdefault(request.session_hash or "", Visitor())

    def leave(self, request: gr.Request) -> None:
        visitor = self._visitors.pop(request.session_hash or "", None)
        if visitor is not None and visitor.stop is not None:
            visitor.stop.set()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What a visitor can mend is one line on the page; the rest is for who started it."""
        try:
            yield
        except UserError as error:
            line = html.escape(self.painter.bare(error))
            raise gr.Error(line, print_exception=False, duration=20) from None


def _read(name: str, value: Any) -> Any:
    """An option as it stands on the page; None where it is blank and left to the model."""
    kinds = (_FIELDS[name].type, *get_args(_FIELDS[name].type))
    if not isinstance(value, str) or str in kinds:
        return value
    text = value.strip()
    if not text or (name == "seed" and text == RANDOM):
        return text or None
    try:
        return int(text) if int in kinds else float(text)
    except ValueError:
        raise UserError(f"{name} is {told(text)}; give a number") from None


def status(line: str, share: float | None = None) -> str:
    bar = "" if share is None else f'<progress value="{share:.3f}"></progress>'
    return f'<div class="status">{line}{bar}</div>'
