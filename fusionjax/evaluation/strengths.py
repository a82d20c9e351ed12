"""Identity against prompt: a suite at several face strengths, as a table and a curve.

More strength keeps more of the person and less of the prompt; one number of each says little of an
adapter, the curve shows what can be had.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fusionjax.errors import UserError
from fusionjax.evaluation import bounds, curve, faces_suite, measure
from fusionjax.evaluation import suite as suites
from fusionjax.evaluation.faces_report import OURS, Results
from fusionjax.evaluation.metrics import Interval
from fusionjax.evaluation.painting import Painting, Progress, at_stage
from fusionjax.evaluation.recogniser import Recogniser
from fusionjax.evaluation.tables import head, line, told_interval, told_share
from fusionjax.files import whole_file, write_whole
from fusionjax.options import LARGEST_STRENGTH, check_number
from fusionjax.pipeline import FusionPipeline

_NAME = "identity distance to the photo (less is better)"
_BOUNDS = {bounds.TRUTH: "another true photo", bounds.STRANGER: "a different person"}


class Reached(NamedTuple):
    """What one strength, or another method, reached.

    Attributes:
        name: the strength, or the method's name.
        strength: λ; None for another method.
        distance: identity distance, with its interval over people; None if nothing was measured.
        prompt: how well the prompt is followed; None if that was not measured.
        more: further shares and means, by column.
    """

    name: str
    strength: float | None
    distance: Interval | None
    prompt: float | None
    more: dict[str, float | None]


class Curve(NamedTuple):
    """A whole table.

    Attributes:
        what: a sentence on what was painted.
        prompt: what `Reached.prompt` is,
        is_share: and whether it is a share, told in percent.
        rows: the strengths, in order, then other methods.
        levels: distances that bound all others, by name.
    """

    what: str
    prompt: str
    is_share: bool
    rows: list[Reached]
    levels: dict[str, float]


def check_strengths(strengths: Sequence[float]) -> list[float]:
    """The strengths in order, each once.

    Raises:
        UserError: if one is out of range, or there are fewer than two.
    """
    for value in strengths:
        check_number("face_strength", value, 0, LARGEST_STRENGTH)
    found = sorted(set(strengths))
    if len(found) < 2:
        raise UserError(
            f"face_strengths has {len(found)} value; a curve needs two or more, as in 0,0.5,1"
        )
    return found


def run_faces(
    suite: faces_suite.FacesSuite,
    strengths: Sequence[float],
    output: Path,
    open_pipeline: Callable[[], FusionPipeline] | None,
    progress: Progress | None = None,
) -> Curve | None:
    """Paints and measures the suite `faces` at each strength.

    Args:
        suite: what, and how, but for the strength. Its other methods are measured once.
        strengths: λ of the faces.
        output: each strength has a folder in it with all that `faces_suite.run` writes and goes on
            from; the curve stands beside them.
        open_pipeline: base and adapter.
        progress: see `faces_suite.run`.

    Returns:
        The curve, which is written too; None after a share.

    Raises:
        UserError: if something is missing or does not fit together.
    """
    if open_pipeline is None:
        raise UserError("face strengths need an adapter; name one with --fusion")
    opened = functools.cache(lambda: _with_adapter(open_pipeline()))
    found: list[Results] = []
    for number, strength in enumerate(found_strengths := check_strengths(strengths)):
        methods = suite.methods if number == 0 else {}
        one = dataclasses.replace(suite, face_strength=strength, methods=methods)
        folder = output / f"strength_{strength:g}"
        folder.mkdir(parents=True, exist_ok=True)

        def told(stage: str, done: int, of: int, strength: float = strength) -> None:
            at_stage(progress, f"strength {strength:g}, {stage}")(done, of)

        results = faces_suite.run(one, folder, opened, told)
        if results is not None:
            found.append(results)
    if not found:
        return None
    first = found[0]
    rows = [
        _of_faces(results, OURS, strength)
        for results, strength in zip(found, found_strengths, strict=True)
    ]
    rows += [_of_faces(first, name, None) for name in suite.methods]
    levels = {told: first.summary(name, "distance") for name, told in _BOUNDS.items()}
    made = Curve(
        _about(f"{len(first.rows)} people × {len(first.prompts)} prompts", suite),
        "CLIP score",
        False,
        rows,
        {name: interval.mean for name, interval in levels.items() if interval is not None},
    )
    write(made, output)
    return made


def _of_faces(results: Results, name: str, strength: float | None) -> Reached:
    def mean(measure: str) -> float | None:
        interval = results.summary(name, measure)
        return None if interval is None else interval.mean

    scores = results.scores[name]
    measured = float((~np.isnan(scores["distance"])).mean())
    return Reached(
        name if strength is None else f"{strength:g}",
        strength,
        results.summary(name, "distance"),
        mean("text"),
        {"verified": mean("verified"), "with a face": measured, "copied": mean("copied")},
    )


def run_mini(
    suite: suites.Suite,
    strengths: Sequence[float],
    pipe: FusionPipeline,
    judge: Recogniser,
    output: Path,
    progress: Progress | None = None,
) -> Curve:
    """Paints and measures the suite `mini`, one photo a person, at each strength.

    Args:
        suite: what, and how, but for the strength; pairs are left out.
        strengths: λ of the faces.
        pipe: base and adapter.
        judge: the recogniser.
        output: the folder to write to.
        progress: called with a stage, how much of it is done, and of how much.

    Returns:
        The curve, which is written too.

    Raises:
        UserError: if there is no adapter, or a strength is out of range.
    """
    found = check_strengths(strengths)
    _with_adapter(pipe)
    suite = dataclasses.replace(suite, pairs=0, photos=1)
    cases = suites.make_cases(suite, pipe.photo_side)
    faces = suites.encode_people(pipe, cases, cases.people, 1, progress)
    rows = []
    for strength in found:
        one = dataclasses.replace(suite, face_strength=strength)
        measured = measure.measure(
            judge, cases, suites.generate_cases(pipe, cases, one, faces, progress)
        )
        shares = [share for share in measured.prompt.values() if not math.isnan(share)]
        rows.append(
            Reached(
                f"{strength:g}", strength, measured.distance, float(np.mean(shares)),
                {"recognised": measured.recognised, **measured.prompt},
            )
        )  # fmt: skip
    levels = {}
    for name in ("truth", "stranger"):
        pictures = [getattr(case, name) for case in cases.flat()]
        told = "another true picture" if name == "truth" else "a different person"
        levels[told] = measure.measure(judge, cases, pictures).distance.mean
    made = Curve(
        _about(f"{suite.people} {suite.split} people × {suite.prompts} prompts", suite),
        "prompt followed (mean share of attributes)",
        True,
        rows,
        levels,
    )
    write(made, output)
    return made


def _about(what: str, suite: Painting) -> str:
    return (
        f"{what} at each face strength; {suite.steps} steps of {suite.scheduler}, guidance "
        f"{suite.guidance_scale:g}, seed {suite.seed}. "
    )


def _with_adapter(pipe: FusionPipeline) -> FusionPipeline:
    if pipe.fusion_params is None:
        raise UserError("face strengths need an adapter; name one with --fusion")
    return pipe


def table(made: Curve) -> str:
    """The curve as Markdown."""
    names = list(made.rows[0].more)
    heads = ["face strength", "identity distance ↓", f"{made.prompt} ↑", *names]
    lines = [
        f"{made.what}Distances with 95 % bootstrap intervals over people.",
        "",
        *head(heads),
    ]
    for each in made.rows:
        cells = [told_interval(each.distance, 3), "–"]
        if each.prompt is not None:
            cells[1] = told_share(each.prompt) if made.is_share else f"{each.prompt:.1f}"
        for name in names:
            value = each.more[name]
            if value is None or math.isnan(value):
                cells.append("–")
            else:
                cells.append(f"{value:.2f}" if name == "copied" else told_share(value))
        lines.append(line(each.name, cells))
    for name, value in made.levels.items():
        lines += ["", f"Identity distance of {name}: {value:.3f}."]
    return "\n".join(lines) + "\n"


def write(made: Curve, folder: Path) -> None:
    """Writes `curve.md`, `curve.json` and `curve.png`.

    Against the prompt where every strength has a number for it, else against the strength.
    """
    write_whole(folder / "curve.md", table(made))
    numbers: dict[str, Any] = {
        "prompt": made.prompt,
        "levels": made.levels,
        "rows": [
            {**row._asdict(), "distance": None if row.distance is None else row.distance._asdict()}
            for row in made.rows
        ],
        "table": table(made),
    }
    write_whole(folder / "curve.json", json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
    ours = [row for row in made.rows if row.strength is not None]
    by_prompt = all(row.prompt is not None for row in ours if row.distance is not None)
    points: list[curve.Point] = []
    others: list[curve.Point] = []
    levels = dict(made.levels)
    for row in made.rows:
        if row.distance is None:
            continue
        x = row.prompt if by_prompt else row.strength
        if x is not None:
            name = row.name
            if row.strength is not None:
                name = f"strength {row.name}" if by_prompt else ""  # the axis tells it
            point = curve.Point(name, x, row.distance)
            (others if row.strength is None else points).append(point)
        else:
            levels[row.name] = row.distance.mean
    if not points:
        raise UserError("nothing could be measured at any face strength; no curve is drawn")
    picture = curve.draw(
        points, others=others, levels=levels,
        x_name=made.prompt if by_prompt else "face strength", y_name=_NAME,
    )  # fmt: skip
    with whole_file(folder / "curve.png") as beside:
        picture.save(beside, "PNG", optimize=True)
