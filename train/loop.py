"""A run from top to bottom: data, devices, state, steps, the end."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusionjax.backend.sharding import frozen_sharding, make_mesh, place, put_batch, replicated
from fusionjax.command import progress_bar
from fusionjax.data.batches import Batches, stacked
from fusionjax.errors import UserError
from fusionjax.files import locked, make_folder
from fusionjax.models.checkpoint import Checkpoints
from train.config import RunConfig
from train.loggers import Logger, start_logger
from train.objectives import Objective, check_run, make_objective
from train.processes import broadcast_text, on_first_process, stop_signal
from train.resume import check_same_base, initial_params, is_continued, run_folder
from train.step import init_state, make_optimizer, make_step, shard_step, split_by_batch
from train.watch import Progress, Watch, divide_by_shares, scalars


def run(config: RunConfig) -> Path:
    """Trains.

    Args:
        config: the whole run.

    Returns:
        The run's folder.

    Raises:
        UserError: if something that the run names is missing, does not fit, or the run cannot go
            on.
    """
    # ---- Whether the devices can do it, where it is written, whether it goes on from there ----
    check_run(config, jax.devices())
    folder = run_folder(config)
    writes = jax.process_index() == 0
    going_on = broadcast_text(str(is_continued(config, folder))) == "True"
    with contextlib.ExitStack() as held:
        if writes:
            make_folder(folder)
            held.enter_context(locked(folder))
        logger = start_logger(config, folder) if writes else None
        broadcast_text("the folder is there")
        _run(config, folder, going_on=going_on, logger=logger)
    return folder


def _run(
    config: RunConfig, folder: Path, *, going_on: bool, logger: Callable[[int], Logger] | None
) -> None:
    """The run, in a folder of its own."""
    if not folder.is_dir():
        raise UserError(
            f"process {jax.process_index()} does not see the run's folder {str(folder)!r} that the "
            "first process made; several hosts need a disk that they share, for --output, "
            "data.folder and cache"
        )

    # ---- What is trained, on what, where ----
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    config.check_batch(mesh.size)
    _build_data(config)
    objective = make_objective(config, mesh)
    if going_on:
        check_same_base(folder, objective.describe())
    source = objective.source(config.data.train_split)
    batches = Batches(
        source,
        objective.make,
        batch_size=config.batch_size,
        seed=config.seed,
        threads=config.data.threads,
        buffered=config.data.buffered_batches,
    )
    frozen = place(objective.frozen, frozen_sharding(mesh, objective.frozen))
    if logger:
        about = {"train_examples": len(source), **objective.describe()}
        config.write(folder / "config.json", **about)

    # ---- The state: fresh, or exactly where the run was ----
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    checkpoints = Checkpoints(folder / "checkpoints", keep_last=config.checkpoint.keep_last)
    has_steps = going_on and checkpoints.latest() is not None
    begins_from = None if has_steps else config.init_from
    params = initial_params(begins_from, objective, init_key)
    optimizer = make_optimizer(config.optimizer, config.steps)
    state = jax.device_put(init_state(params, optimizer, config.precision), replicated(mesh))
    fresh = state
    if found := checkpoints.newest(lambda step: checkpoints.restore(step, fresh)):
        _, (restored, position) = found
        # The step gives its state's memory back to XLA; what Orbax read is not XLA's to reuse.
        state = jax.tree.map(jnp.copy, restored)
        batches.seek(position)

    # ---- The step, compiled with its shardings ----
    step = make_step(objective.loss, optimizer, config.optimizer, config.precision)
    train_step = shard_step(step, mesh, frozen)
    validate = jax.jit(split_by_batch(objective.loss, mesh))

    # ---- The loop ----
    done = int(state.step)
    watch = Watch(folder, steps=config.steps, done=done, logger=logger)
    progress = Progress(config, len(source))
    held_out = _validation_batches(config, objective)
    clock = _Clock()
    stopped, metrics = False, None
    watch.say(f"the run's folder is {folder}; `--output {folder}` continues it")
    with stop_signal() as stop:
        while done < config.steps and not (stopped := stop(done)):
            with clock.waiting(metrics):
                batch = put_batch(mesh, next(batches))
            state, metrics = train_step(state, frozen, batch, step_key)
            done += 1

            if done % config.log_every_steps == 0 or done == config.steps:
                values = divide_by_shares(scalars(metrics)) | clock.read(config.batch_size)
                values |= progress.after(done, int(values["skipped"]))
                _stop_if_hopeless(config, values, done)
                checkpoints.check()
                watch.metrics(done, values)
                watch.step({"loss": f"{values['loss']:.4f}", "img/s": f"{values['images_s']:.1f}"})
            else:
                watch.step()

            held_out_loss = None
            if done % config.validation.every_steps == 0 or done == config.steps:
                values = _validation_loss(validate, state.ema, frozen, held_out)
                watch.metrics(done, values, group="validation")
                held_out_loss = values["loss"]
            if held_out_loss is not None or done % config.checkpoint.every_steps == 0:
                checkpoints.save(done, state, batches.position(), held_out_loss)
            if held_out_loss is not None:
                watch.grid(done, objective.grid(jax.device_get(state.ema)))
                clock.restart()

    # ---- The end ----
    if stopped and checkpoints.latest() != done:
        checkpoints.save(done, state, batches.position())
    if stopped:
        watch.say(f"stopped and saved after step {done}; `--output {folder}` continues the run")
    checkpoints.close()
    batches.close()
    if logger and done == config.steps:
        objective.export(jax.device_get(state.ema), folder)
        watch.say(f"{folder}\n{objective.how_to_use(folder)}")
    watch.close()


def _build_data(config: RunConfig) -> None:
    """Draws the mini world where the configuration says so and there is no dataset yet."""
    if not config.data.build_people:
        return

    def draw() -> None:
        from fusionjax.data import mini_faces

        with progress_bar("drawing the mini world") as progress:
            mini_faces.build(
                config.data.folder,
                people=config.data.build_people,
                scenes=config.data.build_scenes,
                identity_share=0,  # who it is, the photos tell
                progress=progress,
            )

    on_first_process(draw, Path(config.data.folder, "dataset_info.json").is_file)


def _validation_batches(config: RunConfig, objective: Objective) -> list[dict[str, np.ndarray]]:
    """The first pictures of the validation split, always made alike."""
    source = objective.source(config.data.validation_split)
    count = min(config.validation.examples, len(source))
    size = min(config.batch_size, count)
    examples = [
        objective.make(source[i], np.random.default_rng(i)) for i in range(count - count % size)
    ]
    return [stacked(examples[start : start + size]) for start in range(0, len(examples), size)]


def _validation_loss(
    validate: Any, params: Any, frozen: Any, batches: list[dict[str, np.ndarray]]
) -> dict[str, float]:
    """Mean metrics over the validation batches, with the same noise every time."""
    rows = []
    for number, batch in enumerate(batches):
        loss, metrics = validate(params, frozen, batch, jax.random.key(number))
        rows.append(scalars({"loss": loss, **metrics}))
    return divide_by_shares({name: float(np.mean([row[name] for row in rows])) for name in rows[0]})


def _stop_if_hopeless(config: RunConfig, values: dict[str, float], done: int) -> None:
    if values["skipped_in_row"] >= config.max_skipped_in_row:
        raise UserError(
            f"{int(values['skipped_in_row'])} steps in a row up to step {done} had a gradient that "
            "is not finite; lower optimizer.learning_rate, or use precision bfloat16 or float32"
        )


class _Clock:
    """Pictures a second, and the share of the time that the device waited for input.

    The host runs ahead of the device: its wait for a batch costs nothing while the device still
    works on the step before, so only a wait that the device saw the end of is counted.
    """

    def __init__(self) -> None:
        self.restart()
        self._running: Any = None  # an array; `is_ready` is not in its type

    def restart(self) -> None:
        self._since, self._waited, self._steps = time.perf_counter(), 0.0, 0

    def waiting(self, metrics: Any) -> Any:
        """Times the `with` block; `metrics` are those of the step before, or None."""
        self._running = None if metrics is None else jax.tree.leaves(metrics)[0]
        return self

    def __enter__(self) -> None:
        self._begun = time.perf_counter()

    def __exit__(self, *_: Any) -> None:
        if self._running is None or self._running.is_ready():
            self._waited += time.perf_counter() - self._begun
        self._steps += 1

    def read(self, batch_size: int) -> dict[str, float]:
        took = time.perf_counter() - self._since
        result = {
            "images_s": batch_size * self._steps / took,
            "step_s": took / max(self._steps, 1),
            "input_wait_share": self._waited / took,
        }
        self.restart()
        return result
