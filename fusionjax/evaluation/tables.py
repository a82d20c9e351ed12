"""What the suites' tables and files have in common."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fusionjax.evaluation.metrics import Interval


def head(names: Sequence[str]) -> list[str]:
    """The first two lines of a table, with a column for each name."""
    words = " | ".join(name.replace("_", " ") for name in names)
    return [f"| {words} |", "| --- " * len(names) + "|"]


def line(name: str, cells: Iterable[Any]) -> str:
    """A line of a table."""
    return f"| {name} | {' | '.join(map(str, cells))} |"


def told_interval(interval: Interval | None, digits: int) -> str:
    """A mean with its interval.

    Args:
        interval: None is a dash.
        digits: behind the point; -1 tells a share in per cent.
    """
    if interval is None:
        return "–"
    if digits < 0:
        mean, low, high = (f"{100 * x:.0f} %" for x in interval)
    else:
        mean, low, high = (f"{x:.{digits}f}" for x in interval)
    return f"{mean} ({low} to {high})"


def means(
    names: Iterable[str],
    summary: Callable[[str, str], Interval | None],
    columns: Mapping[str, tuple[str, int]],
) -> list[str]:
    """A table of means.

    Args:
        names: of the lines.
        summary: a line's mean of a measure.
        columns: by title, a measure and its digits, see `told_interval`.
    """
    lines = head(["", *columns])
    for name in names:
        lines.append(line(name, (told_interval(summary(name, m), d) for m, d in columns.values())))
    return lines


def told_share(share: float) -> str:
    """A share in per cent; a dash for NaN."""
    return "–" if math.isnan(share) else f"{100 * share:.0f} %"


def plain(value: Any, digits: int) -> Any:
    """Numbers as JSON has them: rounded, and null for NaN."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {key: plain(each, digits) for key, each in vars(value).items()}
    if isinstance(value, Interval):
        return plain(value._asdict(), digits)
    if isinstance(value, Mapping):
        return {key: plain(each, digits) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist(), digits)
    if isinstance(value, list | tuple):
        return [plain(each, digits) for each in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, digits)
    return value


def write(
    folder: Path, table: str, numbers: Mapping[str, Any], sheets: Mapping[str, Image.Image]
) -> None:
    """Writes `table.md`, `results.json`, and pictures by file name into a folder that is there."""
    (folder / "table.md").write_text(table, encoding="utf-8")
    text = json.dumps({**numbers, "table": table}, indent=2, ensure_ascii=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    for name, image in sheets.items():
        image.save(folder / name)
