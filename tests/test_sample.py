"""`python -m sample` on a tiny model in files: pictures, scenes, requests, repetition, errors."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusionjax.errors import UserError
from fusionjax.identity import Identity
from fusionjax.interop.adapter_file import save_adapter
from sample.__main__ import main
from sample.files import read_picture
from sample.job import Job
from sample.options import parse
from sample.progress import Bar
from tests import tiny


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base model, an adapter and two photos as files, and a folder of compiled programs."""
    folder = tmp_path_factory.mktemp("world")
    base = tiny.tiny_base()
    base.save_pretrained(folder / "base", np.float32)
    params, options = tiny.tiny_fusion()
    save_adapter(
        folder / "fusion.safetensors", params, options,
        base=str(folder / "base"), base_fingerprint=base.fingerprint,
    )  # fmt: skip
    for name, seed in (("ann", 1), ("ben", 2)):
        Image.fromarray(tiny.photo(seed)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def sample(world, tmp_path):
    """Runs the command in this process, three steps by default."""

    def call(*words, status=0, output=tmp_path / "out"):
        command = ["--fusion", world / "fusion.safetensors", "--cache", world / "cache"]
        if "--from" not in words:
            command += ["--steps", 2]
        code = main([str(word) for word in (*command, "--output", output, "--quiet", *words)])
        assert code == status
        return output

    return call


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def test_a_picture_with_its_sheet_and_its_story(sample, world, capsys):
    out = sample("--prompt", "a garden", "--face", world / "ann.png", "--num-images", 2,
                 "--seed", 7)  # fmt: skip
    names = ["0001_seed7.png", "0002_seed8.png", "0001_sheet.png"]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    assert capsys.readouterr().out.split() == [str(out / name) for name in names]
    assert pixels(out / names[0]).shape == (64, 64, 3)
    job = read_picture(out / names[1])
    assert (job.prompt, job.seed, job.num_images, job.steps) == ("a garden", 8, 1, 2)
    assert (job.height, job.guidance_scale) == (64, 7.5)
    assert job.people[0].faces == (str(world / "ann.png"),)

    again = sample("--from", out / names[1])
    assert np.array_equal(pixels(again / "0003_seed8.png"), pixels(out / names[1]))
    other = sample("--from", out / names[1], "--seed", 9)
    assert not np.array_equal(pixels(other / "0004_seed9.png"), pixels(out / names[1]))


def test_repeating_needs_the_same_files(sample, world, tmp_path, capsys):
    photo = tmp_path / "me.png"
    photo.write_bytes((world / "ann.png").read_bytes())
    out = sample("--prompt", "a garden", "--face", photo)
    photo.write_bytes((world / "ben.png").read_bytes())
    sample("--from", out / "0001_seed0.png", status=2)
    assert "which has changed since" in capsys.readouterr().err
    photo.unlink()
    sample("--from", out / "0001_seed0.png", status=2)
    assert "which does not exist any more" in capsys.readouterr().err
    sample("--from", world / "ann.png", status=2)
    assert "does not say how it was painted" in capsys.readouterr().err


def test_an_identity_file_stands_for_its_photos(sample, world, tmp_path):
    out = sample("--prompt", "x", "--face", world / "ann.png", "--save-identity",
                 tmp_path / "ann.safetensors")  # fmt: skip
    assert len(Identity.load(tmp_path / "ann.safetensors")) == 1
    sample("--prompt", "x", "--face", tmp_path / "ann.safetensors")
    assert np.array_equal(pixels(out / "0001_seed0.png"), pixels(out / "0002_seed0.png"))


def test_a_scene_places_people(sample, world, tmp_path, capsys):
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    Image.fromarray(mask).save(tmp_path / "right.png")
    (tmp_path / "scene.yaml").write_text(
        f"""
        prompt: two people
        num_images: 1
        people:
          - {{faces: [{world}/ann.png], box: [0, 0, 0.5, 1]}}
          - {{faces: [{world}/ben.png], mask: right.png, strength: 0.8}}
        """
    )
    out = sample("--scene", tmp_path / "scene.yaml", "--attention-share")
    said = capsys.readouterr().out
    assert "attention: text " in said
    assert "ann.png" in said
    assert (out / "0001_seed0_attention.png").is_file()
    swapped = (tmp_path / "scene.yaml").read_text().replace("[0, 0, 0.5, 1]", "[0.5, 0, 1, 1]")
    (tmp_path / "other.yaml").write_text(swapped)
    sample("--scene", tmp_path / "other.yaml")
    assert not np.array_equal(pixels(out / "0001_seed0.png"), pixels(out / "0002_seed0.png"))


def test_requests_paint_all_but_the_bad_row_and_resume(sample, world, tmp_path, capsys):
    rows = [{"prompt": f"picture {i}", "seed": i, "faces": ["ann.png"]} for i in range(20)]
    rows[3] = {"prompt": "two", "seed": 3, "faces": ["ann.png", "ben.png"], "id": "twins"}
    rows[11] = {"prompt": "bad", "faces": ["nobody.png"]}
    requests = world / "requests.jsonl"
    requests.write_text("\n".join(map(json.dumps, rows)) + "\n")
    words = ("--requests", requests, "--batch-size", 4)
    out = sample(*words, status=1)
    said = capsys.readouterr().err
    assert "row 12: nobody.png does not exist" in said
    assert "1 of 20 rows could not be painted" in said
    assert len(list(out.glob("*.png"))) == 19
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert {line["row"] for line in results if "pictures" in line} == set(range(1, 21)) - {12}
    assert [line["error"] for line in results if "error" in line] == ["nobody.png does not exist"]

    alone = sample("--prompt", "picture 6", "--seed", 6, "--face", world / "ann.png",
                   output=tmp_path / "alone")  # fmt: skip
    apart = np.abs(pixels(alone / "0001_seed6.png") - pixels(out / "row0007_000.png"))
    assert apart.max() <= 1

    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / "twins_000.png").unlink()
    sample(*words, status=1)
    after = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"twins_000.png"}  # its line was there already
    with (out / "results.jsonl").open("a") as file:
        file.write('{"row": 3, "id"')  # stopped while writing
    rows[11]["faces"] = ["ben.png"]
    requests.write_text("\n".join(map(json.dumps, rows)))
    sample(*words)
    assert len(list(out.glob("*.png"))) == 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scheduler", "pndm", "--steps", "0"], "steps is 0; it must be in 1..999"),
        (["--height", "60"], "height is 60; it must be a multiple of 8, for example 64"),
        (["--height", "56"], "height is 56; it must be a multiple of 16"),
        (["--face", "nobody.jpg"], "nobody.jpg does not exist"),
        (["--face-weights", "1"], "--face-weights is given without --face"),
        (["--scene", "s.yaml"], "s.yaml does not exist"),
        (["--num-images", "0"], "num_images is 0; it must be in 1..10000"),
        (["--guidance-scale", "0"], "guidance_scale is 0; it must be ≥ 1"),
        (["--face-steps", "1", "0"], "face_steps is 1.0 0.0; it must be two numbers"),
        (["--layer-strength", "up"], "--layer-strength 'up'; write LAYER=FACTOR"),
        (["--layer-strength", "up=1"], "layer_strength names 'up'; the layers are"),
        (["--batch-size", "0"], "--batch-size is 0; it must be ≥ 1"),
        (["--control-image", "{world}/ann.png"], "control_image is given without controlnet"),
        (["--paint-where", "{world}/ann.png"], "paint_where is given without image"),
        (["--depth-from", "{world}/ann.png"], "--depth-from is given without --controlnet"),
        (["--base", "{world}/nothing"], "nothing"),
        (["--fusion", "{world}/nothing"], "nothing' is no adapter"),
        (["--save-identity", "x.safetensors"], "--save-identity needs one person, and there are 0"),
    ],
)
def test_errors_are_one_line_and_status_two(sample, world, words, message, capsys):
    words = [word.format(world=world) for word in words]
    sample(*([] if "--scene" in words else ["--prompt", "x"]), *words, status=2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def test_an_adapter_for_another_base_is_refused(sample, world, tmp_path, capsys):
    params, options = tiny.tiny_fusion()
    name = next(iter(params))
    wrong = {**params, name: {k: np.zeros((48, 48), np.float32) for k in ("kf", "vf")}}
    save_adapter(tmp_path / "wrong.safetensors", wrong, options)
    sample("--prompt", "x", "--base", world / "base", "--fusion", tmp_path / "wrong.safetensors",
           status=2)  # fmt: skip
    assert "was trained for another base model" in capsys.readouterr().err


def test_a_face_that_is_not_found_names_the_remedy(sample, tmp_path, capsys):
    Image.fromarray(tiny.photo(3, 200)).save(tmp_path / "wall.png")
    sample("--prompt", "x", "--face", tmp_path / "wall.png", status=2)
    assert "no face was found in" in capsys.readouterr().err
    sample("--prompt", "x", "--face", tmp_path / "wall.png", "--crop", "none")


def test_long_prompts_warn_once(sample, capsys):
    sample("--prompt", "c" * 90)
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(said) == 1
    assert "longer than 75 tokens; left out: “ccc" in said[0]


def test_help_needs_no_models():
    code = "import sys, sample.__main__, sample.options, sample.job; sample.options._parser(); " \
           "assert not {'jax', 'numpy', 'PIL'} & set(sys.modules), 'heavy'"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
    shown = subprocess.run(
        [sys.executable, "-m", "sample", "--help"], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert "--attention-share" in shown.stdout


# --- jobs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"promt": "x"}, "'promt' is not known; did you mean 'prompt'?"),
        ({"zebra": 1}, "'zebra' is not known; known are base, fusion"),
        ({"prompt": 3}, "prompt is 3; it must be a text"),
        ({"steps": 2.5}, "steps is 2.5; it must be a whole number"),
        ({"steps": True}, "steps is True; it must be a whole number"),
        ({"seed": -1}, r"seed is -1; it must be in 0..4294967295"),
        ({"guidance_scale": "7"}, "guidance_scale is '7'; it must be a number"),
        ({"scheduler": "heun"}, "scheduler is 'heun'; choose one of ddim"),
        ({"people": "ann"}, "people is 'ann'; it must be a list"),
        ({"people": ["ann"]}, "a person is 'ann'; it must have keys such as faces"),
        ({"people": [{}]}, "a person has no faces; name at least one"),
        ({"faces": ["a.png"], "people": []}, "faces and people are both given"),
        ({"layer_strength": 2}, "layer_strength is 2; it must map layers to numbers"),
        ({"face_strength": -2}, "face_strength is -2; it must be ≥ 0"),
        ({"image_strength": 0}, "image_strength is 0.0; it must be in"),
    ],
)
def test_jobs_name_what_is_wrong(values, message):
    with pytest.raises(UserError) as error:
        Job.from_mapping(values)
    assert message in str(error.value)


def test_people_of_a_job(world):
    one = {"faces": [str(world / "ann.png")]}
    with pytest.raises(UserError, match="person 2 has neither box nor mask"):
        Job.from_mapping({"people": [{**one, "box": [0, 0, 1, 1]}, one]})
    with pytest.raises(UserError, match="a person has a box and a mask"):
        Job.from_mapping({"people": [{**one, "box": [0, 0, 1, 1], "mask": one["faces"][0]}]})
    with pytest.raises(UserError, match="2 weights for 1 faces"):
        Job.from_mapping({**one, "weights": [1, 2]})
    with pytest.raises(UserError, match="box has 3 numbers"):
        Job.from_mapping({"people": [{**one, "box": [0, 0, 1]}]})
    job = Job.from_mapping({"prompt": "x", "faces": ["ann.png"], "weights": [2]}, folder=world)
    assert Job.from_mapping(job.to_json()) == job
    assert set(job.to_json()) == {"prompt", "people"}


def test_only_what_was_typed_goes_over_a_scene():
    within = Job(prompt="a scene", steps=7)
    assert parse(["--seed", "3"]).job(within) == Job(prompt="a scene", steps=7, seed=3)
    assert parse(["--steps", "30"]).job(within).steps == 30


def test_the_bar_tells_steps_and_compilation():
    out = io.StringIO()
    bar = Bar(out)
    bar("compile", 1, 1, 12.3)
    for done in (10, 20, 30):
        bar("steps", done, 30, 5.0)
    assert out.getvalue().splitlines() == [
        "compiled in 12.3 s", f"[{'#' * 24}] 30/30 steps, 0.5 s a step",
    ]  # fmt: skip
    out = io.StringIO()
    out.isatty = lambda: True
    bar = Bar(out)
    bar("steps", 10, 30, 60.0)
    assert "10/30 steps, 6 s a step, 2 min 00 s left" in out.getvalue()
