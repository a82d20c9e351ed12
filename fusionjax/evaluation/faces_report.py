"""The suite `faces` as the paper's Table 1 and Table 2, as JSON, and as a sheet of pictures."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from PIL import Image

from fusionjax.errors import UserError
from fusionjax.evaluation import judges_report, metrics
from fusionjax.evaluation.faces import FAILURES, FaceScores
from fusionjax.evaluation.judges import Judges, Seen
from fusionjax.evaluation.markdown import head, told_interval
from fusionjax.evaluation.people import Shown, find, thumbnail
from fusionjax.face_detection import SAME_PERSON
from fusionjax.sheet import Row, labelled_sheet

if TYPE_CHECKING:
    from fusionjax.evaluation.faces_suite import FacesSuite

OURS = "fusionjax"
_MEASURES = ("distance", "verified", "to_others", "copied", "psnr", "wrapped", "ssim", "text")
_SIDE = 128  # of a picture on the sheet, in pixels


@runtime_checkable
class Summaries(Protocol):
    """Methods with their means."""

    @property
    def scores(self) -> Mapping[str, Any]:
        """By method."""

    def summary(self, name: str, measure: str) -> metrics.Interval | None:
        """A method's mean with its interval; None if nothing could be measured."""


@dataclasses.dataclass(frozen=True)
class FacesResults:
    """All that was measured.

    Attributes:
        suite: what was painted, and how.
        people: their names, the rows of the scores.
        prompts: the columns.
        scores: by method.
        judges: who measured further.
        known: what they say of each person's photos, the shown one first.
    """

    suite: "FacesSuite"
    people: Sequence[str]
    prompts: Sequence[str]
    scores: Mapping[str, FaceScores]
    judges: Judges = dataclasses.field(default_factory=Judges)
    known: Sequence[Sequence[Seen]] = ()

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of all that may be measured."""
        return (*_MEASURES, *self.judges.measures)

    def summary(self, name: str, measure: str) -> metrics.Interval | None:
        """A method's mean with its interval over people; None if no picture could be measured."""
        values = self.scores[name].values(measure)
        return None if values is None else mean_over_people(values)

    def differences(self, measure: str, names: Sequence[str]) -> dict[str, metrics.Interval]:
        """Each method's mean less the first one's, for the same people and prompts."""
        first, *others = names
        base = self.scores[first].values(measure)
        by_name = {name: self.scores[name].values(measure) for name in others}
        found = {
            name: mean_over_people(values - base)
            for name, values in by_name.items()
            if values is not None and base is not None
        }
        return {name: interval for name, interval in found.items() if interval is not None}

    def as_json(self) -> dict[str, Any]:
        """All numbers, with plain types."""
        return {
            "suite": dataclasses.asdict(self.suite),
            "people": list(self.people),
            "prompts": list(self.prompts),
            "methods": {
                name: {
                    **{
                        measure: _plain(values)
                        for measure in (*self.measures, "faces")
                        if (values := scores.values(measure)) is not None
                    },
                    "failures": scores.failures,
                    "extra": scores.extra,
                    "summary": {
                        measure: interval._asdict()
                        for measure in self.measures
                        if (interval := self.summary(name, measure)) is not None
                    },
                }
                for name, scores in self.scores.items()
            },
            "judges": judges_report.as_json(self.judges, self.people, self.known),
            "table": table(self),
        }


def mean_over_people(values: Float[np.ndarray, "p q"]) -> metrics.Interval | None:
    """The mean of what could be measured, and its interval over people; None if nothing could."""
    usable = values[~np.isnan(values).all(axis=1)]
    if not len(usable):
        return None
    return metrics.bootstrap(usable, lambda rows: float(np.nanmean(rows)))


def _plain(values: np.ndarray) -> list[Any]:
    return [
        [None if math.isnan(value) else round(float(value), 4) for value in row] for row in values
    ]


def table(results: FacesResults) -> str:
    """The results as Markdown."""
    suite = results.suite
    lines = [
        f"{len(results.people)} people × {len(results.prompts)} prompts."
        f"{painted_how(suite) if OURS in results.scores else ''} Means with 95 % bootstrap "
        "intervals over people. Pictures that failed are in no mean; they are counted below.",
        "",
        "Identity (the paper's Table 1), by SFace; found by YuNet, aligned by five landmarks. "
        f"Verified: a distance below {1 - SAME_PERSON:.3f}. Copied: 1 is the photo itself, 0 as "
        "near to it as to the person's other photos, negative nearer to those.",
        "",
    ]
    lines += rows(results, {
        "distance to the photo ↓": ("distance", 3), "verified": ("verified", -1),
        "to other true photos ↓": ("to_others", 3), "copied": ("copied", 2),
    })  # fmt: skip
    for part in judges_report.parts(results.judges):
        lines += ["", part.words, "", *rows(results, part.columns)]
    lines += judges_report.told(results.judges, results.people, results.known)
    lines += [
        "",
        "Likeness of the aligned face to the photo's, pixel by pixel (the paper's Table 2). The "
        "third column is no PSNR: differences of bytes were squared as bytes, which wrap around "
        "and give about 27.9 dB for anything; the paper's 27.9 to 28.4 dB can be compared with it. "
        "SSIM does not tell people apart: same and different people overlap.",
        "",
    ]
    columns = {"PSNR, dB": ("psnr", 1), "SSIM": ("ssim", 3), "wrapped, dB": ("wrapped", 1)}
    if any(scores.text is not None for scores in results.scores.values()):
        columns["CLIP score ↑"] = ("text", 1)
    lines += rows(results, columns)
    painted = [name for name in results.scores if name == OURS or name in suite.methods]
    if len(painted) > 1:
        differences = [
            f"{name} {told_interval(interval, 3)}"
            for name, interval in results.differences("distance", painted).items()
        ]
        if differences:
            words = f"Distance to the photo less that of {painted[0]}, same people and prompts"
            lines += ["", f"{words}: {'; '.join(differences)}."]
    lines += ["", *head(["pictures", "measured", "several faces", *FAILURES, "not looked for"])]
    for name in painted:
        scores = results.scores[name]
        counts = [
            int((~np.isnan(scores.distance)).sum()), int((scores.faces > 1).sum()),
            *(scores.failures[kind] for kind in FAILURES), scores.extra,
        ]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(map(str, counts))} |")
    if others := results.judges.recognisers:
        lines += ["", *head(["pictures measured by", "SFace", *(each.name for each in others)])]
        for name, scores in results.scores.items():
            lines.append(f"| {name} | {' | '.join(judges_report.counts(scores, others))} |")
    return "\n".join(lines) + "\n"


def painted_how(suite: "FacesSuite") -> str:
    """How the suite's own pictures were painted, in a sentence."""
    return (
        f" Painted here: {suite.steps} steps of {suite.scheduler}, guidance "
        f"{suite.guidance_scale:g}, face strength {suite.face_strength:g}, seed {suite.seed}."
    )


def rows(results: Summaries, columns: Mapping[str, tuple[str, int]]) -> list[str]:
    """A table of means: columns are measures and how many digits are told; −1 is in per cent."""
    lines = head(["", *columns])
    for name in results.scores:
        cells = [
            told_interval(results.summary(name, measure), digits)
            for measure, digits in columns.values()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
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


def write(results: FacesResults, image: Image.Image, folder: Path) -> None:
    """Writes `table.md`, `results.json` and `sheet.png`."""
    (folder / "table.md").write_text(table(results), encoding="utf-8")
    numbers = json.dumps(results.as_json(), indent=1, ensure_ascii=False)
    (folder / "results.json").write_text(numbers + "\n", encoding="utf-8")
    image.save(folder / "sheet.png")
