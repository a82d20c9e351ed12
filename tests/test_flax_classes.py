"""PyTorch stays out of a command's process, and out of no other's reach."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
ROOT = Path(__file__).parents[1]
SCRIPT = """
import sys
from fusionjax.backend import flax_classes
print("torch" in sys.modules)
import torch
print(torch.ones(2).sum().item())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "imported"), [("fusionjax", "False"), ("program.py", "True")])
def test_torch_is_kept_out_of_commands_and_there_when_wanted(name, imported, tmp_path):
    (tmp_path / name).write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, tmp_path / name], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.split() == [imported, "2.0"]


def test_a_command_imports_no_torch(tmp_path):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fusionjax", "cache",
         "--data", "nowhere", "--output", "latents"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "diffusers" in imported
    assert "torch._C" not in imported
