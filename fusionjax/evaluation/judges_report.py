"""What further judges say, as parts of the tables of the suite `faces`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fusionjax.evaluation.judges import EXPRESSION, POSE, Judges, Recogniser, Seen

if TYPE_CHECKING:
    from fusionjax.evaluation.faces import FaceScores


class Part(NamedTuple):
    """A table.

    Attributes:
        words: what stands above it.
        columns: by title, a measure and its digits; -1 for a share in percent.
    """

    words: str
    columns: Mapping[str, tuple[str, int]]


def parts(judges: Judges) -> list[Part]:
    """The tables: identity by each family, then pose and expression."""
    found = []
    for family in judges.families:
        columns = {}
        for each in family.recognisers:
            columns[f"{each.name}: distance to the photo ↓"] = f"{each.key}_distance", 3
            columns["verified" + _mark(each, family.recognisers)] = f"{each.key}_verified", -1
            columns["to other true photos ↓" + _mark(each, family.recognisers)] = (
                f"{each.key}_to_others",
                3,
            )
        found.append(Part(f"Identity, {family.about}", columns))
    columns = {f"{name}, degrees": (name, 1) for name in POSE}
    words = (
        "What is taken over from the photo beside the person: how far the head is turned from "
        "where it is turned there (five landmarks, scaled orthography). The photo itself has 0; "
        "what is far below another true photo's was copied."
    )
    if judges.reads_expressions:
        columns["expression"] = EXPRESSION, 3
        words += (
            " Expression: half the sum of the differences of deepface's seven shares, 0 for the "
            "same, 1 for another."
        )
    return [*found, Part(words, columns)]


def _mark(recogniser: Recogniser, family: Sequence[Recogniser]) -> str:
    """What tells columns of one title apart."""
    return f" ({recogniser.name})" if len(family) > 1 else ""


def told(judges: Judges, people: Sequence[str], known: Sequence[Sequence[Seen]]) -> list[str]:
    """Sentences below: who did not judge, and whom a judge could not see."""
    lines = [f"{' '.join(judges.absent)}"] if judges.absent else []
    for each, (shown, others) in unseen(judges, people, known).items():
        if shown:
            lines.append(
                f"{each} finds no face in the shown photo of {', '.join(shown)}, so that nothing "
                "is measured by it there."
            )
        if others:
            lines.append(f"{each} finds no face in {others} other true photos.")
    return [line for text in lines for line in ("", text)]


def unseen(
    judges: Judges, people: Sequence[str], known: Sequence[Sequence[Seen]]
) -> dict[str, tuple[list[str], int]]:
    """By recogniser, whose shown photo it finds no face in, and how many of the others."""
    found = {}
    for each in judges.recognisers:
        lacking = [[each.name not in seen.vectors for seen in photos] for photos in known]
        names = [name for name, row in zip(people, lacking, strict=True) if row[0]]
        others = sum(sum(row[1:]) for row in lacking)
        if names or others:
            found[each.name] = names, others
    return found


def counts(scores: "FaceScores", recognisers: Sequence[Recogniser]) -> list[str]:
    """Of how many pictures the distance to the photo was measured by SFace, and by each other."""
    by_each = [scores.distance, *(scores.further[f"{each.key}_distance"] for each in recognisers)]
    return [f"{int((~np.isnan(values)).sum())} of {values.size}" for values in by_each]


def as_json(
    judges: Judges, people: Sequence[str], known: Sequence[Sequence[Seen]]
) -> dict[str, Any]:
    """Who judged and how, with plain types."""
    return {
        "recognisers": [
            {
                "name": each.name,
                "verified_up_to": each.bound,
                "distance": "euclidean" if each.euclidean else "cosine",
                "about": family.about,
            }
            for family in judges.families
            for each in family.recognisers
        ],
        "absent": list(judges.absent),
        "no_face_in_photos": {
            name: {"shown_photo_of": shown, "other_photos": others}
            for name, (shown, others) in unseen(judges, people, known).items()
        },
    }
