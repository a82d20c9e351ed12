"""Where a run's numbers go: Weights & Biases' own reader finds them in what it keeps offline."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusionjax.errors import UserError
from train import loop
from train.config import RunConfig
from train.loggers import check_logger, start_logger

ROOT = Path(__file__).parents[1]
# In a process of its own: the package warns, and starts another process.
WRITE = """
import sys
from pathlib import Path
import numpy as np
from train.config import RunConfig
from train.loggers import start_logger

config = RunConfig(name="first", log_to="wandb", seed=7)
for step in (8, 9):  # a run that goes on is the same one there
    logger = start_logger(config, Path(sys.argv[1]))(step)
    logger.scalar("train/loss", 0.25, step)
    logger.image("grid", np.full((4, 6, 3), 9, np.uint8), step)
    logger.close()
"""
# A file of its records is a LevelDB log: after 7 bytes of its own, blocks of 32 kB with pieces of a
# checksum (4 bytes), a length (2), a kind (1: whole, 2, 3 and 4: first, middle and last).
READ = """
import json, sys
from wandb.proto.wandb_internal_pb2 import Record

def records(content):
    at, whole = 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield Record.FromString(whole)
            whole = b""

def values(items):
    return {x.key or "/".join(x.nested_key): json.loads(x.value_json) for x in items}

for path in sys.argv[1:]:
    found = []
    for record in records(open(path, "rb").read()):
        if record.HasField("history"):
            found.append(values(record.history.item))
        if record.HasField("run"):
            config = values(record.run.config.update)
            found.append({"id": record.run.run_id, "name": record.run.display_name, **config})
    print(json.dumps(found))
"""


def python(code, *words, **more):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], cwd=ROOT, capture_output=True, text=True,
        check=False, env={**os.environ, "WANDB_SILENT": "true", **more},
    )  # fmt: skip


@pytest.mark.slow
def test_wandb_offline(tmp_path):
    pytest.importorskip("wandb")
    done = python(WRITE, tmp_path, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    done = python(READ, *sorted(tmp_path.glob("wandb/offline-run-*/*.wandb")))
    assert done.returncode == 0, done.stderr
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(runs) == 2
    for step, (about, *history) in zip((8, 9), runs, strict=True):
        assert about["id"] == (tmp_path / "wandb_id").read_text()
        assert (about["name"], about["seed"], about["kind"]) == ("first", 7, "RunConfig")
        scalar, picture = ({k: v for k, v in row.items() if k[0] != "_"} for row in history)
        assert scalar == {"train/loss": 0.25, "step": step}
        assert (picture["grid/width"], picture["grid/height"]) == (6, 4)
        assert picture["step"] == step


def test_wandb_without_a_key_is_one_line(tmp_path):
    pytest.importorskip("wandb")
    done = python(
        "from pathlib import Path; from train.config import RunConfig; "
        "from train.loggers import start_logger; "
        f"start_logger(RunConfig(log_to='wandb'), Path({str(tmp_path)!r}))",
        WANDB_MODE="online", HOME=str(tmp_path), NETRC=str(tmp_path / "none"), WANDB_API_KEY="",
    )  # fmt: skip
    last = done.stderr.splitlines()[-1]
    assert last.startswith("fusionjax.errors.UserError: Weights & Biases does not begin: ")
    assert last.endswith("; `wandb login`, WANDB_MODE=offline, or --log-to tensorboard")


def test_a_missing_package_is_told_before_anything_is_made(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name)
    )
    run = RunConfig(log_to="wandb", output=str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"log_to is 'wandb', and .*pip install 'fusionjax\[wandb"):
        loop.run(run)
    assert not (tmp_path / "run").exists()
    check_logger("tensorboard")


def test_nowhere_writes_nothing(tmp_path):
    logger = start_logger(RunConfig(log_to="none"), tmp_path)(1)
    logger.scalar("loss", 1.0, 1)
    logger.close()
    assert not list(tmp_path.iterdir())
