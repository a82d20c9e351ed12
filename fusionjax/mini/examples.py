"""What `mini_faces` draws: all pictures of a person, and scenes, as plain examples.

Apart from the builder, so that the processes which draw need not import TFDS.
"""

import functools
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusionjax.errors import UserError, a_share, at_least
from fusionjax.mini import captions
from fusionjax.mini import drawing as mini_world
from fusionjax.mini import people as mini_people
from fusionjax.mini.people import SPLITS, Person

REFERENCES_PER_PERSON = 2
Example = tuple[str, dict[str, Any]]
_LEAST = {"people": 1, "pictures_per_person": 1, "scenes": 0, "seed": 0}


@dataclass(frozen=True)
class Plan:
    """How much is drawn.

    Attributes:
        people: Training people; validation and test have a twentieth of that each, at least 8.
        pictures_per_person: Pictures of each person, beside the reference photos.
        scenes: Pictures of two or three training people.
        identity_share: The probability with which a caption tells the person's traits at all.
        seed: The same seed draws the same pictures.
    """

    people: int = 5000
    pictures_per_person: int = 3
    scenes: int = 6000
    identity_share: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            at_least(least, **{name: getattr(self, name)})
        there = mini_people.number_of_people("train")
        if self.people > there:
            raise UserError(f"people is {self.people}; there are {there} training people")
        a_share(identity_share=self.identity_share)

    def people_of(self, split: str) -> list[Person]:
        """The people of a split."""
        count = self.people if split == "train" else max(8, self.people // 20)
        return _people(split, count, self.seed)

    def total_pictures(self) -> int:
        """Pictures in all splits together."""
        return (
            sum(len(self.people_of(split)) for split in SPLITS) * self.pictures_per_person
            + self.scenes
        )


@functools.cache
def _people(split: str, count: int, seed: int) -> list[Person]:
    return mini_people.people(split, count, seed)


def draw_person(person: Person, index: int, plan: Plan) -> list[Example]:
    """Draws all pictures of one person.

    Args:
        person: Who.
        index: The person's number in the split.
        plan: The seed and the number of pictures.

    Returns:
        Keys and examples. The references are photos in plain style, and none of the pictures.
    """
    rng = np.random.default_rng([plan.seed, SPLITS.index(person.split), index])
    photos = [
        mini_world.png(mini_world.draw(person, mini_people.random_circumstance(rng, style="plain")))
        for _ in range(REFERENCES_PER_PERSON)
    ]
    examples = []
    for number in range(plan.pictures_per_person):
        circumstance = mini_people.random_circumstance(rng)
        example = {
            "image": mini_world.png(mini_world.draw(person, circumstance)),
            "caption": captions.caption(
                person, circumstance, rng, identity_share=plan.identity_share
            ),
            "references": photos,
            "owners": [0] * len(photos),
            "identity": person.identity,
            "face_boxes": np.array([mini_world.face_box(circumstance)], np.float32),
            "attributes": json.dumps(mini_people.attributes(person, circumstance)),
        }
        examples.append((f"{person.identity}-{number}", example))
    return examples


def draw_scene(index: int, plan: Plan) -> list[Example]:
    """Draws one picture of two (in one of ten cases three) training people.

    Args:
        index: The scene's number.
        plan: The seed and the number of people.

    Returns:
        A key and an example: a reference photo for each person from left to right, the identities
        joined by "+", everybody's face box, and the attributes of all as a list.
    """
    rng = np.random.default_rng([plan.seed, len(SPLITS), index])
    persons = [
        mini_people.random_person(rng, "train") for _ in range(3 if rng.random() < 0.1 else 2)
    ]
    circumstances = [mini_people.random_circumstance(rng) for _ in persons]
    scene = mini_world.draw_scene(persons, circumstances, rng, identity_share=plan.identity_share)
    photos = [
        mini_world.png(mini_world.draw(person, mini_people.random_circumstance(rng, style="plain")))
        for person in persons
    ]
    told = [
        mini_people.attributes(*pair)
        for pair in zip(scene.people, scene.circumstances, strict=True)
    ]
    example = {
        "image": mini_world.png(scene.image),
        "caption": scene.caption,
        "references": photos,
        "owners": list(range(len(persons))),
        "identity": "+".join(person.identity for person in persons),
        "face_boxes": np.asarray(scene.face_boxes, np.float32),
        "attributes": json.dumps(told),
    }
    return [(f"scene-{index}", example)]


def draw_part(task: tuple[str, int, int], plan: Plan) -> list[Example]:
    """Draws a part of a split.

    Args:
        task: The split, and the numbers of its people (or scenes), from and until.
        plan: The seed and the numbers of people and pictures.

    Returns:
        Keys and examples, in order.
    """
    split, start, stop = task
    if split == "scenes":
        return [example for index in range(start, stop) for example in draw_scene(index, plan)]
    persons = plan.people_of(split)[start:stop]
    return [
        example
        for index, person in enumerate(persons, start)
        for example in draw_person(person, index, plan)
    ]
