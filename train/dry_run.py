"""`--dry-run`: what a run would need, found by compiling its step without weights or data."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from fusionjax.backend.devices import default_implementation
from fusionjax.errors import UserError
from fusionjax.sharding import make_mesh
from train.collectives import collectives
from train.config import AdapterRun, RunConfig
from train.flops import matrix_flops
from train.objectives import Objective, make_objective
from train.step import init_state, make_optimizer, make_step, shard_step
from train.targets import Target


def dry_run(config: RunConfig, target: Target | None = None) -> dict[str, Any]:
    """Compiles the step.

    Args:
        config: the run.
        target: hardware to compile for; None is the present devices.

    Returns:
        `trained_parameters`, `frozen_parameters`, `devices`, `images_per_device` (worked through
        at once), and by device: `memory_bytes` (what a target has), `arguments_bytes` (weights,
        moments and the batch), `temporary_bytes`, `peak_bytes` (both and the program's own; None
        where the compiler does not tell), `flops` (the matrix arithmetic of a step) and
        `collective_bytes` (what each kind of collective operation leaves on it).

    Raises:
        UserError: if the batch does not fit the devices, or the step not a device's memory.
    """
    devices = None if target is None else target.devices
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, devices)
    if isinstance(config, AdapterRun) and config.attention is None:
        devices = list(mesh.devices.flat)
        implementation = default_implementation(config.precision, devices)
        config = dataclasses.replace(config, attention=implementation)
    objective = make_objective(config, mesh, abstract=True)
    config.check_batch(mesh.size)
    compiled, params, flops = compile_step(config, objective, mesh)
    memory = compiled.memory_analysis()
    spoken: dict[str, int] = {}
    for collective in collectives(compiled.as_text()):
        spoken[collective.kind] = spoken.get(collective.kind, 0) + collective.size_bytes
    return {
        "trained_parameters": count(params),
        "frozen_parameters": count(objective.frozen),
        "devices": f"{mesh.size} × {mesh.devices.flat[0].device_kind}",
        "images_per_device": config.batch_size // (config.optimizer.accumulate_steps * mesh.size),
        "memory_bytes": None if target is None else target.memory_bytes,
        "arguments_bytes": getattr(memory, "argument_size_in_bytes", None),
        "temporary_bytes": getattr(memory, "temp_size_in_bytes", None),
        "peak_bytes": getattr(memory, "peak_memory_in_bytes", None) or None,
        "flops": flops / mesh.size,
        "collective_bytes": spoken,
    }


def compile_step(config: RunConfig, objective: Objective, mesh: Mesh) -> tuple[Any, Any, int]:
    """Compiles the step from shapes alone.

    Args:
        config: the run.
        objective: abstract, as from `make_objective(…, abstract=True)`.
        mesh: what to compile for.

    Returns:
        The compiled step, the shapes of what is trained, and the step's matrix arithmetic over
        all devices (without that of hand-written attention kernels).

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
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"batch_size {config.batch_size} does not fit {mesh.size} × "
            f"{mesh.devices.flat[0].device_kind}; {str(error).splitlines()[0]}"
        ) from None
    return compiled, params, matrix_flops(traced.jaxpr)


def report(config: RunConfig, needs: Mapping[str, Any]) -> str:
    """The lines that `--dry-run` prints."""
    spoken = needs["collective_bytes"]
    return "\n".join(
        [
            json.dumps(config.to_json(), indent=2),
            f"trained: {needs['trained_parameters']:,} parameters",
            f"frozen:  {needs['frozen_parameters']:,} parameters",
            f"devices: {needs['devices']}",
            f"memory of a device: {_gigabytes(needs['arguments_bytes'])} for weights, moments and "
            f"batch, {_gigabytes(needs['temporary_bytes'])} for a step; "
            f"{_gigabytes(needs['peak_bytes'])} at the peak"
            + (f" of {_gigabytes(needs['memory_bytes'])}" if needs["memory_bytes"] else ""),
            f"a step: {needs['flops'] / 1e12:.3f} TFLOP on a device; between devices "
            + (", ".join(f"{k} {v / 1e6:.1f} MB" for k, v in spoken.items()) or "nothing"),
        ]
    )


def _gigabytes(value: int | None) -> str:
    return "unknown" if value is None else f"{value / 1e9:.2f} GB"


def count(tree: Any) -> int:
    """Number of parameters."""
    return sum(x.size for x in jax.tree.leaves(tree))
