"""What a compiled program does, read from the text that XLA prints of it (HLO)."""

import dataclasses
import math
import re
from collections import Counter


@dataclasses.dataclass(frozen=True)
class Collective:
    """One operation in which all devices take part; in a loop it happens many times."""

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    """Of the arrays that a device has after it."""
    size_bytes: int
    """Of those arrays together."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What one device does when it runs a program.

    Attributes:
        moved_bytes: read from and written to its main memory, if every operation reads what it
            is given and writes what it gives, and caches keep nothing between them. What a TPU's
            compiler keeps on the chip is not counted.
        operations: how many operations it starts.
        attention: how many calls of which flash kernel are in the text.
    """

    moved_bytes: int
    operations: int
    attention: dict[str, int]


_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_COLLECTIVE = re.compile(rf"\s({'|'.join(_KINDS)})(-start)?\(")
# Kind, bits, dimensions, and where it lies if not in the device's main memory.
_ARRAY = re.compile(r"([a-z]+)(\d*)[a-z0-9]*\[([\d,]*)\](?:\{[^}]*?(S\([1-9]\))?\})?")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*)$")
_OPERATION = re.compile(r"(?:^|[\s)}])([a-z][a-z0-9-]*)\(")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_FREE = frozenset(
    [
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "partition-id",
        "replica-id",
        "opt-barrier",
        "custom-call-done",
        "domain",
    ]
)
# A pair of operations for one piece of work: the beginning counts.
_ENDS = ("-done", "-update")
# A TPU's name for parts that were written side by side.
_JOINED = 'custom_call_target="ConcatBitcast"'
_FLASH = {"__cudnn$fmha": "cudnn", "tpu_custom_call": "tpu"}


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
        match = _COLLECTIVE.search(operation)
        if not is_assignment or match is None:
            continue
        arrays = _ARRAY.findall(operation[: match.start()])
        if match[1] == "all-gather" and match[2]:  # its start returns its arguments first
            arrays = arrays[len(arrays) // 2 :]
        shapes = [tuple(int(x) for x in array[2].split(",") if x) for array in arrays]
        found.append(Collective(match[1], tuple(shapes), sum(map(_bytes, arrays))))
    return found


def _bytes(array: tuple[str, str, str, str]) -> int:
    """Of a match of `_ARRAY`."""
    kind, bits, dimensions, _ = array
    size = math.prod(int(x) for x in dimensions.split(",") if x)
    return size * (int(bits or 8) if kind != "pred" else 8) // 8


def work(text: str) -> Work:
    """Adds up what a compiled program does.

    A loop counts as often as it runs where the compiler knows it, else once.

    Args:
        text: as from `compiled.as_text()`.
    """
    return _Text(text).work()


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    operation: str
    arrays: tuple[tuple[int, bool], ...]  # its result: bytes, and whether in main memory
    operands: tuple[str, ...]
    line: str

    @property
    def size(self) -> int:
        """Bytes of its result in main memory."""
        return sum(size for size, in_main_memory in self.arrays if in_main_memory)


class _Text:
    """A program's text, by computation."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, dict[str, _Instruction]] = {}
        self.entry = ""
        inside: dict[str, _Instruction] = {}
        for line in text.splitlines():
            if head := _HEAD.match(line):
                inside = self.computations[head[2]] = {}
                self.entry = head[2] if head[1] else self.entry
            elif match := _LINE.match(line):
                instruction = _instruction(match[1], match[2])
                if instruction is not None:
                    inside[instruction.name] = instruction
        self.text = text
        if not any(each.operands for each in self.computations.get(self.entry, {}).values()):
            raise ValueError("this is not the text of a compiled program as XLA prints it today")

    def work(self) -> Work:
        moved, operations = self._of(self.entry)
        flash: Counter[str] = Counter()
        for target, name in _FLASH.items():
            flash[name] += self.text.count(f'custom_call_target="{target}')
        return Work(moved, operations, {name: n for name, n in flash.items() if n})

    def _of(self, computation: str) -> tuple[int, int]:
        moved = operations = 0
        inside = self.computations[computation]
        for instruction in inside.values():
            kind = instruction.operation
            if kind in _FREE or kind.endswith(_ENDS) or _JOINED in instruction.line:
                continue
            called = self._called(instruction)
            if called:
                times = self._times(instruction) if kind == "while" else 1
                below = [self._of(name) for name in called]
                worst = (
                    max(below)
                    if kind == "conditional"
                    else tuple(map(sum, zip(*below, strict=True)))
                )
                moved, operations = moved + times * worst[0], operations + times * worst[1]
                continue
            moved += self._moved(instruction, inside)
            operations += 1
        return moved, operations

    def _called(self, instruction: _Instruction) -> list[str]:
        """The computations that run as programs of their own."""
        line = instruction.line
        if instruction.operation == "while":
            return re.findall(r"body=%?([\w.-]+)", line)
        if instruction.operation == "conditional":
            listed = re.search(r"branch_computations=\{([^}]*)\}", line)
            if listed:
                return re.findall(r"[\w.-]+", listed[1])
            return re.findall(r"(?:true|false)_computation=%?([\w.-]+)", line)
        if instruction.operation in ("call", "async-start"):
            return re.findall(r"(?:to_apply|calls)=%?([\w.-]+)", line)
        return []

    @staticmethod
    def _times(instruction: _Instruction) -> int:
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', instruction.line)
        return int(known[1]) if known else 1

    def _moved(self, instruction: _Instruction, inside: dict[str, _Instruction]) -> int:
        sizes = [inside[name].size if name in inside else 0 for name in instruction.operands]
        if instruction.operation in ("copy-start", "slice-start"):  # from, to, a counter
            moved = min(size for size, _ in instruction.arrays[:2])
            return moved * sum(in_main_memory for _, in_main_memory in instruction.arrays[:2])
        if instruction.operation in ("dynamic-slice", "slice", "gather"):
            return 2 * instruction.size
        if instruction.operation in ("dynamic-update-slice", "scatter"):
            return 2 * sizes[-1 if instruction.operation == "scatter" else 1]
        if instruction.operation != "fusion":
            return instruction.size + sum(sizes)
        called = re.search(r"calls=%?([\w.-]+)", instruction.line)
        body = self.computations.get(called[1], {}) if called else {}
        reads = self._reads(body)
        read = sum(min(size, reads.get(i, size)) for i, size in enumerate(sizes))
        return read + self._written(body, instruction.size)

    @staticmethod
    def _reads(body: dict[str, _Instruction]) -> dict[int, int]:
        """Of a fusion's parameters of which only slices are read, by number, the slices' bytes."""
        reads = {}
        for parameter in body.values():
            if parameter.operation != "parameter":
                continue
            users = [each for each in body.values() if parameter.name in each.operands]
            number = re.search(r"parameter\((\d+)\)", parameter.line)
            assert number is not None
            if users and all(
                each.operation in ("dynamic-slice", "slice", "gather") for each in users
            ):
                reads[int(number[1])] = sum(each.size for each in users)
            elif users and all(
                each.operation == "dynamic-update-slice" and each.operands[0] == parameter.name
                for each in users
            ):
                reads[int(number[1])] = 0  # updated in place
        return reads

    @staticmethod
    def _written(body: dict[str, _Instruction], size: int) -> int:
        """A fusion that updates a part of an array writes no more than that part."""
        for instruction in body.values():
            if instruction.operation == "dynamic-update-slice":
                update = body.get(instruction.operands[1])
                if update is not None:
                    size += update.size - instruction.size
        return max(size, 0)


def _instruction(name: str, rest: str) -> _Instruction | None:
    """One line of a computation, after its `name =`."""
    match = _OPERATION.search(rest)
    if match is None:
        return None
    found = _ARRAY.findall(rest[: match.start()])
    arrays = tuple((_bytes(array), not array[3]) for array in found)
    depth, end = 0, len(rest)
    for index in range(match.end() - 1, len(rest)):
        depth += (rest[index] == "(") - (rest[index] == ")")
        if depth == 0:
            end = index
            break
    operands = tuple(re.findall(r"%([\w.-]+)", rest[match.end() : end]))
    return _Instruction(name, match[1], arrays, operands, rest)
