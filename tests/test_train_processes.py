"""Kills, and several processes, with real processes."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from fusionjax.data import mini_faces
from fusionjax.models.adapter import load_adapter
from fusionjax.models.checkpoint import Checkpoints
from tests.checkpoint_writer import state_of
from tests.tiny import tiny_base

ROOT = Path(__file__).parent.parent


def environment(folder):
    """One device, programs compiled once for all processes of a test."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def wait_until(condition, process, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.02)


def test_a_kill_at_any_moment_leaves_the_newest_complete_checkpoint_usable(tmp_path):
    """Stops a writer at random moments; what lies on the disk then is what a kill would leave."""
    folder = tmp_path / "checkpoints"
    command = [sys.executable, "-m", "tests.checkpoint_writer", str(folder)]
    writer = subprocess.Popen(command, cwd=ROOT, env=environment(tmp_path))
    try:
        wait_until((folder / "2").is_dir, writer)
        seed = random.randrange(2**32)
        moments = random.Random(seed)
        for number in range(12):
            time.sleep(moments.uniform(0, 0.15))
            writer.send_signal(signal.SIGSTOP)
            os.waitpid(writer.pid, os.WUNTRACED)
            shutil.copytree(folder, tmp_path / f"left{number}")
            writer.send_signal(signal.SIGCONT)
    finally:
        writer.kill()
        writer.wait()
    torn = 0
    for number in range(12):
        left = tmp_path / f"left{number}"
        torn += any(not path.name.isdecimal() for path in left.iterdir())
        checkpoints = Checkpoints(left)
        step = checkpoints.latest()
        assert step is not None, seed
        read, position = checkpoints.restore(step, state_of(0))
        assert position == {"next": step}, seed
        jax.tree.map(np.testing.assert_array_equal, read, state_of(step))
        np.testing.assert_array_equal(checkpoints.restore_ema(step)["x"], read.ema["x"])
        if number % 4 == 0:  # and the run can go on from there
            checkpoints.save(step + 1, state_of(step + 1), {"next": step + 1})
            checkpoints.wait()
            assert float(checkpoints.restore_ema(step + 1)["x"][0, 0]) == step + 1
        checkpoints.close()
    assert torn, "no moment fell into a save"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder with a tiny base model and a tiny dataset."""
    folder = tmp_path_factory.mktemp("processes")
    tiny_base().save_pretrained(folder / "base", dtype=np.float32)
    mini_faces.build(folder / "faces", people=8, pictures_per_person=2, scenes=4, processes=1)
    return folder


def start(shelf, name, *more, steps=20, keep=3, log=None):
    """Begins to train in a process of its own."""
    command = [sys.executable, "-m", "train", "mini", "--base", str(shelf / "base")]
    command += ["--data.folder", str(shelf / "faces"), "--data.build-people", "0"]
    command += ["--output", str(shelf / name), "--steps", str(steps), "--batch-size", "4"]
    command += ["--log-every-steps", "1", "--checkpoint.every-steps", str(keep)]
    command += ["--validation.every-steps", str(steps), "--validation.examples", "4"]
    command += ["--validation.grid-rows", "1", *more]
    with (shelf / (log or f"{name}.log")).open("a") as file:
        return subprocess.Popen(command, cwd=ROOT, env=environment(shelf), stderr=file)


def lines(folder):
    file = folder / "metrics.jsonl"
    return file.read_text().splitlines() if file.is_file() else []


def losses(folder):
    rows = [json.loads(line) for line in lines(folder)]
    return [(row["step"], row["loss"]) for row in rows if row["group"] == "train"]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_bit_identical_weights(shelf):
    whole = start(shelf, "whole")
    assert whole.wait(300) == 0
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    for _ in range(2):
        killed = start(shelf, "killed")
        known = len(lines(shelf / "killed"))
        enough = min(known + moments.randrange(1, 8), 20)
        wait_until(lambda: len(lines(shelf / "killed")) >= enough, killed)  # noqa: B023
        time.sleep(moments.uniform(0, 0.1))
        killed.send_signal(signal.SIGKILL)
        assert killed.wait(60) == -signal.SIGKILL
    again = start(shelf, "killed")
    assert again.wait(300) == 0
    a, b = load_adapter(shelf / "whole").params, load_adapter(shelf / "killed").params
    jax.tree.map(np.testing.assert_array_equal, a, b)
    for step in ("18", "20"):  # not the averages alone: weights, moments, counters too
        states = [saved(shelf / name / "checkpoints" / step) for name in ("whole", "killed")]
        jax.tree.map(np.testing.assert_array_equal, *states)
    assert losses(shelf / "killed") == losses(shelf / "whole"), seed


def saved(checkpoint):
    """All arrays of a checkpoint."""
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(checkpoint / "state").item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return reader.restore(
            checkpoint / "state", args=ocp.args.PyTreeRestore(restore_args=as_numpy)
        )


def start_two(shelf, name, **options):
    """Begins one run as two processes that meet over loopback."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = ["--distributed.coordinator", f"localhost:{port}", "--distributed.processes", "2"]
    common += ["--distributed.heartbeat-timeout-s", "10"]
    return [
        start(shelf, name, *common, "--distributed.process", str(i), log=f"{name}.{i}", **options)
        for i in range(2)
    ]


@pytest.mark.slow
def test_two_processes_train_as_one_does(shelf):
    """Two processes begin with nothing but the data: the cache of latents is made by the first."""
    shutil.rmtree(shelf / "faces-latents", ignore_errors=True)
    two = start_two(shelf, "two")
    assert [process.wait(300) for process in two] == [0, 0]
    assert start(shelf, "one").wait(300) == 0
    one, both = losses(shelf / "one"), losses(shelf / "two")
    assert [step for step, _ in both] == list(range(1, 21))
    np.testing.assert_allclose([x for _, x in both], [x for _, x in one], rtol=1e-5)
    a, b = load_adapter(shelf / "one").params, load_adapter(shelf / "two").params
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), a, b)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_others_with_an_error(shelf, lost):
    name = f"lost{lost}"
    two = start_two(shelf, name, steps=100_000, keep=5)
    saved = shelf / name / "checkpoints"
    wait_until(lambda: any(path.name.isdecimal() for path in saved.glob("*")), two[0])
    two[lost].kill()
    two[lost].wait()
    other = two[1 - lost]
    try:
        assert other.wait(60) not in (0, None)
    finally:
        other.kill()
        other.wait()
    assert "another" in (shelf / f"{name}.{1 - lost}").read_text()
    assert load_adapter(shelf / name).params


@pytest.mark.slow
def test_sigterm_to_one_process_saves_and_ends_both(shelf):
    two = start_two(shelf, "term", steps=100_000, keep=100_000)
    wait_until(lambda: len(lines(shelf / "term")) > 3, two[0])
    two[1].send_signal(signal.SIGTERM)
    try:
        assert [process.wait(60) for process in two] == [0, 0]
    finally:
        for process in two:
            process.kill()
            process.wait()
    assert load_adapter(shelf / "term").params


@pytest.mark.slow
def test_two_processes_agree_on_the_step_to_go_on_from(shelf):
    """The newest step is damaged: both take the one before, and end as if nothing had been."""
    assert [process.wait(300) for process in start_two(shelf, "hurt", steps=9, keep=3)] == [0, 0]
    expected = load_adapter(shelf / "hurt").params
    newest = shelf / "hurt" / "checkpoints" / "9"
    for path in (p for p in newest.rglob("*") if "/d/" in str(p) and p.is_file()):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 16
        path.write_bytes(content)
    assert [process.wait(300) for process in start_two(shelf, "hurt", steps=9, keep=3)] == [0, 0]
    jax.tree.map(np.testing.assert_array_equal, expected, load_adapter(shelf / "hurt").params)
