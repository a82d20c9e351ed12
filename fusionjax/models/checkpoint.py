"""Checkpoints of a run: what is trained, its average, the optimizer, the position. Never the base.

Orbax writes them asynchronously and atomically: a kill at any moment leaves the newest complete
one usable.
"""

import contextlib
import json
import os
import re
import secrets
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as preserve

from fusionjax.backend.sharding import of_all_processes
from fusionjax.errors import UserError, shortened
from fusionjax.safetensors_file import digest_of

METRIC = "validation_loss"
_METADATA = "_CHECKPOINT_METADATA"
T = TypeVar("T")


class DamagedCheckpoint(UserError):
    """A step cannot be read, or holds other numbers than were written."""


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
        self._read_only = read_only
        options = ocp.CheckpointManagerOptions(
            preservation_policy=None if read_only else policy,
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
        )
        _check_metadata(Path(folder))
        self._manager = ocp.CheckpointManager(
            Path(folder).absolute(), options=options, item_names=("state", "ema", "position")
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
        digests = {"state": _digest(state), "ema": _digest(state.ema)}
        with self._disk_errors_told():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    ema=ocp.args.StandardSave(state.ema),
                    position=ocp.args.JsonSave({"processes": positions, "digests": digests}),
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
            DamagedCheckpoint: if it is damaged.
        """
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        with self._damage_told(step):
            read = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), position=ocp.args.JsonRestore()
                ),
            )
            positions = read.position["processes"]
            _check_digest(read.state, read.position, "state")
        if len(positions) != jax.process_count():
            raise UserError(
                f"the checkpoint holds the data positions of {len(positions)} processes and this "
                f"run has {jax.process_count()}; continue it with the same number"
            )
        return read.state, positions[jax.process_index()]

    def restore_ema(self, step: int) -> Any:
        """Reads only the averaged weights of one step, as numpy arrays.

        Raises:
            DamagedCheckpoint: if it is damaged.
        """
        folder = self._manager.directory / str(step) / "ema"
        with self._damage_told(step), ocp.PyTreeCheckpointer() as reader:
            tree = reader.metadata(folder).item_metadata.tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            ema = reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
            about = self._manager.restore(
                step, args=ocp.args.Composite(position=ocp.args.JsonRestore())
            )
            _check_digest(ema, about.position, "ema")
        return ema

    def newest(self, read: Callable[[int], T]) -> tuple[int, T] | None:
        """Reads the newest step that is whole, and tells of those that are not.

        Args:
            read: reads a step: `restore_ema`, say.

        Returns:
            The step and what was read; None if there is no step.

        Raises:
            UserError: if there are steps, and none is whole.

        Warns:
            UserWarning: of each step that is damaged. Unless `read_only`, it is moved aside, to
                `damaged-STEP`, so that it does not stand in the way.
        """
        damaged: dict[int, DamagedCheckpoint] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = step, read(step)
            except DamagedCheckpoint as error:
                damaged[step] = error
                continue
            for other, why in damaged.items():
                warnings.warn(f"{why}; step {step} is taken", stacklevel=2)
                self._set_aside(other)
            return found
        if damaged:
            why = next(iter(damaged.values()))
            raise UserError(f"{why}, and no other step is whole; copy the run again, or train anew")
        return None

    def _set_aside(self, step: int) -> None:
        if self._read_only or jax.process_index():
            return
        folder = Path(self._manager.directory)
        (folder / str(step)).rename(folder / f"damaged-{step}-{secrets.token_hex(2)}")
        self._manager.reload()

    def wait(self) -> None:
        """Waits until everything started is on disk; UserError if it cannot be written."""
        with self._disk_errors_told():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets go of the folder; UserError if something cannot be written."""
        with self._disk_errors_told():
            self._manager.close()

    @contextlib.contextmanager
    def _damage_told(self, step: int) -> Iterator[None]:
        try:
            yield
        except (MemoryError, PermissionError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # of every kind: whatever the readers meet
            reason = shortened(" ".join(str(error).split()) or type(error).__name__, 120)
            raise DamagedCheckpoint(
                f"step {step} in {str(self._manager.directory)!r} is damaged ({reason})"
            ) from None

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


def _check_metadata(folder: Path) -> None:
    """Raises UserError for a step whose date is not where it should be; Orbax reads all of them."""
    for path in folder.glob(f"*/{_METADATA}"):
        held: Any = {}
        with contextlib.suppress(ValueError, OSError):  # what is no JSON it bears
            held = json.loads(path.read_bytes())
        if not isinstance(held, dict):
            raise DamagedCheckpoint(
                f"{path} is damaged (it holds no JSON object); delete the folder {path.parent}"
            )


def _of_the_disk(error: OSError | ValueError) -> str | None:
    """What the system said, if it was the system that refused."""
    if isinstance(error, OSError):
        return error.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else None


def _digest(tree: Any) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return digest_of((jax.tree_util.keystr(path), leaf) for path, leaf in leaves)


def _check_digest(tree: Any, about: dict[str, Any], part: str) -> None:
    """Of what an earlier release wrote there is no digest."""
    expected = about.get("digests", {}).get(part)
    if expected is not None and _digest(tree) != expected:
        raise ValueError(f"its {part} holds other numbers than were written")


def newest_ema(run: str | Path) -> Any:
    """The averaged weights of a run's newest step that is whole.

    Args:
        run: the run's folder.

    Raises:
        UserError: if there is none.

    Warns:
        UserWarning: of newer steps that are damaged.
    """
    return _newest(run)[1]


def newest_step(run: str | Path) -> int:
    """The step that `newest_ema` reads, see there."""
    return _newest(run)[0]


def _newest(run: str | Path) -> tuple[int, Any]:
    folder = Path(run) / "checkpoints"
    found = None
    if folder.is_dir():
        checkpoints = Checkpoints(folder, read_only=True)
        try:
            found = checkpoints.newest(checkpoints.restore_ema)
        finally:
            checkpoints.close()
    if found is None:
        raise UserError(f"{str(run)!r} holds no complete checkpoint")
    return found
