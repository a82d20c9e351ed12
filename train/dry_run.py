"""`--dry-run`: what a run would need, found by compiling its step without weights or data."""

import json
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from fusionjax.sharding import batch_sharding, frozen_sharding, make_mesh, replicated
from train.config import RunConfig
from train.objectives import Objective, make_objective
from train.step import init_state, make_optimizer, make_step


def dry_run(config: RunConfig) -> dict[str, Any]:
    """Compiles the step for the present devices.

    Args:
        config: the run.

    Returns:
        `trained_parameters`, `frozen_parameters`, `devices`, and by device: `arguments_bytes`
        (weights, moments and the batch), `temporary_bytes`, `flops` of a step (None where the
        compiler does not tell).
    """
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    objective = make_objective(config, mesh, abstract=True)
    compiled, params = compile_step(config, objective, mesh)
    memory = compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}
    return {
        "trained_parameters": count(params),
        "frozen_parameters": count(objective.frozen),
        "devices": f"{mesh.size} × {mesh.devices.flat[0].device_kind}",
        "arguments_bytes": getattr(memory, "argument_size_in_bytes", None),
        "temporary_bytes": getattr(memory, "temp_size_in_bytes", None),
        "flops": cost.get("flops"),
    }


def compile_step(config: RunConfig, objective: Objective, mesh: Mesh) -> tuple[Any, Any]:
    """Compiles the step from shapes alone.

    Args:
        config: the run.
        objective: abstract, as from `make_objective(…, abstract=True)`.
        mesh: what to compile for.

    Returns:
        The compiled step, and the shapes of what is trained.
    """
    params = jax.eval_shape(
        objective.init, jax.eval_shape(lambda: jax.random.key(0)), objective.frozen
    )
    optimizer = make_optimizer(config.optimizer, config.steps)
    state = jax.eval_shape(lambda p: init_state(p, optimizer, config.precision), params)
    everywhere, split = replicated(mesh), batch_sharding(mesh)
    step = jax.jit(
        make_step(objective.loss, optimizer, config.optimizer, config.precision),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )
    lowered = step.lower(
        _placed(state, everywhere),
        jax.tree.map(_placed, objective.frozen, frozen_sharding(mesh, objective.frozen)),
        _placed(objective.batch_shapes(), split),
        _placed(jax.eval_shape(lambda: jax.random.key(0)), everywhere),
    )
    return lowered.compile(), params


def report(config: RunConfig, needs: Mapping[str, Any]) -> str:
    """The lines that `--dry-run` prints."""

    def gigabytes(value: int | None) -> str:
        return "unknown" if value is None else f"{value / 1e9:.2f} GB"

    flops = needs["flops"]
    return "\n".join(
        [
            json.dumps(config.to_json(), indent=2),
            f"trained: {needs['trained_parameters']:,} parameters",
            f"frozen:  {needs['frozen_parameters']:,} parameters",
            f"devices: {needs['devices']}",
            f"memory of a device: {gigabytes(needs['arguments_bytes'])} for weights, moments and "
            f"batch, {gigabytes(needs['temporary_bytes'])} for a step",
            f"a step: {'unknown' if flops is None else f'{flops / 1e12:.3f} TFLOP on a device'}",
        ]
    )


def count(tree: Any) -> int:
    """Number of parameters."""
    return sum(x.size for x in jax.tree.leaves(tree))


def _placed(tree: Any, sharding: NamedSharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
