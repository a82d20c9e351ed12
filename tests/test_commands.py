"""Every command as it is typed: as a process of its own, from another folder."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageOps
from skimage import data

from fusionjax.embedded import MINI_BASE, MINI_FUSION
from fusionjax.errors import UserError
from fusionjax.evaluation.__main__ import _parser as evaluate_parser
from fusionjax.evaluation.faces_suite import FacesSuite
from fusionjax.evaluation.suite import Suite
from fusionjax.models.adapter import import_adapter
from train.main import read_config
from train.resume import is_continued

COMMANDS = [
    ["fusionjax"],
    ["fusionjax", "cache"],
    ["fusionjax", "evaluate"],
    ["fusionjax", "export"],
    ["fusionjax", "figure"],
    ["fusionjax", "import"],
    ["fusionjax", "prepare"],
    ["fusionjax", "report"],
    ["fusionjax", "sample"],
    ["fusionjax", "train"],
    ["fusionjax", "watermark"],
    ["fusionjax", "web"],
    ["fusionjax.data.face_pairs"],
    ["fusionjax.data.mini_faces"],
    ["fusionjax.data.mini_tokenizer"],
    ["fusionjax.evaluation.train_recogniser"],
    ["sample"],
    ["train", "sd15_a100"],
    ["train", "mini_base"],
    ["train", "mini_vae"],
]
HEAVY = {"diffusers", "flax", "jax", "optax", "tensorflow_datasets", "torch", "transformers"}
ROOT = Path(__file__).parents[1]


def run(words, folder, *options, environment=None):
    return subprocess.run(
        [sys.executable, *options, "-m", *map(str, words)],
        cwd=folder, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu",
             "HOME": str(folder), **(environment or {})},
    )  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_is_there_at_once(words, tmp_path):
    """Nothing heavy is imported before a command knows that it is needed."""
    done = run([*words, "--help"], tmp_path, "-X", "importtime")
    assert done.returncode == 0
    typed = " ".join(words) if words[0] == "fusionjax" else f"python -m {' '.join(words)}"
    assert re.search(rf"^usage: {typed}\b", done.stdout)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & HEAVY


def test_evaluates_help_tells_the_suites_defaults():
    """Which the command line cannot read off the suites: they import jax."""
    helps = {action.dest: action.help for action in evaluate_parser()._actions}
    for name, suite in (("mini", Suite), ("faces", FacesSuite)):
        for field in dataclasses.fields(suite):
            if field.default in (dataclasses.MISSING, None, False) or field.name == "methods":
                continue
            (told,) = re.findall(r"\(default: ([^)]+)\)", helps[field.name].partition("; faces")[0])
            of_suites = dict(re.findall(r"(mini|faces) ([^ ,]+)", told))
            assert of_suites.get(name, told) == str(field.default), field.name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--optimizer.learning-rat", "3"], "did you mean --optimizer.learning-rate?"),
        (["train", "--zebra"], "--zebra is not known; --help lists all options"),
        (["train", "--steps", "ten"], "Error parsing --steps: invalid literal for int() with"),
        (["train", "--precision", "float8"], "invalid choice 'float8' for argument"),
        (["train", "min"], "there is no config 'min'; did you mean mini?"),
        (["fusionjax", "train", "--batch-size", "0"], "batch_size is 0; it must be at least 1"),
        (["fusionjax", "sample", "--promt", "x"], "--promt is not known; did you mean --prompt?"),
        (["fusionjax", "export", "nothing", "x.safetensors"], "'nothing' is no adapter"),
        (["fusionjax", "prepare", "nowhere", "out"], "nowhere does not exist"),
        (["fusionjax", "prepare", ".", "out", "--size", "8"], "size is 8; it must be at least 32"),
        (["fusionjax.data.face_pairs", "nowhere", "out"], "'nowhere' is no folder of pictures"),
        (["fusionjax.data.mini_faces", "out", "--people", "0"], "people is 0; it must be"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_two(words, message, tmp_path):
    done = run(words, tmp_path)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in done.stderr


def test_a_folder_of_ones_own_pictures(tmp_path):
    """The README's way: the builder is no part of the module that runs."""
    astronaut = Image.fromarray(data.astronaut()).resize((256, 256))
    for person, look in (("ada", lambda x: x), ("bo", ImageOps.mirror)):
        folder = tmp_path / "pictures" / person
        folder.mkdir(parents=True)
        for name, picture in (("one", look(astronaut)), ("two", ImageOps.autocontrast(astronaut))):
            picture.save(folder / f"{name}.png")
            (folder / f"{name}.txt").write_text(f"{person} in orange")
    done = run(["fusionjax.data.face_pairs", "pictures", "data/pairs", "--size", "64"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["data/pairs"]
    assert (tmp_path / "data/pairs/dataset_info.json").is_file()


def test_a_run_of_the_embedded_base_goes_on(tmp_path):
    """Its config.json tells the base in full; what may change is told by the fields."""
    config = read_config(["mini"])
    config.write(tmp_path / "config.json", base=str(MINI_BASE))
    assert is_continued(config, tmp_path)
    assert is_continued(read_config(["mini", "--checkpoint.every-steps", "7"]), tmp_path)
    for option, name in (("--seed", "seed"), ("--data.build-people", "data.build_people")):
        with pytest.raises(UserError, match=f"was begun with {name} "):
            is_continued(read_config(["mini", option, "7"]), tmp_path)
    read_config(["mini_base"]).write(tmp_path / "config.json")
    text = (tmp_path / "config.json").read_text()
    elsewhere = text.replace(str(MINI_BASE), "fusionjax/assets/mini")
    (tmp_path / "config.json").write_text(elsewhere)  # as it was written before, or elsewhere
    assert elsewhere != text
    assert is_continued(read_config(["mini_base"]), tmp_path)
    config.write(tmp_path / "config.json")
    about = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**about, "kind": "BaseRun"}))
    with pytest.raises(UserError, match="was begun with kind 'BaseRun'"):
        is_continued(config, tmp_path)


def test_a_train_py_of_ones_own_is_not_run(tmp_path):
    """On a CPU the command starts itself again, as it was started."""
    (tmp_path / "train.py").write_text("print('not this one')")
    script = tmp_path / "bin" / "fusionjax"
    script.parent.mkdir()
    script.write_text("import sys; from fusionjax.__main__ import main; sys.exit(main())")
    words = [sys.executable, script, "train", "mini", "--data.folder", "none", "--steps", "0"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert "not this one" not in done.stdout
    assert "error: steps is 0" in done.stderr


def test_reading_a_run_tells_nothing_of_its_files(tmp_path):
    import_adapter(MINI_FUSION, tmp_path / "run")
    done = run(["fusionjax", "export", "run", "a.safetensors"], tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a.safetensors\n", "")
