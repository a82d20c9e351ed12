"""Training an adapter on a tiny base: it learns, and it leaves everything else alone."""

import contextlib
import dataclasses
import json
import math
import resource
import shutil
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fusionjax.backend.program import collectives
from fusionjax.backend.sharding import frozen_sharding, make_mesh, put_batch, replicated
from fusionjax.data import mini_faces
from fusionjax.data.batches import stacked
from fusionjax.data.cache import CachedLatents, made_from
from fusionjax.data.cache_command import main as cache_main
from fusionjax.diffusion.noise_schedule import NoiseSchedule
from fusionjax.errors import UserError
from fusionjax.interop.adapter_file import load_adapter_file
from fusionjax.models.adapter import load_adapter
from fusionjax.models.checkpoint import Checkpoints
from fusionjax.options import FusionOptions
from tests.tiny import PIXELS, tiny_base
from train.config import (
    AdapterRun,
    CheckpointConfig,
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    ValidationConfig,
)
from train.loop import _Clock, run
from train.main import main
from train.objectives.adapter import AdapterObjective, _by_time
from train.step import init_state, make_optimizer, make_step, shard_step
from train.watch import Progress, divide_by_shares, scalars

pytestmark = pytest.mark.filterwarnings("ignore:.*:ResourceWarning")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder with a tiny base model and a tiny dataset."""
    folder = tmp_path_factory.mktemp("train")
    tiny_base().save_pretrained(folder / "base", dtype=np.float32)
    mini_faces.build(folder / "faces", people=8, pictures_per_person=2, scenes=4, processes=1)
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
    return stacked(examples)


@pytest.fixture(scope="module")
def together(config):
    """A run on pictures of one and of several people: its configuration, objective and a batch."""
    config = dataclasses.replace(
        config,
        references=2,
        people=3,
        face_weight=3.0,
        min_snr_gamma=5.0,
        faces_dropout=0,
        both_dropout=0,
        data=dataclasses.replace(config.data, train_split="train+scenes"),
    )
    objective = AdapterObjective(config, make_mesh(devices=jax.devices()[:1]))
    source = objective.source(config.data.train_split)
    examples = [objective.make(source[i], np.random.default_rng(i)) for i in range(12, 20)]
    return config, objective, stacked(examples)


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


@pytest.mark.slow
def test_it_overfits_eight_pictures(objective, config, batch):
    loss = jax.jit(objective.loss)

    def fixed(params, batch):
        keys = range(100, 108)
        return np.mean(
            [float(loss(params, objective.frozen, batch, jax.random.key(k))[0]) for k in keys]
        )

    hidden = batch | {"present": np.zeros_like(batch["present"])}
    fresh = objective.init(jax.random.key(0), objective.frozen)
    state, _ = trained(objective, config, batch, 80)
    before, after = fixed(fresh, batch), fixed(state.params, batch)
    assert after < 0.8 * before, (before, after)
    assert fixed(state.params, hidden) == fixed(fresh, hidden)  # it was learnt through the photos


@pytest.mark.slow
def test_frozen_weights_stay_what_they_were(objective, config, batch):
    """Bit by bit, those that the run's own step was given on the devices."""
    step, state, (frozen, *rest) = compiled_step(objective, config, batch, 2, 2)
    for _ in range(3):
        state, _ = step(state, frozen, *rest)
    before = tiny_base().params
    assert set(frozen) == {"unet", "text_encoder"}
    for part, weights in frozen.items():
        jax.tree.map(np.testing.assert_array_equal, weights, before[part])


def test_weights_that_the_step_does_not_read_stay_off_the_devices(objective):
    """Autoencoder and all, so that a device holds what the mesh gives it and no second copy."""
    assert {type(x) for x in jax.tree.leaves(objective.base.params)} == {np.ndarray}


@pytest.mark.slow
def test_steps_that_are_not_finite_stop_the_run(config, shelf, tmp_path):
    hopeless = dataclasses.replace(
        config,
        output=str(tmp_path / "run"),
        steps=30,
        log_every_steps=1,
        max_skipped_in_row=3,
        optimizer=OptimizerConfig(learning_rate=1e38, warmup_steps=0, schedule="constant"),
    )
    with pytest.raises(UserError, match=r"3 steps in a row up to step \d+ had a gradient"):
        run(hopeless)


def test_frozen_weights_get_no_gradient_and_no_moments(objective, config, batch):
    optimizer = make_optimizer(config.optimizer, config.steps)
    step = make_step(objective.loss, optimizer, config.optimizer, config.precision)
    fresh = init_state(
        objective.init(jax.random.key(0), objective.frozen), optimizer, config.precision
    )
    state, _ = jax.eval_shape(step, fresh, objective.frozen, batch, jax.random.key(1))
    trainable = jax.tree.map(np.shape, objective.init(jax.random.key(0), objective.frozen))
    count = sum(int(np.prod(x)) for x in jax.tree.leaves(trainable, is_leaf=_is_shape))
    moments = [x for x in jax.tree.leaves(state.optimizer) if x.shape]
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


def compiled_step(objective, config, batch, devices, fsdp):
    """The run's own step for a mesh, and what it is called with."""
    mesh = make_mesh(-1, fsdp, jax.devices()[:devices])
    frozen = jax.device_put(objective.frozen, frozen_sharding(mesh, objective.frozen))
    optimizer = make_optimizer(config.optimizer, config.steps)
    step = make_step(objective.loss, optimizer, config.optimizer, config.precision)
    state = init_state(
        objective.init(jax.random.key(0), objective.frozen), optimizer, config.precision
    )
    state = jax.device_put(state, replicated(mesh))
    rest = (frozen, put_batch(mesh, batch), jax.random.key(1))
    return shard_step(step, mesh, frozen).lower(state, *rest).compile(), state, rest


@pytest.mark.slow
def test_devices_change_no_loss_and_exchange_gradients_alone(together):
    """On one device, on two with the data split, on four with the frozen weights split too."""
    config, objective, batch = together
    curves, said = [], []
    for devices, fsdp in ((1, 1), (2, 1), (4, 2)):
        step, state, rest = compiled_step(objective, config, batch, devices, fsdp)
        said.append(collectives(step.as_text()))
        losses = []
        for _ in range(3):
            state, metrics = step(state, *rest)
            losses.append(float(metrics["loss"]))
        curves.append(losses)
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-5)
    np.testing.assert_allclose(curves[2], curves[0], rtol=1e-5)

    alone, data, split = said
    assert not alone
    gradients = sorted(x.shape for x in jax.tree.leaves(state.params))
    for spoken in (data, split):
        sums = [c for c in spoken if c.kind == "all-reduce"]
        assert len(sums) == 1  # all gradients together, and the metrics
        assert sorted(shape for shape in sums[0].shapes if shape) == gradients
        numbers = sum(shape == () for shape in sums[0].shapes)
        assert sums[0].size_bytes == 4 * (numbers + sum(math.prod(x) for x in gradients))
    assert [c.kind for c in data] == ["all-reduce"]
    # The frozen weights that are split are gathered, each whole, and nothing else is.
    frozen = rest[0]
    is_split = [x.shape for x in jax.tree.leaves(frozen) if not x.sharding.is_fully_replicated]
    gathered = [shape for c in split if c.kind == "all-gather" for shape in c.shapes]
    assert set(gathered) == set(is_split)  # in the reference pass and again in the other
    assert {c.kind for c in split} == {"all-reduce", "all-gather"}


@pytest.fixture(scope="module")
def finished(config, shelf):
    """The folder of a run that came to its end."""
    return run(dataclasses.replace(config, output=str(shelf / "run")))


def test_a_run_from_start_to_end(finished):
    folder = finished
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["group"] == "train"]
    assert steps == [2, 4]
    assert all(0 <= line["input_wait_share"] <= 1 for line in lines if line["group"] == "train")
    assert all(line["images_s"] > 0 for line in lines if line["group"] == "train")
    # Warm-up of two steps to 3e-3: 1e-3, 2e-3, and from then on 3e-3. 8 pictures a step, and 8
    # people with two pictures each.
    train = [line for line in lines if line["group"] == "train"]
    assert [line["learning_rate"] for line in train] == pytest.approx([2e-3, 3e-3])
    assert [line["images_seen"] for line in train] == [16, 32]
    examples = json.loads((folder / "config.json").read_text())["train_examples"]
    assert [line["epochs"] for line in train] == [16 / examples, 32 / examples]
    page = (folder / "report.html").read_text()  # written at the validation
    assert "<h3>Learning rate</h3>" in page
    assert 'alt="Grid after step 4"' in page

    # Validation: the loss, also by quarter of the timesteps, and a grid of six people in four
    # rows: photo, true picture, with adapter, without.
    (validation,) = (line for line in lines if line["group"] == "validation")
    assert validation["step"] == 4
    quarters = [validation[f"mse_t{i}"] for i in range(4) if f"mse_t{i}" in validation]
    assert len(quarters) > 1
    assert min(quarters) <= validation["mse"] <= max(quarters)
    assert not any(name.endswith("_share") for name in validation if name != "input_wait_share")
    grid = Image.open(folder / "grids" / "000004.png")
    people = grid.width // PIXELS
    assert grid.size == (people * (PIXELS + 2) + 2, 4 * (PIXELS + 2) + 2)

    # What a checkpoint holds: three copies of kf, vf and their moments, not the base.
    base = tiny_base()
    written = sum(
        f.stat().st_size for f in (folder / "checkpoints" / "4").rglob("*") if f.is_file()
    )
    adapter = load_adapter(folder)
    size = sum(x.nbytes for x in jax.tree.leaves(adapter.params))
    assert (
        written < 5 * size + 1_000_000
    )  # Orbax's own files take some room, more on a busy machine
    assert sum(x.nbytes for x in jax.tree.leaves(base.params)) > 5 * size + 1_000_000

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


def test_a_skipped_step_holds_the_schedule_back(config):
    """The optimizer counts the updates, which the rate follows: here it is asked what it did."""
    settings = dataclasses.replace(
        config.optimizer, schedule="cosine", weight_decay=0.0, max_grad_norm=1e9
    )
    progress = Progress(dataclasses.replace(config, steps=9, optimizer=settings), examples=20)
    optimizer = make_optimizer(settings, 9)
    step = make_step(lambda p, f, b, k: (p * b["x"], {}), optimizer, settings, "float32")
    state = init_state(jnp.ones(()), optimizer, "float32")
    for done, x in enumerate([1.0, 1.0, jnp.nan, 1.0, 1.0, jnp.nan, 1.0], 1):
        before = float(state.params)
        state, metrics = step(state, None, {"x": jnp.float32(x)}, jax.random.key(0))
        told = progress.after(done, int(metrics["skipped"]))
        if np.isfinite(x):  # of a gradient that does not change, AdamW's step is the rate
            assert told["learning_rate"] == pytest.approx(before - float(state.params), rel=1e-4)
        assert told["images_seen"] == 8 * done
        assert told["epochs"] == pytest.approx(8 * done / 20)


@pytest.mark.parametrize(("done", "share"), [(True, 1), (False, 0)])
def test_only_a_wait_that_the_device_saw_the_end_of_counts(done, share):
    clock = _Clock()
    clock.restart()
    with clock.waiting([types.SimpleNamespace(is_ready=lambda: done)]):
        time.sleep(0.1)
    told = clock.read(batch_size=8)
    assert told["input_wait_share"] == pytest.approx(share, abs=0.1)
    assert told["images_s"] == pytest.approx(8 / told["step_s"])


def test_stopped_and_continued_is_the_same_run(config, finished, begun):
    """Stopped after step 2: its later checkpoint is away, as a kill would have it."""
    run(dataclasses.replace(config, output=str(begun), mesh=MeshConfig()))  # data: all, that is 8
    first, second = load_adapter(finished), load_adapter(begun)
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    a, b = (
        [json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()]
        for f in (finished, begun)
    )
    assert [(x["step"], x["loss"]) for x in a] == [(x["step"], x["loss"]) for x in b]


def test_a_run_is_not_continued_with_other_settings(config, finished):
    with pytest.raises(UserError, match="begun with seed 0 and is to be continued with 1"):
        run(dataclasses.replace(config, output=str(finished), seed=1))
    faster = dataclasses.replace(config.optimizer, learning_rate=1.0)
    with pytest.raises(UserError, match=r"begun with optimizer\.learning_rate 0\.003 and is to be"):
        run(dataclasses.replace(config, output=str(finished), optimizer=faster))
    more = dataclasses.replace(config.data, threads=3)
    run(dataclasses.replace(config, output=str(finished), data=more))  # no matter
    with pytest.raises(UserError, match="already holds a run"):
        run(dataclasses.replace(config, output=str(finished), resume=False))


@pytest.fixture
def begun(finished, tmp_path):
    """A copy of the run as it was after step 2."""
    folder = tmp_path / "begun"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "checkpoints" / "4")
    return folder


def written(config, tmp_path, **changed):
    """A configuration as a file."""
    file = tmp_path / "config.py"
    file.write_text(
        "from fusionjax.unet import FusionOptions\nfrom train.config import *\n"
        f"config = {dataclasses.replace(config, **changed)!r}\n"
    )
    return str(file)


def typed(config, tmp_path, **changed):
    """What a command line with this configuration ends with."""
    return main([written(config, tmp_path, **changed)])


@contextlib.contextmanager
def full_disk(most_bytes):
    """No file can grow beyond so many bytes: what a full disk is to those who write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def checkpoint_bytes(folder):
    files = (f for f in (folder / "checkpoints" / "2").rglob("*") if f.is_file())
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def test_another_base_under_the_same_name_is_refused(config, shelf, begun, tmp_path, capsys):
    shutil.copytree(shelf / "base", tmp_path / "kept")
    before = checkpoint_bytes(begun)
    shutil.rmtree(shelf / "base")
    try:
        tiny_base(seed=5).save_pretrained(shelf / "base", dtype=np.float32)
        assert typed(config, tmp_path, output=str(begun)) == 2
    finally:
        shutil.rmtree(shelf / "base")
        shutil.copytree(tmp_path / "kept", shelf / "base")
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("error"))
    assert f"{str(begun)!r} was begun on a base of fingerprint {tiny_base().fingerprint!r}" in line
    assert "other weights" in line
    assert checkpoint_bytes(begun) == before
    assert load_adapter(begun).base_fingerprint == tiny_base().fingerprint


def test_a_folder_that_cannot_be_made_is_one_line(config, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert typed(config, tmp_path, output=str(tmp_path / "file" / "run")) == 2
    assert capsys.readouterr().err.startswith(
        f"error: output is '{tmp_path}/file/run', where nothing can be written (Not a directory); n"
    )


def test_a_full_disk_at_the_start_leaves_the_run_as_it_was(config, begun, tmp_path, capsys):
    before = checkpoint_bytes(begun), (begun / "config.json").read_text()
    file = written(config, tmp_path, output=str(begun))
    with full_disk(1000):
        assert main([file]) == 2
    error = capsys.readouterr().err
    assert "writing failed (File too large); make room, and give the same command again" in error
    assert (checkpoint_bytes(begun), (begun / "config.json").read_text()) == before
    assert load_adapter(begun).params


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path):
    @dataclasses.dataclass
    class State:
        ema: dict

    jax.tree_util.register_dataclass(State, ["ema"], [])
    numbers = np.random.default_rng(0).standard_normal((2, 100_000)).astype(np.float32)
    first, second = (State({"x": jnp.array(x)}) for x in numbers)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, first, {"next": 1})
    checkpoints.wait()
    message = r"a checkpoint in .* cannot be written \(File too large\); step 1 is untouched"
    with full_disk(100_000):
        checkpoints.save(2, second, {"next": 2})
        with pytest.raises(UserError, match=message):
            checkpoints.wait()
    checkpoints.close()

    again = Checkpoints(tmp_path / "checkpoints")
    assert again.latest() == 1
    state, position = again.restore(1, first)
    np.testing.assert_array_equal(state.ema["x"], first.ema["x"])
    assert position == {"next": 1}
    again.save(2, second, {"next": 2})  # there is room now
    again.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]


@pytest.mark.slow
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
    batch = stacked(examples)
    assert batch["references"].shape[:2] == (4, references)
    if references > 1:
        assert set(batch["present"].sum(1)) == {1.0, 2.0}
    state, losses = trained(objective, other, batch, 2)
    assert np.isfinite(losses).all()
    assert int(state.skipped) == 0


@pytest.mark.slow
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
    with pytest.raises(UserError, match="was made from another base"):
        CachedLatents(folder, {"base": "another"})
    about = made_from(objective.base, config.data.folder)
    CachedLatents(folder, about)  # fits
    other = objective.base.params | {
        "vae": jax.tree.map(lambda x: x + 1, objective.base.params["vae"])
    }
    replaced = dataclasses.replace(objective.base, params=other)
    assert made_from(replaced, config.data.folder)["autoencoder"] != about["autoencoder"]
    with pytest.raises(UserError, match="was made from another autoencoder"):
        CachedLatents(folder, made_from(replaced, config.data.folder))


def test_people_in_one_picture_see_their_own_photos(together):
    """Which photo comes first does not matter, and whose it is does."""
    _, objective, batch = together
    assert {k: v.shape[1:] for k, v in objective.batch_shapes().items()} == {
        name: value.shape[1:] for name, value in batch.items()
    }
    assert not batch["masks"][:4].any()
    scenes = {name: value[4:] for name, value in batch.items()}
    np.testing.assert_array_equal(scenes["masks"].sum(1), 1)
    assert scenes["present"].all()
    assert (scenes["owner"][:, 0] != scenes["owner"][:, 1]).all()
    params = objective.init(jax.random.key(0), objective.frozen)
    loss = jax.jit(objective.loss)

    def turned(*names):
        batch = scenes | {name: np.ascontiguousarray(scenes[name][:, ::-1]) for name in names}
        return float(loss(params, objective.frozen, batch, jax.random.key(0))[0])

    assert turned("references", "owner") == pytest.approx(turned(), rel=1e-5)
    assert abs(turned("owner") - turned()) > 1e-3 * turned()


def test_everybody_is_shown_before_anybody_is_shown_twice(together):
    """Of photos 0 to 4 of three people, as many as fit."""
    config, objective, _ = together
    example = {
        "latents": np.zeros((8, 8, 4), np.float32),
        "tokens": np.zeros(77, np.int32),
        "references": np.arange(5, dtype=np.float32)[:, None, None, None] * np.ones((8, 8, 4)),
        "owners": np.array([0, 0, 0, 1, 2]),
        "face_boxes": np.array([[0, 0, 1, 0.3], [0, 0.3, 1, 0.6], [0, 0.6, 1, 1]]),
    }
    counts = set()
    try:
        for most in (2, 4):
            objective.config = dataclasses.replace(config, references=most)
            for seed in range(20):
                made = objective.make(example, np.random.default_rng(seed))
                count = int(made["present"].sum())
                shown = made["references"][:count, 0, 0, 0].astype(int)
                owner = made["owner"][:count]
                np.testing.assert_array_equal(owner, example["owners"][shown])
                assert len(set(shown)) == count
                assert len(set(owner[:3])) == min(most, 3)
                counts.add((most, count))
    finally:
        objective.config = config
    assert counts == {(2, 2), (4, 3), (4, 4)}


def test_a_picture_of_more_people_than_said_is_refused(objective, together):
    with pytest.raises(UserError, match=r"shows \d people, and people is 1; raise --people"):
        objective.source("train+scenes")


@pytest.mark.slow
def test_with_cached_text_states_no_text_encoder_is_needed(config, objective, batch, tmp_path):
    """The loss is that of the text encoder in the step, but for float16 in the cache."""
    changed = dataclasses.replace(config, text_states=True, cache=str(tmp_path / "latents"))
    cached = AdapterObjective(changed, objective._mesh)
    assert set(cached.frozen) == {"unet"}
    source = cached.source("train")
    examples = [cached.make(source[i], np.random.default_rng(i)) for i in range(8)]
    states = stacked(examples)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), states)
    assert shapes == cached.batch_shapes()
    params = objective.init(jax.random.key(0), objective.frozen)
    in_the_step, beforehand = jax.jit(objective.loss), jax.jit(cached.loss)
    for seed in range(3):
        key = jax.random.key(seed)
        expected, _ = in_the_step(params, objective.frozen, batch, key)
        loss, _ = beforehand(params, cached.frozen, states, key)
        assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    np.testing.assert_allclose(cached.grid(params), objective.grid(params), atol=1)
    abstract = AdapterObjective(changed, objective._mesh, abstract=True)
    assert abstract.batch_shapes() == shapes


@pytest.mark.slow
def test_latents_are_drawn_from_the_posterior(config, objective, tmp_path):
    """Around the mean as far as the autoencoder says; the references are the means."""
    changed = dataclasses.replace(config, sample_posterior=True, cache=str(tmp_path / "latents"))
    cached = AdapterObjective(changed, objective._mesh)
    example = cached.source("train")[0]
    mean, deviations = objective.source("train")[0]["latents"], example["deviations"]
    np.testing.assert_array_equal(example["latents"], mean)
    assert deviations.min() > 0
    made = [cached.make(example, np.random.default_rng(i)) for i in range(400)]
    drawn = np.stack([each["latents"] for each in made])
    np.testing.assert_allclose((drawn.mean(0) - mean) / deviations, 0, atol=5 * 400**-0.5)
    np.testing.assert_allclose(drawn.std(0) / deviations, 1, atol=0.25)
    assert all(
        np.abs(photo - example["references"]).max((1, 2, 3)).min() == 0
        for each in made[:5]
        for photo in each["references"][each["present"] > 0]
    )


@pytest.mark.slow
def test_a_cache_without_text_states_or_with_others_is_refused(config, objective, shelf, tmp_path):
    """Without asking for them, a cache that has them will do."""
    data = str(config.data.folder)
    about = made_from(objective.base, data, text_states=True)
    plain = ["--base", str(shelf / "base"), "--data", data, "--splits", "validation"]
    assert cache_main([*plain, "--output", str(tmp_path / "plain")]) == 0
    with pytest.raises(UserError, match="holds no text states"):
        CachedLatents(tmp_path / "plain/validation", about)
    assert cache_main([*plain, "--output", str(tmp_path / "full"), "--text-states"]) == 0
    CachedLatents(tmp_path / "full/validation", about)
    CachedLatents(tmp_path / "full/validation", made_from(objective.base, data))
    with pytest.raises(UserError, match="was made from another text_encoder"):
        CachedLatents(tmp_path / "full/validation", about | {"text_encoder": "x"})


def test_a_dataset_is_known_wherever_it_lies(config, objective, tmp_path):
    """The same files elsewhere are the same dataset; others in the same place are not."""
    about = made_from(objective.base, config.data.folder)
    shutil.copytree(config.data.folder, tmp_path / "faces")
    assert made_from(objective.base, tmp_path / "faces") == about
    shutil.rmtree(tmp_path / "faces")
    mini_faces.build(tmp_path / "faces", people=8, pictures_per_person=1, scenes=0, processes=1)
    assert made_from(objective.base, tmp_path / "faces")["dataset"] != about["dataset"]
    with pytest.raises(UserError, match=r"holds no dataset_info\.json"):
        made_from(objective.base, tmp_path)
    with pytest.raises(UserError, match="no finished cache"):
        CachedLatents(config.data.folder)


def test_means_over_a_share_survive_averaging():
    schedule = NoiseSchedule()
    error = jnp.array([1.0, 3.0, 10.0, 20.0])
    parts = [
        scalars(_by_time(error[i : i + 2], jnp.array(t), schedule))
        for i, t in ((0, [10, 20]), (2, [30, 999]))
    ]
    averaged = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
    assert divide_by_shares(averaged | {"loss": 8.5}) == pytest.approx(
        {"mse_t0": 14 / 3, "mse_t3": 20.0, "loss": 8.5}
    )


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
