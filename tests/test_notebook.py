"""The notebook is run from its first cell to its last, with few steps, in a folder of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "notebooks" / "fusionjax.ipynb"
FEWER = {
    "\nSTEPS = 200": "\nSTEPS = 2",
    "PICTURE_STEPS = 20": "PICTURE_STEPS = 2",
    "BATCH = 8": "BATCH = 2",
}


def cells(kind):
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_it_is_kept_without_results():
    code = cells("code")
    assert len(code) > 8
    assert not [cell for cell in code if cell["outputs"] or cell["execution_count"] is not None]
    try:
        import nbformat
    except ModuleNotFoundError:
        return
    nbformat.validate(nbformat.read(NOTEBOOK, 4))


@pytest.mark.slow
def test_it_runs_to_the_end(tmp_path):
    script = "\n\n".join("".join(cell["source"]) for cell in cells("code"))
    for many, few in FEWER.items():
        assert script.count(many) == 1
        script = script.replace(many, few)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={
            **os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu",
            # One device, and programs that are compiled fast.
            "XLA_FLAGS": "--xla_backend_optimization_level=0"
            " --xla_llvm_disable_expensive_passes=true",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("first.png", "mine.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (64, 64)
    run, shared = tmp_path / "runs" / "mine", tmp_path / "shared"
    assert (run / "report.html").is_file()
    assert [path.name for path in sorted((run / "grids").iterdir())] == ["000001.png", "000002.png"]
    assert {"README.md", "adapter.safetensors", "fusion_diffusers.py"} <= {
        path.name for path in shared.iterdir()
    }
    assert "4 photos" in done.stdout
