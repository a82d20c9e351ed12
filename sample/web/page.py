"""The page: what is on it. What its buttons do is in `sample/web/actions.py`."""

import contextlib
import dataclasses
from typing import Any

import gradio as gr
from PIL import Image

from fusionjax.data.picture import ENDINGS
from fusionjax.embedded import MINI_FACE, MINI_GUIDANCE, MINI_PROMPT
from fusionjax.errors import UserError
from fusionjax.identity import Identity
from sample.job import Job
from sample.web.actions import PEOPLE, Actions, Results, status
from sample.web.asked import saved_people
from sample.web.painter import Painter
from sample.web.places import COLOURS, canvas

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


class Page:
    """The page, built once.

    Args:
        painter: does what it asks for.
    """

    def __init__(self, painter: Painter) -> None:
        self.painter = painter
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

    def _build_people(self) -> None:
        names = list(saved_people(self.painter.people))
        self.count = gr.Radio(
            [str(n) for n in range(PEOPLE + 1)], value="1", label="how many people",
            elem_id="count",
        )  # fmt: skip
        self.rows, self.people, self.encoded = [], [], []
        for number, colour in enumerate(COLOURS):
            with gr.Group(visible=number == 0) as row:
                gr.HTML(
                    f'<b><span class="dot" style="background: {colour}"></span>'
                    f"person {number + 1}</b>", padding=True,
                )  # fmt: skip
                photos = gr.File(
                    label="photos", file_count="multiple", height=110,
                    file_types=[*ENDINGS, ".safetensors"],
                    elem_id=f"photos-{number + 1}",
                )  # fmt: skip
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
                keep = gr.Button("Encode to a file", size="sm", elem_id=f"encode-{number + 1}")
                file = gr.File(
                    label="encoded: for --face, or as a photo here", interactive=False,
                    visible=False, elem_id=f"encoded-{number + 1}",
                )  # fmt: skip
            self.rows.append(row)
            self.people.append((photos, saved, strength, box, crops))
            self.encoded.append((keep, file))
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
                eraser=gr.Eraser(default_size=60), elem_id="places",
            )  # fmt: skip
        self.start_panel = gr.Accordion("start from a picture", open=False)
        with self.start_panel:
            self.start = gr.File(
                label="a picture; or choose one of yours, and Use as start",
                file_types=list(ENDINGS), height=110, elem_id="start-picture",
            )  # fmt: skip
            self.start_preview = gr.Image(
                label="what is started from", interactive=False, visible=False, height=220
            )
            self.options["strength"] = self._option("strength")
        with gr.Row():
            self.options |= {name: self._option(name) for name in _USUAL}
        with gr.Accordion("more options", open=False, elem_id="more"), gr.Row():
            self.options |= {name: self._option(name) for name in _MORE}
            self.attention = gr.Checkbox(
                False,
                label="attention maps",
                info="also draw where each photo was attended to",
                elem_id="attention",
            )

    def _option(self, name: str) -> Any:
        """A field of `Job` as a component: its default, help, limits and choices."""
        field = _FIELDS[name]
        about = field.metadata
        value: Any = field.default
        info = about["help"].replace("--image", "the picture")
        words = {"label": name.replace("_", " "), "info": info, "min_width": 130,
                 "elem_id": name.replace("_", "-")}  # fmt: skip
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
            self.paint = gr.Button("Paint", variant="primary", elem_id="paint", min_width=80)
            self.again = gr.Button("Again", elem_id="again", min_width=80)
            self.vary = gr.Button("Vary", elem_id="vary", min_width=80)
            self.cancel = gr.Button("Cancel", variant="stop", elem_id="cancel", min_width=80)
        self.status = gr.HTML(status(""), elem_id="status")
        self.glance = gr.Image(
            label="as far as it has got", interactive=False, visible=False, height=330
        )
        self.gallery = gr.Gallery(
            label="pictures", columns=2, object_fit="contain", height=520, elem_id="pictures",
            interactive=False,
        )  # fmt: skip
        with gr.Row():
            self.taken = gr.HTML("", elem_id="taken", padding=True)
            self.use = gr.Button("Use as start", elem_id="use", min_width=80, size="md")
        self.scene = gr.File(
            label="the last ones as a scene: unpack it, then fusionjax sample --scene scene.yaml",
            visible=False, elem_id="scene",
        )  # fmt: skip
        with gr.Accordion("what a picture carries (choose one above)", open=False):
            self.text = gr.Code(language="json", show_label=False, interactive=False)

    def _connect(self) -> None:
        """Says what happens when."""
        seed = self.options["seed"]
        results = Results(self.status, self.glance, self.gallery, self.scene, seed, self.taken)
        act = Actions(self.painter, tuple(self.options), results)
        quick: dict[str, Any] = {"api_name": False, "show_progress": "hidden"}
        self.count.change(act.show_rows, self.count, self.rows, queue=False, **quick)
        for photos, saved, _, _, crops in self.people:
            photos.upload(lambda: "", None, saved, queue=False, **quick)
            inputs = [photos, saved, self.options["crop"]]
            gr.on(
                [part.change for part in inputs], act.show_crops, inputs, crops,
                concurrency_limit=4, trigger_mode="always_last", api_name=False,
                show_progress="minimal",
            )  # fmt: skip
        if self.saved is not None:
            names = [saved for _, saved, *_ in self.people]
            self.saved.select(act.choose, self.count, names, queue=False, **quick)
        for name in ("height", "width"):
            sides = [self.options["height"], self.options["width"]]
            self.options[name].change(act.new_canvas, sides, self.canvas, queue=False, **quick)
        each = [part for row in self.people for part in row[:4]]
        inputs = [
            self.count, *each, self.canvas, self.start, self.attention, *self.options.values()
        ]  # fmt: skip
        # Who waits for the model, waits in the painter's line, which tells how long.
        how = {**quick, "trigger_mode": "once", "concurrency_limit": None}
        self.paint.click(act.paint, inputs, results, **how)
        self.again.click(act.paint_again, self.attention, results, **how)
        self.vary.click(act.vary, self.attention, results, **how)
        for (photos, saved, *_), (keep, file) in zip(self.people, self.encoded, strict=True):
            keep.click(
                act.encoder(file), [photos, saved, self.options["crop"]],
                [self.status, self.glance, file], **how,
            )  # fmt: skip
        self.cancel.click(act.stop, None, self.status, queue=False, **quick)
        self.gallery.select(act.choose_picture, None, [self.taken, self.text], queue=False, **quick)
        self.use.click(act.use_as_start, None, [self.start, self.start_panel], queue=False, **quick)
        self.start.change(act.show_start, self.start, self.start_preview, queue=False, **quick)
        self.blocks.unload(act.leave)
