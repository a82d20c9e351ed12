"""The paper's sheets: what each shows, as jobs in rows and columns.

    references   figure 3: one, two and three photos of a person; from one person to another
    people       figure 4: three people, each in a third of the picture, and with a depth
    styles       figure 6: expressions and styles in rows, people in columns

All pictures of a sheet begin with the same noise, so that a row differs by nothing but who is seen.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from fusionjax.embedded import ASSETS
from fusionjax.errors import UserError, shortened
from fusionjax.evaluation.people import ENDINGS, Subject, photos_in, read_prompts
from fusionjax.files import folders_in
from fusionjax.generation.request import box_mask
from fusionjax.photos import read_photo
from fusionjax.sheet import labelled_sheet, stacked
from sample.job import Job, Person, even_batch
from sample.studio import Studio

EXAMPLES = ASSETS / "people"
"""Four people of the mini world, three photos of each."""

# What is painted: a picture; a person's first photo as it is cut out; a picture file; a drawing.
Cell = Job | Person | Path | Image.Image


class Section(NamedTuple):
    """A part of a sheet with columns of its own; a row is its words and its cells."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


class Figure(NamedTuple):
    """A sheet.

    Attributes:
        sections: people, prompts and a job with everything else, to the parts of the sheet.
        people: how many it needs.
        photos: how many it needs of a person.
        mini: prompts for the mini world.
        others: prompts for any other base.
    """

    sections: Callable[[Sequence[Subject], Sequence[str], Job], list[Section]]
    people: int
    photos: int
    mini: Sequence[str]
    others: Sequence[str]


_MORPH = (1.0, 0.75, 0.5, 0.25, 0.0)
_THIRDS = ((0.0, 0.0, 1 / 3, 1.0), (1 / 3, 0.0, 2 / 3, 1.0), (2 / 3, 0.0, 1.0, 1.0))
_COLORS = ("#E0393E", "#2FA155", "#2F6FD6")


def _references(people: Sequence[Subject], prompts: Sequence[str], job: Job) -> list[Section]:
    """One to three photos of each of the first two people; then from the first to the second."""
    few = people[:2]
    rows: list[tuple[str, Sequence[Cell]]] = []
    for subject in few:
        photos = [str(path) for path in subject.photos[:3]]
        shown = [Person(faces=(photo,)) for photo in photos]
        for prompt in prompts:
            made = [_cell(job, prompt, Person(faces=tuple(photos[:n]))) for n in (1, 2, 3)]
            rows.append((f"{subject.name}: {prompt}", [*shown, *made]))
    columns = ["first photo", "second", "third", "from 1 photo", "from 2 photos", "from 3 photos"]
    sections = [Section(columns, rows)]
    if len(few) == 2:
        faces = tuple(str(path) for subject in few for path in subject.photos[:2])
        ends = [Person(faces=(str(subject.photos[0]),)) for subject in few]
        names = [f"{100 * share:.0f} : {100 - 100 * share:.0f}" for share in _MORPH]
        rows = []
        for prompt in prompts:
            mixed = [Person(faces=faces, weights=(w, w, 1 - w, 1 - w)) for w in _MORPH]
            made = [_cell(job, prompt, person) for person in mixed]
            rows.append((f"two photos of each: {prompt}", [ends[0], *made, ends[1]]))
        sections.append(Section([few[0].name, *names, few[1].name], rows))
    return sections


def _people(people: Sequence[Subject], prompts: Sequence[str], job: Job) -> list[Section]:
    """The first three people; then the last three, from right to left."""
    rows: list[tuple[str, Sequence[Cell]]] = []
    control: list[Path] = [] if job.control_image is None else [Path(job.control_image)]
    for prompt in prompts:
        for trio in (people[:3], people[:-4:-1]):
            faces = [Person(faces=(str(subject.photos[0]),)) for subject in trio]
            placed = [
                dataclasses.replace(face, box=box) for face, box in zip(faces, _THIRDS, strict=True)
            ]
            free = dataclasses.replace(job, controlnet_conditioning_scale=0.0) if control else job
            cells: list[Cell] = [
                _cell(free, prompt, *faces),
                _drawn_masks(job),
                _cell(free, prompt, *placed),
            ]
            if control:
                cells += [*control, _cell(job, prompt, *placed)]
            names = ", ".join(subject.name for subject in trio)
            rows.append((f"{names}: {prompt}", [*faces, *cells]))
    columns = ["left", "middle", "right", "without masks", "masks", "with masks"]
    return [Section([*columns, *(["depth", "masks and depth"] if control else [])], rows)]


def _styles(people: Sequence[Subject], prompts: Sequence[str], job: Job) -> list[Section]:
    """A column for each of the first eight people."""
    shown = [Person(faces=(str(subject.photos[0]),)) for subject in people[:8]]
    rows: list[tuple[str, Sequence[Cell]]] = [("photo", shown)]
    rows += [(prompt, [_cell(job, prompt, person) for person in shown]) for prompt in prompts]
    return [Section([subject.name for subject in people[:8]], rows)]


def _cell(job: Job, prompt: str, *people: Person) -> Job:
    return dataclasses.replace(job, prompt=prompt, people=people)


def _drawn_masks(job: Job) -> Image.Image:
    """Where each of three people is, in the picture's shape."""
    height, width = job.height or job.width or 128, job.width or job.height or 128
    drawing = Image.new("RGB", (width, height))
    for box, color in zip(_THIRDS, _COLORS, strict=True):
        mask = Image.fromarray((255 * box_mask(box, height, width)).astype("uint8"))
        drawing.paste(color, (0, 0), mask)
    return drawing


FIGURES: Mapping[str, Figure] = {
    "references": Figure(
        _references, 1, 3,
        mini=(
            "a person smiling, wearing a red hoodie, in a garden with flowers",
            "a person laughing, wearing an astronaut suit, in space",
        ),
        others=("a person as an astronaut in a garden", "a person reading in an old library"),
    ),
    "people": Figure(
        _people, 3, 1,
        mini=(
            "three people, on the left a person smiling in a red hoodie, in the middle a person "
            "laughing in a blue t-shirt, on the right a person with a serious face in a green "
            "hoodie, in a garden",
            "three people, on the left a person crying in a white t-shirt, in the middle a person "
            "surprised in a chef's jacket, on the right a person angry in a purple hoodie, at the "
            "beach",
        ),
        others=("three people at the sea at sunset", "three people in front of the pyramids"),
    ),
    "styles": Figure(
        _styles, 1, 1,
        mini=(
            "a person laughing, in a yellow t-shirt, on a sunny beach",
            "a person crying, in a black suit and tie, in a city at night",
            "a person looking angry, in a red hoodie, in snowy mountains",
            "a person looking surprised, in a chef's jacket, in a library",
            "line art of a person smiling, in a white t-shirt, in a garden",
            "a faded film photo of a person smiling, in a blue hoodie, at the beach",
            "a watercolour of a person smiling, in a green hoodie, in the snow",
        ),
        others=(
            "a photo of a person laughing",
            "a photo of a person crying",
            "a photo of a person who is angry",
            "a photo of a person who is surprised",
            "a line art drawing of a person",
            "a faded film photo of a person",
            "a watercolour of a person",
        ),
    ),
}  # fmt: skip


def read_album(folder: Path, name: str) -> list[Subject]:
    """Reads whose photos there are.

    Args:
        folder: a folder of photos for each person.
        name: of the figure.

    Raises:
        UserError: if there are too few people for it, or photos of one.
    """
    figure = FIGURES[name]
    if not folder.is_dir():
        raise UserError(f"people {shortened(str(folder), 200)!r} is no folder")
    people: list[Subject] = []
    for place in folders_in(folder):
        photos = photos_in(place)
        shown = name != "references" or len(people) < 2
        if shown and len(photos) < figure.photos:
            raise UserError(
                f"{shortened(str(place), 200)} holds {len(photos)} photo{'s' * (len(photos) != 1)} "
                f"({', '.join(ENDINGS)}); {name} needs {figure.photos} of a person"
            )
        people.append(Subject(place.name, photos))
    if len(people) < figure.people:
        raise UserError(
            f"{shortened(str(folder), 200)} holds {len(people)} people; {name} needs "
            f"{figure.people}, a folder of photos each"
        )
    return people


def prompts_of(name: str, file: Path | None, *, mini: bool) -> list[str]:
    """A figure's prompts: those of a file, or what suits the base."""
    if file is not None:
        return read_prompts(file)
    return list(FIGURES[name].mini if mini else FIGURES[name].others)


def paint(sections: Sequence[Section], studio: Studio) -> tuple[Image.Image, int]:
    """Paints a figure.

    Args:
        sections: what it shows.
        studio: paints.

    Returns:
        The sheet, and how many of its pictures are not finite and left out.

    Raises:
        UserError: before anything is painted, if a photo or an option cannot be used.
    """
    jobs = [c for part in sections for _, row in part.rows for c in row if isinstance(c, Job)]
    _, settings = studio.resolved(jobs[0])
    requests = [studio.requests(studio.resolved(job)[0], settings)[0] for job in jobs]
    # Pictures of few photos share a batch with those of more, which they are filled up to, so that
    # one program paints all; masks need another.
    groups: dict[bool, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(request.masks is None, []).append(index)
    made: list[Image.Image | None] = [None] * len(jobs)
    for group in groups.values():
        size = even_batch(len(group), studio.batch_size)
        done = studio.generate([requests[index] for index in group], settings, size)
        for index, each in zip(group, done, strict=True):
            made[index] = None if each.pixels is None else Image.fromarray(each.pixels)
    pictures = iter(made)
    side = 128 if settings.size[0] <= 128 else 256

    def shown(cell: Cell) -> Image.Image | None:
        if isinstance(cell, Job):
            return next(pictures)
        if isinstance(cell, Person):
            person = studio.people(dataclasses.replace(jobs[0], people=(cell,)))[0]
            return Image.fromarray(person.thumbnails[0])
        return read_photo(cell) if isinstance(cell, Path) else cell

    sheets = [
        labelled_sheet(
            part.columns, [(words, [shown(cell) for cell in row]) for words, row in part.rows],
            side=side,
        )
        for part in sections
    ]  # fmt: skip
    return stacked(sheets), sum(each is None for each in made)
