"""People with photos, prompts, and the pictures that methods made of them: folders and names.

PEOPLE/ada/1.jpg, 2.jpg, …      the first by name is shown to the methods; the others are what
                                the person truly looks like
PROMPTS                         a prompt a line; `{person}` becomes "a person"
METHOD/ada/0001.png, …          ada by the first prompt, and so on
METHOD/ada_0001/out.png, …      the same in MultiID-Bench's layout, see `multiid`
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image

from fusionjax.embedded import ASSETS
from fusionjax.errors import UserError, shortened, told
from fusionjax.files import folders_in, has_ending, read_whole
from fusionjax.photos import read_photo

PROMPTS = ASSETS / "prompts.txt"
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
_PLACEHOLDER = "{person}"
_MOST_BYTES = 1_000_000


@runtime_checkable
class Shown(Protocol):
    """Who is in a picture: a person, or several."""

    @property
    def name(self) -> str:
        """Of the folder with their pictures."""

    @property
    def shown(self) -> tuple[Path, ...]:
        """The photo of each that is shown to the methods."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A person who is painted.

    Attributes:
        name: of the folder.
        photos: the reference first, then the other true photos.
    """

    name: str
    photos: tuple[Path, ...]

    @property
    def shown(self) -> tuple[Path, ...]:
        """The photo that is shown to the methods."""
        return self.photos[:1]


def shown_photo(subject: Subject, number: int) -> int:
    """Which of a person's other photos stands for a perfect picture by a prompt."""
    return number % (len(subject.photos) - 1)


def photos_in(folder: Path) -> tuple[Path, ...]:
    """The files of a folder that are photos by their names, in the order of these."""
    return tuple(sorted(path for path in folder.iterdir() if has_ending(path, ENDINGS)))


def read_people(folder: str | Path, most: int | None = None) -> list[Subject]:
    """Reads who is there.

    Args:
        folder: a folder for each person.
        most: how many are taken, in the order of their names; None takes all.

    Raises:
        UserError: if there are fewer than two people, or one has fewer than two photos.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"people {shortened(str(folder), 200)!r} is no folder")
    subjects = []
    for place in folders_in(folder)[:most]:
        photos = photos_in(place)
        if len(photos) < 2:
            raise UserError(
                f"{shortened(str(place), 200)} holds {len(photos)} photo{'s' * (len(photos) != 1)} "
                f"({', '.join(ENDINGS)}); two are needed: one to show, one to compare with"
            )
        subjects.append(Subject(place.name, photos))
    if len(subjects) < 2:
        raise UserError(
            f"{shortened(str(folder), 200)} holds {len(subjects)} people; at least two folders "
            "with photos are needed"
        )
    return subjects


def read_prompts(
    path: str | Path | None, most: int | None = None, who: str = "a person"
) -> list[str]:
    """Reads prompts, one a line.

    Args:
        path: the file; None is the list that comes with the package.
        most: how many are taken.
        who: what `{person}` stands for.

    Raises:
        UserError: if there are none, or one has a placeholder other than `{person}`.
    """
    path = Path(path or PROMPTS)
    lines = read_whole(path, _MOST_BYTES).decode("utf-8", "replace").splitlines()
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"{shortened(str(path), 200)} holds no prompts; write one a line")
    for number, prompt in enumerate(prompts, 1):
        for found in re.findall(r"\{[^}]*\}?", prompt):
            if found != _PLACEHOLDER:
                raise UserError(
                    f"{shortened(str(path), 200)}, prompt {number}, has {told(found)}; the only "
                    f"placeholder is {_PLACEHOLDER}"
                )
    return [prompt.replace(_PLACEHOLDER, who) for prompt in prompts[:most]]


def place_of(method: Path, subject: Shown, number: int, ending: str = ".png") -> Path:
    """Where a method's picture of a person or a group by a prompt is; prompts count from 0."""
    return method / subject.name / f"{number + 1:04d}{ending}"


def is_bench(folder: Path) -> bool:
    """Whether a folder has MultiID-Bench's layout, see `multiid`."""
    return any(folder.glob("*/meta.json"))


def check_no_bench(name: str, folder: Path) -> None:
    """Raises UserError if a method's folder has people of its own, as MultiID-Bench's have."""
    if is_bench(folder):
        raise UserError(
            f"method {name}: {shortened(str(folder), 150)} has MultiID-Bench's layout and other "
            "cases than these people's; measure it without --people, --base and --fusion"
        )


def case_of(subject: Shown, number: int) -> str:
    """The folder of a picture in MultiID-Bench's layout, see `multiid`."""
    return f"{subject.name}_{number + 1:04d}"


def find(method: Path, subject: Shown, number: int) -> Path | None:
    """A method's picture of somebody by a prompt, in whatever format; None if there is none."""
    found = [place_of(method, subject, number, ending) for ending in ENDINGS]
    found += [method / case_of(subject, number) / f"out{ending}" for ending in ENDINGS]
    return next((path for path in found if path.is_file()), None)


def extra_files(method: Path, subjects: Sequence[Shown], prompts: int) -> int:
    """How many pictures in a method's folder are not looked for."""
    wanted = {find(method, subject, number) for subject in subjects for number in range(prompts)}
    pictures = {path for path in method.rglob("*") if has_ending(path, ENDINGS)}
    return sum(1 for path in pictures - wanted if not _is_input(path))


def _is_input(path: Path) -> bool:
    """Whether a picture is what a case of MultiID-Bench gives, and no method's."""
    return path.stem.startswith(("ref_", "ori")) and path.with_name("meta.json").is_file()


def thumbnail(path: Path, side: int) -> Image.Image:
    """A picture cut to a square, small."""
    image = read_photo(path)
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 4
    return image.crop((left, top, left + short, top + short)).resize((side, side))
