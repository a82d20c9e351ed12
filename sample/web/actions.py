"""What the page's buttons do. All of it goes through `Painter`."""

import contextlib
import dataclasses
import functools
import html
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import gradio as gr

from fusionjax.errors import UserError, told
from sample.images import text_of
from sample.job import RANDOM, Job
from sample.web.asked import saved_people, uploaded
from sample.web.painter import News, Painter, StoppedError
from sample.web.places import COLOURS, canvas, drawn_masks, read_box
from sample.web.visitors import Tile, Visitor, again, varied

PEOPLE = len(COLOURS)
_FIELDS = {field.name: field for field in dataclasses.fields(Job)}


class Results(NamedTuple):
    """Where on the page a job shows what comes of it: gradio's components."""

    status: Any
    glance: Any
    gallery: Any
    scene: Any
    seed: Any
    taken: Any


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
        drawn, start, attention, *rest = values[4 * PEOPLE :]
        options = dict(zip(self.options, rest, strict=True))
        try:
            with self._told():
                asked, files = self._asked(options, rows, drawn, start)
                job = self.painter.job(asked, files)
        except gr.Error as error:
            yield self._refused(error)
            raise
        yield from self._painting(job, attention, self._visitor(request))

    def _asked(
        self, options: dict[str, Any], rows: list[Any], drawn: Any, start: str | None
    ) -> tuple[dict[str, Any], dict[str, Path]]:
        """The page's inputs as a scene, and the files that it names."""
        asked = {name: _read(name, value) for name, value in options.items()}
        asked = {name: value for name, value in asked.items() if value is not None}
        files: dict[str, Path] = {}
        if start:
            path = uploaded(start, self.painter.folder)
            files[str(path)] = path
            asked["image"] = str(path)
        else:
            asked.pop("strength", None)  # which is that of a start
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
        yield from self._painting_like(again, attention, request)

    def vary(self, attention: bool, request: gr.Request) -> Iterator[dict[Any, Any]]:
        yield from self._painting_like(varied, attention, request)

    def _painting_like(
        self, changed: Callable[[Tile], Job], attention: bool, request: gr.Request
    ) -> Iterator[dict[Any, Any]]:
        """Paints what comes of the picture that is taken."""
        visitor = self._visitor(request)
        try:
            with self._told():
                job = changed(visitor.taken)
                self.painter.check(job)
        except gr.Error as error:
            yield self._refused(error)
            raise
        yield from self._painting(job, attention, visitor)

    def _painting(self, job: Job, attention: bool, visitor: Visitor) -> Iterator[dict[Any, Any]]:
        def ended(news: News) -> dict[Any, Any]:
            assert news.done is not None
            visitor.add(news.done)
            count = len(news.done.pictures)
            tiles = [(str(tile.file), tile.caption) for tile in visitor.tiles]
            line = f"{count} picture{'s' * (count > 1)}, seed {news.done.job.seed}"
            return {
                self.shown.status: status(line),
                self.shown.seed: str(news.done.job.seed),
                self.shown.gallery: gr.update(value=tiles, selected_index=None),
                self.shown.scene: gr.update(value=str(news.done.scene), visible=True),
                self.shown.taken: _taken(visitor),
            }

        work = functools.partial(self.painter.paint, job, attention)
        yield from self._following(visitor, work, ended)

    def encoder(self, file: Any) -> Callable[..., Iterator[dict[Any, Any]]]:
        """What offers a person, encoded, in a component for files."""

        def encode(
            photos: list[str] | None, saved: str, crop: str, request: gr.Request
        ) -> Iterator[dict[Any, Any]]:
            with self._told():
                faces = self._faces_of(photos, saved)
                if not faces:
                    raise UserError("this person has no photo; give one, or choose a saved person")
                files = {str(face): face for face in faces}
                job = self.painter.job({"prompt": "", "faces": list(files), "crop": crop}, files)

            def ended(news: News) -> dict[Any, Any]:
                line = "the person is encoded; the file is below the photos"
                shown = gr.update(value=str(news.person), visible=True)
                return {self.shown.status: status(line), file: shown}

            work = functools.partial(self.painter.encode, job)
            yield from self._following(self._visitor(request), work, ended)

        return encode

    def _following(
        self,
        visitor: Visitor,
        work: Callable[[threading.Event], Iterator[News]],
        ended: Callable[[News], dict[Any, Any]],
    ) -> Iterator[dict[Any, Any]]:
        """Shows the news of a job, and at its end what `ended` makes of the last."""
        if visitor.is_served:
            line = "a job of yours is under way; wait for it, or cancel it"
            raise gr.Error(line, print_exception=False)
        visitor.stop = stop = threading.Event()
        no_glance = {self.shown.glance: gr.update(value=None, visible=False)}
        line, share = "it is checked", 0.0
        yield {self.shown.status: status(line, share)}
        try:
            with self._told():
                for news in work(stop):
                    line, share = news.line or line, news.share or share
                    line = "stopping after this step …" if stop.is_set() else line
                    if news.warning:
                        gr.Warning(html.escape(self.painter.bare(news.warning)))
                    if news.is_last:
                        yield {**ended(news), **no_glance}
                        continue
                    shown: dict[Any, Any] = {
                        self.shown.status: status(html.escape(self.painter.bare(line)), share)
                    }
                    if news.glance is not None:
                        shown[self.shown.glance] = gr.update(value=news.glance, visible=True)
                    yield shown
        except StoppedError:
            yield {self.shown.status: status("stopped"), **no_glance}
        except gr.Error as error:
            yield {**self._refused(error), **no_glance}
            raise
        finally:
            stop.set()

    def _refused(self, error: gr.Error) -> dict[Any, Any]:
        """What went wrong stays on the page when its note at the corner has gone."""
        return {self.shown.status: status(f"error: {error.message}")}

    def stop(self, request: gr.Request) -> Any:
        """Stops the visitor's job, which tells it itself: two answers could come in any order."""
        visitor = self._visitor(request)
        if not visitor.is_served:
            return status("nothing is being painted")
        assert visitor.stop is not None
        visitor.stop.set()
        return gr.skip()

    def choose_picture(self, chosen: gr.SelectData, request: gr.Request) -> tuple[str, str]:
        """A picture of the gallery is taken from now on; what it carries is shown."""
        visitor = self._visitor(request)
        with self._told():
            tile = visitor.choose(chosen.index if isinstance(chosen.index, int) else 0)
            text = text_of(tile.picture)
        return _taken(visitor), json.dumps(json.loads(text or "{}"), indent=1, ensure_ascii=False)

    def use_as_start(self, request: gr.Request) -> tuple[str, Any]:
        """The picture that is taken becomes what the next ones start from."""
        with self._told():
            picture = self._visitor(request).taken.picture
        return str(picture), gr.update(open=True)

    def show_start(self, start: str | None) -> Any:
        """A small picture of what is started from; what cannot be read is told at once."""
        if not start:
            return gr.update(value=None, visible=False)
        with self._told():
            image = self.painter.photo(uploaded(start, self.painter.folder))
        image.thumbnail((512, 512))
        return gr.update(value=image, visible=True)

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


def _taken(visitor: Visitor) -> str:
    """Which picture the buttons take that go by one."""
    if not visitor.tiles:
        return ""
    tile = visitor.taken
    which = "the chosen picture" if visitor.chosen else "the last picture"
    return f"Again, Vary and Use as start take {which}, seed {tile.job.seed}."


def status(line: str, share: float | None = None) -> str:
    bar = "" if share is None else f'<progress value="{share:.3f}"></progress>'
    return f'<div class="status">{line}{bar}</div>'
