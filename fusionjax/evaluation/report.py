"""The suite's results as a Markdown table, JSON, and a contact sheet."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fusionjax.evaluation import metrics, tables
from fusionjax.evaluation.measure import Assignment, Measured
from fusionjax.evaluation.suite import PROMPTED, Cases, Pixels, Suite
from fusionjax.evaluation.tables import head, line, plain, told_interval, told_share
from fusionjax.sheet import labelled_sheet

TRUTH = "another true picture of the person (floor)"
STRANGER = "a different person (ceiling)"
TEXT_ONLY = "text only"
OURS = "fusion, 1 photo"
OURS_MORE = "fusion, {} photos"
DECOUPLED = "decoupled, 1 photo"
DRAWN = "drawn (floor)"
WITH_MASKS = "with masks"
WITHOUT_MASKS = "without masks"
_DIGITS = 5  # of numbers in JSON


@dataclasses.dataclass(frozen=True)
class AdapterName:
    """Which adapter painted: its weights' fingerprint, and what it was trained with."""

    fingerprint: str
    options: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Results:
    """All that was measured.

    Attributes:
        suite: How much was painted, and how.
        base: The base model's fingerprint.
        fusion: The adapter, or None.
        decoupled: The adapter that it is compared with, or None.
        ways: By the name of the way of painting.
        pairs: Two people, by the name of the way.
        autoencoder_psnr: Of the drawn test pictures, in decibels.
        recogniser: What was measured when the recogniser was trained.
    """

    suite: Suite
    base: str
    fusion: AdapterName | None
    decoupled: AdapterName | None
    ways: Mapping[str, Measured]
    pairs: Mapping[str, Assignment]
    autoencoder_psnr: float
    recogniser: Mapping[str, Any]

    def ratios(self, over: str = TEXT_ONLY) -> dict[str, metrics.Interval]:
        """Each way's mean identity distance over another way's, for the same people and prompts.

        Args:
            over: The other way: text only, or the adapter with one photo.

        Returns:
            By the name of the way; none if the other way was not painted.
        """
        if over not in self.ways:
            return {}
        base = self.ways[over].distances
        left_out = (TRUTH, TEXT_ONLY, STRANGER, over)
        painted = [name for name in self.ways if name not in left_out]
        return {name: metrics.ratio_of_means(self.ways[name].distances, base) for name in painted}

    def gain_by_masks(self) -> metrics.Interval | None:
        """How much larger the share of faces assigned right is with masks, over pictures."""
        if not self.pairs:
            return None
        right = [self.pairs[name].faces.astype(np.float64) for name in (WITH_MASKS, WITHOUT_MASKS)]
        return metrics.bootstrap(right[0] - right[1])

    def as_json(self) -> dict[str, Any]:
        """All numbers, with plain types."""
        found = {
            **vars(self),
            "distance_over_text_only": self.ratios(),
            "distance_over_one_photo": self.ratios(OURS),
            "gain_by_masks": self.gain_by_masks(),
        }
        return {name: plain(value, _DIGITS) for name, value in found.items()}


def table(results: Results) -> str:
    """The results as Markdown.

    Args:
        results: What was measured.

    Returns:
        A table of the ways of painting, one of two people, and the numbers that say how far both
        can be trusted.
    """
    suite = results.suite
    count = suite.people * suite.prompts
    columns = ["", "identity distance ↓", "recognised", *PROMPTED, "style", "face PSNR"]
    lines = [
        f"{suite.people} {suite.split} people × {suite.prompts} prompts = {count} pictures a row; "
        f"{suite.how()}. Identity is the cosine distance to the person's photo (mean and 95 % "
        "bootstrap interval over people; less is better), for all pictures but line art, which the "
        "recogniser does not know.",
        "",
        *head([*columns, "face SSIM"]),
    ]
    for name, way in results.ways.items():
        cells = [told_interval(way.distance, 3), told_share(way.recognised)]
        cells += [told_share(share) for share in way.prompt.values()]
        # The true picture is what faces are compared with.
        cells += ["–", "–"] if name == TRUTH else [f"{way.psnr:.1f} dB", f"{way.ssim:.3f}"]
        lines.append(line(name, cells))
    for over in (TEXT_ONLY, OURS):
        ratios = [f"{name}: {told_interval(x, 2)}" for name, x in results.ratios(over).items()]
        if ratios:
            lines += ["", f"Identity distance over that of {over}: {'; '.join(ratios)}."]
    traits = [TRUTH, TEXT_ONLY, OURS, DECOUPLED]
    shown = [name for name in traits if name in results.ways]
    names = list(results.ways[shown[0]].traits)
    lines += ["", *head(["own trait shown", *names])]
    for name in shown:
        lines.append(line(name, map(told_share, results.ways[name].traits.values())))
    gain = results.gain_by_masks()
    if gain is not None:
        title = f"two people, {suite.pairs} pictures"
        columns = ["faces assigned right (chance: 50 %)", "distance to the own photo ↓"]
        lines += ["", *head([title, *columns, "to the other's ↑"])]
        for name, pair in results.pairs.items():
            right = told_interval(pair.interval, -1)
            lines.append(line(name, [right, f"{pair.distance:.3f}", f"{pair.to_other:.3f}"]))
        points = told_interval(metrics.Interval(*(100 * x for x in gain)), 0)
        lines += ["", f"Masks assign {points} percentage points more of the faces right."]
    lines += ["", f"Autoencoder: {results.autoencoder_psnr:.1f} dB PSNR on the drawn pictures."]
    if "verification_accuracy" in results.recogniser:
        verified = 100 * results.recogniser["verification_accuracy"]
        lines.append(
            f"Recogniser: {verified:.1f} % verification accuracy on drawn pictures of test people"
            f"{_alike(results.recogniser)}. "
            "The first row says how well attributes are read from true pictures."
        )
    return "\n".join(lines) + "\n"


def _alike(measured: Mapping[str, Any]) -> str:
    share = measured.get("told_apart_with_one_trait_different")
    return "" if share is None else f", {told_share(share)} where one trait alone is different"


def sheet(
    cases: Cases,
    painted: Mapping[str, Sequence[Pixels]],
    people: int = 8,
    prompts: int = 2,
    side: int = 128,
) -> Image.Image:
    """A contact sheet: a row for each case, a column for the photo, each way, and the truth.

    Args:
        cases: What was painted.
        painted: The pictures of each way, in the order of `cases.flat()`.
        people: How many people are shown.
        prompts: How many prompts of each are shown.
        side: Of a picture on the sheet, in pixels.

    Returns:
        The sheet.
    """
    per_person = len(cases.cases[0])
    rows = []
    for index in range(min(people, len(cases.people))):
        for number in range(min(prompts, per_person)):
            case = cases.cases[index][number]
            ways = [each[index * per_person + number] for each in painted.values()]
            shown = [cases.photos[case.person][0], *ways, case.truth]
            rows.append((case.prompt, [Image.fromarray(each) for each in shown]))
    return labelled_sheet(["photo", *painted, "the drawing"], rows, side=side)


def pair_sheet(
    cases: Cases, painted: Mapping[str, Sequence[Pixels]], pairs: int = 6, side: int = 128
) -> Image.Image:
    """A contact sheet of two people: both photos, then each way.

    Args:
        cases: What was painted.
        painted: The pictures of each way, in the order of `cases.pairs`.
        pairs: How many are shown.
        side: Of a picture on the sheet, in pixels.

    Returns:
        The sheet.
    """
    rows = []
    for row, pair in enumerate(cases.pairs[:pairs]):
        photos = [cases.photos[person][0] for person in pair.people]
        shown = [*photos, *(each[row] for each in painted.values())]
        rows.append(("", [Image.fromarray(each) for each in shown]))
    return labelled_sheet(["left", "right", *painted], rows, side=side)


def write(results: Results, sheets: Mapping[str, Image.Image], folder: Path) -> None:
    """Writes `table.md`, `results.json` and the sheets.

    Args:
        results: What was measured.
        sheets: Pictures by file name.
        folder: Where; must exist.
    """
    tables.write(folder, table(results), results.as_json(), sheets)
