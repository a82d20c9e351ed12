"""Picture grids: what a person looks at while a run trains."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fusionjax.pixels import to_bytes


def tile(rows: Sequence[Any], columns: int, gap: int = 2) -> np.ndarray:
    """Lays groups of pictures out in columns, row under row.

    Args:
        rows: groups of pictures [n, H, W, 3] in -1..1, all of the same n and size. Where a group
            is longer than a row, the groups alternate line by line.
        columns: pictures a line.
        gap: white pixels between.

    Returns:
        uint8 [H', W', 3].
    """
    groups = [to_bytes(group) for group in rows]
    n, height, width, _ = groups[0].shape
    lines = [group[start : start + columns] for start in range(0, n, columns) for group in groups]
    sheet = np.full(
        (
            len(lines) * (height + gap) + gap,
            min(columns, n) * (width + gap) + gap,
            3,
        ),
        255,
        np.uint8,
    )
    for row, line in enumerate(lines):
        for column, picture in enumerate(line):
            top, left = gap + row * (height + gap), gap + column * (width + gap)
            sheet[top : top + height, left : left + width] = picture
    return sheet
