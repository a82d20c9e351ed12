"""What the suite `faces` measured: the paper's Table 1 and 2, those of groups, JSON, a sheet."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from fusionjax.errors import UserError
from fusionjax.evaluation import metrics
from fusionjax.evaluation.faces import BY_EACH, LIKENESS
from fusionjax.evaluation.judges import EXPRESSION, POSE, SFACE, Judges, Person, Recogniser
from fusionjax.evaluation.people import Shown, find, thumbnail
from fusionjax.evaluation.scores import FAILURES, Scores
from fusionjax.evaluation.tables import head, line, means, plain, told_interval
from fusionjax.sheet import Row, labelled_sheet

OURS = "fusionjax"
_OF_GROUPS = (
    "distance", "to_others", "copied", "in_place", "to_rest", "confused", "recognised"
)  # fmt: skip
_SIDE = 128  # of a picture on the sheet, in pixels
_DIGITS = 4  # of numbers in JSON
Columns = Mapping[str, tuple[str, int]]


@dataclasses.dataclass(frozen=True)
class Results:
    """All that was measured.

    Attributes:
        about: what was painted and how, in a sentence or two.
        suite: all options.
        rows: names of the people or groups, the rows of the scores.
        prompts: what was asked for.
        scores: by method.
        painted: the methods; the other rows of the tables are what true photos get.
        judges: who measured; they look closely at people alone.
        known: what they see in each person's photos, the shown one first.
    """

    about: str
    suite: Mapping[str, Any]
    rows: Sequence[str]
    prompts: Sequence[str]
    scores: Mapping[str, Scores]
    painted: Sequence[str]
    judges: Judges
    known: Mapping[str, Person]

    @property
    def alone(self) -> bool:
        """Whether each picture is of one person."""
        return self.judges.closely

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of all that may be measured."""
        if self.alone:
            return (*self.judges.measures, "copied", *LIKENESS, "text")
        by_each = [f"{each.prefix}{what}" for each in self.judges.further for what in BY_EACH]
        return (*_OF_GROUPS, *by_each, "text")

    def summary(self, name: str, measure: str) -> metrics.Interval | None:
        """A method's mean, and its interval over people or groups; None if nothing was measured."""
        values = self.scores[name].values.get(measure)
        return None if values is None else mean_over_rows(values)

    def differences(self, measure: str) -> dict[str, metrics.Interval]:
        """Each method's mean less the first one's, for the same people, groups and prompts."""
        first, *others = (self.scores[name].values.get(measure) for name in self.painted)
        found = {
            name: mean_over_rows(values - first)
            for name, values in zip(self.painted[1:], others, strict=True)
            if values is not None and first is not None
        }
        return {name: interval for name, interval in found.items() if interval is not None}

    def as_json(self) -> dict[str, Any]:
        """All numbers, with plain types; null where nothing could be measured."""
        return {
            "about": self.about,
            "suite": dict(self.suite),
            "people" if self.alone else "groups": list(self.rows),
            "prompts": list(self.prompts),
            "methods": {name: self._numbers(name) for name in self.scores},
            "judges": {
                "recognisers": [
                    {
                        "name": each.name,
                        "verified_up_to": each.bound,
                        "distance": "euclidean" if each.euclidean else "cosine",
                        "about": family.about,
                    }
                    for family in self.judges.families
                    for each in family.recognisers
                ],
                "absent": list(self.judges.absent),
                "no_face_in_photos": {
                    name: {"shown_photo_of": shown, "other_photos": others}
                    for name, (shown, others) in self.unseen().items()
                },
            },
        }

    def _numbers(self, name: str) -> dict[str, Any]:
        scores = self.scores[name]
        numbers: dict[str, Any] = {
            measure: plain(scores[measure], _DIGITS)
            for measure in self.measures
            if measure in scores.values
        }
        if self.alone:
            numbers["faces"] = plain(np.maximum(scores.faces, 0), _DIGITS)
            numbers |= {"failures": scores.failures, "extra": scores.extra}
        else:
            numbers |= {what: plain(getattr(scores, what), _DIGITS) for what in ("faces", "wanted")}
            numbers["twice"] = plain(np.nan_to_num(scores["twice"]), _DIGITS)
            numbers["counts"] = scores.counts()
            numbers["people without a face"] = scores.without_face()[0]
        numbers["summary"] = {
            measure: interval._asdict()
            for measure in self.measures
            if (interval := self.summary(name, measure)) is not None
        }
        return numbers

    def unseen(self) -> dict[str, tuple[list[str], int]]:
        """By recogniser, whose shown photo it finds no face in, and how many of the others."""
        found = {}
        for each in self.judges.further:
            lacking = {
                name: [each.name not in seen.vectors for seen in photos]
                for name, photos in self.known.items()
            }
            shown = [name for name, row in lacking.items() if row[0]]
            others = sum(sum(row[1:]) for row in lacking.values())
            if shown or others:
                found[each.name] = shown, others
        return found


def mean_over_rows(values: Float[np.ndarray, "g ..."]) -> metrics.Interval | None:
    """The mean of what could be measured, and its interval over rows; None if nothing could."""
    values = values.reshape(len(values), -1)
    usable = values[~np.isnan(values).all(axis=1)]
    if not len(usable):
        return None
    return metrics.bootstrap_mean(usable)


def table(results: Results) -> str:
    """The results as Markdown."""
    return "\n".join((_table_of_one if results.alone else _table_of_groups)(results)) + "\n"


def _means(results: Results, columns: Columns) -> list[str]:
    return means(results.scores, results.summary, columns)


def _table_of_one(results: Results) -> list[str]:
    lines = [
        f"{results.about} Means with 95 % bootstrap intervals over people. Pictures that failed "
        "are in no mean; they are counted below.",
        "",
        "Identity (the paper's Table 1), by SFace; found by YuNet, aligned by five landmarks. "
        f"Verified: a distance below {SFACE.bound:.3f}. Copied: 1 is the photo itself, 0 as near "
        "to it as to the person's other photos, negative nearer to those.",
        "",
        *_means(results, {
            "distance to the photo ↓": ("distance", 3), "verified": ("verified", -1),
            "to other true photos ↓": ("to_others", 3), "copied": ("copied", 2),
        }),
        *_by_families(results, {
            "distance to the photo ↓": ("distance", 3), "verified": ("verified", -1),
            "to other true photos ↓": ("to_others", 3),
        }),
    ]  # fmt: skip
    words = (
        "What is taken over from the photo beside the person: how far the head is turned from "
        "where it is turned there (five landmarks, scaled orthography). The photo itself has 0; "
        "what is far below another true photo's was copied."
    )
    columns = {f"{name}, degrees": (name, 1) for name in POSE}
    if results.judges.reads_expressions:
        columns["expression"] = EXPRESSION, 3
        words += (
            " Expression: half the sum of the differences of deepface's seven shares, 0 for the "
            "same, 1 for another."
        )
    lines += ["", words, "", *_means(results, columns), *_who_did_not_judge(results)]
    lines += [
        "",
        "Likeness of the aligned face to the photo's, pixel by pixel (the paper's Table 2). The "
        "third column is no PSNR: differences of bytes were squared as bytes, which wrap around "
        "and give about 27.9 dB for anything; the paper's 27.9 to 28.4 dB can be compared with it. "
        "SSIM does not tell people apart: same and different people overlap.",
        "",
    ]
    columns = {"PSNR, dB": ("psnr", 1), "SSIM": ("ssim", 3), "wrapped, dB": ("wrapped", 1)}
    lines += _means(results, columns | _text(results))
    lines += _differences(results, "same people and prompts")
    lines += ["", *head(["pictures", "measured", "several faces", *FAILURES, "not looked for"])]
    for name in results.painted:
        scores = results.scores[name]
        counts = [int((~np.isnan(scores["distance"])).sum()), int((scores.faces > 1).sum())]
        lines.append(line(name, [*counts, *scores.failures.values(), scores.extra]))
    return lines + _measured_by(results, "pictures measured by")


def _table_of_groups(results: Results) -> list[str]:
    columns = {
        "distance to the photo ↓": ("distance", 3),
        "recognised of all wanted ↑": ("recognised", -1),
        "to other true photos ↓": ("to_others", 3),
    }
    lines = [
        f"{results.about} Means with 95 % bootstrap intervals over groups.",
        "",
        "Identity, by SFace: each person gets the face of the one-to-one assignment with the "
        "largest sum of cosines. Distances are those of people who got a face; recognised are all "
        f"who were wanted, by a distance below {SFACE.bound:.3f}: who has no face is not. "
        "Copied: 1 is the photo itself, 0 as near to it as to the person's other photos.",
        "",
        *_means(results, columns | {"copied": ("copied", 2)} | _text(results)),
        "",
        "Who is where, and who looks like whom, of the people who got a face. In their own place: "
        "the face's middle lies in the person's column; a dash where nobody was told the places. "
        "Cosine to the others: of a face and the other people in the picture (the true photos' row "
        "tells how alike they are). Mistaken: nearer to one of them than to its own person.",
        "",
        *_means(results, {
            "in their own place ↑": ("in_place", -1), "cosine to the others ↓": ("to_rest", 3),
            "mistaken ↓": ("confused", -1),
        }),
        *_by_families(results, {
            **columns, "to the others in the picture ↑": ("from_rest", 3),
            "mistaken ↓": ("confused", -1),
        }, " Each recogniser assigns the faces by itself, by the smallest sum of distances."),
        *_who_did_not_judge(results),
        *_differences(results, "same groups, prompts and people"),
        "",
        "Faces found, counted in pictures; too few and too many are of pictures with a face.",
        "",
    ]  # fmt: skip
    counts = {name: scores.counts() for name, scores in results.scores.items()}
    lines += head(["", *next(iter(counts.values())), "people without a face"])
    for name, each in counts.items():
        without, wanted = results.scores[name].without_face()
        lines.append(line(name, [*each.values(), f"{without} of {wanted}"]))
    return lines + _measured_by(results, "people measured by")


def _text(results: Results) -> dict[str, tuple[str, int]]:
    measured = any("text" in scores.values for scores in results.scores.values())
    return {"CLIP score ↑": ("text", 1)} if measured else {}


def _by_families(results: Results, columns: Columns, words: str = "") -> list[str]:
    """A table of identity by each family of further recognisers."""
    lines = []
    for family in results.judges.families:
        titled = {}
        for each in family.recognisers:
            mark = f" ({each.name})" if len(family.recognisers) > 1 else ""
            for number, (title, (measure, digits)) in enumerate(columns.items()):
                title = f"{title}{mark}" if number else f"{each.name}: {title}"
                titled[title] = f"{each.prefix}{measure}", digits
        lines += ["", f"Identity, {family.about}{words}", "", *_means(results, titled)]
    return lines


def _who_did_not_judge(results: Results) -> list[str]:
    """Sentences on it, and on whom a judge could not see."""
    lines = [" ".join(results.judges.absent)] if results.judges.absent else []
    for each, (shown, others) in results.unseen().items():
        if shown:
            lines.append(
                f"{each} finds no face in the shown photo of {', '.join(shown)}, so that nothing "
                "is measured by it there."
            )
        if others:
            lines.append(f"{each} finds no face in {others} other true photos.")
    return [line for text in lines for line in ("", text)]


def _differences(results: Results, same: str) -> list[str]:
    if len(results.painted) < 2 or not (found := results.differences("distance")):
        return []
    told = "; ".join(f"{name} {told_interval(each, 3)}" for name, each in found.items())
    return ["", f"Distance to the photo less that of {results.painted[0]}, {same}: {told}."]


def _measured_by(results: Results, title: str) -> list[str]:
    """Of how many each recogniser measured the distance to the photo; nothing if SFace is alone."""
    if not results.judges.further:
        return []

    def count(scores: Scores, each: Recogniser) -> str:
        values = scores[f"{each.prefix}distance"]
        return f"{int((~np.isnan(values)).sum())} of {int(scores.wanted.sum())}"

    judges = results.judges.recognisers
    lines = ["", *head([title, *(each.name for each in judges)])]
    for name, scores in results.scores.items():
        lines.append(line(name, (count(scores, each) for each in judges)))
    return lines


def sheet(
    subjects: Sequence[Shown],
    prompts: Sequence[str],
    methods: Mapping[str, Path],
    most: int = 8,
    look_up: Callable[[Path, Shown, int], Path | None] = find,
) -> Image.Image:
    """People in columns, methods in rows, for the first three prompts, as the paper's figure 5.

    Args:
        subjects: people or groups, whose photos stand side by side.
        prompts: what was asked for.
        methods: folders of pictures by name.
        most: columns.
        look_up: finds a picture in a method's folder.
    """

    def picture(paths: Sequence[Path]) -> Image.Image:
        cell = Image.new("RGB", (_SIDE, _SIDE), "white")
        side = _SIDE // len(paths)
        for place, path in enumerate(paths):
            with contextlib.suppress(UserError):  # it is counted as unreadable
                cell.paste(thumbnail(path, side), (place * side, 0))
        return cell

    shown = subjects[:most]
    rows: list[Row] = [("photo", [picture(subject.shown) for subject in shown])]
    for n in range(min(3, len(prompts))):
        for name, folder in methods.items():
            paths = [look_up(folder, subject, n) for subject in shown]
            pictures = [None if path is None else picture([path]) for path in paths]
            rows.append((f"{name}: {prompts[n]}", pictures))
    return labelled_sheet([subject.name for subject in shown], rows, side=_SIDE)
