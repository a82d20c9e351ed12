"""An adapter as a folder to be shared: what is in it, and that it is whole or not there."""

import ast
import builtins
import json
import sys

import pytest
import yaml
from PIL import Image

from fusionjax.__main__ import main
from fusionjax.interop.adapter_file import adapter_fingerprint
from fusionjax.interop.one_file import one_file
from fusionjax.models.adapter import _Imported, adapter_base, load_adapter
from fusionjax.models.checkpoint import Checkpoints
from tests.test_interop_adapter import FINGERPRINT, OPTIONS, assert_same_bits, make_params

ALLOWED = {"PIL", "cv2", "diffusers", "huggingface_hub", "numpy", "safetensors", "torch"}


@pytest.fixture
def run(tmp_path):
    """A run's folder as training leaves it, with a base beside it that tells its licence."""
    base, folder = tmp_path / "secret place" / "base", tmp_path / "run"
    (folder / "grids").mkdir(parents=True)
    base.mkdir(parents=True)
    (base / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n# A base\n")
    config = {
        "kind": "AdapterRun", "name": "faces", "output": str(folder), "batch_size": 32, "seed": 7,
        "data": {"folder": str(tmp_path / "secret place" / "people"), "train_split": "train"},
        "optimizer": {"learning_rate": 0.005, "schedule": "cosine"}, "base": str(base),
        "base_fingerprint": FINGERPRINT, "fusion": OPTIONS.to_json(),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    lines = [
        {"step": step, "group": group, "loss": loss, "mse": loss / 2}
        for step, group, loss in [
            (100, "train", 0.9), (100, "validation", 0.51), (200, "validation", 0.42),
            (300, "validation", 0.33),
        ]
    ]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 40')
    for step in (100, 200, 300):
        Image.new("RGB", (8, 8), (step % 256, 0, 0)).save(folder / "grids" / f"{step:06d}.png")
    checkpoints = Checkpoints(folder / "checkpoints")
    for step in (100, 200):
        checkpoints.save(step, _Imported(make_params(step)), {})
    checkpoints.close()
    return folder


def front_matter(page):
    _, front, _ = page.split("---\n", 2)
    return yaml.safe_load(front)


def test_a_run_as_a_folder(run, tmp_path, capsys):
    out = tmp_path / "shared"
    assert main(["export", str(run), str(out)]) == 0
    told = capsys.readouterr()
    assert told.out == f"{out}\n"
    assert told.err.endswith("README.md: fill in base_model before you share it\n")
    names = {path.name for path in out.iterdir()}
    assert names == {"README.md", "adapter.safetensors", "fusion_diffusers.py", "grid.png"}

    back, before = load_adapter(out), load_adapter(run)
    assert_same_bits(back.params, before.params)
    assert back[1:] == before[1:]
    assert adapter_base(out) == str(tmp_path / "secret place" / "base")
    # Of the grids the newest that the exported weights may have painted.
    assert (out / "grid.png").read_bytes() == (run / "grids" / "000200.png").read_bytes()

    page = (out / "README.md").read_text()
    front = front_matter(page)
    assert front["license"] == "creativeml-openrail-m"
    assert front["pipeline_tag"] == "text-to-image"
    assert "base_model" not in front
    assert "# base_model: to be filled in\n" in page
    assert "secret place" not in page
    for line in (
        "# shared", "![Grid](grid.png)", "| steps | 200 |", "| dataset | people |",
        "| pictures a step | 32 |", "| learning rate | 0.005 |", "| seed | 7 |",
        "| option `fusion` | decoupled |", f"| base's fingerprint | {FINGERPRINT} |",
        f"| adapter's fingerprint | {adapter_fingerprint(before.params)} |",
        "| 100 | 0.5100 | 0.2550 |", "| 200 | 0.4200 | 0.2100 |", "from fusion_diffusers import",
        "fusionjax sample --base BASE --fusion adapter.safetensors",
    ):  # fmt: skip
        assert line in page, line
    assert "0.33" not in page  # of a step after the exported one
    assert "0.9" not in page


def test_one_step_and_a_base_on_the_hub(run, tmp_path, capsys):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "base": "owner/sd15"}))
    out = tmp_path / "shared"
    assert main(["export", str(run / "checkpoints" / "100"), str(out)]) == 0
    assert "fill in license before" in capsys.readouterr().err
    assert_same_bits(load_adapter(out).params, make_params(100))
    page = (out / "README.md").read_text()
    assert front_matter(page)["base_model"] == "owner/sd15"
    assert 'from_pretrained("owner/sd15")' in page
    assert "| steps | 100 |" in page
    assert "| 200 |" not in page
    assert (out / "grid.png").read_bytes() == (run / "grids" / "000100.png").read_bytes()


def test_a_file_as_a_folder_and_a_folder_as_a_file(run, tmp_path):
    file, out, again = tmp_path / "a.safetensors", tmp_path / "out", tmp_path / "b.safetensors"
    assert main(["export", str(run), str(file)]) == 0
    assert main(["export", str(file), str(out)]) == 0
    assert main(["export", str(out), str(again)]) == 0
    assert file.read_bytes() == again.read_bytes() == (out / "adapter.safetensors").read_bytes()
    page = (out / "README.md").read_text()
    assert "| steps |" not in page
    assert "## Figures" not in page
    assert "| option `face_logit_bias` | -1.5 |" in page
    assert not (out / "grid.png").exists()


def test_whole_or_not_at_all(run, tmp_path, capsys):
    out = tmp_path / "shared"
    out.mkdir()
    assert main(["export", str(run), str(out)]) == 2
    assert "shared exists already; remove it or name another" in capsys.readouterr().err
    out.rmdir()
    (run / "grids" / "000200.png").unlink()
    (run / "grids" / "000200.png").mkdir()  # no picture: copying it fails, when all else is written
    assert main(["export", str(run), str(out)]) == 2
    assert "shared cannot be written" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "secret place"]
    assert main(["export", str(run), str(tmp_path / "adapter.pt")]) == 2
    told = capsys.readouterr().err
    assert "adapter.pt must end in .safetensors, or be a folder's name, without an ending" in told


def test_the_one_file_imports_what_a_diffusers_user_has():
    text = one_file()
    assert text == one_file()
    tree = ast.parse(text)
    assert '"""People in PyTorch diffusers' in text
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            imported.add(node.module.partition(".")[0])
    assert imported - set(sys.stdlib_module_names) <= ALLOWED | {"pillow_heif"}  # if it is there
    # Every name that a definition reads is defined, imported or built in.
    made = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)
            and isinstance(node.ctx, ast.Store)}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            made.add(node.name)
        elif isinstance(node, ast.arg):
            made.add(node.arg)
        elif isinstance(node, ast.ExceptHandler):
            made.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            made |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - made
    assert read - set(dir(builtins)) <= {"Float", "UInt8", "__file__", "__name__"}
