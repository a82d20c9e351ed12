r"""Weights that people write into prompts, in the grammar of AUTOMATIC1111's web interface.

    (word)       1.1 times as much        (word:1.3)   1.3 times as much
    [word]       1.1 times less           \( \) \[ \] \\   the character itself

Brackets nest, and their weights are multiplied. A bracket that is never closed holds until the
end; one that was never opened is a character. Source: `parse_prompt_attention` of
https://github.com/AUTOMATIC1111/stable-diffusion-webui, whose results are repeated in the tests.
"""

import re
from typing import NamedTuple

from fusionjax.errors import UserError, told

_STEP = 1.1
_LARGEST = 100.0
_PARTS = re.compile(r"\\[\\()\[\]]?|[()\[\]]|:\s*(?P<weight>[+-]?[.\d]+)\s*\)|[^\\()\[\]:]+|:")
# What the same interface reads in other ways; as mere brackets it would be something else.
_EDITING = re.compile(r"(?<!\\)\[[^\[\]]*(?:\|[^\[\]]*|:\s*\d*\.?\d+\s*)\]")
_BREAK = re.compile(r"\bBREAK\b")
# A weight that ordinary text does not hold: no ratio (16:9) and no time (at 12:30).
_LIKELY = re.compile(r"\([^()]+:\s*\d*\.\d+\s*\)")


class Piece(NamedTuple):
    """A part of a prompt, and its weight."""

    text: str
    weight: float


def read_weights(prompt: str, name: str = "the prompt") -> list[Piece]:
    """Takes a prompt with weights apart.

    Args:
        prompt: as somebody wrote it.
        name: what it is called in an error.

    Returns:
        Its pieces in order; neighbours of one weight are one piece.

    Raises:
        UserError: for a weight that is no number or beyond ±100, and for prompt editing
            (`[a:b:0.5]`, `[a|b]`, `BREAK`), which the same interface has.
    """
    if found := _EDITING.search(prompt) or _BREAK.search(prompt):
        raise UserError(
            f"{name} has {told(found[0])}: prompts that change from step to step, and BREAK, are "
            "not known here; leave it out, or write \\[ and \\] for plain brackets"
        )
    texts: list[str] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(kind: str, factor: float) -> None:
        for i in range(opened[kind].pop(), len(weights)):
            weights[i] *= factor

    for match in _PARTS.finditer(prompt):
        part, written = match[0], match["weight"]
        if part in opened:
            opened[part].append(len(texts))
        elif written is not None and opened["("]:
            close("(", _weight(written, name))
        elif part == ")" and opened["("]:
            close("(", _STEP)
        elif part == "]" and opened["["]:
            close("[", 1 / _STEP)
        else:
            texts.append(part[1:] if part.startswith("\\") else part)
            weights.append(1.0)
    for kind, factor in (("(", _STEP), ("[", 1 / _STEP)):
        while opened[kind]:
            close(kind, factor)
    pieces: list[Piece] = []
    for text, weight in zip(texts, weights, strict=True):
        if not abs(weight) <= _LARGEST:
            raise UserError(
                f"{name} gives {told(text)} the weight {weight:g}; it must be in "
                f"{-_LARGEST:g}..{_LARGEST:g}"
            )
        if pieces and pieces[-1].weight == weight:
            pieces[-1] = Piece(pieces[-1].text + text, weight)
        else:
            pieces.append(Piece(text, weight))
    return pieces


def likely_weight(prompt: str) -> str | None:
    """What in a prompt looks like a weight, `(word:1.3)`, or None."""
    found = _LIKELY.search(prompt)
    return found and found[0]


def _weight(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"{name} has the weight {told(text)}, which is no number; write (word:1.3)"
        ) from None
