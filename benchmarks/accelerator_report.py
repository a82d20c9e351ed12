"""The rows of `accelerator.py`: run within a time budget, printed and written as they are known."""

import dataclasses
import json
import re
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PASSED, FAILED, MEASURED, SKIPPED = "passed", "failed", "measured", "skipped"
ERROR, OUT_OF_MEMORY = "error", "out of memory"
NO_TIME, NOT_REACHED, RUNNING = "not measured", "not reached", "running"


class Skip(Exception):
    """Raised by a row that this machine cannot do; the message says why."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a row found.

    Attributes:
        text: for people.
        data: for programs, JSON values.
        wrong: what is wrong, a sentence each; a row with any has failed.
        status: if it is neither passed nor failed.
    """

    text: str
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    wrong: Sequence[str] = ()
    status: str | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """A row before it is run.

    Attributes:
        name: of one row in the report.
        kind: rows of one kind take about the same time.
        measure: runs it.
    """

    name: str
    kind: str
    measure: Callable[[], Outcome]


class Report:
    """All rows of a run, in a JSON file that is whole after every row."""

    def __init__(self, output: Path, about: dict[str, Any], part: str, *, seconds: float) -> None:
        """Begins a part. The file's rows of the other part stay if they are of the same device.

        Args:
            output: the JSON file.
            about: device, versions and size.
            part: `right` or `fast`.
            seconds: that all of the part's rows may take.
        """
        self._output, self._about, self._part = output, about, part
        self._began = time.monotonic()
        self._until = self._began + seconds
        self._took: dict[str, float] = {}
        known = read(output)
        self._others = (
            [row for row in known["rows"] if row["part"] != part]
            if known.get("about") == about
            else []
        )
        self._rows: dict[str, dict[str, Any]] = {}

    def run(self, rows: Sequence[Row], only: str | None = None) -> bool:
        """Runs the rows in their order.

        Args:
            rows: the part's rows.
            only: a regular expression; other rows are left out.

        Returns:
            Whether no check failed.
        """
        rows = [row for row in rows if only is None or re.search(only, row.name)]
        for row in rows:
            self._rows[row.name] = {"part": self._part, "name": row.name, "status": NOT_REACHED}
        assert len(self._rows) == len(rows), "each row has a name of its own"
        for row in rows:
            # A row is not begun that would end late: it takes what the last of its kind took.
            if time.monotonic() + self._took.get(row.kind, 0.0) > self._until:
                self._set(row.name, status=NO_TIME, text="time is up")
                continue
            self._rows[row.name]["status"] = RUNNING
            self._write()  # a crash of the process then tells which row it was
            began = time.monotonic()
            outcome = self._outcome(row)
            self._took[row.kind] = time.monotonic() - began
            if outcome.wrong:
                status = FAILED
            else:
                status = outcome.status or (PASSED if self._part == "right" else MEASURED)
            self._set(
                row.name,
                status=status,
                text=outcome.text,
                seconds=round(self._took[row.kind], 1),
                **({"wrong": list(outcome.wrong)} if outcome.wrong else {}),
                **outcome.data,
            )
        return all(row["status"] != FAILED for row in self._rows.values())

    def _outcome(self, row: Row) -> Outcome:
        try:
            return row.measure()
        except Skip as reason:
            return Outcome(str(reason), status=SKIPPED)
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            message = f"{type(error).__name__}: {lines[0][:300]}"
            data = {"traceback": traceback.format_exc()[-4000:]}
            if self._part == "right":
                return Outcome("stopped by an exception", data, wrong=[message])
            full = "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
            return Outcome(message, data, status=OUT_OF_MEMORY if full else ERROR)

    def _set(self, name: str, **values: Any) -> None:
        self._rows[name] |= values
        row, clock = self._rows[name], time.monotonic() - self._began
        print(f"{clock:5.0f} s  {row['status']:13} {name}: {row.get('text', '')}", flush=True)
        for sentence in row.get("wrong", ()):
            print(f"         WRONG: {name}: {sentence}", flush=True)
        self._write()

    def _write(self) -> None:
        content = {"about": self._about, "rows": [*self._others, *self._rows.values()]}
        beside = self._output.with_name(self._output.name + ".part")
        beside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
        beside.replace(self._output)


def read(output: Path) -> dict[str, Any]:
    """What a report file holds; nothing where there is none or it is no report."""
    try:
        content = json.loads(output.read_text("utf-8"))
        return content if isinstance(content["rows"], list) else {"rows": []}
    except (OSError, ValueError, KeyError, TypeError):
        return {"rows": []}


def table(content: dict[str, Any], part: str | None = None) -> str:
    """A report in Markdown."""
    about = content.get("about", {})
    lines = [
        ", ".join(f"{name} {value}" for name, value in about.items()),
        "",
        "| part | row | status | result |",
        "| --- " * 4 + "|",
    ]
    for row in content["rows"]:
        if part in (None, row["part"]):
            result = "; ".join([row.get("text", ""), *row.get("wrong", ())]).replace("|", "/")
            lines.append(f"| {row['part']} | {row['name']} | {row['status']} | {result} |")
    return "\n".join(lines)
