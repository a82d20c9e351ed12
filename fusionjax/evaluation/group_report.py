"""What was measured of pictures of several people, as Markdown and as JSON."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fusionjax.evaluation import metrics
from fusionjax.evaluation.faces_report import mean_over_people, rows
from fusionjax.evaluation.group_measures import EACH, GroupScores
from fusionjax.evaluation.markdown import head, told_interval
from fusionjax.face_detection import SAME_PERSON

_MEASURES = (*EACH, "text")


@dataclasses.dataclass(frozen=True)
class GroupResults:
    """All that was measured.

    Attributes:
        about: what was painted and how, in a sentence or two.
        suite: all options.
        groups: names of the groups, the rows of the scores.
        prompts: what was asked for.
        scores: by method.
        painted: the methods; the other rows are what true photos get.
    """

    about: str
    suite: Mapping[str, Any]
    groups: Sequence[str]
    prompts: Sequence[str]
    scores: Mapping[str, GroupScores]
    painted: Sequence[str]

    def summary(self, name: str, measure: str) -> metrics.Interval | None:
        """A method's mean with its interval over groups; None if nothing could be measured."""
        values = getattr(self.scores[name], measure)
        return None if values is None else mean_over_people(values.reshape(len(values), -1))

    def differences(self, measure: str) -> dict[str, metrics.Interval]:
        """Each method's mean less the first one's, for the same groups, prompts and people."""
        first, *others = self.painted
        base = getattr(self.scores[first], measure)
        found = {}
        for name in others:
            less = getattr(self.scores[name], measure) - base
            found[name] = mean_over_people(less.reshape(len(less), -1))
        return {name: interval for name, interval in found.items() if interval is not None}

    def as_json(self) -> dict[str, Any]:
        """All numbers, with plain types; null where nothing could be measured."""
        return {
            "about": self.about,
            "suite": dict(self.suite),
            "groups": list(self.groups),
            "prompts": list(self.prompts),
            "methods": {
                name: {
                    **{
                        measure: _plain(values)
                        for measure in (*_MEASURES, "faces", "wanted", "twice")
                        if (values := getattr(scores, measure)) is not None
                    },
                    "counts": scores.counts(),
                    "people without a face": scores.without_face()[0],
                    "summary": {
                        measure: interval._asdict()
                        for measure in _MEASURES
                        if (interval := self.summary(name, measure)) is not None
                    },
                }
                for name, scores in self.scores.items()
            },
            "table": table(self),
        }


def _plain(values: np.ndarray) -> Any:
    if values.ndim > 1:
        return [_plain(row) for row in values]
    return [None if np.isnan(value) else round(float(value), 4) for value in values]


def table(results: GroupResults) -> str:
    """The results as Markdown."""
    lines = [
        f"{results.about} Means with 95 % bootstrap intervals over groups.",
        "",
        "Identity, by SFace: each person gets the face of the one-to-one assignment with the "
        "largest sum of cosines. Distances are those of people who got a face; recognised are all "
        f"who were wanted, by a distance below {1 - SAME_PERSON:.3f}: who has no face is not. "
        "Copied: 1 is the photo itself, 0 as near to it as to the person's other photos.",
        "",
    ]
    columns = {
        "distance to the photo ↓": ("distance", 3),
        "recognised of all wanted ↑": ("recognised", -1),
        "to other true photos ↓": ("to_others", 3), "copied": ("copied", 2),
    }  # fmt: skip
    if any(scores.text is not None for scores in results.scores.values()):
        columns["CLIP score ↑"] = ("text", 1)
    lines += rows(results, columns)
    lines += [
        "",
        "Who is where, and who looks like whom, of the people who got a face. In their own place: "
        "the face's middle lies in the person's column; a dash where nobody was told the places. "
        "Cosine to the others: of a face and the other people in the picture (the true photos' row "
        "tells how alike they are). Mistaken: nearer to one of them than to its own person.",
        "",
    ]
    lines += rows(results, {
        "in their own place ↑": ("in_place", -1), "cosine to the others ↓": ("to_rest", 3),
        "mistaken ↓": ("confused", -1),
    })  # fmt: skip
    if len(results.painted) > 1 and (differences := results.differences("distance")):
        told = [f"{name} {told_interval(each, 3)}" for name, each in differences.items()]
        lines += ["", f"Distance to the photo less that of {results.painted[0]}, same groups, "
                      f"prompts and people: {'; '.join(told)}."]  # fmt: skip
    counts = {name: scores.counts() for name, scores in results.scores.items()}
    lines += ["", "Faces found, counted in pictures; too few and too many are of pictures with a "
                  "face.", ""]  # fmt: skip
    lines += head(["", *next(iter(counts.values())), "people without a face"])
    for name, each in counts.items():
        without, wanted = results.scores[name].without_face()
        cells = [*map(str, each.values()), f"{without} of {wanted}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write(results: GroupResults, image: Image.Image, folder: Path) -> None:
    """Writes `table.md`, `results.json` and `sheet.png`."""
    (folder / "table.md").write_text(table(results), encoding="utf-8")
    numbers = json.dumps(results.as_json(), indent=1, ensure_ascii=False)
    (folder / "results.json").write_text(numbers + "\n", encoding="utf-8")
    image.save(folder / "sheet.png")
