"""The progress bar: seconds a step, what is left, and compilation reported as such."""

import sys
import time
from typing import Any

_WIDTH = 24


class Bar:
    """Tells of the steps on one line of a terminal, or in few lines of a file.

    An instance is what `FusionPipeline` calls with its progress.

    Args:
        out: where to write; nothing is written to None.
    """

    def __init__(self, out: Any = sys.stderr) -> None:
        self._out = out
        self._live = out is not None and out.isatty()
        self._step_seconds: list[tuple[int, float]] = []
        self._last = 0

    def __call__(self, stage: str, done: int, of: int, seconds: float) -> None:
        """Hears of progress, see `fusionjax.pipeline.Progress`."""
        if stage == "compile":
            self.say(f"compiled in {seconds:.1f} s")
            return
        if stage == "decode":
            self._last = 0
            return
        steps = done - self._last if done > self._last else done
        self._last = done
        self._step_seconds.append((steps, seconds))
        each = sum(s for _, s in self._step_seconds) / sum(n for n, _ in self._step_seconds)
        filled = _WIDTH * done // of
        line = f"[{'#' * filled}{' ' * (_WIDTH - filled)}] {done}/{of} steps, {each:.2g} s a step"
        if done < of:
            line += f", {duration(each * (of - done))} left"
        if self._live:
            print(f"\r\033[K{line}", end="" if done < of else "\n", file=self._out, flush=True)
        elif done == of:
            self.say(line)

    def compiling(self, program: str) -> None:
        """Says what a terminal waits for; a file is told afterwards how long it took."""
        if self._live:
            print(f"\r\033[Kcompiling ({program}) …", end="", file=self._out, flush=True)

    def say(self, line: str) -> None:
        """Writes a line of its own."""
        if self._out is not None:
            start = "\r\033[K" if self._live else ""
            print(f"{start}{line}", file=self._out, flush=True)


def duration(seconds: float) -> str:
    """A time in words such as "2 min 05 s"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
    )


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def __str__(self) -> str:
        return f"{time.perf_counter() - self._began:.1f} s"
