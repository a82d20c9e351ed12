"""The suite's results as a Markdown table, JSON, and a contact sheet."""

import dataclasses
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fusionjax.evaluation import metrics
from fusionjax.evaluation.suite import PROMPTED, Assignment, Cases, Measured, Pixels, Suite

TRUTH = "another true picture of the person (floor)"
STRANGER = "a different person (ceiling)"
TEXT_ONLY = "text only"
OURS = "fusion, 1 photo"
OURS_MORE = "fusion, {} photos"
DECOUPLED = "decoupled, 1 photo"


@dataclasses.dataclass(frozen=True)
class Results:
    """All that was measured.

    Attributes:
        suite: How much was painted, and how.
        base: The base model's fingerprint.
        fusion: The adapter's name, or None.
        ways: By the name of the way of painting.
        pairs: Two people, by "with masks" and "without masks".
        autoencoder_psnr: Of the drawn test pictures, in decibels.
        recogniser: What was measured when the recogniser was trained.
    """

    suite: Suite
    base: str
    fusion: str | None
    ways: Mapping[str, Measured]
    pairs: Mapping[str, Assignment]
    autoencoder_psnr: float
    recogniser: Mapping[str, Any]

    def ratios(self) -> dict[str, metrics.Interval]:
        """Each way's mean identity distance over text only's, where both were painted."""
        if TEXT_ONLY not in self.ways:
            return {}
        base = self.ways[TEXT_ONLY].distances
        painted = [name for name in self.ways if name not in (TRUTH, TEXT_ONLY, STRANGER)]
        return {name: metrics.ratio_of_means(self.ways[name].distances, base) for name in painted}

    def as_json(self) -> dict[str, Any]:
        """All numbers, with plain types."""

        def plain(value: Any) -> Any:
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                return {key: plain(each) for key, each in vars(value).items()}
            if isinstance(value, metrics.Interval):
                return {key: plain(each) for key, each in value._asdict().items()}
            if isinstance(value, Mapping):
                return {key: plain(each) for key, each in value.items()}
            if isinstance(value, np.ndarray):
                return plain(value.tolist())
            if isinstance(value, list | tuple):
                return [plain(each) for each in value]
            return round(value, 5) if isinstance(value, float) else value

        numbers = plain(self)
        numbers["distance_over_text_only"] = plain(self.ratios())
        return dict(numbers)


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
    lines = [
        f"{suite.people} test people × {suite.prompts} prompts = {count} pictures a row; "
        f"{suite.steps} steps of {suite.scheduler}, guidance {suite.guidance_scale:g}, "
        f"face strength {suite.face_strength:g}, seed {suite.seed}. Identity is the cosine "
        "distance to the person's photo (mean and 95 % bootstrap interval over people; less is "
        "better).",
        "",
        "| | identity distance ↓ | recognised | "
        + " | ".join(name.replace("_", " ") for name in (*PROMPTED, "style"))
        + " | face PSNR | face SSIM |",
        "| --- " * 10 + "|",
    ]
    for name, way in results.ways.items():
        mean, low, high = way.distance
        cells = [f"{mean:.3f} ({low:.3f} to {high:.3f})", _percent(way.recognised)]
        cells += [_percent(share) for share in way.prompt.values()]
        cells += [f"{way.psnr:.1f} dB", f"{way.ssim:.3f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    ratios = [
        f"{name}: {ratio.mean:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        for name, ratio in results.ratios().items()
    ]
    if ratios:
        lines += ["", f"Identity distance over that of text only: {'; '.join(ratios)}."]
    traits = [TRUTH, TEXT_ONLY, OURS, DECOUPLED]
    shown = [name for name in traits if name in results.ways]
    names = list(results.ways[shown[0]].traits)
    lines += ["", "| own trait shown | " + " | ".join(n.replace("_", " ") for n in names) + " |"]
    lines.append("| --- " * (len(names) + 1) + "|")
    for name in shown:
        shares = " | ".join(_percent(share) for share in results.ways[name].traits.values())
        lines.append(f"| {name} | {shares} |")
    if results.pairs:
        lines += [
            "",
            f"| two people, {suite.pairs} pictures | faces assigned right | distance to the own "
            "photo ↓ | to the other's ↑ |",
            "| --- | --- | --- | --- |",
        ]
        for name, pair in results.pairs.items():
            interval = f"{_percent(pair.interval.low)} to {_percent(pair.interval.high)}"
            right = f"{_percent(pair.right)} ({interval})"
            lines.append(f"| {name} | {right} | {pair.distance:.3f} | {pair.to_other:.3f} |")
    lines += ["", f"Autoencoder: {results.autoencoder_psnr:.1f} dB PSNR on the drawn pictures."]
    if "verification_accuracy" in results.recogniser:
        verified = 100 * results.recogniser["verification_accuracy"]
        lines.append(
            f"Recogniser: {verified:.1f} % verification accuracy on drawn pictures of test people. "
            "The first row says how well attributes are read from true pictures."
        )
    return "\n".join(lines) + "\n"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


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
    columns = ["photo", *painted, "the drawing"]
    gap, words = 4, 150
    chosen = [
        (index, number)
        for index in range(min(people, len(cases.people)))
        for number in range(min(prompts, per_person))
    ]
    width = words + len(columns) * (side + gap)
    canvas = Image.new("RGB", (width, 20 + len(chosen) * (side + gap)), "white")
    write = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(11)
    for column, name in enumerate(columns):
        write.text((words + column * (side + gap), 3), name, fill="black", font=font)
    for row, (index, number) in enumerate(chosen):
        case = cases.cases[index][number]
        top = 20 + row * (side + gap)
        text = "\n".join(textwrap.wrap(case.prompt, 25))
        write.multiline_text((3, top + 3), text, fill="black", font=font)
        place = index * per_person + number
        shown = [cases.photos[case.person][0], *(each[place] for each in painted.values())]
        for column, picture in enumerate([*shown, case.truth]):
            image = Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS)
            canvas.paste(image, (words + column * (side + gap), top))
    return canvas


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
    columns = ["left", "right", *painted]
    gap = 4
    count = min(pairs, len(cases.pairs))
    canvas = Image.new("RGB", (len(columns) * (side + gap), 20 + count * (side + gap)), "white")
    write = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(11)
    for column, name in enumerate(columns):
        write.text((column * (side + gap) + 3, 3), name, fill="black", font=font)
    for row, pair in enumerate(cases.pairs[:count]):
        photos = [cases.photos[person][0] for person in pair.people]
        for column, picture in enumerate([*photos, *(each[row] for each in painted.values())]):
            image = Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS)
            canvas.paste(image, (column * (side + gap), 20 + row * (side + gap)))
    return canvas


def write(results: Results, sheets: Mapping[str, Image.Image], folder: Path) -> None:
    """Writes `table.md`, `results.json` and the sheets.

    Args:
        results: What was measured.
        sheets: Pictures by file name.
        folder: Where; made if it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(table(results), encoding="utf-8")
    numbers = json.dumps(results.as_json(), indent=2, ensure_ascii=False)
    (folder / "results.json").write_text(numbers + "\n", encoding="utf-8")
    for name, image in sheets.items():
        image.save(folder / name)
