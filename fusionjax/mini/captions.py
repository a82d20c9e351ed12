"""What one says of the mini world's pictures; the words are drawn from a NumPy generator."""

from collections.abc import Sequence

import numpy as np

from fusionjax.mini.people import CLOTHES, FACIAL_HAIR, GLASSES, HAIR, Circumstance, Person, choose

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

_PLACE_WORDS = {
    "garden": ("in a garden", "in a garden with flowers"),
    "beach": ("at the beach", "on a sunny beach"),
    "city": ("in a city at night", "in front of a city at night"),
    "snow": ("in the snow", "in snowy mountains"),
    "library": ("in a library", "in front of bookshelves"),
    "space": ("in space", "in outer space"),
}

_STYLE_WORDS = {
    "plain": ("", "", "a drawing of ", "a portrait of ", "a picture of "),
    "line art": ("line art of ", "a line drawing of "),
    "faded film": ("a faded film photo of ", "an old faded photo of "),
    "watercolour": ("a watercolour of ", "a watercolour painting of "),
}


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
    noun = choose(rng, ("a person", "a person", "someone"))
    return f"{noun} with {_join(named)}" if named else noun


def describe_circumstance(circumstance: Circumstance, rng: np.random.Generator) -> str:
    """Says what somebody does and wears, such as "smiling, wearing a red hoodie".

    Args:
        circumstance: What is said.
        rng: The wording is drawn from it.

    Returns:
        The words, without background and style.
    """
    expression = choose(rng, _EXPRESSION_WORDS[circumstance.expression])
    clothes = CLOTHES[circumstance.clothes][1].format(circumstance.clothes_color)
    dressed = f"{choose(rng, ('wearing', 'in', 'dressed in'))} {clothes}"
    return choose(
        rng, (f"{expression}, {dressed}", f"{expression} and {dressed}", f"{dressed}, {expression}")
    )


def caption(
    person: Person,
    circumstance: Circumstance,
    rng: np.random.Generator,
    *,
    identity_share: float = 0.5,
    trait_share: float = 0.75,
) -> str:
    """Describes a picture in one sentence.

    Args:
        person: Who is in it.
        circumstance: Expression, clothes, background and style are always told.
        rng: The wording is drawn from it.
        identity_share: The probability with which the person's traits are told at all.
        trait_share: If so, the probability with which each is.

    Returns:
        The sentence, in small letters and without a full stop.
    """
    told = rng.random() < identity_share
    words = ("a person", "a person", "someone")
    who = describe_person(person, rng, trait_share) if told else choose(rng, words)
    doing = describe_circumstance(circumstance, rng)
    return _sentence(who + choose(rng, (" ", ", ")) + doing, circumstance, rng)


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


def _sentence(subject: str, circumstance: Circumstance, rng: np.random.Generator) -> str:
    style = choose(rng, _STYLE_WORDS[circumstance.style])
    if circumstance.background in _PLACE_WORDS:
        place = choose(rng, _PLACE_WORDS[circumstance.background])
    else:
        color = circumstance.background
        place = choose(rng, (f"against a plain {color} background", f"on a {color} background"))
    return f"{style}{subject}{choose(rng, (' ', ', '))}{place}"


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
