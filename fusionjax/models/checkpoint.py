"""Checkpoints of a run: what is trained, its average, the optimizer, the position. Never the base.

Orbax writes them asynchronously and atomically: a kill at any moment leaves the newest complete
one usable.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as preserve

from fusionjax.backend.sharding import of_all_processes
from fusionjax.errors import UserError

METRIC = "validation_loss"


class Checkpoints:
    """The `checkpoints/` folder of a run.

    Each step holds `state` (all that is needed to go on), `ema` (the averaged weights alone:
    what is exported and sampled with) and `position` (of the data, one for each process).
    """

    def __init__(self, folder: str | Path, *, keep_last: int = 2, read_only: bool = False) -> None:
        """Opens the folder.

        Args:
            folder: a run's `checkpoints` folder; made unless `read_only`.
            keep_last: how many of the newest are kept, besides the best by validation loss.
            read_only: never write or delete.
        """
        policy = preserve.AnyPreservationPolicy(
            [
                preserve.LatestN(keep_last),
                preserve.BestN(
                    get_metric_fn=lambda metrics: metrics[METRIC],
                    n=1,
                    reverse=True,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        self._manager = ocp.CheckpointManager(
            Path(folder).absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=None if read_only else policy,
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
            ),
            item_names=("state", "ema", "position"),
        )

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def save(
        self, step: int, state: Any, position: dict[str, Any], validation_loss: float | None = None
    ) -> None:
        """Starts saving; returns as soon as the arrays are copied off the device.

        Args:
            step: the number of steps done.
            state: a pytree with an `ema` attribute.
            position: the data's position in this process.
            validation_loss: of exactly these weights, if known; decides which is the best.

        Raises:
            UserError: if it, or the one before, cannot be written.
        """
        # Writing goes on beside the next steps, which give the state's memory back to XLA; on a
        # CPU Orbax would read that very memory.
        state = jax.tree.map(jnp.copy, state)
        positions = [json.loads(each) for each in of_all_processes(json.dumps(position))]
        with self._disk_errors_told():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    ema=ocp.args.StandardSave(state.ema),
                    position=ocp.args.JsonSave({"processes": positions}),
                ),
                metrics=None if validation_loss is None else {METRIC: validation_loss},
                force=True,
            )

    def check(self) -> None:
        """Raises UserError if what is being saved has turned out not to be writable."""
        with self._disk_errors_told():
            self._manager.check_for_errors()

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """Reads one step.

        Args:
            step: as from `latest`.
            like: a state of the same structure; its shardings are used.

        Returns:
            The state and this process's data position.

        Raises:
            UserError: if the checkpoint was made by another number of processes.
        """
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        read = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), position=ocp.args.JsonRestore()
            ),
        )
        positions = read.position["processes"]
        if len(positions) != jax.process_count():
            raise UserError(
                f"the checkpoint holds the data positions of {len(positions)} processes and this "
                f"run has {jax.process_count()}; continue it with the same number"
            )
        return read.state, positions[jax.process_index()]

    def restore_ema(self, step: int) -> Any:
        """Reads only the averaged weights of one step, as numpy arrays."""
        folder = self._manager.directory / str(step) / "ema"
        with ocp.PyTreeCheckpointer() as reader:
            tree = reader.metadata(folder).item_metadata.tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            return reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))

    def wait(self) -> None:
        """Waits until everything started is on disk; UserError if it cannot be written."""
        with self._disk_errors_told():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets go of the folder; UserError if something cannot be written."""
        with self._disk_errors_told():
            self._manager.close()

    @contextlib.contextmanager
    def _disk_errors_told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError is TensorStore's
            if isinstance(error, UserError) or (reason := _of_the_disk(error)) is None:
                raise
            newest = self.latest()
            kept = "there is none before it" if newest is None else f"step {newest} is untouched"
            raise UserError(
                f"a checkpoint in {str(self._manager.directory)!r} cannot be written ({reason}); "
                f"{kept}. Once that is mended, the same command goes on from there"
            ) from error


def _of_the_disk(error: OSError | ValueError) -> str | None:
    """What the system said, if it was the system that refused."""
    if isinstance(error, OSError):
        return error.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else None


def latest_run_step(run: str | Path) -> tuple[Path, int]:
    """Finds the newest complete checkpoint of a run.

    Args:
        run: the run's folder.

    Returns:
        The `checkpoints` folder and the step.

    Raises:
        UserError: if there is none.
    """
    folder = Path(run) / "checkpoints"
    steps = (
        sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
        if folder.is_dir()
        else []
    )
    if not steps:
        raise UserError(f"{str(run)!r} holds no complete checkpoint")
    return folder, steps[-1]
