"""Where a run's numbers go beside its folder: TensorBoard, Weights & Biases, or nowhere."""

import importlib.util
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8

from fusionjax.errors import UserError, shortened
from fusionjax.files import write_whole
from train.board import Board
from train.config import RunConfig
from train.validation_config import LogTo

_ID = "wandb_id"


class Logger(Protocol):
    """What the loop needs of either."""

    def scalar(self, name: str, value: float, step: int) -> None:
        """Writes a number of a step."""

    def image(self, name: str, picture: UInt8[np.ndarray, "h w 3"], step: int) -> None:
        """Writes a picture of a step."""

    def close(self) -> None:
        """Writes what is left."""


def check_logger(log_to: LogTo) -> None:
    """Whether what `log_to` names is installed.

    Raises:
        UserError: if it is not.
    """
    if log_to == "wandb" and importlib.util.find_spec("wandb") is None:
        raise UserError(
            "log_to is 'wandb', and that package is not installed: pip install "
            "'fusionjax[wandb]', or use --log-to tensorboard"
        )


def start_logger(config: RunConfig, folder: Path) -> Callable[[int], Logger]:
    """Gets ready what `log_to` names, before anything expensive.

    Args:
        config: the run.
        folder: its folder, which is there.

    Returns:
        What opens it, given the first step to come.

    Raises:
        UserError: if Weights & Biases refuses.
    """
    if config.log_to == "wandb":
        started = WandbLogger(folder, config)
        return lambda first_step: started
    if config.log_to == "none":
        return lambda first_step: _Nowhere()
    return lambda first_step: Board(folder / "tensorboard", first_step)


class WandbLogger:
    """A run of Weights & Biases, the same one when ours goes on.

    Its own environment variables hold: WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY and so on.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        """Begins it, or goes on with the one whose name lies in the folder.

        Args:
            folder: the run's.
            config: the run.

        Raises:
            UserError: if it cannot begin.
        """
        import wandb

        mark = folder / _ID
        if not mark.is_file():
            write_whole(mark, secrets.token_hex(4))
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "fusionjax"),
                name=config.name,
                id=mark.read_text(encoding="utf-8"),
                resume="allow",
                dir=str(folder),
                config=config.to_json(),
            )
        except wandb.Error as error:
            raise UserError(
                f"Weights & Biases does not begin: {shortened(' '.join(str(error).split()), 200)}; "
                "`wandb login`, WANDB_MODE=offline, or --log-to tensorboard"
            ) from None
        self._picture: Callable[..., Any] = wandb.Image
        # A step of its own, since a run that was killed and goes on repeats some of them, and
        # theirs must only grow.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalar(self, name: str, value: float, step: int) -> None:
        """Writes a number of a step."""
        self._run.log({name: value, "step": step})

    def image(self, name: str, picture: UInt8[np.ndarray, "h w 3"], step: int) -> None:
        """Writes a picture of a step."""
        self._run.log({name: self._picture(picture), "step": step})

    def close(self) -> None:
        """Sends what is left."""
        self._run.finish()


class _Nowhere:
    def scalar(self, name: str, value: float, step: int) -> None:
        pass

    def image(self, name: str, picture: UInt8[np.ndarray, "h w 3"], step: int) -> None:
        pass

    def close(self) -> None:
        pass
