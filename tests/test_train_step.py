"""The optimizer step on problems small enough to work out by hand."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fusionjax.backend.sharding import frozen_sharding, make_mesh
from fusionjax.errors import UserError
from train.config import OptimizerConfig, RunConfig
from train.step import GROW_LOSS_SCALE_EVERY, init_state, learning_rate, make_optimizer, make_step

CONFIG = OptimizerConfig(
    learning_rate=0.1, schedule="constant", warmup_steps=0, weight_decay=0.0, ema_decay=0.9
)


def squares(params, frozen, batch, key):
    """A loss with a known minimum, at which w = frozen."""
    del key
    error = (params["w"] - frozen)[None] * batch["x"]
    return jnp.square(error).mean(), {"w": params["w"].sum()}


def start(config=CONFIG, precision="float32", loss=squares):
    optimizer = make_optimizer(config, 100)
    step = jax.jit(make_step(loss, optimizer, config, precision))
    return step, init_state({"w": jnp.array([3.0, -1.0])}, optimizer, precision)


BATCH = {"x": jnp.arange(1.0, 9).reshape(4, 2)}
FROZEN = jnp.array([1.0, 1.0])


def test_one_step_is_adam_by_hand():
    step, state = start()
    state, metrics = step(state, FROZEN, BATCH, jax.random.key(0))
    gradient = (2 * (np.array([3.0, -1]) - 1) * np.square(np.asarray(BATCH["x"])).sum(0)) / 8
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(gradient), rtol=1e-6)
    # Adam's first step has the size of the learning rate whatever the gradient.
    np.testing.assert_allclose(state.params["w"], [2.9, -0.9], atol=1e-5)
    # The average follows with decay min(0.9, 1/10).
    np.testing.assert_allclose(state.ema["w"], [0.3 + 0.9 * 2.9, -0.1 - 0.9 * 0.9], atol=1e-5)


def test_it_finds_the_minimum():
    step, state = start()
    for _ in range(200):
        state, metrics = step(state, FROZEN, BATCH, jax.random.key(0))
    np.testing.assert_allclose(state.params["w"], FROZEN, atol=0.02)
    assert float(metrics["loss"]) < 0.01


def test_accumulation_is_the_same_step():
    step, state = start()
    parts, same = start(dataclasses.replace(CONFIG, accumulate_steps=2))
    for _ in range(3):
        state, metrics = step(state, FROZEN, BATCH, jax.random.key(0))
        same, summed = parts(same, FROZEN, BATCH, jax.random.key(0))
    np.testing.assert_allclose(same.params["w"], state.params["w"], rtol=1e-6)
    np.testing.assert_allclose(summed["loss"], metrics["loss"], rtol=1e-6)
    np.testing.assert_allclose(summed["grad_norm"], metrics["grad_norm"], rtol=1e-6)


def test_a_step_that_is_not_finite_is_skipped_and_counted():
    step, state = start()
    state, _ = step(state, FROZEN, BATCH, jax.random.key(0))
    bad = {"x": BATCH["x"].at[0, 0].set(jnp.nan)}
    after, metrics = step(state, FROZEN, bad, jax.random.key(0))
    for name in ("params", "ema", "optimizer"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(state, name))
    assert (int(after.step), int(after.skipped), int(after.skipped_in_row)) == (2, 1, 1)
    assert np.isnan(metrics["loss"])
    after, _ = step(after, FROZEN, BATCH, jax.random.key(0))
    assert (int(after.step), int(after.skipped), int(after.skipped_in_row)) == (3, 1, 0)


def test_the_loss_scale_halves_and_doubles():
    step, state = start(precision="float16")
    assert float(state.loss_scale) == 2.0**15
    bad = {"x": BATCH["x"].at[0, 0].set(jnp.inf)}
    state, _ = step(state, FROZEN, bad, jax.random.key(0))
    assert float(state.loss_scale) == 2.0**14
    state = dataclasses.replace(state, finite_in_row=jnp.int32(GROW_LOSS_SCALE_EVERY - 1))
    state, _ = step(state, FROZEN, BATCH, jax.random.key(0))
    assert float(state.loss_scale) == 2.0**15
    assert int(state.finite_in_row) == 0
    # Whatever the scale, the gradient is the same.
    plain, other = start()
    other, _ = plain(other, FROZEN, BATCH, jax.random.key(0))
    np.testing.assert_allclose(state.params["w"], other.params["w"], rtol=1e-5)


def test_each_step_has_its_own_noise():
    def noisy(params, frozen, batch, key):
        return params["w"].sum() * 0 + jax.random.uniform(key), {}

    step, state = start(loss=noisy)
    seen = []
    for _ in range(3):
        state, metrics = step(state, FROZEN, BATCH, jax.random.key(0))
        seen.append(float(metrics["loss"]))
    assert len(set(seen)) == 3


def test_learning_rates():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4, schedule="cosine")
    rates = [float(learning_rate(config, 14)(step)) for step in range(14)]
    np.testing.assert_allclose(rates[:5], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))
    assert float(learning_rate(config, 14)(14)) == pytest.approx(0, abs=1e-6)
    constant = learning_rate(dataclasses.replace(config, schedule="constant"), 14)
    assert float(constant(13)) == 1.0


def test_vectors_are_not_decayed():
    optimizer = make_optimizer(dataclasses.replace(CONFIG, weight_decay=0.5), 10)
    params = {"matrix": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    after = optax.apply_updates(params, updates)
    np.testing.assert_allclose(after["matrix"], 0.95, rtol=1e-6)
    np.testing.assert_array_equal(after["bias"], 1)


def test_meshes():
    devices = jax.devices()[:4]
    assert dict(make_mesh(-1, 2, devices).shape) == {"data": 2, "fsdp": 2}
    with pytest.raises(UserError, match="data=3 fsdp=1 does not fit 4 devices"):
        make_mesh(3, 1, devices)
    with pytest.raises(UserError, match="must be ≥ 1"):
        make_mesh(-1, 0, devices)


def test_only_large_frozen_weights_are_split():
    mesh = make_mesh(-1, 4, jax.devices()[:4])
    tree = {"large": np.zeros((512, 1024)), "odd": np.zeros((511, 1023)), "small": np.zeros(8)}
    specs = {name: s.spec for name, s in frozen_sharding(mesh, tree).items()}
    assert specs["large"] == jax.sharding.PartitionSpec(None, "fsdp")
    assert specs["odd"] == specs["small"] == jax.sharding.PartitionSpec()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"batch_size": 3, "optimizer": OptimizerConfig(accumulate_steps=2)}, "a multiple of"),
    ],
)
def test_runs_are_checked(change, message):
    with pytest.raises(UserError, match=message):
        RunConfig(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ema_decay": 1.0}, r"optimizer.ema_decay is 1.0"),
        ({"learning_rate": -1.0}, r"optimizer.learning_rate is -1; it"),
        ({"max_grad_norm": 0.0}, r"optimizer.max_grad_norm is 0.0"),
        ({"accumulate_steps": 0}, r"optimizer.accumulate_steps is 0"),
    ],
)
def test_optimizers_are_checked(change, message):
    with pytest.raises(UserError, match=message):
        OptimizerConfig(**change)
