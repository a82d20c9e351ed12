"""What users type: configs, overrides, errors, dry runs, signals."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from fusionjax.backend.sharding import make_mesh
from fusionjax.data import mini_faces
from fusionjax.errors import UserError
from fusionjax.models.abstract_base import abstract_base
from tests.tiny import tiny_base
from train.config import AdapterRun, DataConfig, DistributedConfig, RunConfig
from train.dry_run import count, dry_run, report
from train.main import _config_path, main, read_config
from train.objectives import make_objective

CONFIGS = sorted(p.stem for p in (Path(__file__).parent.parent / "configs").glob("*.py"))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_a_run(name):
    config = read_config([name])
    assert isinstance(config, RunConfig)
    assert config.name == name
    assert config.to_json()["kind"] == type(config).__name__


def test_without_a_name_it_is_the_mini_world():
    assert read_config([]) == read_config(["mini"]) == read_config(["configs/mini.py"])


def test_fields_are_changed_on_the_command_line():
    config = read_config(
        [
            "mini",
            "--optimizer.learning-rate",
            "3e-5",
            "--fusion.fusion",
            "decoupled",
            "--steps",
            "7",
        ]
    )
    assert isinstance(config, AdapterRun)
    assert config.optimizer.learning_rate == 3e-5
    assert config.fusion.fusion == "decoupled"
    assert config.steps == 7
    assert config.batch_size == read_config(["mini"]).batch_size


def test_an_unknown_config_suggests_the_right_one(capsys):
    with pytest.raises(UserError, match=r"no config 'sd15_v10'; did you mean sd15_v100\?"):
        _config_path("sd15_v10")
    assert main(["nothing_like_it"]) == 2
    assert capsys.readouterr().err.startswith("error: there is no config 'nothing_like_it'; there")


def test_an_unknown_field_suggests_the_right_one(capsys):
    assert main(["mini", "--optimizer.learning-rte", "1"]) == 2
    assert "did you mean --optimizer.learning-rate?" in capsys.readouterr().err


def test_a_value_out_of_range_is_one_line(capsys):
    assert main(["mini", "--text-dropout", "0.9", "--faces-dropout", "0.9"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: text_dropout, faces_dropout and both_dropout are")


def test_help_explains_every_field(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["mini", "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert "Peak learning rate" in out

    def names(value, prefix="--"):
        for field in dataclasses.fields(value):
            name, own = prefix + field.name.replace("_", "-"), getattr(value, field.name)
            yield from names(own, name + ".") if dataclasses.is_dataclass(own) else [name]

    told = list(names(read_config(["mini"])))
    assert len(told) > 50
    assert [name for name in told if name not in out] == []


def test_processes_are_given_whole():
    with pytest.raises(UserError, match="go together"):
        DistributedConfig(coordinator="localhost:1234")


def test_missing_data_is_one_line(capsys, tmp_path):
    tiny_base().save_pretrained(tmp_path / "base", dtype=np.float32)
    arguments = ["mini", "--base", str(tmp_path / "base"), "--data.folder", str(tmp_path / "no")]
    arguments += ["--data.build-people", "0", "--output", str(tmp_path / "run")]
    assert main(arguments) == 2
    assert "error: data.folder is" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_the_papers_run_trains_24780800_parameters():
    mesh = make_mesh(devices=jax.devices()[:1])
    objective = make_objective(read_config(["sd15_v100"]), mesh, abstract=True)
    key = jax.eval_shape(lambda: jax.random.key(0))
    assert count(jax.eval_shape(objective.init, key, objective.frozen)) == 24_780_800
    assert {str(x.dtype) for x in jax.tree.leaves(objective.frozen)} == {"float16"}
    assert objective.batch_shapes()["latents"].shape == (16, 64, 64, 4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--attention", "cudnn"], "attention is cudnn, which needs an NVIDIA GPU"),
        (["--mesh.data", "64"], "mesh data=64 fsdp=1 does not fit 8 devices"),
    ],
)
def test_what_the_devices_cannot_do_is_told_before_anything_is_made(
    words, message, tmp_path, capsys
):
    assert main(["mini", "--output", str(tmp_path / "run"), *words]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not list(tmp_path.rglob("*.json"))


def test_a_device_without_enough_memory_is_told_with_what_helps(monkeypatch, capsys):
    def no_memory(config):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr("train.loop.run", no_memory)
    assert main(["mini", "--batch-size", "64"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: batch_size 64 does not fit the memory of 8 × cpu; use a smaller")
    assert "remat" in told
    assert "mesh.fsdp" in told
    assert told.count("\n") == 1


def test_a_dry_run_needs_no_weights_and_no_data(tmp_path):
    tiny_base().save_pretrained(tmp_path / "base", dtype=np.float32)
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    config = AdapterRun(
        base=str(tmp_path / "base"), batch_size=8, data=DataConfig(folder=str(tmp_path / "no"))
    )
    run = dry_run(config)
    base = abstract_base(config.base, np.float32)
    assert run.frozen_parameters == count(base.params["unet"]) + count(base.params["text_encoder"])
    assert run.needs.flops > 1e6
    assert run.needs.temporary_bytes > 0
    told = report(config, run)
    assert f"{run.trained_parameters:,} parameters" in told
    assert '"batch_size": 8' in told
    with pytest.raises(UserError, match="only a run that trains an adapter"):
        dry_run(read_config(["mini_vae"]))


@pytest.mark.slow
def test_sigterm_saves_and_a_second_command_continues(tmp_path):
    tiny_base().save_pretrained(tmp_path / "base", dtype=np.float32)
    mini_faces.build(tmp_path / "faces", people=8, pictures_per_person=2, scenes=4, processes=1)
    command = [sys.executable, "-m", "train", "mini", "--base", str(tmp_path / "base")]
    command += ["--data.folder", str(tmp_path / "faces"), "--data.build-people", "0"]
    command += ["--output", str(tmp_path / "run"), "--steps", "2000", "--batch-size", "8"]
    command += ["--log-every-steps", "1", "--validation.every-steps", "2000"]
    command += ["--checkpoint.every-steps", "2000"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    log = tmp_path / "run" / "metrics.jsonl"

    def steps():
        lines = log.read_text().splitlines(keepends=True) if log.is_file() else []
        return [json.loads(line)["step"] for line in lines if line.endswith("\n")]

    def stopped_after(more, number):
        """Runs the command until so many more steps are told, and stops it; the saved step."""
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        before, end = len(steps()), time.monotonic() + 300
        while len(steps()) < before + more:
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(number)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        newest = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").glob("[0-9]*"))
        assert f"stopped and saved after step {newest}; `--output {tmp_path / 'run'}`" in said
        return newest

    first = stopped_after(3, signal.SIGTERM)
    assert 3 <= first < 2000
    second = stopped_after(3, signal.SIGINT)
    assert first + 3 <= second < 2000
    assert steps() == list(range(1, second + 1))
