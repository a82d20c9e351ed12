"""`fusionjax report RUN`: a run as one page, with its curves, its grids and what it was made from.

    fusionjax report runs/mini-20260101-120000

writes `report.html` in the run's folder, as the run itself does at each validation. The page is
one file: nothing else is needed to see it, and nothing is fetched.
"""

import base64
import io
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from PIL import Image

from fusionjax.command import parser_of, run_command
from fusionjax.errors import UserError, shortened
from fusionjax.files import write_whole
from fusionjax.schema import read_json

PAGE = "report.html"
_PAGES = (".html", ".htm")
_WIDTH, _HEIGHT = 640, 240  # of a chart, with its margins, in pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 28
_MOST_POINTS = 400  # of a curve
_MOST_GRIDS = 8
_GRID_WIDTH = 1600  # pixels

# Title, and what is in it: the lines' group, the metric, and how the curve is called. A chart of
# which a run tells nothing is left out.
_CHARTS: dict[str, list[tuple[str, str, str]]] = {
    "Loss": [("train", "loss", "training"), ("validation", "loss", "validation")],
    "Validation error, without weights": [
        ("validation", "mse", "mean squared error"), ("validation", "l1", "mean absolute error"),
    ],
    "Validation error by noise": [
        ("validation", f"mse_t{i}", f"{('first', 'second', 'third', 'last')[i]} quarter of t")
        for i in range(4)
    ],
    "Validation, in decibels": [("validation", "psnr_db", "PSNR")],
    "Learning rate": [("train", "learning_rate", "of AdamW")],
    "Norm of the gradient": [("train", "grad_norm", "before it is clipped")],
    "Pictures a second": [("train", "images_s", "in training")],
}  # fmt: skip
_LESS_IS_BETTER = {"Loss", "Validation error, without weights", "Validation error by noise"}
# What a grid's lines are, from the top, by the run's kind.
_LINES = {
    "AdapterRun": "photo, true picture, with the adapter, without it; the noise is the same",
    "BaseRun": "true picture, what the model paints to its caption",
    "AutoencoderRun": "picture, what the autoencoder makes of it",
}

Row = Mapping[str, Any]


class Curve(NamedTuple):
    """A line of a chart.

    Attributes:
        name: in the legend.
        points: pixels, as SVG's `points`.
        last: the newest value.
        least: the least value and its step, where less is better.
    """

    name: str
    points: str
    last: float
    least: tuple[float, int] | None


class Chart(NamedTuple):
    """A chart in pixels.

    Attributes:
        title: above it.
        curves: in the legend's order.
        columns: of each tick below, where it is and its words.
        rows: of each tick beside, the same.
    """

    title: str
    curves: list[Curve]
    columns: list[tuple[float, str]]
    rows: list[tuple[float, str]]


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Writes a run's page, whole or not at all.

    Args:
        folder: the run's, finished or not.
        output: the page; None is `report.html` in the folder.

    Returns:
        The page.

    Raises:
        UserError: if no run lies there.
    """
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{shortened(str(folder), 200)} holds no run (it has no config.json); name a run's "
            "folder"
        )
    if output is not None and (output.is_dir() or output.suffix.lower() not in _PAGES):
        raise UserError(
            f"--output is {shortened(str(output), 200)!r}, which is no page's name; end it in .html"
        )
    config: dict[str, Any] = read_json(folder / "config.json")
    rows = read_metrics(folder)
    grids = sorted(
        (path for path in (folder / "grids").glob("*.png") if path.stem.isdecimal()),
        key=lambda path: int(path.stem),
    )
    shown = spread(grids, _MOST_GRIDS)
    page = _template().render(
        config=config,
        facts=_facts(config, rows),
        charts=[chart for title in _CHARTS if (chart := draw(title, rows)) is not None],
        size=(_WIDTH, _HEIGHT),
        area=(_LEFT, _TOP, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM),
        # The newest first: that is what one opens the page for.
        grids=[(int(path.stem), _picture(path)) for path in reversed(shown)],
        lines=_LINES.get(str(config.get("kind")), ""),
        grids_in_all=len(grids),
        settings=list(_flat(config)),
    )
    output = output or folder / PAGE
    write_whole(output, page)
    return output


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl that are whole; a kill may have cut the last one off."""
    path, rows = folder / "metrics.jsonl", []
    for line in _text(path).splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _text(path: Path) -> str:
    """What a file holds, where it is there and as far as it is text."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many, evenly chosen, the first and the last among them."""
    count = min(len(items), most)
    return [items[round(i * (len(items) - 1) / max(count - 1, 1))] for i in range(count)]


def draw(title: str, rows: Sequence[Row]) -> Chart | None:
    """A chart of metrics over steps.

    Args:
        title: one of the charts'.
        rows: of metrics.jsonl.

    Returns:
        The chart; None if no row holds any of its numbers.
    """
    values: dict[str, list[tuple[int, float]]] = {}
    for group, metric, name in _CHARTS[title]:
        found = [
            (row["step"], row[metric])
            for row in rows
            if row.get("group") == group
            and isinstance(row.get(metric), int | float)
            and math.isfinite(row[metric])
        ]
        if found:
            values[name] = found
    if not values:
        return None
    points = [point for found in values.values() for point in found]
    # All charts of a run have the same steps below them.
    column = _Scale([0, max([1, *(row["step"] for row in rows)])], _LEFT, _WIDTH - _RIGHT)
    row = _Scale([value for _, value in points], _HEIGHT - _BOTTOM, _TOP)
    curves = [
        Curve(
            name,
            " ".join(f"{column(x):.2f},{row(y):.2f}" for x, y in _thinned(found)),
            found[-1][1],
            min((y, x) for x, y in found) if title in _LESS_IS_BETTER else None,
        )
        for name, found in values.items()
    ]
    return Chart(title, curves, column.ticks(), row.ticks())


class _Scale:
    """Numbers to pixels, linearly, from one round number to another."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        if low == high:
            low, high = (0.0, 2 * high) if high > 0 else (low - 1, high + 1)
        rough = (high - low) / 4
        power = 10.0 ** math.floor(math.log10(rough))
        self._by = next(power * n for n in (1, 2, 5, 10) if power * n >= rough)
        self._low = math.floor(low / self._by) * self._by
        self._high = math.ceil(high / self._by) * self._by
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        share = (value - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[tuple[float, str]]:
        count = round((self._high - self._low) / self._by)
        values = [self._low + i * self._by for i in range(count + 1)]
        return [(round(self(value), 2), f"{value:.6g}") for value in values]


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """The means of neighbours, where a curve has more points than can be told apart."""
    size = math.ceil(len(points) / _MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def _picture(path: Path) -> str:
    """A grid as a page holds it, no wider than a screen; empty if the file is damaged."""
    buffer = io.BytesIO()
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.thumbnail((_GRID_WIDTH, 1 << 16), Image.Resampling.LANCZOS)
            image.convert("RGB").save(buffer, "JPEG", quality=88)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return ""
    return base64.b64encode(buffer.getvalue()).decode()


def _facts(config: Row, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What a reader asks first."""
    train = [row for row in rows if row.get("group") == "train"]
    held_out = [
        row for row in rows if row.get("group") == "validation" and _number(row.get("loss"))
    ]
    last: Row = train[-1] if train else {}
    done = max((row["step"] for row in rows), default=0)
    data = config.get("data") if isinstance(config.get("data"), dict) else {}
    assert isinstance(data, dict)
    facts = [("steps", f"{done:,} of {_number(config.get('steps', done)):,}")]
    if seen := _number(last.get("images_seen")):
        epochs = _number(last.get("epochs"))
        facts.append(("pictures seen", f"{seen:,} ({epochs:.3g} epochs)"))
    if held_out:
        best = min(held_out, key=lambda row: row["loss"])
        facts.append(("best validation loss", f"{best['loss']:.4f} after step {best['step']:,}"))
    if skipped := _number(last.get("skipped")):
        facts.append(("steps whose gradient was not finite", f"{skipped:,}"))
    if "folder" in data:
        count = _number(config.get("train_examples"))
        split = f"{data.get('train_split')}" + (f", {count:,} pictures" if count else "")
        facts.append(("trained on", f"{data['folder']} ({split})"))
        facts.append(("validated on", f"{data['folder']} ({data.get('validation_split')})"))
    names = {
        "base": "base",
        "base_fingerprint": "the base's fingerprint",
        "init_from": "begun from",
    }
    facts += [(title, str(config[key])) for key, title in names.items() if config.get(key)]
    return facts


def _number(value: Any) -> int | float:
    """A number that a file holds, or 0: others may have written there."""
    return value if isinstance(value, int | float) and math.isfinite(value) else 0


def _flat(config: Row, prefix: str = "") -> Iterable[tuple[str, str]]:
    """All settings, by the command line's names."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(value, ensure_ascii=False)


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html.jinja")


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the page of the run that the command line names.

    Args:
        arguments: the words after the command; None takes this process's.

    Returns:
        The exit status: 0, or 2 for what the user can mend.
    """
    parser = parser_of("fusionjax report", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help=f"the page to write (RUN/{PAGE})"
    )
    args = parser.parse_args(arguments)
    return run_command(lambda: print(write_report(args.run, args.output)))


if __name__ == "__main__":
    sys.exit(main())
