"""What is to be painted, as plain values: the same keys on the command line, in a scene file, in a
row of requests, and in the text that every picture carries.

Everything that can be checked without loading a model is checked here.
"""

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from fusionjax.errors import UserError
from fusionjax.options import CROPS, DTYPES, SCHEDULERS, not_one_of

_FILE = {"kind": "file"}
_ONE_PERSON = ("faces", "weights", "fresh", "looks")
_LONGEST_SIDE = 8192
_LARGEST_SEED = 2**32 - 1
BATCH_PER_DEVICE = 4
"""Pictures painted at once on each device, unless told otherwise."""


@dataclasses.dataclass(frozen=True)
class Person:
    """One person of a picture.

    Attributes:
        faces: photos, identity files (`.safetensors`), or both; several are one person, or a
            mixture.
        weights: λ of each of `faces`, multiplied with the strength; empty is 1 for each.
        fresh: or the number of a person who does not exist: the base model paints their portrait,
            from this seed, and the portrait is their photo. The same number is the same person
            in every picture.
        looks: what a fresh person looks like; empty leaves it to the seed.
        strength: λ of this person, multiplied with the picture's `face_strength`.
        box: where the person is: left, top, right, bottom as fractions of the picture.
        mask: or a picture that is white where the person is.
    """

    faces: tuple[str, ...] = dataclasses.field(default=(), metadata=_FILE)
    weights: tuple[float, ...] = ()
    fresh: int | None = None
    looks: str = ""
    strength: float = 1.0
    box: tuple[float, ...] = ()
    mask: str | None = dataclasses.field(default=None, metadata=_FILE)

    def __post_init__(self) -> None:
        if self.fresh is None:
            if self.looks:
                raise UserError("looks are given without fresh; they describe a fresh person")
            if not self.faces:
                raise UserError(
                    "a person has no faces; name at least one photo or identity file, or give a "
                    "number to fresh for somebody new"
                )
        elif self.faces:
            raise UserError("a person has faces and is fresh; give one of them")
        else:
            _check_number("fresh", self.fresh, 0, _LARGEST_SEED)
        if self.weights and len(self.weights) != len(self.faces):
            raise UserError(f"{len(self.weights)} weights for {len(self.faces)} faces")
        for value in (*self.weights, self.strength):
            _check_number("a face's weight or strength", value, 0, math.inf)
        if self.box and self.mask:
            raise UserError("a person has a box and a mask; give one of them")
        if self.box and len(self.box) != 4:
            raise UserError(f"box has {len(self.box)} numbers; it needs left, top, right, bottom")


@dataclasses.dataclass(frozen=True)
class Job:
    """Pictures of one description. None leaves the choice to the base model or the device.

    Attributes:
        base: the base model: a diffusers folder, a checkpoint file, or a hub id.
        fusion: the adapter: a run's folder or an exported `.safetensors`.
        vae: another VAE for the base.
        lora: LoRA files to merge into the base, each as FILE or FILE:STRENGTH.
        controlnet: a ControlNet: a diffusers folder, a file, or a hub id.
        dtype: type of weights and computation.
        prompt: what is seen.
        negative_prompt: what is not.
        people: who is in the picture.
        crop: how photos are cut.
        num_images: pictures to paint.
        seed: of the first picture; the next have the next numbers.
        steps: noise levels to visit.
        scheduler: the sampler.
        guidance_scale: of the classifier-free guidance.
        face_guidance_scale: guides by the faces separately.
        face_strength: λ of all faces.
        face_steps: from which to which share of the steps the faces act.
        layer_strength: factors on λ by layer.
        faces_in_negative: show the faces to the guidance's negative branch too.
        height: in pixels.
        width: in pixels.
        image: a picture to start from.
        image_strength: how far to leave it.
        paint_where: a mask picture: white is painted anew.
        control_image: the ControlNet's input.
        control_strength: a factor on its answer.
    """

    base: str | None = dataclasses.field(default=None, metadata={"kind": "source"})
    fusion: str | None = dataclasses.field(default=None, metadata={"kind": "source"})
    vae: str | None = dataclasses.field(default=None, metadata={"kind": "source"})
    lora: tuple[str, ...] = dataclasses.field(default=(), metadata={"kind": "source"})
    controlnet: str | None = dataclasses.field(default=None, metadata={"kind": "source"})
    dtype: str | None = dataclasses.field(default=None, metadata={"choices": DTYPES})
    prompt: str | None = None
    negative_prompt: str = ""
    people: tuple[Person, ...] = ()
    crop: str = dataclasses.field(default="auto", metadata={"choices": CROPS})
    num_images: int = 1
    seed: int = 0
    steps: int = 30
    scheduler: str = dataclasses.field(default="dpmpp_2m", metadata={"choices": SCHEDULERS})
    guidance_scale: float | None = None
    face_guidance_scale: float | None = None
    face_strength: float = 1.0
    face_steps: tuple[float, ...] = (0.0, 1.0)
    layer_strength: Mapping[str, float] = dataclasses.field(default_factory=dict)
    faces_in_negative: bool = False
    height: int | None = None
    width: int | None = None
    image: str | None = dataclasses.field(default=None, metadata=_FILE)
    image_strength: float = 0.8
    paint_where: str | None = dataclasses.field(default=None, metadata=_FILE)
    control_image: str | None = dataclasses.field(default=None, metadata=_FILE)
    control_strength: float = 1.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            choices, value = field.metadata.get("choices"), getattr(self, field.name)
            if choices and value is not None and value not in choices:
                raise UserError(not_one_of(field.name, value, choices))
        _check_number("num_images", self.num_images, 1, 10_000)
        _check_number("steps", self.steps, 1, 999)
        # The last picture's seed must be one too.
        _check_number("seed", self.seed, 0, _LARGEST_SEED - (self.num_images - 1))
        _check_number("face_strength", self.face_strength, 0, math.inf)
        _check_number("control_strength", self.control_strength, 0, math.inf)
        for name in ("guidance_scale", "face_guidance_scale"):
            if getattr(self, name) is not None:
                _check_number(name, getattr(self, name), 1, math.inf)
        for name in ("height", "width"):
            value = getattr(self, name)
            if value is not None:
                _check_number(name, value, 8, _LONGEST_SIDE)
                if value % 8:
                    raise UserError(
                        f"{name} is {value}; it must be a multiple of 8, for example "
                        f"{max(round(value / 64), 1) * 64}"
                    )
        if len(self.face_steps) != 2 or not 0 <= self.face_steps[0] <= self.face_steps[1] <= 1:
            raise UserError(
                f"face_steps is {' '.join(map(str, self.face_steps))}; it must be two numbers "
                "with 0 ≤ from ≤ until ≤ 1"
            )
        if not 0 < self.image_strength <= 1:
            raise UserError(f"image_strength is {self.image_strength}; it must be in (0, 1]")
        if self.paint_where and not self.image:
            raise UserError("paint_where is given without image; name the picture to paint in")
        if self.faces_in_negative and self.face_guidance_scale is not None:
            raise UserError(
                "face_guidance_scale guides away from a picture without the faces, and "
                "faces_in_negative shows them there too; give one of them"
            )
        if self.control_image and not self.controlnet:
            raise UserError("control_image is given without controlnet; name the ControlNet")
        for layer, factor in self.layer_strength.items():
            _check_number(f"layer_strength of {layer}", factor, 0, math.inf)
        placed = [bool(person.box or person.mask) for person in self.people]
        if any(placed) and not all(placed):
            raise UserError(
                f"person {placed.index(False) + 1} has neither box nor mask, and another has; "
                "give all people a place, or none"
            )

    @classmethod
    def from_mapping(
        cls, values: Mapping[str, Any], *, folder: Path | None = None, within: "Job | None" = None
    ) -> "Job":
        """Reads a job from a scene file, a row of requests, or a picture's text.

        Args:
            values: by field name; a person's `faces` and `weights`, or `fresh` and `looks`, stand
                for a picture of this one person.
            folder: what relative paths are relative to; None leaves them.
            within: a job whose values hold where `values` says nothing.

        Returns:
            The job; every file named in it exists.

        Raises:
            UserError: for an unknown key, a value of another type, or a missing file.
        """
        values = dict(values)
        person = {name: values.pop(name) for name in _ONE_PERSON if name in values}
        if person:
            if "people" in values:
                raise UserError(f"{next(iter(person))} and people are both given; use people")
            values["people"] = [person]
        read = _read(cls, values, folder)
        if "people" in values:
            people = values["people"]
            if not isinstance(people, list | tuple):
                raise UserError(f"people is {people!r}; it must be a list")
            read["people"] = tuple(_person(person, folder) for person in people)
        return cls(**read) if within is None else dataclasses.replace(within, **read)

    def to_json(self, *, full: bool = False) -> dict[str, Any]:
        """The job as JSON values.

        Args:
            full: also what has its default value, which another version may have changed.

        Returns:
            What `from_mapping` reads.
        """
        return _to_json(self, full)


def even_batch(pictures: int, most: int) -> int:
    """The size of as few batches as `most` allows, all nearly full: five pictures are 3 + 2."""
    return -(-pictures // -(-pictures // most))


def _person(values: Any, folder: Path | None) -> Person:
    if not isinstance(values, Mapping):
        raise UserError(f"a person is {values!r}; it must have keys such as faces, box, mask")
    values = dict(values)
    if "identity" in values:  # one file is the common case
        if "faces" in values:
            raise UserError("a person has faces and an identity; give all files as faces")
        values["faces"] = [values.pop("identity")]
    return Person(**_read(Person, values, folder))


def _read(cls: Any, values: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    read = {}
    for name, value in values.items():
        if name not in fields:
            close = difflib.get_close_matches(str(name), [*fields, *_ONE_PERSON], 1)
            raise UserError(
                f"{name!r} is not known; "
                + (f"did you mean {close[0]!r}?" if close else f"known are {', '.join(fields)}")
            )
        if name == "people":
            continue
        read[name] = _typed(name, value, fields[name].type)
        kind = fields[name].metadata.get("kind")
        if kind == "file":
            read[name] = _each(read[name], lambda path: _existing(path, folder))
        elif kind == "source":  # may also be the name of something on a hub
            read[name] = _each(read[name], lambda path: _if_existing(path, folder))
    return read


def _each(value: Any, change: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(change(path) for path in value)
    return value if value is None else change(value)


def _existing(path: str, folder: Path | None) -> str:
    found = _located(path, folder)
    if not found.is_file():
        raise UserError(f"{path} does not exist" if not found.is_dir() else f"{path} is a folder")
    return str(found.absolute())


def _located(path: str, folder: Path | None) -> Path:
    """The path in full; what the system cannot even look up is told as a missing file is."""
    try:
        found = Path(path).expanduser()
        found = found if folder is None else folder / found
        found.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long, nobody's home, a zero byte
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{_shortened(path, 80)!r} is no file's name ({reason})") from None
    return found


def _if_existing(source: str, folder: Path | None) -> str:
    name, _, strength = source.partition(":")
    found = _located(name, folder)
    if not found.exists():
        return source
    return str(found.absolute()) + (f":{strength}" if strength else "")


def _typed(name: str, value: Any, kind: Any) -> Any:
    """`value` as a field's type, without guessing: a text is no number and 1.5 is no integer."""
    if get_origin(kind) is not None and type(None) in get_args(kind):
        if value is None:
            return None
        kind = next(arg for arg in get_args(kind) if arg is not type(None))
    origin = get_origin(kind) or kind
    if origin is tuple:
        inner = get_args(kind)[0]
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_typed(name, item, inner) for item in items)
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise UserError(f"{name} is {value!r}; it must map layers to numbers")
        return {str(key): _typed(name, item, float) for key, item in value.items()}
    words = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    fits = (
        isinstance(value, bool)
        if kind is bool
        else isinstance(value, int | float) and not isinstance(value, bool)
        if kind is float
        else isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    )
    if not fits:
        raise UserError(f"{name} is {value!r}; it must be {words[kind]}")
    return float(value) if kind is float else value


def _check_number(name: str, value: float, low: float, high: float) -> None:
    # Python compares whole numbers of any size, but does not make them floating-point ones.
    if not low <= value <= high or value == math.inf:
        limits = f"≥ {low:g}" if math.isinf(high) else f"in {low:.10g}..{high:.10g}"
        told = f"{value:g}" if isinstance(value, float) else _shortened(str(value))
        raise UserError(f"{name} is {told}; it must be {limits}")


def _shortened(text: str, most: int = 20) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def _to_json(value: Any, full: bool) -> Any:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        own = getattr(value, field.name)
        default = (
            field.default_factory()
            if field.default_factory is not dataclasses.MISSING
            else field.default
        )
        if own == default and not full:
            continue
        if field.name == "people":
            own = [_to_json(person, full) for person in own]
        values[field.name] = json.loads(json.dumps(own))
    return values
