"""Every row of the README's table "you want / you type" is typed as it stands there.

Each is a process of its own in a folder away from the checkout, where the files lie that the rows
name. What cannot be run here is listed in `CANNOT`, with the reason.
"""

import json
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from fusionjax.embedded import ASSETS, MINI_BASE
from fusionjax.interop.configs import unet_from_config
from fusionjax.interop.names import torch_names
from tests.people_folder import PHOTOS, beside
from tests.typed import ROOT, typed

TABLE = re.search(
    r"\| you want \| you type \|\n\| --- \| --- \|\n((?:\|.*\n)+)",
    (ROOT / "README.md").read_text(encoding="utf-8"),
)[1]
# How the command begins, and why it is not run.
CANNOT = {
    "--controlnet SOURCE --control-image": "needs a ControlNet; tests/test_controlnet.py",
    "--controlnet SOURCE --depth-from": "needs a depth model; tests/test_depth.py",
    "--face https://": "fetches from the web; tests/test_photos.py",
    "--lora detail.safetensors:0.8 owner/style": "fetches from a hub; tests/test_pipeline_loras.py",
    "fusionjax figure": "paints for minutes; tests/test_figures.py",
    "fusionjax web": "serves until it is stopped; tests/test_web.py",
    "pip install": "is what .ci/run does",
}


def commands():
    """What each row says to type; what stands after a semicolon is a command of its own."""
    found = []
    for row in TABLE.splitlines():
        for part in re.split(r"; (?=`)", row.split(" | ")[1]):
            words = " ".join(re.findall(r"`(-[^`]+|[a-z]+ [^`]+)`", part))
            if words:
                found.append(words)
    return found


def reason(words):
    return next((why for start, why in CANNOT.items() if words.startswith(start)), None)


RUN = [words for words in commands() if reason(words) is None]


def test_every_row_is_read():
    assert len(RUN) > 25
    assert len(TABLE.splitlines()) <= len(commands())
    assert not [start for start in CANNOT if not any(w.startswith(start) for w in commands())]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """The files that rows name."""
    folder = tmp_path_factory.mktemp("shelf")
    faces = ASSETS / "faces"
    for name, drawn in (("ann.jpg", "ann"), ("ben.jpg", "ben"), ("other.png", "ben")):
        Image.open(faces / f"{drawn}.png").convert("RGB").save(folder / name)
    (folder / "ann").mkdir()
    shutil.copyfile(PHOTOS / "barack_obama.jpg", folder / "ann" / "1.jpg")
    (folder / "ann" / "2.jpg").write_text("no photo")
    beside([PHOTOS / f"{n}.jpg" for n in ("barack_obama", "jacinda_ardern")], folder / "group.png")
    Image.open(folder / "group.png").crop((20, 0, 480, 240)).save(folder / "group.jpg")
    scene = {"prompt": "a person", "people": [{"faces": "ann.jpg"}]}
    (folder / "scene.yaml").write_text(json.dumps(scene))
    (folder / "requests.jsonl").write_text(json.dumps({"prompt": "a person"}) + "\n")
    Image.open(faces / "ann.png").convert("RGB").save(folder / "a.png")
    half = np.zeros((64, 64), np.uint8)
    half[:32] = 255
    Image.fromarray(half).save(folder / "white.png")

    config = json.loads((MINI_BASE / "unet" / "config.json").read_text())
    save_file(
        {"<cat>": np.zeros((1, config["cross_attention_dim"]), np.float32)},
        folder / "cat.safetensors",
    )
    rng = np.random.default_rng(0)
    weights = {}
    for name, (_, shape) in torch_names(unet_from_config(config, "mini")).items():
        if name.endswith("attn1.to_q.weight"):
            key = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
            weights[f"{key}.lora_down.weight"] = 0.1 * rng.standard_normal((2, shape[0]))
            weights[f"{key}.lora_up.weight"] = 0.1 * rng.standard_normal((shape[1], 2))
    save_file(
        {k: v.astype(np.float32) for k, v in weights.items()}, folder / "lcm-lora.safetensors"
    )
    done = run("--steps 2 --watermark ann --output out", folder, folder)
    assert done.returncode == 0, done.stderr
    return folder


def run(words, folder, shelf):
    if words.startswith("fusionjax "):
        return typed(["bash", "-c", f"{sys.executable} -m {words}"], folder, shelf)
    few = "" if "--steps" in words else " --steps 2"
    return typed(["bash", "-c", f"{sys.executable} -m sample {words}{few}"], folder, shelf)


@pytest.mark.slow
@pytest.mark.parametrize("words", RUN)
def test_a_row_paints(words, shelf, tmp_path):
    for path in shelf.iterdir():
        if path.name != "pictures":
            copy = shutil.copytree if path.is_dir() else shutil.copyfile
            copy(path, tmp_path / path.name)
    before = {*tmp_path.rglob("*.*")}
    done = run(words, tmp_path, shelf)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    if words.startswith("fusionjax watermark"):
        assert done.stdout.endswith(": ann\n")
        return
    made = [path for path in tmp_path.rglob("*.*") if path not in before]
    assert [path for path in made if path.suffix in (".png", ".webp", ".jpg")], done.stdout
