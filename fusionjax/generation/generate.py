"""A batch from start to end."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fusionjax.generation.runner import Runner

REPORTS = 5  # a progress callback hears of the steps so often

# stage ("compile", "steps", "decode"), how much is done, of how much, seconds it took
Progress = Callable[[str, int, int, float], None]


def of_many(progress: Progress | None, batch: int, batches: int) -> Progress | None:
    """Progress in one of several batches, as progress in all of them."""
    if progress is None or batches == 1:
        return progress
    report = progress

    def told(stage: str, done: int, of: int, seconds: float) -> None:
        if stage == "compile":
            report(stage, done, of, seconds)
        else:
            report(stage, batch * of + done, batches * of, seconds)

    return told


class Clock:
    """Reports stages and their seconds; compilation is taken out of them and told by itself."""

    def __init__(self, runner: Runner, progress: Progress | None) -> None:
        self._runner, self._progress = runner, progress
        self._compiled = runner.compile_seconds
        self._began = self._before = 0.0

    def start(self) -> None:
        self._began, self._before = time.perf_counter(), self._runner.compile_seconds

    def stop(self, stage: str, done: int, of: int, result: Any) -> None:
        if self._progress is None:
            return
        jax.block_until_ready(result)
        seconds = time.perf_counter() - self._began
        compiled = self._runner.compile_seconds
        if compiled > self._compiled:
            self._progress("compile", 1, 1, compiled - self._compiled)
            self._compiled = compiled
        self._progress(stage, done, of, seconds - (compiled - self._before))


def of_seeds(seeds: np.ndarray, these: np.ndarray) -> str:
    """ "the picture of seed 2 is", "the pictures of seeds 1, 3 are"."""
    chosen = [str(seed) for seed, chosen in zip(seeds, these, strict=False) if chosen]
    one = len(chosen) == 1
    return f"the picture{'s' * (not one)} of seed{'s' * (not one)} {', '.join(chosen)} " + (
        "is" if one else "are"
    )
