"""What the suites' tables have in common."""

from collections.abc import Sequence

from fusionjax.evaluation.metrics import Interval


def head(names: Sequence[str]) -> list[str]:
    """The first two lines of a table, with a column for each name."""
    words = " | ".join(name.replace("_", " ") for name in names)
    return [f"| {words} |", "| --- " * len(names) + "|"]


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
