"""The page itself: what is on it, and what its buttons do. All of it goes through `Painter`."""

import contextlib
import dataclasses
import html
import json
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import gradio as gr
from PIL import Image

from fusionjax.data.picture import ENDINGS
from fusionjax.embedded import MINI_FACE, MINI_GUIDANCE, MINI_PROMPT
from fusionjax.errors import UserError, told
from fusionjax.identity import Identity
from fusionjax.options import LARGEST_SEED, MOST_IMAGES
from sample.images import text_of
from sample.job import RANDOM, Job
from sample.web.asked import saved_people, uploaded
from sample.web.painter import News, Painter, StoppedError
from sample.web.places import COLOURS, canvas, drawn_masks, read_box

PEOPLE = len(COLOURS)
_FIELDS = {field.name: field for field in dataclasses.fields(Job)}
# The options on the page, in its order; a blank one is left to the base model.
_FIRST = ("prompt", "negative_prompt")
_USUAL = ("seed", "num_images_per_prompt", "num_inference_steps", "guidance_scale", "scheduler",
          "height", "width", "face_strength")  # fmt: skip
_MORE = ("crop", "guidance_rescale", "face_guidance_scale", "faces_in_negative", "clip_skip",
         "prompt_weights", "long_prompts", "upscale", "upscale_strength")  # fmt: skip
_CSS = """
.dot {display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin-right: .4em}
.status {font-size: 1rem; min-height: 3em}
.status progress {width: 100%; height: .6em; accent-color: #2e86de}
footer {opacity: .6}
"""
_FONTS = ["system-ui", "sans-serif"]  # none is fetched from elsewhere


@dataclasses.dataclass
class _Visitor:
    """What is kept of a visitor while the page is open."""

    stop: threading.Event | None = None
    job: Job | None = None
    pictures: list[Path] = dataclasses.field(default_factory=list)


class Page:
    """The page, built once.

    Args:
        painter: does what it asks for.
    """

    def __init__(self, painter: Painter) -> None:
        self.painter = painter
        self._visitors: dict[str, _Visitor] = {}
        theme = gr.themes.Default(font=_FONTS, font_mono=["monospace"], primary_hue="blue")
        with gr.Blocks(
            title="fusionjax", theme=theme, css=_CSS, analytics_enabled=False,
            delete_cache=(3600, 86400), fill_width=True,
        ) as self.blocks:  # fmt: skip
            gr.Markdown("### fusionjax: pictures of people")
            with gr.Row():
                with gr.Column(scale=5, min_width=360):
                    self._build_people()
                with gr.Column(scale=5, min_width=360):
                    self._build_description()
                with gr.Column(scale=6, min_width=400):
                    self._build_results()
            self._connect()

    # What is on it.

    def _build_people(self) -> None:
        names = list(saved_people(self.painter.people))
        self.count = gr.Radio(
            [str(n) for n in range(PEOPLE + 1)], value="1", label="how many people"
        )
        self.rows, self.people = [], []
        for number, colour in enumerate(COLOURS):
            with gr.Group(visible=number == 0) as row:
                gr.HTML(
                    f'<b><span class="dot" style="background: {colour}"></span>'
                    f"person {number + 1}</b>", padding=True,
                )  # fmt: skip
                photos = gr.File(
                    label="photos", file_count="multiple", file_types=list(ENDINGS), height=110
                )
                mine = MINI_FACE.stem if number == 0 and MINI_FACE.stem in names else ""
                with gr.Row():
                    saved = gr.Dropdown(["", *names], value=mine, label="or a saved person")
                    strength = gr.Slider(0, 2, value=1.0, step=0.05, label="strength")
                box = gr.Textbox(
                    label="place: left top right bottom", placeholder="0 0 0.5 1; or draw it"
                )
                crops = gr.Image(
                    label="what is cut out", interactive=False, visible=False, height=280
                )
            self.rows.append(row)
            self.people.append((photos, saved, strength, box, crops))
        if names:
            with gr.Accordion("saved people", open=False):
                self.saved: gr.Gallery | None = gr.Gallery(
                    self._faces(), columns=4, height=220, allow_preview=False, show_label=False
                )
        else:
            self.saved = None

    def _faces(self) -> list[tuple[Image.Image, str]]:
        """A small picture of each saved person; of those whose file can be read."""
        faces = []
        for name, path in saved_people(self.painter.people).items():
            with contextlib.suppress(UserError, OSError):
                if path.suffix == ".safetensors":
                    face = Image.fromarray(Identity.load(path).thumbnails[0])
                else:
                    face = Image.open(path).convert("RGB")
                    face.thumbnail((256, 256))
                faces.append((face, name))
        return faces

    def _build_description(self) -> None:
        self.options = {name: self._option(name) for name in _FIRST}
        with gr.Accordion("where everybody is: draw each place in the person's colour"):
            side = self.painter.side
            self.canvas = gr.ImageEditor(
                canvas(side, side), type="pil", image_mode="RGBA", sources=(), transforms=(),
                layers=False, show_label=False, fixed_canvas=True, canvas_size=(640, 640),
                show_download_button=False, show_fullscreen_button=False, show_share_button=False,
                brush=gr.Brush(
                    colors=list(COLOURS), default_color=COLOURS[0], color_mode="fixed",
                    default_size=60,
                ),
                eraser=gr.Eraser(default_size=60),
            )  # fmt: skip
        with gr.Row():
            self.options |= {name: self._option(name) for name in _USUAL}
        with gr.Accordion("more options", open=False), gr.Row():
            self.options |= {name: self._option(name) for name in _MORE}
            self.attention = gr.Checkbox(
                False, label="attention maps", info="also draw where each photo was attended to"
            )

    def _option(self, name: str) -> Any:
        """A field of `Job` as a component: its default, help, limits and choices."""
        field = _FIELDS[name]
        about = field.metadata
        value: Any = field.default
        words = {"label": name.replace("_", " "), "info": about["help"], "min_width": 130}
        if name == "prompt":
            value = MINI_PROMPT if self.painter.is_embedded else ""
        if name == "guidance_scale" and self.painter.is_embedded:
            value = MINI_GUIDANCE
        if name in ("height", "width"):
            value = self.painter.side
        if about["choices"]:
            words["info"] = words["info"].partition(", one of")[0]
            return gr.Dropdown(list(about["choices"]), value=value, **words)
        if field.type is bool:
            return gr.Checkbox(value, **words)
        if name != "seed" and field.type in (int, float):
            return gr.Number(value, precision=0 if field.type is int else None, **words)
        lines = 3 if name == "prompt" else 1
        return gr.Textbox("" if value is None else f"{value}", lines=lines, **words)

    def _build_results(self) -> None:
        with gr.Row():
            self.start = gr.Button("Paint", variant="primary", elem_id="paint", min_width=80)
            self.again = gr.Button("Again", elem_id="again", min_width=80)
            self.cancel = gr.Button("Cancel", variant="stop", elem_id="cancel", min_width=80)
        self.status = gr.HTML(_status(""), elem_id="status")
        self.glance = gr.Image(
            label="as far as it has got", interactive=False, visible=False, height=330
        )
        self.gallery = gr.Gallery(
            label="pictures", columns=2, object_fit="contain", height=520, elem_id="pictures"
        )
        self.scene = gr.File(
            label="the last ones as a scene: unpack it, then fusionjax sample --scene scene.yaml",
            visible=False,
        )
        with gr.Accordion("what a picture carries (choose one above)", open=False):
            self.text = gr.Code(language="json", show_label=False, interactive=False)

    # What its buttons do.

    def _connect(self) -> None:
        quick: dict[str, Any] = {"api_name": False, "show_progress": "hidden"}
        of_model: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
        self.count.change(self._show_rows, self.count, self.rows, queue=False, **quick)
        for photos, saved, _, _, crops in self.people:
            photos.upload(lambda: "", None, saved, queue=False, **quick)
            inputs = [photos, saved, self.options["crop"]]
            gr.on(
                [part.change for part in inputs], self._show_crops, inputs, crops,
                concurrency_limit=4, trigger_mode="always_last", api_name=False,
                show_progress="minimal",
            )  # fmt: skip
        if self.saved is not None:
            names = [saved for _, saved, *_ in self.people]
            self.saved.select(self._choose, self.count, names, queue=False, **quick)
        for name in ("height", "width"):
            sides = [self.options["height"], self.options["width"]]
            self.options[name].change(self._new_canvas, sides, self.canvas, queue=False, **quick)
        each = [part for row in self.people for part in row[:4]]
        inputs = [self.count, *each, self.canvas, self.attention, *self.options.values()]
        outputs = [self.status, self.glance, self.gallery, self.scene, self.options["seed"]]
        how = {"api_name": False, "show_progress": "minimal", "trigger_mode": "once", **of_model}
        self.start.click(self._paint, inputs, outputs, show_progress_on=self.status, **how)
        self.again.click(self._paint_again, self.attention, outputs,
                         show_progress_on=self.status, **how)  # fmt: skip
        self.cancel.click(self._stop, None, self.status, queue=False, **quick)
        self.gallery.select(self._show_text, None, self.text, queue=False, **quick)
        self.blocks.unload(self._leave)

    def _show_rows(self, count: str) -> list[Any]:
        return [gr.update(visible=number < int(count)) for number in range(PEOPLE)]

    def _show_crops(self, photos: list[str] | None, saved: str, crop: str) -> Any:
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

    def _choose(self, count: str, chosen: gr.SelectData) -> list[Any]:
        """A saved person who is clicked on is the last of those shown."""
        name = chosen.value.get("caption", "") if isinstance(chosen.value, dict) else ""
        last = max(int(count), 1) - 1
        return [gr.update(value=name) if n == last else gr.update() for n in range(PEOPLE)]

    def _new_canvas(self, *sides: str) -> Any:
        """Paper in the picture's shape, and nothing drawn on it; what is no size is told later."""
        try:
            read = [_read("height", side) or self.painter.side for side in sides]
        except UserError:
            return gr.update()
        if min(read) < 8 or max(read) > 8 * min(read):
            return gr.update()
        paper = canvas(read[1], read[0])
        return gr.ImageEditor(value=paper, canvas_size=paper.size)

    def _paint(self, request: gr.Request, count: str, *values: Any) -> Iterator[dict[Any, Any]]:
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

    def _paint_again(self, attention: bool, request: gr.Request) -> Iterator[dict[Any, Any]]:
        visitor = self._visitor(request)
        if visitor.job is None:
            raise gr.Error("nothing has been painted yet", print_exception=False)
        seed = secrets.randbelow(LARGEST_SEED - MOST_IMAGES)
        yield from self._painting(dataclasses.replace(visitor.job, seed=seed), attention, visitor)

    def _painting(self, job: Job, attention: bool, visitor: _Visitor) -> Iterator[dict[Any, Any]]:
        visitor.stop = stop = threading.Event()
        line, share = "it begins", 0.0
        yield {self.status: _status(line, share), self.options["seed"]: str(job.seed)}
        try:
            with self._told():
                for news in self.painter.paint(job, attention=attention, stop=stop):
                    line, share = news.line or line, news.share or share
                    if news.warning:
                        gr.Warning(html.escape(self.painter.bare(news.warning)))
                    yield self._shown(news, line, share, visitor)
        except StoppedError:
            yield {self.status: _status("stopped"), self.glance: gr.update(visible=False)}
        except gr.Error as error:
            yield {
                self.status: _status(f"error: {error.message}"),
                self.glance: gr.update(visible=False),
            }
            raise

    def _shown(self, news: News, line: str, share: float, visitor: _Visitor) -> dict[Any, Any]:
        if news.done is None:
            shown: dict[Any, Any] = {
                self.status: _status(html.escape(self.painter.bare(line)), share)
            }
            if news.glance is not None:
                shown[self.glance] = gr.update(value=news.glance, visible=True)
            return shown
        visitor.job = news.done.job
        visitor.pictures = [*news.done.pictures, *news.done.maps, *visitor.pictures][:40]
        count = len(news.done.pictures)
        return {
            self.status: _status(f"{count} picture{'s' * (count > 1)}, seed {news.done.job.seed}"),
            self.glance: gr.update(value=None, visible=False),
            self.gallery: gr.update(value=[str(p) for p in visitor.pictures if p.is_file()]),
            self.scene: gr.update(value=str(news.done.scene), visible=True),
        }

    def _stop(self, request: gr.Request) -> str:
        visitor = self._visitor(request)
        if visitor.stop is None or visitor.stop.is_set():
            return _status("nothing is being painted")
        visitor.stop.set()
        return _status("stopping after this step …")

    def _show_text(self, chosen: gr.SelectData, request: gr.Request) -> str:
        pictures = [p for p in self._visitor(request).pictures if p.is_file()]
        if not isinstance(chosen.index, int) or chosen.index >= len(pictures):
            return ""
        with self._told():
            text = text_of(pictures[chosen.index])
        return json.dumps(json.loads(text), indent=1, ensure_ascii=False) if text else ""

    def _visitor(self, request: gr.Request) -> _Visitor:
        return self._visitors.setdefault(request.session_hash or "", _Visitor())

    def _leave(self, request: gr.Request) -> None:
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


def _status(line: str, share: float | None = None) -> str:
    bar = "" if share is None else f'<progress value="{share:.3f}"></progress>'
    return f'<div class="status">{line}{bar}</div>'
