"""The mini world's people: who they are, and what they do and wear.

*Identity* is what a person keeps: hair style, hair colour, skin, facial hair, glasses.
*Circumstance* is what changes from picture to picture: expression, clothes, background, style,
framing. People are split into train, validation and test by a hash of their identity: a test
person's combination of traits is never drawn for training.
"""

import functools
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import python_avatars as avatars

from fusionjax.mini.places import PLACES, PLAIN_BACKGROUNDS

HAIR = {
    "bald": (avatars.HairType.NONE, "no hair"),
    "short": (avatars.HairType.SHORT_FLAT, "short {} hair"),
    "receding": (avatars.HairType.SIDES, "thin {} hair at the sides"),
    "quiff": (avatars.HairType.QUIFF, "a {} quiff"),
    "mohawk": (avatars.HairType.MOHAWK, "a {} mohawk"),
    "shaggy": (avatars.HairType.SHAGGY, "shaggy {} hair"),
    "bun": (avatars.HairType.BUN, "a {} hair bun"),
    "bob": (avatars.HairType.MIA_WALLACE, "a {} bob with a fringe"),
    "curly": (avatars.HairType.CURLY, "big curly {} hair"),
    "frizzy": (avatars.HairType.SHORT_DREADS_2, "frizzy {} hair"),
    "straight": (avatars.HairType.STRAIGHT_STRAND, "long straight {} hair"),
    "wavy": (avatars.HairType.LOOSE_HAIR, "long wavy {} hair"),
    "wild": (avatars.HairType.WILD, "wild {} hair"),
    "half-shaved": (avatars.HairType.HALF_SHAVED, "half-shaved {} hair"),
    "pigtails": (avatars.HairType.DREADLOCKS, "{} pigtails"),
    "spiky": (avatars.HairType.EVIL_SPIKE, "spiky {} hair"),
}

HAIR_COLORS = {
    "black": "#26211F",
    "brown": "#724133",
    "blond": "#E6BE5A",
    "red": "#C93305",
    "grey": "#C9C6C6",
    "pink": "#F27FA5",
    "blue": "#3F6FC4",
}

SKINS = {
    "pale": "#FFDFC4",
    "light": "#EDB98A",
    "olive": "#C8A165",
    "tanned": "#D08B5B",
    "brown": "#AE5D29",
    "dark": "#7A4B31",
}

FACIAL_HAIR = {
    "none": (avatars.FacialHairType.NONE, ""),
    "short beard": (avatars.FacialHairType.BEARD_LIGHT, "a short beard"),
    "long beard": (avatars.FacialHairType.BEARD_MAGESTIC, "a long beard"),
    "curled moustache": (avatars.FacialHairType.MOUSTACHE_FANCY, "a curled moustache"),
    "thick moustache": (avatars.FacialHairType.MOUSTACHE_MAGNUM, "a thick moustache"),
}

GLASSES = {
    "none": (avatars.AccessoryType.NONE, ""),
    "round": (avatars.AccessoryType.ROUND, "round glasses"),
    "black": (avatars.AccessoryType.PRESCRIPTION_2, "black glasses"),
    "white": (avatars.AccessoryType.PRESCRIPTION_1, "white glasses"),
}

_TRAIT_WEIGHTS = {
    "facial_hair": (0.48, 0.13, 0.13, 0.13, 0.13),
    "glasses": (0.46, 0.18, 0.18, 0.18),
}

_EYES, _BROWS, _MOUTH = avatars.EyeType, avatars.EyebrowType, avatars.MouthType
EXPRESSIONS = {
    "neutral": (_EYES.DEFAULT, _BROWS.DEFAULT_NATURAL, _MOUTH.SERIOUS),
    "smiling": (_EYES.DEFAULT, _BROWS.DEFAULT_NATURAL, _MOUTH.SMILE),
    "laughing": (_EYES.HAPPY, _BROWS.RAISED_EXCITED_NATURAL, _MOUTH.BIG_SMILE),
    "crying": (_EYES.CLOSED, _BROWS.SAD_CONCERNED_NATURAL, _MOUTH.SAD),
    "angry": (_EYES.DEFAULT, _BROWS.ANGRY_NATURAL, _MOUTH.GRIMACE),
    "surprised": (_EYES.SURPRISED, _BROWS.RAISED_EXCITED, _MOUTH.DISBELIEF),
    "winking": (_EYES.WINK, _BROWS.UP_DOWN_NATURAL, _MOUTH.SMILE),
    "tongue out": (_EYES.DEFAULT, _BROWS.DEFAULT_NATURAL, _MOUTH.TONGUE),
}

CLOTHES = {
    "hoodie": (avatars.ClothingType.HOODIE, "a {} hoodie"),
    "t-shirt": (avatars.ClothingType.SHIRT_CREW_NECK, "a {} t-shirt"),
    "overalls": (avatars.ClothingType.OVERALL, "{} overalls"),
    "sweater": (avatars.ClothingType.COLLAR_SWEATER, "a {} sweater with a white collar"),
    "astronaut suit": (avatars.ClothingType.ASTRONAUT_SUIT, "an astronaut suit"),
    "chef's jacket": (avatars.ClothingType.CHEF, "a chef's jacket"),
    "suit and tie": (avatars.ClothingType.SHIRT_WICK, "a black suit and tie"),
    "sailor shirt": (avatars.ClothingType.SHIRT_SCOOP_NECK, "a striped sailor shirt"),
}

CLOTHES_COLORS = {
    "red": "#E0393E",
    "blue": "#2F6FD6",
    "green": "#2FA155",
    "yellow": "#F5C91F",
    "white": "#FAFAFA",
    "black": "#2A2E33",
    "purple": "#8A4FBF",
    "orange": "#F28C28",
}

COLORED_CLOTHES = ("hoodie", "t-shirt", "overalls", "sweater")
BACKGROUNDS = (*PLAIN_BACKGROUNDS, *PLACES)
STYLES = ("plain", "line art", "faded film", "watercolour")

SPLITS = ("train", "validation", "test")
_SPLIT_PERCENT = (80, 10, 10)

MIDDLE_X = 132.0  # of a figure, in the avatar's own units (264 wide, 280 high)


@dataclass(frozen=True)
class Person:
    """Who somebody is: the traits which stay from picture to picture."""

    hair: str
    hair_color: str
    skin: str
    facial_hair: str
    glasses: str

    def __post_init__(self) -> None:
        for trait, choices in TRAITS.items():
            value = getattr(self, trait)
            if value not in choices:
                raise ValueError(f"{trait} is {value!r}; choose one of {', '.join(choices)}")
        if self.hair == "bald" and self.facial_hair == "none":
            # No hair has no colour: two such people would look the same and be called different.
            object.__setattr__(self, "hair_color", next(iter(HAIR_COLORS)))

    @property
    def identity(self) -> str:
        """The person's name: all traits, joined."""
        return "_".join(getattr(self, trait).replace(" ", "-") for trait in TRAITS)

    @property
    def split(self) -> str:
        """The split this person belongs to, by a hash of the traits."""
        digest = hashlib.sha256(self.identity.encode()).digest()
        percent = int.from_bytes(digest[:4], "big") % 100
        train, validation, _ = _SPLIT_PERCENT
        return (
            "train" if percent < train else "validation" if percent < train + validation else "test"
        )


TRAITS: dict[str, tuple[str, ...]] = {
    "hair": tuple(HAIR),
    "hair_color": tuple(HAIR_COLORS),
    "skin": tuple(SKINS),
    "facial_hair": tuple(FACIAL_HAIR),
    "glasses": tuple(GLASSES),
}


@dataclass(frozen=True)
class Circumstance:
    """What changes from picture to picture.

    `clothes_color` is "" for clothes which have their own colours. `zoom` is the width of the view
    in avatar units (228 is near, 238 is far); the shifts are in the same units.
    """

    expression: str = "neutral"
    clothes: str = "t-shirt"
    clothes_color: str = "blue"
    background: str = "white"
    style: str = "plain"
    zoom: float = 233.0
    shift_x: float = 0.0
    shift_y: float = 0.0

    def __post_init__(self) -> None:
        for name, choices in CIRCUMSTANCES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(
                    f"{name} is {value!r}; choose one of {', '.join(map(repr, choices))}"
                )
        if (self.clothes in COLORED_CLOTHES) != bool(self.clothes_color):
            need = "a colour" if self.clothes in COLORED_CLOTHES else "no colour"
            raise ValueError(f"clothes {self.clothes!r} take {need}, not {self.clothes_color!r}")

    @property
    def view(self) -> tuple[float, float, float]:
        """The square part of the avatar that is seen: left, top, side."""
        return MIDDLE_X - self.zoom / 2 + self.shift_x, 12.0 + self.shift_y, self.zoom


CIRCUMSTANCES: dict[str, tuple[str, ...]] = {
    "expression": tuple(EXPRESSIONS),
    "clothes": tuple(CLOTHES),
    "clothes_color": ("", *CLOTHES_COLORS),
    "background": BACKGROUNDS,
    "style": STYLES,
}


def random_person(rng: np.random.Generator, split: str) -> Person:
    """Draws a person of a split; half of all people have neither beard nor glasses.

    Args:
        rng: The source of randomness.
        split: "train", "validation" or "test".

    Returns:
        The person.

    Raises:
        ValueError: If there is no such split.
    """
    _check_split(split)
    while True:
        traits = {
            trait: choices[rng.choice(len(choices), p=_TRAIT_WEIGHTS.get(trait))]
            for trait, choices in TRAITS.items()
        }
        person = Person(**traits)
        if person.split == split:
            return person


def people(split: str, count: int, seed: int = 0) -> list[Person]:
    """Draws different people of a split.

    Args:
        split: "train", "validation" or "test".
        count: How many.
        seed: The same seed gives the same people; a larger `count` adds people at the end.

    Returns:
        The people, all different.

    Raises:
        ValueError: If there is no such split, or it has fewer people than asked for.
    """
    available = number_of_people(split)
    if count > available:
        raise ValueError(
            f"count is {count}, but the split {split!r} has {available} people; ask for fewer"
        )
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    drawn: dict[Person, None] = {}
    while len(drawn) < count:
        drawn.setdefault(random_person(rng, split))
    return list(drawn)


@functools.cache
def number_of_people(split: str) -> int:
    """How many people a split has."""
    _check_split(split)
    return sum(person.split == split for person in everybody())


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; choose one of {', '.join(SPLITS)}")


@functools.cache
def everybody() -> tuple[Person, ...]:
    """All people there are, each once."""
    return tuple(dict.fromkeys(Person(*traits) for traits in itertools.product(*TRAITS.values())))


def random_circumstance(rng: np.random.Generator, *, style: str | None = None) -> Circumstance:
    """Draws expression, clothes, background, style and framing.

    Args:
        rng: The source of randomness.
        style: One of `STYLES`; None draws one, "plain" in four of five.

    Returns:
        The circumstance.
    """
    clothes = choose(rng, tuple(CLOTHES))
    color = choose(rng, tuple(CLOTHES_COLORS))
    place = (
        choose(rng, tuple(PLACES)) if rng.random() < 0.6 else choose(rng, tuple(PLAIN_BACKGROUNDS))
    )
    drawn_style = STYLES[rng.choice(len(STYLES), p=(0.82, 0.06, 0.06, 0.06))]
    return Circumstance(
        expression=choose(rng, tuple(EXPRESSIONS)),
        clothes=clothes,
        clothes_color=color if clothes in COLORED_CLOTHES else "",
        background=place,
        style=style or drawn_style,
        zoom=float(np.round(rng.uniform(228, 238), 1)),
        shift_x=float(np.round(rng.uniform(-4, 4), 1)),
        shift_y=float(np.round(rng.uniform(-3, 3), 1)),
    )


def attributes(person: Person, circumstance: Circumstance) -> dict[str, str | float]:
    """All that is true of a picture, by name: the person's traits and the circumstance."""
    return {**asdict(person), **asdict(circumstance)}


def choose(rng: np.random.Generator, choices: Sequence[str]) -> str:
    """One of the choices, all as probable."""
    return choices[int(rng.integers(len(choices)))]
