"""What a run trains: one objective each for the adapter, the base model and the autoencoder.

The loop asks an objective for data, initial weights, a loss and pictures, and knows nothing else
about it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from fusionjax.backend.devices import check_dtype, check_implementation
from fusionjax.errors import UserError
from train.config import AdapterRun, AutoencoderRun, BaseRun, RunConfig
from train.loggers import check_logger
from train.own_grid import read_own
from train.step import Batch, Metrics, Params


@runtime_checkable
class Objective(Protocol):
    """What the loop needs to know."""

    frozen: Any
    """Weights that the loss reads and nothing trains."""

    def source(self, split: str) -> Any:
        """Random-access examples of one split."""

    def make(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """One example as arrays of fixed shapes, ready to be batched."""

    def batch_shapes(self) -> dict[str, Any]:
        """The shapes of a batch, for dry runs."""

    def init(self, key: jax.Array, frozen: Any) -> Params:
        """Fresh trainable weights, float32."""

    def read(self, source: str) -> Params:
        """The weights of a model that `export` wrote, float32."""

    def loss(
        self, params: Params, frozen: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Mean loss over a batch and further scalar metrics; pure."""

    def grid(self, params: Params) -> np.ndarray:
        """A picture that shows how far training has come, from fixed noise: uint8 [H, W, 3]."""

    def describe(self) -> dict[str, Any]:
        """What the run's config.json records beside the configuration."""

    def export(self, params: Params, folder: Path) -> None:
        """Writes the averaged weights in a form that others read."""

    def how_to_use(self, folder: Path) -> str:
        """The command to type after the run."""


def check_run(config: RunConfig, devices: Sequence[jax.Device]) -> None:
    """Checks that devices can do what a run asks for, and that what it is to show is there.

    Args:
        config: the run.
        devices: where it will run.

    Raises:
        UserError: if they cannot compute in its type, or attend as it names; if what it logs to is
            not installed, or its validation's prompts or photos are not there.
    """
    check_dtype(config.precision, devices)
    check_logger(config.log_to)
    if isinstance(config, AdapterRun):
        check_implementation(config.attention, config.precision, devices)
        read_own(config.validation, config.references)
    elif config.validation.photos is not None:
        raise UserError(
            "validation.photos is of a run that trains an adapter, and this one trains another "
            "model; leave it out"
        )


def make_objective(config: RunConfig, mesh: Mesh, *, abstract: bool = False) -> Objective:
    """Builds the objective of a run; loads what it is trained on top of.

    Args:
        config: the run.
        mesh: where it will run.
        abstract: shapes only, for a dry run; no weights and no data are read.

    Returns:
        The objective.

    Raises:
        UserError: if something that the run names is missing or does not fit.
    """
    if abstract and not isinstance(config, AdapterRun):
        raise UserError("only a run that trains an adapter can be tried with --dry-run")
    if isinstance(config, AutoencoderRun):
        from train.objectives.autoencoder import AutoencoderObjective

        return AutoencoderObjective(config)
    if isinstance(config, AdapterRun):
        from train.objectives.adapter import AdapterObjective

        return AdapterObjective(config, mesh, abstract=abstract)
    if isinstance(config, BaseRun):
        from train.objectives.base_model import BaseModelObjective

        return BaseModelObjective(config, mesh)
    raise UserError(f"a run of kind {type(config).__name__} trains nothing")
