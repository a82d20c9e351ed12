"""`--dry-run`: what a run would need, found by compiling its step without weights or data."""

import dataclasses
import json
from typing import Any

import jax
from jax.sharding import Mesh

from fusionjax.backend.program import EFFICIENCY, Needs, check_fits, compile_for
from fusionjax.backend.sharding import make_mesh
from fusionjax.backend.targets import Target
from fusionjax.embedded import base_source
from fusionjax.models.abstract_base import STAND_IN, is_here
from train.config import AdapterRun, RunConfig
from train.objectives import Objective, check_run, make_objective
from train.step import LESS_MEMORY, init_state, make_optimizer, make_step, shard_step


@dataclasses.dataclass(frozen=True)
class StepNeeds:
    """What a training run needs.

    Attributes:
        trained_parameters: number of weights that are trained.
        frozen_parameters: number of the others.
        devices: how many, and of which kind.
        images_per_device: worked through at once.
        needs: of one step, on each device.
        seconds: a step's, to expect; None without a target, whose figures are not known.
    """

    trained_parameters: int
    frozen_parameters: int
    devices: str
    images_per_device: int
    needs: Needs
    seconds: float | None


def dry_run(config: RunConfig, target: Target | None = None) -> StepNeeds:
    """Compiles the step.

    Args:
        config: the run.
        target: hardware to compile for; None is the present devices.

    Returns:
        What it needs.

    Raises:
        UserError: if the devices cannot do what is asked for, the batch does not fit them, or the
            step not a device's memory.
    """
    devices = jax.devices() if target is None else target.devices
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, devices)
    check_run(config, devices)
    objective = make_objective(config, mesh, abstract=True)
    config.check_batch(mesh.size)
    _, params, needs = compile_step(config, objective, mesh)
    what = f"a step of batch_size {config.batch_size}"
    images = config.batch_size // (config.optimizer.accumulate_steps * mesh.size)
    seconds = None
    if target is not None:
        check_fits(needs, target.chip, what, LESS_MEMORY, images=images)
        seconds = needs.seconds(target.chip, in_16_bits=config.precision != "float32")
    return StepNeeds(
        trained_parameters=count(params),
        frozen_parameters=count(objective.frozen),
        devices=f"{mesh.size} × {mesh.devices.flat[0].device_kind}",
        images_per_device=images,
        needs=needs,
        seconds=seconds,
    )


def compile_step(config: RunConfig, objective: Objective, mesh: Mesh) -> tuple[Any, Any, Needs]:
    """Compiles the step from shapes alone.

    Args:
        config: the run.
        objective: abstract, as from `make_objective(…, abstract=True)`.
        mesh: what to compile for.

    Returns:
        The compiled step, the shapes of what is trained, and what a device needs.

    Raises:
        UserError: if the compiler finds that the step does not fit a device's memory.
    """
    params = jax.eval_shape(
        objective.init, jax.eval_shape(lambda: jax.random.key(0)), objective.frozen
    )
    optimizer = make_optimizer(config.optimizer, config.steps)
    state = jax.eval_shape(lambda p: init_state(p, optimizer, config.precision), params)
    step = make_step(objective.loss, optimizer, config.optimizer, config.precision)
    traced = shard_step(step, mesh, objective.frozen).trace(
        state, objective.frozen, objective.batch_shapes(), jax.eval_shape(lambda: jax.random.key(0))
    )
    what = f"a step of batch_size {config.batch_size}"
    compiled, needs = compile_for(traced, mesh.size, mesh.devices.flat[0], what, LESS_MEMORY)
    return compiled, params, needs


def report(config: RunConfig, run: StepNeeds, target: Target | None = None) -> str:
    """The lines that `--dry-run` prints."""
    needs = run.needs
    spoken = ", ".join(f"{k} {v / 1e6:.1f} MB" for k, v in needs.collective_bytes.items())
    flash = ", ".join(f"{n} calls of {name}" for name, n in needs.attention.items())
    lines = [
        json.dumps(config.to_json(), indent=2),
        f"trained: {run.trained_parameters:,} parameters",
        f"frozen:  {run.frozen_parameters:,} parameters",
        f"devices: {run.devices}",
        f"memory of a device: {_gigabytes(needs.arguments_bytes)} for weights, moments and "
        f"batch, {_gigabytes(needs.temporary_bytes)} for a step; "
        f"{_gigabytes(needs.peak_bytes)} at the peak"
        + (f" of {_gigabytes(target.chip.memory_bytes)}" if target else ""),
        f"a step: {needs.flops / 1e12:.3f} TFLOP and {_gigabytes(needs.moved_bytes)} moved on a "
        f"device; attention: {flash or 'plain XLA'}; between devices {spoken or 'nothing'}",
    ]
    if isinstance(config, AdapterRun) and not is_here(base_source(config.base)):
        lines.insert(1, f"base: {config.base} is {STAND_IN}")
    if target is not None and run.seconds is not None:
        rate = config.batch_size / run.seconds
        hours = config.steps * run.seconds / 3600
        lines.append(
            f"to expect: {run.seconds:.3f} s a step, {rate:.1f} pictures a second, "
            f"{hours:.1f} hours for {config.steps:,} steps; by {_figures(target, config)}"
        )
    return "\n".join(lines)


def _figures(target: Target, config: RunConfig) -> str:
    chip = target.chip
    rate = chip.rate_32 if config.precision == "float32" else chip.rate_16
    return (
        f"{rate / 1e12:.0f} TFLOP/s and {chip.bandwidth / 1e9:.0f} GB/s of a device, of which "
        f"{EFFICIENCY:.0%} are assumed to be reached"
    )


def _gigabytes(value: int | None) -> str:
    return "unknown" if value is None else f"{value / 1e9:.2f} GB"


def count(tree: Any) -> int:
    """Number of parameters."""
    return sum(x.size for x in jax.tree.leaves(tree))
