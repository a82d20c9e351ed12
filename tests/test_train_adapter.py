"""Training an adapter on a tiny base: it learns, and it leaves everything else alone."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusionjax.checkpoint import Checkpoints, load_adapter
from fusionjax.data import mini_faces
from fusionjax.data.cache import CachedLatents
from fusionjax.errors import UserError
from fusionjax.interop.adapter_file import load_adapter_file
from fusionjax.sharding import frozen_sharding, make_mesh, put_batch, replicated
from fusionjax.unet import FusionOptions
from tests.tiny import tiny_base
from train.config import (
    AdapterRun,
    CheckpointConfig,
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    ValidationConfig,
)
from train.loop import run
from train.objectives.adapter import AdapterObjective, _box_weight
from train.step import init_state, make_optimizer, make_step

pytestmark = pytest.mark.filterwarnings("ignore:.*:ResourceWarning")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder with a tiny base model and a tiny dataset."""
    folder = tmp_path_factory.mktemp("train")
    tiny_base().save_pretrained(folder / "base", dtype=np.float32)
    mini_faces.build(folder / "faces", people=8, pictures_per_person=2, scenes=0, processes=1)
    return folder


@pytest.fixture(scope="module")
def config(shelf):
    return AdapterRun(
        name="tiny",
        base=str(shelf / "base"),
        steps=4,
        batch_size=8,
        log_every_steps=2,
        data=DataConfig(folder=str(shelf / "faces"), threads=1),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=2, schedule="constant"),
        mesh=MeshConfig(data=8),
        checkpoint=CheckpointConfig(every_steps=2),
        validation=ValidationConfig(every_steps=4, examples=8, grid_rows=1),
    )


@pytest.fixture(scope="module")
def objective(config):
    return AdapterObjective(config, make_mesh(devices=jax.devices()[:1]))


@pytest.fixture(scope="module")
def batch(config, objective):
    source = objective.source(config.data.train_split)
    examples = [objective.make(source[i], np.random.default_rng(i)) for i in range(8)]
    return {name: np.stack([x[name] for x in examples]) for name in examples[0]}


def trained(objective, config, batch, steps):
    optimizer = make_optimizer(config.optimizer, config.steps)
    step = jax.jit(make_step(objective.loss, optimizer, config.optimizer, config.precision))
    state = init_state(
        objective.init(jax.random.key(0), objective.frozen), optimizer, config.precision
    )
    losses = []
    for _ in range(steps):
        state, metrics = step(state, objective.frozen, batch, jax.random.key(1))
        losses.append(float(metrics["loss"]))
    return state, losses


def test_it_overfits_eight_pictures(objective, config, batch):
    loss = jax.jit(objective.loss)

    def fixed(params):
        keys = range(100, 108)
        return np.mean(
            [float(loss(params, objective.frozen, batch, jax.random.key(k))[0]) for k in keys]
        )

    before = fixed(objective.init(jax.random.key(0), objective.frozen))
    state, _ = trained(objective, config, batch, 60)
    after = fixed(state.params)
    assert after < 0.8 * before, (before, after)


def test_frozen_weights_get_no_gradient_and_no_moments(objective, config, batch):
    state, _ = trained(objective, config, batch, 1)
    trainable = jax.tree.map(np.shape, objective.init(jax.random.key(0), objective.frozen))
    count = sum(int(np.prod(x)) for x in jax.tree.leaves(trainable, is_leaf=_is_shape))
    moments = [x for x in jax.tree.leaves(state.optimizer) if x.ndim]
    assert sum(x.size for x in moments) == 2 * count
    assert jax.tree.map(np.shape, state.params) == trainable


def _is_shape(x):
    return isinstance(x, tuple)


def test_a_dropped_face_changes_nothing(objective, batch):
    """With every face dropped the loss does not depend on the adapter, and otherwise it does."""
    config = objective.config
    first = objective.init(jax.random.key(0), objective.frozen)
    second = jax.tree.map(lambda x: x * 1.5, first)

    def losses(**dropout):
        objective.config = dataclasses.replace(config, **dropout)
        loss = jax.jit(objective.loss)
        return [
            float(loss(p, objective.frozen, batch, jax.random.key(0))[0]) for p in (first, second)
        ]

    try:
        without = losses(faces_dropout=1.0, text_dropout=0.0, both_dropout=0.0)
        shown = losses(faces_dropout=0.0, text_dropout=0.0, both_dropout=0.0)
    finally:
        objective.config = config
    assert without[0] == without[1]
    assert abs(shown[0] - shown[1]) > 1e-5


def test_the_losses_do_not_depend_on_the_number_of_devices(objective, config, batch):
    curves = []
    for devices, fsdp in ((1, 1), (2, 1), (4, 2)):
        mesh = make_mesh(-1, fsdp, jax.devices()[:devices])
        frozen = jax.device_put(objective.frozen, frozen_sharding(mesh, objective.frozen))
        optimizer = make_optimizer(config.optimizer, config.steps)
        step = jax.jit(make_step(objective.loss, optimizer, config.optimizer, config.precision))
        state = init_state(
            objective.init(jax.random.key(0), objective.frozen), optimizer, config.precision
        )
        state = jax.device_put(state, replicated(mesh))
        losses = []
        for _ in range(3):
            state, metrics = step(state, frozen, put_batch(mesh, batch), jax.random.key(1))
            losses.append(float(metrics["loss"]))
        curves.append(losses)
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-5)
    np.testing.assert_allclose(curves[2], curves[0], rtol=1e-5)


def test_a_run_from_start_to_end(config, shelf):
    folder = run(dataclasses.replace(config, output=str(shelf / "run")))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["group"] == "train"]
    assert steps == [2, 4]
    assert [line["step"] for line in lines if line["group"] == "validation"] == [4]
    assert all(0 <= line["input_wait_share"] <= 1 for line in lines if line["group"] == "train")
    assert (folder / "grids" / "000004.png").is_file()

    # What a checkpoint holds: three copies of kf, vf and their moments, not the base.
    base = tiny_base()
    written = sum(
        f.stat().st_size for f in (folder / "checkpoints" / "4").rglob("*") if f.is_file()
    )
    adapter = load_adapter(folder)
    size = sum(x.nbytes for x in jax.tree.leaves(adapter.params))
    assert written < 5 * size + 500_000  # Orbax's own files take some room
    assert sum(x.nbytes for x in jax.tree.leaves(base.params)) > 5 * size + 500_000

    # The averaged weights of the last step, wherever they are loaded from.
    assert adapter.base_fingerprint == base.fingerprint
    assert adapter.options == FusionOptions()
    for path in (folder / "checkpoints" / "4", folder / "adapter.safetensors"):
        other = load_adapter(path)
        assert other.base_fingerprint == adapter.base_fingerprint
        assert other.base == adapter.base
        jax.tree.map(np.testing.assert_array_equal, other.params, adapter.params)
    earlier = load_adapter(folder / "checkpoints" / "2")
    layer = next(iter(adapter.params))
    assert not np.array_equal(earlier.params[layer]["kf"], adapter.params[layer]["kf"])
    assert load_adapter_file(folder / "adapter.safetensors").params.keys() == adapter.params.keys()


def test_stopped_and_continued_is_the_same_run(config, shelf):
    whole = run(dataclasses.replace(config, output=str(shelf / "whole"), mesh=MeshConfig()))
    # Stop after step 2 by taking the later checkpoint away, as a kill would have.
    import shutil

    broken = shelf / "broken"
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "checkpoints" / "4")
    run(dataclasses.replace(config, output=str(broken), mesh=MeshConfig()))
    first, second = load_adapter(whole), load_adapter(broken)
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    a, b = (
        [json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()]
        for f in (whole, broken)
    )
    assert [(x["step"], x["loss"]) for x in a] == [(x["step"], x["loss"]) for x in b]


def test_a_run_is_not_continued_with_other_settings(config, shelf):
    folder = run(dataclasses.replace(config, output=str(shelf / "other")))
    with pytest.raises(UserError, match="begun with seed 0 and is to be continued with 1"):
        run(dataclasses.replace(config, output=str(folder), seed=1))
    with pytest.raises(UserError, match="already holds a run"):
        run(dataclasses.replace(config, output=str(folder), resume=False))


@pytest.mark.parametrize(
    ("options", "references"),
    [
        (FusionOptions(reference="matched"), 2),
        (FusionOptions(fusion="decoupled", init="zeros"), 1),
    ],
)
def test_other_options_train(config, options, references, batch):
    other = dataclasses.replace(config, fusion=options, references=references)
    objective = AdapterObjective(other, make_mesh(devices=jax.devices()[:1]))
    source = objective.source("train")
    examples = [objective.make(source[i], np.random.default_rng(i)) for i in range(4)]
    batch = {name: np.stack([x[name] for x in examples]) for name in examples[0]}
    assert batch["references"].shape[:2] == (4, references)
    if references > 1:
        assert set(batch["present"].sum(1)) == {1.0, 2.0}
    state, losses = trained(objective, other, batch, 2)
    assert np.isfinite(losses).all()
    assert int(state.skipped) == 0


def test_half_precision_scales_the_loss_and_learns(config, batch):
    half = dataclasses.replace(config, precision="float16")
    objective = AdapterObjective(half, make_mesh(devices=jax.devices()[:1]))
    state, losses = trained(objective, half, batch, 3)
    assert np.isfinite(losses).all()
    assert float(state.loss_scale) > 1
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(objective.frozen)} == {jnp.dtype("float16")}
    exact = AdapterObjective(config, make_mesh(devices=jax.devices()[:1]))
    _, expected = trained(exact, config, batch, 3)
    np.testing.assert_allclose(losses, expected, rtol=2e-2)


def test_a_cache_of_something_else_is_refused(config, objective):
    objective.source("train")
    folder = f"{config.data.folder}-latents/train"
    with pytest.raises(UserError, match="was made with base"):
        CachedLatents(folder, {"base": "another"})
    with pytest.raises(UserError, match="no finished cache"):
        CachedLatents(config.data.folder)


def test_the_face_box_covers_the_cells_it_touches():
    weight = _box_weight(np.array([0.25, 0.5, 0.6, 1.0]), (4, 4), 3.0)
    np.testing.assert_array_equal(weight[:, 0], [1, 1, 1, 1])
    np.testing.assert_array_equal(weight[:, 3], [1, 3, 3, 1])


def test_a_checkpoint_knows_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=1)

    @dataclasses.dataclass
    class State:
        ema: dict

    jax.tree_util.register_dataclass(State, ["ema"], [])
    for step, loss in ((1, 0.5), (2, 0.1), (3, 0.4), (4, None), (5, 0.3)):
        checkpoints.save(step, State({"x": jnp.float32(step)}), {"next": step}, loss)
    checkpoints.wait()
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdecimal()) == ["2", "5"]
    state, position = checkpoints.restore(2, State({"x": jnp.float32(0)}))
    assert (float(state.ema["x"]), position) == (2.0, {"next": 2})
    assert float(checkpoints.restore_ema(5)["x"]) == 5
    checkpoints.close()
