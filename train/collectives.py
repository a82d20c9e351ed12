"""What devices say to each other in a compiled program, read from its text."""

import dataclasses
import math
import re

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_OPERATION = re.compile(rf"\s({'|'.join(_KINDS)})(-start)?\(")
_ARRAY = re.compile(r"([a-z]+)(\d*)[a-z0-9]*\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One operation in which all devices take part; in a loop it happens many times."""

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    """Of the arrays that a device has after it."""
    size_bytes: int
    """Of those arrays together."""


def collectives(text: str) -> list[Collective]:
    """Finds every collective operation of a program.

    Args:
        text: as from `compiled.as_text()`.

    Returns:
        The operations, in the text's order.
    """
    found = []
    for line in text.splitlines():
        _, is_assignment, operation = line.partition(" = ")
        match = _OPERATION.search(operation)
        if not is_assignment or match is None:
            continue
        arrays = _ARRAY.findall(operation[: match.start()])
        if match[1] == "all-gather" and match[2]:  # its start returns its arguments first
            arrays = arrays[len(arrays) // 2 :]
        shapes = [tuple(int(x) for x in dims.split(",") if x) for _, _, dims in arrays]
        sizes = [
            math.prod(shape) * (int(bits or 8) if name != "pred" else 8) // 8
            for shape, (name, bits, _) in zip(shapes, arrays, strict=True)
        ]
        found.append(Collective(match[1], tuple(shapes), sum(sizes)))
    return found
