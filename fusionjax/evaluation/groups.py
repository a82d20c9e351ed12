"""Who is in a picture, one person or several: who stands with whom, and where.

METHOD/ada+ben/0001.png, …      ada, on the left, and ben by the first prompt, and so on; the names
                                in a group are in the order of the alphabet

Legend: i people in a picture, H W pixels.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from fusionjax.errors import UserError, shortened, told
from fusionjax.evaluation.people import ENDINGS, Subject, check_no_bench, find, place_of
from fusionjax.face_detection import detect
from fusionjax.files import has_ending
from fusionjax.generation.request import box_mask
from fusionjax.photos import face_square, read_photo

AND = "+"
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SIDE = 256  # of a face's square in what is put together


@dataclasses.dataclass(frozen=True)
class Group:
    """People who are painted together, or one alone.

    Attributes:
        people: from left to right.
    """

    people: tuple[Subject, ...]

    @property
    def name(self) -> str:
        """Of the folder with their pictures."""
        return AND.join(person.name for person in self.people)

    @property
    def shown(self) -> tuple[Path, ...]:
        """The photo of each that is shown to the methods."""
        return tuple(person.photos[0] for person in self.people)


def choose_groups(
    subjects: Sequence[Subject], size: int, most: int | None = None, seed: int = 0
) -> list[Group]:
    """Chooses who is painted together.

    Everybody is shuffled and taken in runs of `size`, again and again, so that all are in about as
    many groups; no group comes twice.

    Args:
        subjects: the people.
        size: people in a group; 1 is everybody alone, in their order.
        most: groups; None is as many as there are people. There are never more than can be made.
        seed: of the shuffling.

    Raises:
        UserError: if there are fewer people than a group needs, or a name has a `+`.
    """
    if size == 1:
        return [Group((subject,)) for subject in subjects][:most]
    if size > len(subjects):
        raise UserError(
            f"group_size is {size}, and there are {len(subjects)} people; add folders of people, "
            "or make the groups smaller"
        )
    for subject in subjects:
        if AND in subject.name:
            raise UserError(
                f"the folder {told(subject.name)} has a {AND}, which stands between the names of "
                "a group; rename it"
            )
    wanted = min(len(subjects) if most is None else most, math.comb(len(subjects), size))
    rng = np.random.default_rng(seed)
    groups: dict[tuple[int, ...], Group] = {}
    while len(groups) < wanted:
        shuffled = rng.permutation(len(subjects))
        for start in range(0, len(subjects) - size + 1, size):
            members = tuple(sorted(int(number) for number in shuffled[start : start + size]))
            if len(groups) < wanted:
                groups.setdefault(members, Group(tuple(subjects[number] for number in members)))
    return list(groups.values())


def in_words(size: int) -> str:
    """What `{person}` becomes: "a person", "two people", …"""
    if size == 1:
        return "a person"
    return f"{_NUMBERS[size] if size < len(_NUMBERS) else size} people"


def places(count: int, height: int, width: int) -> Float[np.ndarray, "i H W"]:
    """Masks side by side: the i-th of n people has the i-th of n columns, from left to right."""
    boxes = [(place / count, 0, (place + 1) / count, 1) for place in range(count)]
    return np.stack([box_mask(box, height, width) for box in boxes])


def place_at(centre: float, count: int) -> int:
    """Whose column a face's centre lies in.

    With two people and a face at 0.7 of the width, ⌊2 × 0.7⌋ = 1: the second one's.

    Args:
        centre: as a fraction of the picture's width, from its left.
        count: people in the picture.
    """
    return min(max(math.floor(count * centre), 0), count - 1)


def side_by_side(photos: Sequence[Path]) -> Image.Image:
    """A picture of several people whose places are known: a square around each one's face."""
    together = Image.new("RGB", (_SIDE * len(photos), _SIDE))
    for place, photo in enumerate(photos):
        together.paste(_portrait(photo), (_SIDE * place, 0))
    return together


@functools.lru_cache(maxsize=256)
def _portrait(photo: Path) -> Image.Image:
    image = read_photo(photo)
    if faces := detect(image):  # else it is a face cut out so closely that none is found
        image = image.crop(face_square(faces[0].box, *image.size))
    return image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)


def check_method(name: str, folder: Path, groups: Sequence[Group], prompts: int) -> None:
    """Says what is wrong with a method's folder as a whole.

    Raises:
        UserError: if it is none, or holds not a single picture that is looked for; the message
            tells whose pictures it holds.
    """
    if not folder.is_dir():
        raise UserError(f"method {name}: {shortened(str(folder), 200)!r} is no folder")
    if any(find(folder, group, number) for group in groups for number in range(prompts)):
        return
    check_no_bench(name, folder)
    size = len(groups[0].people)
    numbered = (p for p in sorted(folder.glob("*/*")) if has_ending(p, ENDINGS))
    there = next((path.parent.name for path in numbered), None)
    holds = "no picture that is looked for"
    if there is not None:
        count = len(there.split(AND))
        if count != size:
            holds = f"pictures of {in_words(count)} ({told(there)}), not of {in_words(size)}"
        elif size > 1:
            holds = f"pictures of {told(there)}, and no group of groups.txt in --output"
    example = place_of(Path(folder.name), groups[0], 0)
    raise UserError(f"method {name}: {shortened(str(folder), 150)} holds {holds}; the first that "
                    f"is looked for would be {shortened(str(example), 150)}")  # fmt: skip
