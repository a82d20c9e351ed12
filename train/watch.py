"""What a run tells while it trains: a progress line, metrics.jsonl, picture grids, a report."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image
from tqdm import tqdm

from fusionjax.files import write_whole
from train.config import RunConfig
from train.loggers import Logger
from train.report import write_report
from train.step import learning_rate


class Watch:
    """Writes a run's records; one process of a run has one, the others write nothing."""

    def __init__(
        self,
        folder: Path,
        *,
        steps: int,
        done: int,
        logger: Callable[[int], Logger] | None,
    ) -> None:
        """Opens the run's files to be appended to.

        Args:
            folder: the run's folder.
            steps: steps of the whole run.
            done: steps already done; later lines of an earlier, killed attempt are dropped.
            logger: opens, at the first step to come, what is written beside the folder; None makes
                every method do nothing.
        """
        self.enabled = logger is not None
        if logger is None:
            return
        (folder / "grids").mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._lines: TextIO = _continued(folder / "metrics.jsonl", done)
        self._logger = logger(done + 1)
        self._bar = tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True)

    def step(self, shown: Mapping[str, str] | None = None) -> None:
        """One more step is done; `shown` goes to the right of the bar."""
        if self.enabled:
            if shown:
                self._bar.set_postfix(shown, refresh=False)
            self._bar.update()

    def metrics(self, step: int, values: Mapping[str, float], *, group: str = "train") -> None:
        """Writes scalars of one step."""
        if self.enabled:
            line = {"step": step, "time": round(time.time(), 3), "group": group, **values}
            self._lines.write(json.dumps(line) + "\n")
            self._lines.flush()
            for name, value in values.items():
                self._logger.scalar(f"{group}/{name}", value, step)

    def grid(self, step: int, picture: np.ndarray) -> None:
        """Writes a picture, uint8 [H, W, 3], to the run's `grids/`, and the report anew."""
        if self.enabled:
            Image.fromarray(picture).save(self._folder / "grids" / f"{step:06d}.png")
            self._logger.image("grid", picture, step)
            write_report(self._folder)

    def say(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        if self.enabled:
            self._bar.write(text)

    def close(self) -> None:
        """Closes the files."""
        if self.enabled:
            self._bar.close()
            self._logger.close()
            self._lines.close()


class Progress:
    """How far a run has come, in the terms that runs are compared by."""

    def __init__(self, config: RunConfig, examples: int) -> None:
        """Knows the run.

        Args:
            config: the run.
            examples: pictures of the training split that are used.
        """
        self._config, self._examples = config, examples
        self._rate = learning_rate(config.optimizer, config.steps)

    def after(self, done: int, skipped: int) -> dict[str, float]:
        """Tells it after so many steps.

        Args:
            done: steps.
            skipped: those of them whose gradient was not finite: they changed nothing, and the
                schedule did not go on.

        Returns:
            The learning rate of the last step that changed the weights, pictures seen, and passes
            over the training split.
        """
        seen = done * self._config.batch_size
        return {
            "learning_rate": float(self._rate(max(done - skipped - 1, 0))),
            "images_seen": seen,
            "epochs": seen / self._examples,
        }


def _continued(path: Path, done: int) -> TextIO:
    """Opens metrics.jsonl without the lines that a resumed run is about to write again."""
    if path.exists():
        kept = []
        for line in path.read_text().splitlines(keepends=True):
            try:
                if json.loads(line)["step"] <= done:
                    kept.append(line)
            except ValueError:  # cut off by a kill
                break
        write_whole(path, "".join(kept))
    return path.open("a")


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Brings scalars from the device."""
    return {name: float(value) for name, value in metrics.items()}


def divide_by_shares(metrics: Mapping[str, float]) -> dict[str, float]:
    """Means over a share of the examples, from their parts (see `train.step.Metrics`).

    Args:
        metrics: averaged scalars.

    Returns:
        The same without the shares; a mean over no example is left out.
    """
    shares = {name for name in metrics if name.removesuffix("_share") in metrics.keys() - {name}}
    result = {}
    for name in metrics.keys() - shares:
        share = metrics.get(f"{name}_share", 1.0)
        if share:
            result[name] = metrics[name] / share
    return {name: result[name] for name in metrics if name in result}
