"""What is to be generated, as plain values: the same keys on the command line, in a scene file, in
a row of requests, and in the text that every image carries.

Everything that can be checked without loading a model is checked here. An option is a field: of
`fusionjax.options.Description` or `Settings`, if Python users have it too, else of `Job`.
"""

import dataclasses
import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_origin

from fusionjax.data.picture import ENDINGS
from fusionjax.errors import UserError, shortened, told
from fusionjax.files import file_and_face, file_and_word, has_ending
from fusionjax.interop.lora_source import located
from fusionjax.options import (
    CROPS,
    DTYPES,
    HOW,
    LARGEST_SEED,
    LARGEST_STRENGTH,
    MODELS,
    MOST_IMAGES,
    START,
    WHO,
    Description,
    Settings,
    check_guidance,
    check_number,
    check_options,
    current_name,
    option,
    unknown_name,
)
from fusionjax.ranges import WATERMARK_BYTES, check_watermark
from fusionjax.schema import typed
from sample.links import is_link

RANDOM = "random"
"""In place of a seed's number: one is drawn."""
BATCH_PER_DEVICE = 4
"""Images generated at once on each device, unless told otherwise."""


@dataclasses.dataclass(frozen=True)
class Person:
    """One person of an image.

    Attributes:
        faces: photos, identity files (`.safetensors`), or both; several are one person, or a
            mixture. A folder is read as the photos in it.
        weights: λ of each of `faces`, multiplied with the strength; empty is 1 for each.
        fresh: or the number of a person who does not exist: the base model makes their portrait,
            from this seed, and the portrait is their photo. The same number is the same person
            in every image.
        looks: what a fresh person looks like; empty leaves it to the seed.
        strength: λ of this person, multiplied with the image's `face_strength`.
        box: where the person is: left, top, right, bottom as fractions of the image.
        mask: or a picture that is white where the person is.
    """

    faces: tuple[str, ...] = option(
        (), "photos of one person, folders of them, links to them, or identity files", group=WHO,
        flags=("--face",), path="file", metavar="FILE",
    )  # fmt: skip
    weights: tuple[float, ...] = option(
        (), "a weight for each file; files of several people are mixed", group=WHO,
        flags=("--face-weights",), limits=(0, LARGEST_STRENGTH), metavar="λ",
    )  # fmt: skip
    fresh: int | None = option(
        None, "a person who does not exist; each number is another person", group=WHO,
        flags=("--fresh-face",), limits=(0, LARGEST_SEED), metavar="NUMBER",
    )  # fmt: skip
    looks: str = option("", "what the fresh person looks like", group=WHO, metavar="TEXT")
    strength: float = 1.0
    box: tuple[float, ...] = ()
    mask: str | None = dataclasses.field(default=None, metadata={"path": "file"})

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
        check_options(self)
        name = "a person's strength"
        check_number(name, typed(self.strength, float, name), 0, LARGEST_STRENGTH)
        if self.weights and len(self.weights) != len(self.faces):
            raise UserError(f"{len(self.weights)} weights for {len(self.faces)} faces")
        if self.box and self.mask:
            raise UserError("a person has a box and a mask; give one of them")
        if self.box and len(self.box) != 4:
            raise UserError(f"box has {len(self.box)} numbers; it needs left, top, right, bottom")


ONE_PERSON = tuple(
    f.name for f in dataclasses.fields(Person) if f.metadata.get("flags") is not None
)


@dataclasses.dataclass(frozen=True)
class Job(Settings, Description):
    """Images of one description. None leaves the choice to the base model or the device."""

    people: tuple[Person, ...] = ()
    crop: str = option(
        "auto", "how photos are cut: around the face (auto) or not (none)", group=WHO,
        choices=CROPS, metavar="auto|none",
    )  # fmt: skip
    face_strength: float = option(
        1.0, "how strong the faces are: 0 is the base model, 1 as trained", group=WHO,
        limits=(0, LARGEST_STRENGTH), metavar="λ",
    )  # fmt: skip
    num_images_per_prompt: int = option(
        1, "images to generate", group=HOW, limits=(1, MOST_IMAGES), metavar="N",
        flags=("--num-images-per-prompt", "--num-images"),
    )  # fmt: skip
    watermark: str = option(
        "", f"letters to hide in the images' grey levels, at most {WATERMARK_BYTES} bytes; "
        "`fusionjax watermark` reads them", group=HOW, metavar="TEXT",
    )  # fmt: skip
    base: str | None = option(
        None, "diffusers folder, checkpoint file, or hub id (default: the one that --fusion was "
        "trained on)", group=MODELS, path="source", metavar="SOURCE",
    )  # fmt: skip
    fusion: str | None = option(
        None, "the adapter: a run's folder or an exported .safetensors (default: the embedded one)",
        group=MODELS, path="source", metavar="SOURCE",
    )  # fmt: skip
    vae: str | None = option(
        None, "another VAE for the base", group=MODELS, path="source", metavar="SOURCE"
    )
    lora: tuple[str, ...] = option(
        (), "LoRAs to merge: a file, a folder or a hub id, with a strength as in FILE:0.8",
        group=MODELS, path="source", metavar="LORA",
    )  # fmt: skip
    prediction_type: str | None = option(
        None, "what the base predicts, if it does not tell it rightly: epsilon or v_prediction",
        group=MODELS, choices=("epsilon", "v_prediction"), metavar="NAME",
    )  # fmt: skip
    textual_inversion: tuple[str, ...] = option(
        (), "textual inversions, learnt words for prompts: FILE or FILE=WORD", group=MODELS,
        path="file", metavar="FILE",
    )  # fmt: skip
    dtype: str | None = option(
        None, f"type of weights and computation, one of {', '.join(DTYPES)} (default: a 16-bit "
        "type on accelerators, float32 on a CPU)", group=MODELS, choices=DTYPES, metavar="NAME",
    )  # fmt: skip
    image: str | None = option(
        None, "the image to start from", group=START, path="file", metavar="FILE"
    )
    mask_image: str | None = option(
        None, "paint --image anew only where this is white", group=START, path="file",
        flags=("--mask-image", "--paint-where"), metavar="FILE", needs=("image",),
    )  # fmt: skip
    controlnet: str | None = option(
        None, "diffusers folder, file, or hub id", group=START, path="source", metavar="SOURCE"
    )
    control_image: str | None = option(
        None, "the ControlNet's input, such as a depth map", group=START, path="file",
        metavar="FILE", needs=("controlnet",),
    )  # fmt: skip

    def __post_init__(self) -> None:
        Description.__post_init__(self)
        Settings.__post_init__(self)
        check_guidance(self, self)
        check_watermark(self.watermark)
        # The last image's seed must be one too.
        check_number("seed", self.seed, 0, LARGEST_SEED - (self.num_images_per_prompt - 1))
        given = {f.name for f in dataclasses.fields(self) if _is_given(getattr(self, f.name), f)}
        for field in dataclasses.fields(self):
            needed = field.metadata.get("needs")
            if needed and field.name in given and not given.intersection(needed):
                raise UserError(
                    f"{field.name} is given without {' or '.join(needed)}, and would do nothing"
                )
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
                for a picture of this one person; `seed` may be `random`.
            folder: what relative paths are relative to; None leaves them.
            within: a job whose values hold where `values` says nothing.

        Returns:
            The job; every file named in it exists.

        Raises:
            UserError: for an unknown key, a value of another type, or a missing file.
        """
        values = _by_current_name(values)
        if values.get("seed") == RANDOM:
            values["seed"] = secrets.randbelow(LARGEST_SEED - MOST_IMAGES)
        person = {name: values.pop(name) for name in ONE_PERSON if name in values}
        if person:
            if "people" in values:
                raise UserError(f"{next(iter(person))} and people are both given; use people")
            values["people"] = [person]
        read = _read(cls, values, folder)
        if "people" in values:
            people = values["people"]
            if not isinstance(people, list | tuple):
                raise UserError(f"people is {told(people)}; it must be a list")
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


def _is_given(value: Any, field: dataclasses.Field[Any]) -> bool:
    return any(value) if isinstance(value, tuple) else value != field.default


def even_batch(pictures: int, most: int) -> int:
    """The size of as few batches as `most` allows, all nearly full: five pictures are 3 + 2."""
    return -(-pictures // -(-pictures // most))


def _person(values: Any, folder: Path | None) -> Person:
    if not isinstance(values, Mapping):
        raise UserError(f"a person is {told(values)}; it must have keys such as faces, box, mask")
    values = dict(values)
    if "identity" in values:  # one file is the common case
        if "faces" in values:
            raise UserError("a person has faces and an identity; give all files as faces")
        values["faces"] = [values.pop("identity")]
    return Person(**_read(Person, values, folder))


def _read(cls: Any, values: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    read = {}
    find: Callable[[str, Path | None], str]
    for name, value in values.items():
        if name not in fields:
            raise UserError(unknown_name(str(name), [*fields, *ONE_PERSON]))
        if name == "people":
            continue
        read[name] = _typed(name, value, fields[name].type)
        kind = fields[name].metadata.get("path")
        if name == "faces":
            read[name] = tuple(f for path in read[name] for f in _existing_photos(path, folder))
        elif kind == "file":
            find = _existing_inversion if name == "textual_inversion" else _existing
            read[name] = _each(read[name], lambda path, find=find: find(path, folder))
        elif kind == "source":  # may also be the name of something on a hub
            locate = _lora_if_existing if name == "lora" else _if_existing
            read[name] = _each(read[name], lambda path, locate=locate: locate(path, folder))
    return read


def _by_current_name(values: Mapping[str, Any]) -> dict[str, Any]:
    read: dict[str, Any] = {}
    for name, value in values.items():
        if current_name(name) in read:
            raise UserError(f"{current_name(name)} is given twice, also as {name}")
        read[current_name(name)] = value
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


def _existing_photos(path: str, folder: Path | None) -> list[str]:
    """A photo; or those in a folder, in the order of their names."""
    if is_link(path):
        raise UserError(
            f"{shortened(path, 160)} is a link, which a file may not have fetched; give it on the "
            "command line (--face), or save the photo"
        )
    if (place := _located(path, folder)).is_dir():
        found = sorted(p for p in place.iterdir() if has_ending(p, ENDINGS) and p.is_file())
        if not found:
            raise UserError(f"{path} is a folder without photos ({', '.join(ENDINGS)})")
        return [str(photo.absolute()) for photo in found]
    return [_existing_photo(path, folder)]


def _existing_photo(path: str, folder: Path | None) -> str:
    if _located(path, folder).is_file():
        return _existing(path, folder)
    file, _ = file_and_face(path)
    return _existing(file, folder) + path[len(file) :]


def _existing_inversion(path: str, folder: Path | None) -> str:
    if _located(path, folder).is_file():
        return _existing(path, folder)
    file, word = file_and_word(path)
    found = _existing(file, folder)
    return found if word is None else f"{found}={word}"


def _located(path: str, folder: Path | None) -> Path:
    """The path in full; what the system cannot even look up is told as a missing file is."""
    try:
        found = Path(path).expanduser()
        found = found if folder is None else folder / found
        found.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long, nobody's home, a zero byte
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{told(path)} is no file's name ({reason})") from None
    return found


def _if_existing(source: str, folder: Path | None) -> str:
    found = _located(source, folder)
    return str(found.absolute()) if found.exists() else source


def _lora_if_existing(source: str, folder: Path | None) -> str:
    return located(source, folder or Path())


def _typed(name: str, value: Any, kind: Any) -> Any:
    """`value` as a field's type; a single one stands for a list of one."""
    if get_origin(kind) is tuple and not isinstance(value, list | tuple):
        value = [value]
    return typed(value, kind, name)


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
