"""A small world of drawn people: who they are, what they do and wear, and what one says of it.

*Identity* is what a person keeps: hair style, hair colour, skin, facial hair, glasses.
*Circumstance* is what changes from picture to picture: expression, clothes, background, style,
framing. The drawings are avatars from `python-avatars` (MIT) rasterised by `resvg-py`.

Everything is a function of its arguments and of a NumPy generator, so the same seed draws the same
picture. People are split into train, validation and test by a hash of their identity: a test
person's combination of traits is never drawn for training.
"""

import functools
import hashlib
import io
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import python_avatars as avatars
import resvg_py
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageFilter

from fusionjax.data.mini_world_places import PLACES, PLAIN_BACKGROUNDS, background_svg

PICTURE_PIXELS = 64

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
_EXPRESSION_WORDS = {
    "neutral": ("with a neutral face", "with a serious face", "looking calm"),
    "smiling": ("smiling", "with a smile", "with a friendly smile"),
    "laughing": ("laughing", "laughing out loud", "with a big laugh"),
    "crying": ("crying", "in tears", "with tears on the cheeks"),
    "angry": ("angry", "looking angry", "with an angry face"),
    "surprised": ("surprised", "looking surprised", "with a surprised face"),
    "winking": ("winking", "giving a wink", "with a wink"),
    "tongue out": ("sticking out the tongue", "with the tongue out", "showing the tongue"),
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
_UNIFORM_COLORS = {
    "chef's jacket": "#FFFFFF",
    "suit and tie": "#C0272D",
    "sailor shirt": "url(#stripes)",
}

BACKGROUNDS = (*PLAIN_BACKGROUNDS, *PLACES)
_PLACE_WORDS = {
    "garden": ("in a garden", "in a garden with flowers"),
    "beach": ("at the beach", "on a sunny beach"),
    "city": ("in a city at night", "in front of a city at night"),
    "snow": ("in the snow", "in snowy mountains"),
    "library": ("in a library", "in front of bookshelves"),
    "space": ("in space", "in outer space"),
}
STYLES = ("plain", "line art", "faded film", "watercolour")
_STYLE_WORDS = {
    "plain": ("", "", "a drawing of ", "a portrait of ", "a picture of "),
    "line art": ("line art of ", "a line drawing of "),
    "faded film": ("a faded film photo of ", "an old faded photo of "),
    "watercolour": ("a watercolour of ", "a watercolour painting of "),
}
SPLITS = ("train", "validation", "test")
_SPLIT_PERCENT = (80, 10, 10)

# The head with its hair, and the figure's middle, in the avatar's own units (264 wide, 280 high).
_HEAD = (50.0, 8.0, 214.0, 198.0)
_MIDDLE_X = 132.0


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
        return _MIDDLE_X - self.zoom / 2 + self.shift_x, 12.0 + self.shift_y, self.zoom


CIRCUMSTANCES: dict[str, tuple[str, ...]] = {
    "expression": tuple(EXPRESSIONS),
    "clothes": tuple(CLOTHES),
    "clothes_color": ("", *CLOTHES_COLORS),
    "background": BACKGROUNDS,
    "style": STYLES,
}


@dataclass(frozen=True)
class Scene:
    """A picture of several people.

    Attributes:
        image: The picture, [height, width, 3].
        caption: What one sees, from left to right.
        people: Who is in it, from left to right.
        circumstances: What each does and wears; the background and style are those of the first.
        masks: Where each person is seen, [people, height, width].
        face_boxes: Each head's ymin, xmin, ymax, xmax as fractions of the picture.
    """

    image: UInt8[np.ndarray, "h w 3"]
    caption: str
    people: tuple[Person, ...]
    circumstances: tuple[Circumstance, ...]
    masks: Bool[np.ndarray, "i h w"]
    face_boxes: Float[np.ndarray, "i 4"]


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
    clothes = _choose(rng, tuple(CLOTHES))
    color = _choose(rng, tuple(CLOTHES_COLORS))
    place = (
        _choose(rng, tuple(PLACES))
        if rng.random() < 0.6
        else _choose(rng, tuple(PLAIN_BACKGROUNDS))
    )
    drawn_style = STYLES[rng.choice(len(STYLES), p=(0.82, 0.06, 0.06, 0.06))]
    return Circumstance(
        expression=_choose(rng, tuple(EXPRESSIONS)),
        clothes=clothes,
        clothes_color=color if clothes in COLORED_CLOTHES else "",
        background=place,
        style=style or drawn_style,
        zoom=float(np.round(rng.uniform(228, 238), 1)),
        shift_x=float(np.round(rng.uniform(-4, 4), 1)),
        shift_y=float(np.round(rng.uniform(-3, 3), 1)),
    )


def draw(
    person: Person, circumstance: Circumstance, pixels: int = PICTURE_PIXELS
) -> UInt8[np.ndarray, "h w 3"]:
    """Draws one person.

    Args:
        person: Who.
        circumstance: How, and where.
        pixels: Height and width of the picture.

    Returns:
        The picture.
    """
    figure = _figure(person, circumstance, circumstance.view, pixels)
    canvas = _background(circumstance.background, pixels).copy()
    canvas.alpha_composite(figure)
    return _apply_style(canvas.convert("RGB"), circumstance.style)


def face_box(circumstance: Circumstance, *, clip: bool = True) -> tuple[float, float, float, float]:
    """Where the head with its hair is.

    Args:
        circumstance: The picture's circumstance; only the framing matters.
        clip: Whether the box ends where the picture ends.

    Returns:
        ymin, xmin, ymax, xmax as fractions of the picture; clipped, they are inside [0, 1].
    """
    left, top, side = circumstance.view
    box = np.array([_HEAD[1] - top, _HEAD[0] - left, _HEAD[3] - top, _HEAD[2] - left]) / side
    ymin, xmin, ymax, xmax = (float(value) for value in (np.clip(box, 0, 1) if clip else box))
    return ymin, xmin, ymax, xmax


def draw_scene(
    persons: Sequence[Person],
    circumstances: Sequence[Circumstance],
    rng: np.random.Generator,
    pixels: int = PICTURE_PIXELS,
    *,
    identity_share: float = 0.5,
) -> Scene:
    """Draws two or three people next to each other.

    Args:
        persons: Who, from left to right.
        circumstances: One for each person; background and style are those of the first.
        rng: The wording of the caption is drawn from it.
        pixels: Height and width of the picture.
        identity_share: The probability with which some of the people's traits are told.

    Returns:
        The scene. A person's mask is what is seen of them: someone in front is cut out of it.

    Raises:
        ValueError: If there are not two or three people, or not a circumstance for each.
    """
    if len(persons) not in _PLACES or len(circumstances) != len(persons):
        raise ValueError(
            f"got {len(persons)} people and {len(circumstances)} circumstances; "
            "a scene has two or three people and a circumstance for each"
        )
    first = circumstances[0]
    together = tuple(
        replace(each, background=first.background, style=first.style) for each in circumstances
    )
    canvas = _background(first.background, pixels).copy()
    masks = np.zeros((len(persons), pixels, pixels), bool)
    boxes = []
    scale, centres, top = _PLACES[len(persons)]
    for index, (person, circumstance, centre) in enumerate(
        zip(persons, together, centres, strict=True)
    ):
        side = 1 / scale
        view = (
            _MIDDLE_X + circumstance.shift_x - centre * side,
            top + circumstance.shift_y,
            side,
        )
        figure = _figure(person, circumstance, view, pixels)
        seen = np.asarray(figure)[..., 3] > 127
        masks &= ~seen
        masks[index] = seen
        canvas.alpha_composite(figure)
        box = (_HEAD[1] - view[1], _HEAD[0] - view[0], _HEAD[3] - view[1], _HEAD[2] - view[0])
        boxes.append(np.clip(np.array(box) / side, 0, 1))
    image = _apply_style(canvas.convert("RGB"), first.style)
    caption = scene_caption(persons, together, rng, identity_share=identity_share)
    return Scene(
        image, caption, tuple(persons), together, masks, np.stack(boxes).astype(np.float32)
    )


# For two and three people: picture sides per avatar unit, the figures' middles, the view's top.
_PLACES: dict[int, tuple[float, tuple[float, ...], float]] = {
    2: (1 / 300, (0.27, 0.73), -50.0),
    3: (1 / 400, (0.19, 0.5, 0.81), -124.0),
}


def scene_boxes(number: int) -> Float[np.ndarray, "i 4"]:
    """Where the heads are in a picture of two or three people, before small shifts.

    Args:
        number: How many people.

    Returns:
        ymin, xmin, ymax, xmax of each head from left to right, as fractions; may reach outside.
    """
    scale, centres, top = _PLACES[number]
    left, upper, right, lower = _HEAD
    return np.array(
        [
            (
                (upper - top) * scale,
                centre + (left - _MIDDLE_X) * scale,
                (lower - top) * scale,
                centre + (right - _MIDDLE_X) * scale,
            )
            for centre in centres
        ],
        np.float32,
    )


def scene_regions(number: int, pixels: int = PICTURE_PIXELS) -> Bool[np.ndarray, "i h w"]:
    """The region of each person in a picture of two or three: upright stripes that share it out.

    Args:
        number: How many people.
        pixels: Height and width of the picture.

    Returns:
        A mask for each person, from left to right; each pixel is in exactly one.
    """
    _, centres, _ = _PLACES[number]
    column = (np.arange(pixels) + 0.5) / pixels
    nearest = np.abs(column[None, :] - np.array(centres)[:, None]).argmin(axis=0)
    stripes = nearest[None, None, :] == np.arange(number)[:, None, None]
    return np.broadcast_to(stripes, (number, pixels, pixels)).copy()


def describe_person(person: Person, rng: np.random.Generator, share: float = 0.75) -> str:
    """Says who somebody is, in words such as "a person with short red hair and round glasses".

    Args:
        person: Who.
        rng: Which traits are named is drawn from it.
        share: The probability with which each trait is named.

    Returns:
        The words; without any trait "a person" or "someone".
    """
    hair = HAIR[person.hair][1].format(person.hair_color)
    traits = [
        hair,
        f"{person.skin} skin",
        FACIAL_HAIR[person.facial_hair][1],
        GLASSES[person.glasses][1],
    ]
    named = [words for words in traits if rng.random() < share and words]
    noun = _choose(rng, ("a person", "a person", "someone"))
    return f"{noun} with {_join(named)}" if named else noun


def describe_circumstance(circumstance: Circumstance, rng: np.random.Generator) -> str:
    """Says what somebody does and wears, such as "smiling, wearing a red hoodie".

    Args:
        circumstance: What is said.
        rng: The wording is drawn from it.

    Returns:
        The words, without background and style.
    """
    expression = _choose(rng, _EXPRESSION_WORDS[circumstance.expression])
    clothes = CLOTHES[circumstance.clothes][1].format(circumstance.clothes_color)
    dressed = f"{_choose(rng, ('wearing', 'in', 'dressed in'))} {clothes}"
    return _choose(
        rng, (f"{expression}, {dressed}", f"{expression} and {dressed}", f"{dressed}, {expression}")
    )


def caption(
    person: Person,
    circumstance: Circumstance,
    rng: np.random.Generator,
    *,
    identity_share: float = 0.5,
) -> str:
    """Describes a picture in one sentence.

    Args:
        person: Who is in it.
        circumstance: Expression, clothes, background and style are always told.
        rng: The wording is drawn from it.
        identity_share: The probability with which the person's traits are told at all.

    Returns:
        The sentence, in small letters and without a full stop.
    """
    told = rng.random() < identity_share
    who = (
        describe_person(person, rng) if told else _choose(rng, ("a person", "a person", "someone"))
    )
    doing = describe_circumstance(circumstance, rng)
    return _sentence(who + _choose(rng, (" ", ", ")) + doing, circumstance, rng)


def scene_caption(
    persons: Sequence[Person],
    circumstances: Sequence[Circumstance],
    rng: np.random.Generator,
    *,
    identity_share: float = 0.5,
) -> str:
    """Describes a picture of several people from left to right.

    Args:
        persons: Who is in it.
        circumstances: One for each; background and style are those of the first.
        rng: The wording is drawn from it.
        identity_share: The probability with which some of the people's traits are told.

    Returns:
        The sentence.
    """
    places = {
        2: ("on the left", "on the right"),
        3: ("on the left", "in the middle", "on the right"),
    }
    told = rng.random() < identity_share
    parts = []
    for place, person, circumstance in zip(
        places[len(persons)], persons, circumstances, strict=True
    ):
        who = describe_person(person, rng, share=0.4) if told else "a person"
        clothes = CLOTHES[circumstance.clothes][1].format(circumstance.clothes_color)
        expression = _EXPRESSION_WORDS[circumstance.expression][0]
        parts.append(f"{place} {who} {expression} in {clothes}")
    number = {2: "two people", 3: "three people"}[len(persons)]
    return _sentence(f"{number}, {', '.join(parts)}", circumstances[0], rng)


def attributes(person: Person, circumstance: Circumstance) -> dict[str, str | float]:
    """All that is true of a picture, by name: the person's traits and the circumstance."""
    return {**asdict(person), **asdict(circumstance)}


def png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Encodes a picture as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _sentence(subject: str, circumstance: Circumstance, rng: np.random.Generator) -> str:
    style = _choose(rng, _STYLE_WORDS[circumstance.style])
    if circumstance.background in _PLACE_WORDS:
        place = _choose(rng, _PLACE_WORDS[circumstance.background])
    else:
        color = circumstance.background
        place = _choose(rng, (f"against a plain {color} background", f"on a {color} background"))
    return f"{style}{subject}{_choose(rng, (' ', ', '))}{place}"


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _choose(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


_TEARS = "".join(
    f'<path d="M{x} 122 C{x - 8} 136 {x - 8} 150 {x} 150 C{x + 8} 150 {x + 8} 136 {x} 122 Z" '
    'fill="#4FC3F7" stroke="#FFFFFF" stroke-width="1.5"/>'
    for x in (104, 160)
)
_BUTTONS = "".join(
    f'<circle cx="{x}" cy="{y}" r="5" fill="#2A2E33"/>' for x in (114, 150) for y in (212, 236, 260)
)
_STRIPES = (
    '<defs><pattern id="stripes" width="264" height="20" patternUnits="userSpaceOnUse">'
    '<rect width="264" height="20" fill="#FFFFFF"/>'
    '<rect y="4" width="264" height="9" fill="#1F3F8F"/></pattern></defs>'
)
_FACE = '<g id="transparent_Face"'
_SVG_SIZE = 'width="264px" height="280px" viewBox="0 0 264 280"'


def _figure(
    person: Person, circumstance: Circumstance, view: tuple[float, float, float], pixels: int
) -> Image.Image:
    """A person alone, on a transparent ground, seen through a square view (left, top, side)."""
    eyes, eyebrows, mouth = EXPRESSIONS[circumstance.expression]
    clothes = circumstance.clothes
    color = _UNIFORM_COLORS.get(clothes) or CLOTHES_COLORS.get(
        circumstance.clothes_color, "#FFFFFF"
    )
    svg = avatars.Avatar(
        style=avatars.AvatarStyle.TRANSPARENT,
        top=HAIR[person.hair][0],
        hair_color=HAIR_COLORS[person.hair_color],
        facial_hair=FACIAL_HAIR[person.facial_hair][0],
        facial_hair_color=HAIR_COLORS[person.hair_color],
        skin_color=SKINS[person.skin],
        accessory=GLASSES[person.glasses][0],
        eyes=eyes,
        eyebrows=eyebrows,
        mouth=mouth,
        nose=avatars.NoseType.DEFAULT,
        clothing=CLOTHES[clothes][0],
        clothing_color=color,
    ).render()
    left, top, side = view
    if svg.count(_SVG_SIZE) != 1 or svg.count(_FACE) != 1:
        raise RuntimeError(
            "python-avatars arranges its drawings in an unknown way; install version 1.4.1"
        )
    svg = svg.replace(
        _SVG_SIZE,
        f'width="{pixels}" height="{pixels}" viewBox="{left:.2f} {top:.2f} {side:.2f} {side:.2f}"',
    )
    if clothes == "chef's jacket":
        svg = svg.replace(_FACE, f"{_BUTTONS}{_FACE}")
    extra = _TEARS if circumstance.expression == "crying" else ""
    svg = svg.replace("</svg>", f"{extra}{_STRIPES}</svg>")
    return _rasterise(svg, pixels)


@functools.lru_cache(maxsize=64)
def _background(name: str, pixels: int) -> Image.Image:
    return _rasterise(background_svg(name), pixels)


def _rasterise(svg: str, pixels: int) -> Image.Image:
    data = resvg_py.svg_to_bytes(
        svg_string=svg, width=pixels, height=pixels, skip_system_fonts=True
    )
    return Image.open(io.BytesIO(data)).convert("RGBA")


def _apply_style(image: Image.Image, style: str) -> UInt8[np.ndarray, "h w 3"]:
    """The picture as line art, faded film or watercolour, or as it is."""
    if style == "line art":
        smooth = np.asarray(image.filter(ImageFilter.GaussianBlur(0.6)), np.float32)
        dy = np.abs(np.diff(smooth, axis=0, append=smooth[-1:])).max(-1)
        dx = np.abs(np.diff(smooth, axis=1, append=smooth[:, -1:])).max(-1)
        ink = np.clip((np.maximum(dx, dy) - 6) * 4, 0, 225)
        return np.repeat((255 - ink).astype(np.uint8)[..., None], 3, -1)
    if style == "faded film":
        values = np.asarray(image, np.float32)
        grey = values.mean(-1, keepdims=True)
        washed = (0.55 * values + 0.45 * grey) * 0.62
        return np.clip(washed + np.array([84.0, 66.0, 44.0]), 0, 255).astype(np.uint8)
    if style == "watercolour":
        values = np.asarray(image.filter(ImageFilter.ModeFilter(3)), np.float32)
        height, width = values.shape[:2]
        y, x = np.mgrid[:height, :width] * (96 / height)
        paper = (
            9 * np.sin(x * 0.31 + 2 * np.sin(y * 0.17)) * np.sin(y * 0.27 + 2 * np.sin(x * 0.13))
        )
        return np.clip(values * 0.8 + 50 + paper[..., None], 0, 255).astype(np.uint8)
    return np.asarray(image)
