"""The suite `mini`: test people and prompts, painted in several ways, and what is measured on them.

A *case* is a test person, a prompt, and the drawing of exactly that: the truth. Every way of
painting gets the same cases and the same seeds. No network has met people of the test split; what
is to be chosen, a guidance scale for instance, is chosen on those of the validation split.

Legend: p people, c cases of a person, i identities in a picture.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8

from fusionjax.errors import UserError, at_least
from fusionjax.evaluation.painting import Painting, Progress, generate
from fusionjax.generation.request import Request
from fusionjax.identity import Identity
from fusionjax.mini import captions
from fusionjax.mini import drawing as mini_world
from fusionjax.mini import people as mini_people
from fusionjax.mini.people import Circumstance, Person
from fusionjax.options import Description
from fusionjax.pipeline import FusionPipeline

PROMPTED = ("expression", "clothes", "clothes_color", "background")
Pixels = UInt8[np.ndarray, "h w 3"]
Faces = Mapping[Person, Identity]

_LEAST = {"people": 2, "prompts": 1, "pairs": 0, "photos": 1}
_SPLITS = ("validation", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite(Painting):
    """How much is painted, and how.

    Attributes:
        split: Whose people: "test" or "validation".
        people: How many.
        prompts: Prompts for each; every fourth asks for a style.
        pairs: Pictures of two people; nobody is in two of them.
        photos: Photos of each person in the comparison of one photo with several; 1 leaves it out.
        faces_in_negative: Shows the faces to the guidance's negative branch too.
    """

    split: str = "test"
    people: int = 24
    prompts: int = 4
    pairs: int = 48
    photos: int = 3
    faces_in_negative: bool = False
    steps: int = 20
    guidance_scale: float = 3.0
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            at_least(least, **{name: getattr(self, name)})
        super().__post_init__()
        Description(seed=self.seed)  # checks it
        if self.split not in _SPLITS:
            raise UserError(f"split is {self.split!r}; choose one of {', '.join(_SPLITS)}")
        there = mini_people.number_of_people(self.split)
        for name, needed in (("people", self.people), ("pairs", 2 * self.pairs)):
            if needed > there:
                raise UserError(
                    f"{name} is {getattr(self, name)}, for which the split {self.split!r} with its "
                    f"{there} people is too small; ask for fewer"
                )


@dataclasses.dataclass(frozen=True)
class Case:
    """One picture to paint, and how it should look.

    Attributes:
        person: Who.
        circumstance: What the prompt says.
        prompt: Says the circumstance and nothing of the person's traits.
        truth: The drawing of the person in the circumstance, in the middle of the framings.
        stranger: The same drawing of another person.
        seed: Of the noise.
    """

    person: Person
    circumstance: Circumstance
    prompt: str
    truth: Pixels
    stranger: Pixels
    seed: int


@dataclasses.dataclass(frozen=True)
class Pair:
    """A picture of two people to paint; places go from left to right.

    Attributes:
        people: Who.
        prompt: Says what each does and wears, and not who they are.
        truth: The drawing of exactly that.
        seed: Of the noise.
    """

    people: tuple[Person, Person]
    prompt: str
    truth: Pixels
    seed: int


@dataclasses.dataclass(frozen=True)
class Cases:
    """All that is painted.

    Attributes:
        people: The people of the cases.
        photos: Drawn photos of everybody, in plain style.
        cases: For each person the same number of cases.
        pairs: Pictures of two people.
    """

    people: list[Person]
    photos: dict[Person, list[Pixels]]
    cases: list[list[Case]]
    pairs: list[Pair]

    def flat(self) -> list[Case]:
        """All cases, person by person."""
        return [case for cases in self.cases for case in cases]


def make_cases(suite: Suite, pixels: int) -> Cases:
    """Draws people, photos, prompts and truths.

    Args:
        suite: How many, and the seed.
        pixels: Height and width of all pictures.

    Returns:
        The cases. More people or prompts add to those of fewer.
    """
    everybody = mini_people.people(suite.split, max(suite.people, 2 * suite.pairs), suite.seed)
    people = everybody[: suite.people]
    photos = {
        person: _photos(person, pixels, suite.photos, np.random.default_rng([suite.seed, 1, index]))
        for index, person in enumerate(everybody)
    }
    cases = []
    for index, person in enumerate(people):
        rng = np.random.default_rng([suite.seed, 3, index])
        stranger = people[(index + 1) % len(people)]
        own = []
        for number in range(suite.prompts):
            style = "plain" if number % 4 != 3 else mini_people.STYLES[1 + index % 3]
            drawn = mini_people.random_circumstance(rng, style=style)
            # The prompt does not say the framing: the truth is in the middle of all framings.
            middle = Circumstance()
            circumstance = dataclasses.replace(
                drawn, zoom=middle.zoom, shift_x=middle.shift_x, shift_y=middle.shift_y
            )
            own.append(
                Case(
                    person=person,
                    circumstance=circumstance,
                    prompt=captions.caption(person, circumstance, rng, identity_share=0),
                    truth=mini_world.draw(person, circumstance, pixels),
                    stranger=mini_world.draw(stranger, circumstance, pixels),
                    seed=suite.seed + 1000 * index + number,
                )
            )
        cases.append(own)
    pairs = [
        _pair((everybody[2 * index], everybody[2 * index + 1]), index, suite, pixels)
        for index in range(suite.pairs)
    ]
    return Cases(people, photos, cases, pairs)


def _photos(person: Person, pixels: int, count: int, rng: np.random.Generator) -> list[Pixels]:
    circumstances = [mini_people.random_circumstance(rng, style="plain") for _ in range(count)]
    return [mini_world.draw(person, circumstance, pixels) for circumstance in circumstances]


def _pair(pair: tuple[Person, Person], index: int, suite: Suite, pixels: int) -> Pair:
    rng = np.random.default_rng([suite.seed, 2, index])
    circumstances = [mini_people.random_circumstance(rng, style="plain") for _ in range(2)]
    scene = mini_world.draw_scene(pair, circumstances, rng, pixels, identity_share=0)
    return Pair(pair, scene.caption, scene.image, suite.seed + 500_000 + index)


def encode_people(
    pipe: FusionPipeline,
    cases: Cases,
    people: Sequence[Person],
    photos: int,
    progress: Progress | None = None,
) -> Faces:
    """Encodes people's first photos.

    Args:
        pipe: With an adapter.
        cases: Hold the photos.
        people: Who is encoded.
        photos: How many photos of each, at most all that were drawn.
        progress: Called with a stage, how many people are done, and of how many.

    Returns:
        The identities.
    """
    faces = {}
    for number, person in enumerate(people, 1):
        faces[person] = pipe.encode_identity(cases.photos[person][:photos], crop="none")
        if progress:
            progress("photos", number, len(people))
    return faces


def generate_cases(
    pipe: FusionPipeline,
    cases: Cases,
    suite: Suite,
    faces: Faces | None,
    progress: Progress | None = None,
) -> list[Pixels]:
    """Paints every case, with the person's face or from text alone.

    Args:
        pipe: Paints.
        cases: What to paint.
        suite: How.
        faces: The people's identities; None paints from text alone.
        progress: Called with a stage, how many pictures are done, and of how many.

    Returns:
        The pictures, in the order of `cases.flat()`.
    """
    requests = [
        Request(
            prompt=case.prompt,
            identities=() if faces is None else (faces[case.person],),
            face_strength=suite.face_strength,
            seed=case.seed,
            guidance_scale=suite.guidance_scale,
        )
        for case in cases.flat()
    ]
    return _generate(pipe, requests, suite, progress)


def generate_pairs(
    pipe: FusionPipeline,
    cases: Cases,
    suite: Suite,
    faces: Faces,
    *,
    masks: bool,
    progress: Progress | None = None,
) -> list[Pixels]:
    """Paints every pair, each person in their half, or without saying where they are.

    Args:
        pipe: Paints.
        cases: What to paint.
        suite: How.
        faces: The people's identities.
        masks: Whether each person's half is given as a mask.
        progress: Called with a stage, how many pictures are done, and of how many.

    Returns:
        The pictures.
    """
    regions = mini_world.scene_regions(2, pipe.photo_side).astype(np.float32)
    requests = [
        Request(
            prompt=pair.prompt,
            identities=tuple(faces[person] for person in pair.people),
            face_strength=suite.face_strength,
            masks=regions if masks else None,
            seed=pair.seed,
            guidance_scale=suite.guidance_scale,
        )
        for pair in cases.pairs
    ]
    return _generate(pipe, requests, suite, progress)


def _generate(
    pipe: FusionPipeline, requests: list[Request], suite: Suite, progress: Progress | None
) -> list[Pixels]:
    images: list[Pixels] = []
    batch_size, negative = min(suite.batch_size, len(requests)), suite.faces_in_negative
    for done in generate(pipe, requests, suite, batch_size=batch_size, faces_in_negative=negative):
        if done.pixels is None:
            raise UserError("an image of the suite is not finite; the adapter cannot be measured")
        images.append(done.pixels)
        if progress:
            progress("pictures", len(images), len(requests))
    return images
