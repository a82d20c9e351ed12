"""One optimizer step: a pure function (state, frozen, batch, key) → (state, metrics).

It knows nothing of what is trained: an objective's `loss(params, frozen, batch, key)` does.
Gradients, moments and averages exist for `params` alone; `frozen` is only read.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fusionjax.backend.sharding import batch_sharding, frozen_sharding, keep_batch_split, replicated
from train.config import OptimizerConfig, Precision

# What makes a step that does not fit a device smaller.
LESS_MEMORY = (
    "use a smaller batch_size or more optimizer.accumulate_steps, remat, or split the frozen "
    "weights with mesh.fsdp"
)

Params = Any
Batch = dict[str, Any]  # arrays by name
# Each is a mean over the batch. A mean over a share of the batch is its sum over that share
# divided by the whole batch's size, and stands beside `<name>_share`; so both can be averaged
# over parts and batches before `train.watch.divide_by_shares` divides them.
Metrics = dict[str, jax.Array]
Loss = Callable[[Params, Any, Batch, jax.Array], tuple[jax.Array, Metrics]]

GROW_LOSS_SCALE_EVERY = 2000  # finite steps


Leaf = Any  # a jax.Array, or what stands for one: a shape, a sharding


@flax.struct.dataclass
class TrainState:
    """Everything that a checkpoint must hold to go on exactly."""

    step: Leaf
    params: Params
    ema: Params
    optimizer: Any
    loss_scale: Leaf  # 1 unless float16
    finite_in_row: Leaf
    skipped: Leaf
    skipped_in_row: Leaf


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warmup, then constant or a cosine to zero at the last step."""
    warmup = min(config.warmup_steps, max(steps - 1, 0))
    if config.schedule == "constant":
        after: optax.Schedule = optax.constant_schedule(config.learning_rate)
    else:
        after = optax.cosine_decay_schedule(config.learning_rate, max(steps - warmup, 1))
    rising = optax.linear_schedule(
        config.learning_rate / (warmup + 1), config.learning_rate, warmup
    )
    return optax.join_schedules([rising, after], [warmup])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW with clipping; vectors (biases, norms) are not decayed."""
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(
            learning_rate(config, steps),
            config.beta1,
            config.beta2,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
        ),
    )


def init_state(
    params: Params, optimizer: optax.GradientTransformation, precision: Precision
) -> TrainState:
    """The state before the first step; the average starts at the parameters.

    Everything is copied: the step gives the state's memory back, and kf and vf may begin as the
    very arrays of the frozen weights.
    """

    def zero() -> jax.Array:  # each its own buffer, since the state is donated
        return jnp.zeros((), jnp.int32)

    return TrainState(
        step=zero(),
        params=jax.tree.map(jnp.copy, params),
        ema=jax.tree.map(jnp.copy, params),
        optimizer=optimizer.init(params),
        loss_scale=jnp.float32(2.0**15 if precision == "float16" else 1.0),
        finite_in_row=zero(),
        skipped=zero(),
        skipped_in_row=zero(),
    )


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    config: OptimizerConfig,
    precision: Precision,
) -> Callable[[TrainState, Any, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """Builds the step for one objective.

    Args:
        loss: the objective's mean loss over a batch, and further scalar metrics.
        optimizer: as from `make_optimizer`.
        config: accumulation and averaging.
        precision: "float16" switches dynamic loss scaling on.

    Returns:
        The step. `key` is the run's key; each step folds its own number into it.
    """

    def train_step(
        state: TrainState, frozen: Any, batch: Batch, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key, state.step)

        def scaled(params: Params, part: Batch, part_key: jax.Array) -> tuple[jax.Array, Metrics]:
            value, metrics = loss(params, frozen, part, part_key)
            return value * state.loss_scale, {"loss": value, **metrics}

        gradients, metrics = _accumulated(
            jax.grad(scaled, has_aux=True), state.params, batch, key, config.accumulate_steps
        )
        gradients = jax.tree.map(lambda g: g / state.loss_scale, gradients)
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])

        updates, moments = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        done = (state.step - state.skipped).astype(jnp.float32)
        decay = jnp.minimum(config.ema_decay, (1 + done) / (10 + done))
        ema = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state.ema, params)

        def keep(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        scale, in_row = _next_loss_scale(state, finite, dynamic=precision == "float16")
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=keep(params, state.params),
            ema=keep(ema, state.ema),
            optimizer=keep(moments, state.optimizer),
            loss_scale=scale,
            finite_in_row=in_row,
            skipped=state.skipped + ~finite,
            skipped_in_row=jnp.where(finite, 0, state.skipped_in_row + 1),
        )
        return state, {
            **metrics,
            "grad_norm": norm,
            "loss_scale": state.loss_scale,
            "skipped": state.skipped,
            "skipped_in_row": state.skipped_in_row,
        }

    return train_step


def shard_step(step: Callable[..., Any], mesh: Mesh, frozen: Any) -> Any:
    """Jits a step for a mesh: batch split, trained state whole everywhere and given back.

    Args:
        step: as from `make_step`.
        mesh: where it will run.
        frozen: the frozen weights or their shapes; how they lie on the mesh follows from it.

    Returns:
        The jitted step.
    """
    everywhere = replicated(mesh)
    return jax.jit(
        split_by_batch(step, mesh),
        in_shardings=(everywhere, frozen_sharding(mesh, frozen), batch_sharding(mesh), None),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )


def split_by_batch(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """A step or a loss whose layers read what is split by batch, also where weights are split."""
    if mesh.shape["fsdp"] == 1:
        return function

    @functools.wraps(function)
    def split(*arguments: Any) -> Any:
        with nn.intercept_methods(keep_batch_split(mesh)):
            return function(*arguments)

    return split


def _accumulated(
    grad: Callable[..., tuple[Params, Metrics]],
    params: Params,
    batch: Batch,
    key: jax.Array,
    parts: int,
) -> tuple[Params, Metrics]:
    """Mean gradient and metrics over `parts` equal parts of the batch, one after the other."""
    if parts == 1:
        return grad(params, batch, key)
    # Every part takes each parts-th example, so that it stays spread over all devices.
    split = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0), batch
    )

    def add(total: Any, part: tuple[jax.Array, Batch]) -> tuple[Any, None]:
        number, examples = part
        value = grad(params, examples, jax.random.fold_in(key, number))
        return jax.tree.map(jnp.add, total, value), None

    shapes = jax.eval_shape(grad, params, jax.tree.map(lambda x: x[0], split), key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(parts), split))
    return jax.tree.map(lambda x: x / parts, total)


def _next_loss_scale(
    state: TrainState, finite: jax.Array, *, dynamic: bool
) -> tuple[jax.Array, jax.Array]:
    """Halves the scale after a non-finite step, doubles it after a long finite row."""
    in_row = jnp.where(finite, state.finite_in_row + 1, 0)
    if not dynamic:
        return state.loss_scale, in_row
    grow = in_row >= GROW_LOSS_SCALE_EVERY
    scale = jnp.where(finite, state.loss_scale * jnp.where(grow, 2.0, 1.0), state.loss_scale / 2)
    return jnp.clip(scale, 1.0, 2.0**24), jnp.where(grow, 0, in_row)
