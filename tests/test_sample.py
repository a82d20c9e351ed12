"""`python -m sample` on a tiny model in files: pictures, scenes, requests, repetition, errors."""

import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from skimage import data

from fusionjax.embedded import MINI_FUSION
from fusionjax.errors import UserError
from fusionjax.generation import programs
from fusionjax.generation.runner import Runner
from fusionjax.identity import Identity
from fusionjax.interop.adapter_file import save_adapter
from fusionjax.options import Settings
from fusionjax.unet import FusionUNet
from sample.__main__ import main
from sample.formats import read_picture, read_scene
from sample.inputs import Remembered, checksum
from sample.job import Job, Person, even_batch
from sample.options import parse
from sample.progress import Bar
from sample.sheet import contact_sheet, heat_map
from sample.studio import Studio, is_embedded
from sample.watermark_command import main as read_watermarks
from tests import tiny


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base model, an adapter and two photos as files, and a folder of compiled programs."""
    folder = tmp_path_factory.mktemp("world")
    tiny.write_tiny(folder)
    for name, seed in (("ann", 1), ("ben", 2)):
        Image.fromarray(tiny.photo(seed)).save(folder / f"{name}.png")
    Image.fromarray(tiny.photo(3, 200)).save(folder / "wall.png")  # nobody's face
    right = np.zeros((64, 64), np.uint8)
    right[:, 32:] = 255
    Image.fromarray(right).save(folder / "right.png")
    Image.fromarray(right * 0).save(folder / "black.png")
    (folder / "black.yaml").write_text("{prompt: x, people: [{faces: ann.png, mask: black.png}]}")
    return folder


@pytest.fixture
def compiled(monkeypatch):
    """The names of the programs that are compiled."""
    names = []
    monkeypatch.setattr(Bar, "compiling", lambda self, program: names.append(program))
    return names


@pytest.fixture
def sample(world, tmp_path, request):
    """Runs the command in this process, on one device, two steps by default.

    What is loaded and compiled is kept for the next test, but for those that ask what is compiled.
    """
    if "compiled" not in request.fixturenames:
        request.getfixturevalue("loaded_once")

    def call(*words, status=0, output=tmp_path / "out"):
        command = ["--fusion", world / "fusion.safetensors", "--cache", world / "cache"]
        command += ["--device", "cpu:0"]
        if "--from" in words:
            command += ["--trust"]  # the files lie elsewhere than the tests are run
        else:
            command += ["--steps", 2]
        code = main([str(word) for word in (*command, "--output", output, "--quiet", *words)])
        assert code == status
        return output

    return call


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def test_a_picture_with_its_sheet_and_its_story(sample, world, capsys):
    out = sample("--prompt", "a garden", "--face", world / "ann.png", "--num-images", 2,
                 "--batch-size", 1, "--seed", 7)  # fmt: skip
    names = ["0001_seed7.png", "0002_seed8.png", "0001_sheet.png"]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    assert capsys.readouterr().out.split() == [str(out / name) for name in names]
    assert pixels(out / names[0]).shape == (64, 64, 3)
    remembered = Remembered(str(world / "cache"))
    job = read_picture(out / names[1], remembered=remembered)
    assert (job.prompt, job.seed) == ("a garden", 8)
    assert (job.num_images_per_prompt, job.num_inference_steps) == (1, 2)
    assert (job.height, job.guidance_scale) == (64, 7.5)
    assert job.people[0].faces == (str(world / "ann.png"),)
    with Image.open(out / names[0]) as image:  # it names files, and no folder of them
        about = json.loads(image.text["fusionjax"])
    assert about["files"] == {"ann.png": checksum(world / "ann.png")}
    assert str(world) not in json.dumps(about["job"]["people"])

    again = sample("--from", out / names[1])
    assert np.array_equal(pixels(again / "0003_seed8.png"), pixels(out / names[1]))
    other = sample("--from", out / names[1], "--seed", 9)
    assert not np.array_equal(pixels(other / "0004_seed9.png"), pixels(out / names[1]))


def test_each_picture_has_its_watermark(sample, world, tmp_path, capfd):
    """Of a command, of what repeats it, and of a row; and not where none was asked for."""
    words = ["--face", world / "ann.png", "--batch-size", 1]
    out = sample("--prompt", "x", *words, "--num-images", 2, "--watermark", "ann")
    sample("--from", out / "0002_seed1.png")
    assert np.array_equal(pixels(out / "0003_seed1.png"), pixels(out / "0002_seed1.png"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "x", "watermark": "ben"}\n{"prompt": "x"}\n')
    sample("--requests", rows, *words)
    capfd.readouterr()
    names = ["0001_seed0", "0002_seed1", "0003_seed1", "row0001_000", "row0002_000"]
    assert read_watermarks([str(out / f"{name}.png") for name in names]) == 1
    read = [line.rpartition(": ")[2] for line in capfd.readouterr().out.splitlines()]
    assert read == ["ann", "ann", "ann", "ben", "no watermark"]


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


def test_a_jpeg_tells_its_story_and_the_photo_may_be_another(sample, world, tmp_path, capsys):
    """The same pixels from it, and of somebody else where the photo has gone."""
    photo = tmp_path / "me.png"
    photo.write_bytes((world / "ann.png").read_bytes())
    out = sample("--prompt", "Ä", "--face", photo, "--output-name", "{prompt}_{seed}.png")
    assert sorted(path.name for path in out.iterdir()) == ["ä_0.png", "ä_0_sheet.png"]
    sample("--from", out / "ä_0.png", "--format", "jpeg", "--quality", 80)
    again = sample("--from", out / "0001_seed0.jpg")
    assert (out / "0001_sheet.jpg").read_bytes()[:3] == b"\xff\xd8\xff"
    assert np.array_equal(pixels(again / "0002_seed0.png"), pixels(out / "ä_0.png"))
    assert not np.array_equal(pixels(out / "0001_seed0.jpg"), pixels(out / "ä_0.png"))
    photo.unlink()
    capsys.readouterr()
    sample("--from", out / "0001_seed0.jpg", status=2)
    assert (
        "me.png, which does not exist any more; put it beside the image" in capsys.readouterr().err
    )
    sample("--from", out / "0001_seed0.jpg", "--face", world / "ben.png")
    photo.with_name("out").joinpath("me.png").write_bytes((world / "ann.png").read_bytes())
    sample("--from", out / "0001_seed0.jpg", "--no-metadata", "--output-name", "bare")
    assert np.array_equal(pixels(out / "bare.png"), pixels(out / "0002_seed0.png"))
    assert not np.array_equal(pixels(out / "bare.png"), pixels(out / "0003_seed0.png"))
    with Image.open(out / "bare.png") as image:
        assert not image.info
    capsys.readouterr()
    sample("--from", out / "bare.png", status=2)
    assert "was not painted here, or with --no-metadata" in capsys.readouterr().err


def test_a_drawn_seed_is_told(sample, capsys):
    """On the last line, in the name and in the text; the seed given gives the same."""
    out = sample("--prompt", "x", "--seed", "random", "--num-images", 2, "--batch-size", 1)
    told = re.fullmatch(r"seed (\d+) to (\d+)", capsys.readouterr().err.splitlines()[-1])
    first, last = map(int, told.groups())
    assert last == first + 1
    assert read_picture(out / f"0002_seed{last}.png").seed == last
    sample("--prompt", "x", "--seed", first)
    assert np.array_equal(pixels(out / f"0001_seed{first}.png"),
                          pixels(out / f"0003_seed{first}.png"))  # fmt: skip


def test_bad_photos_of_several_are_left_out_when_asked(sample, world, tmp_path, capsys):
    """A folder of photos; what is left is what the image tells."""
    folder = tmp_path / "ann"
    folder.mkdir()
    for name in ("ann.png", "wall.png"):
        (folder / name).write_bytes((world / name).read_bytes())
    (folder / "._ann.png").write_bytes(b"of a Mac")
    words = ("--prompt", "x", "--face", folder)
    sample(*words, status=2)
    assert "no face was found in" in (error := capsys.readouterr().err)
    assert error.rstrip().endswith("or leave it out (--skip-bad-photos)")
    out = sample(*words, "--show-crops", status=1)
    assert "cannot be used: no face was found in" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["0001_crops.png"]
    shown = pixels(out / "0001_crops.png")
    assert shown.shape == (2 * 288, 2 * 256 + 3 * 8, 3)
    ann = Image.open(world / "ann.png").resize((256, 256))  # it has the base's size: cut already
    assert np.array_equal(shown[8:264, 272:528], np.asarray(ann))
    out = sample(*words, "--skip-bad-photos")
    assert "left out: no face was found in" in capsys.readouterr().err
    with Image.open(out / "0002_seed0.png") as image:
        about = json.loads(image.text["fusionjax"])
    assert about["files"].keys() == {"ann.png"}
    sample("--prompt", "x", "--face", world / "ann.png")
    assert np.array_equal(pixels(out / "0002_seed0.png"), pixels(out / "0003_seed0.png"))
    sample("--prompt", "x", "--face", folder / "wall.png", "--skip-bad-photos", status=2)
    assert "no photo of person 1 can be used" in capsys.readouterr().err


def test_an_identity_file_stands_for_its_photos(sample, world, tmp_path):
    out = sample("--prompt", "x", "--face", world / "ann.png", "--save-identity",
                 tmp_path / "ann.safetensors")  # fmt: skip
    assert len(Identity.load(tmp_path / "ann.safetensors")) == 1
    sample("--prompt", "x", "--face", tmp_path / "ann.safetensors")
    assert np.array_equal(pixels(out / "0001_seed0.png"), pixels(out / "0002_seed0.png"))


def test_a_scene_places_people(sample, world, tmp_path, capsys):
    """A mixture of two people on the left, one of them on the right."""
    (tmp_path / "right.png").write_bytes((world / "right.png").read_bytes())
    (tmp_path / "scene.yaml").write_text(
        f"""
        prompt: two people
        num_images: 1
        people:
          - {{faces: [{world}/ann.png, {world}/ben.png], weights: [0.7, 0.3], box: [0, 0, 0.5, 1]}}
          - {{faces: [{world}/ben.png], mask: right.png, strength: 0.8}}
        """
    )
    out = sample("--scene", tmp_path / "scene.yaml", "--attention-share")
    told = re.search(
        r"attention: text (.*)%, person 1 (.*)% \(ann.png (.*)%, ben.png (.*)%\), ben.png (.*)%",
        capsys.readouterr().out,
    )
    text, first, ann, ben, second = map(float, told.groups())
    assert text + first + second == pytest.approx(100, abs=0.2)
    assert ann + ben == pytest.approx(first, abs=0.2)
    assert Image.open(out / "0001_seed0_attention.png").width > 4 * 256  # the picture, three maps
    swapped = (tmp_path / "scene.yaml").read_text().replace("[0, 0, 0.5, 1]", "[0.5, 0, 1, 1]")
    (tmp_path / "other.yaml").write_text(swapped)
    sample("--scene", tmp_path / "other.yaml")
    assert not np.array_equal(pixels(out / "0001_seed0.png"), pixels(out / "0002_seed0.png"))


def test_a_fresh_person_is_one_line_of_a_scene(sample, tmp_path):
    scene = tmp_path / "scene.yaml"
    scene.write_text("{prompt: a person, people: [{fresh: 7, looks: an old man}]}")
    assert read_scene(scene).people == (Person(fresh=7, looks="an old man"),)
    out = sample("--fresh-face", 7, "--looks", "an old man", "--prompt", "a person")
    assert read_picture(out / "0001_seed0.png").people == read_scene(scene).people


def test_a_face_of_several_by_its_number(sample, world, tmp_path, capsys):
    """It is told in the picture, and paints the same again."""
    astronaut = Image.fromarray(data.astronaut()).crop((100, 0, 360, 260))
    both = Image.new("RGB", (520, 260))
    both.paste(astronaut.resize((200, 200)), (0, 30))
    both.paste(ImageOps.mirror(astronaut), (260, 0))
    both.save(tmp_path / "both.png")
    out = sample("--prompt", "x", "--face", f"{tmp_path}/both.png#1")
    (person,) = read_picture(
        out / "0001_seed0.png", remembered=Remembered(str(world / "cache"))
    ).people
    assert person.faces == (f"{tmp_path}/both.png#1",)
    sample("--from", out / "0001_seed0.png")
    assert np.array_equal(pixels(out / "0001_seed0.png"), pixels(out / "0002_seed0.png"))
    other = sample("--prompt", "x", "--face", f"{tmp_path}/both.png#2", output=tmp_path / "other")
    assert not np.array_equal(pixels(out / "0001_seed0.png"), pixels(other / "0001_seed0.png"))
    sample("--prompt", "x", "--face", f"{tmp_path}/both.png#420,120", output=tmp_path / "other")
    sample("--from", tmp_path / "other" / "0002_seed0.png", output=tmp_path / "other")
    for name in ("0002_seed0.png", "0003_seed0.png"):
        assert np.array_equal(pixels(other / "0001_seed0.png"), pixels(other / name))
    both.rotate(180).save(tmp_path / "both.png")
    sample("--from", out / "0001_seed0.png", status=2)
    assert "both.png#1, which has changed since" in capsys.readouterr().err
    sample("--prompt", "x", "--face", f"{tmp_path}/none.png#2", status=2)
    assert "none.png does not exist" in capsys.readouterr().err


def test_painting_in_a_picture_and_again(sample, world):
    out = sample("--prompt", "x", "--image", world / "ann.png", "--image-strength", 0.5,
                 "--paint-where", world / "right.png")  # fmt: skip
    sample("--from", out / "0001_seed0.png")
    assert np.array_equal(pixels(out / "0001_seed0.png"), pixels(out / "0002_seed0.png"))


@pytest.mark.usefixtures("loaded_once")
def test_every_option_reaches_the_picture(world, monkeypatch):
    layer = next(iter(FusionUNet(tiny.tiny_base().unet).layers))
    line = f"""
        --base {world}/base --fusion {world}/fusion.safetensors --cache {world}/cache
        --prompt x --negative-prompt y --face {world}/ann.png {world}/ben.png
        --face-weights 0.25 0.75 --face-strength 0.9 --face-steps 0.1 0.8
        --layer-strength {layer}=0.5 --face-guidance-scale 2 --guidance-scale 4
        --num-images 2 --seed 5 --steps 6 --scheduler lms
        --image {world}/ann.png --image-strength 0.5 --paint-where {world}/right.png
    """
    options = parse(line.split())
    studio = Studio(options.job(), options, Bar(None), jax.devices()[:1])
    job, settings = studio.resolved(options.job())
    assert settings == Settings(
        height=64, width=64, num_inference_steps=6, scheduler="lms", strength=0.5
    )
    both = dataclasses.replace(job, faces_in_negative=True, face_guidance_scale=None)
    assert studio.resolved(both)[1].faces_in_negative
    first, second = studio.requests(job, settings)
    assert (first.prompt, first.negative_prompt) == ("x", "y")
    assert (first.seed, second.seed) == (5, 6)
    assert [person.weights for person in first.identities] == [(0.25, 0.75)]
    assert first.face_strength == [0.9]
    assert first.face_steps == (0.1, 0.8)
    assert first.layer_strength == {layer: 0.5}
    assert (first.guidance_scale, first.face_guidance_scale) == (4, 2)
    assert np.array_equal(first.image, tiny.photo(1) / np.float32(255) * 2 - 1)
    assert np.array_equal(first.mask_image.mean(0), np.arange(64) >= 32)

    def exhausted(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(studio.pipe.runner, "run", exhausted)
    with pytest.raises(UserError, match="does not hold 2 images of 64×64 at once; use a smaller"):
        next(studio.generate([first, second], settings, 2))
    monkeypatch.undo()

    monkeypatch.setattr("sample.studio._PEOPLE_BYTES", 1)  # memory for one person
    assert len(studio.people(dataclasses.replace(job, crop="none"))[0]) == 2
    assert len(studio._people) == 1


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
    assert "1 of 20 rows failed" in said
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


def test_requests_are_shared_out(sample, world, capsys):
    """By machines that write to one folder; what another has done is known, in shares or in all."""
    rows = [{"prompt": f"picture {i}", "seed": i, "faces": ["ann.png"]} for i in range(5)]
    requests = world / "shared.jsonl"
    requests.write_text("\n".join(map(json.dumps, rows)))
    words = ("--requests", requests, "--batch-size", 4)
    out = sample(*words, "--share", "2/2")
    assert sorted(path.name for path in out.glob("*.png")) == ["row0002_000.png", "row0004_000.png"]
    capsys.readouterr()
    sample(*words, "--share", "1/2")
    names = [f"row{i:04d}_000.png" for i in range(1, 6)]
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert sorted(before) == names
    assert [path.name for path in sorted(out.glob("results*"))] == [
        "results-1-of-2.jsonl",
        "results-2-of-2.jsonl",
    ]
    (out / "results-old.jsonl").mkdir()
    (out / "results-3-of-9.jsonl").write_bytes(b'{"id": "row0001", "pictures": 3}\n{"id": "\xc3')
    for share in ((), ("--share", "3/4")):
        sample(*words, *share)
        assert {p.name: p.stat().st_mtime_ns for p in out.glob("*.png")} == before

    def painted(words):
        return sample(*words, output=out.parent / "alone") / "row0003_000.png"

    assert np.abs(pixels(painted(words)) - pixels(out / "row0003_000.png")).max() <= 1


def test_no_row_stops_the_others(sample, world, monkeypatch, capsys):
    """Rows whose values no check expects, and a batch that fails while it is painted."""
    rows = [
        {"prompt": "x", "seed": 2**32 - 1, "num_images": 2},
        {"prompt": "x", "seed": 10**400},
        {"prompt": "x", "faces": ["data:image/png;base64," + "A" * 5000]},
        {"prompt": "x", "faces": ["~nobody-of-this-name/x.jpg"]},
        {"prompt": "x", "faces": ["a\0b"]},
        {"prompt": "x", "id": "long" * 100},
        {"prompt": "too large", "num_images": 3},
        {"prompt": "fine", "seed": 3, "faces": ["ann.png"]},
    ]
    requests = world / "odd.jsonl"
    requests.write_text("\n".join(map(json.dumps, rows)))
    generate = Studio.generate

    def failing(self, requests, *rest, **options):
        if requests[0].prompt == "too large":
            raise UserError("the memory does not hold it")
        return generate(self, requests, *rest, **options)

    monkeypatch.setattr(Studio, "generate", failing)
    out = sample("--requests", requests, "--batch-size", 2, status=1)
    said = capsys.readouterr().err
    for message in (
        "row 1: seed is 4294967295; it must be in 0..4294967294",
        "row 2: seed is 100000000000000000...0000000000000000000; it must be",
        "row 3: 'data:image/png;base64,AAA",
        "row 4: '~nobody-of-this-name/x.jpg' is no file's name",
        r"row 5: a\x00b does not exist",
        "row 6: id is 'longlong",
        "row 7: the memory does not hold it",
        "7 of 8 rows failed",
    ):
        assert message in said
    assert said.count("row 7: ") == 1
    assert [path.name for path in out.glob("*.png")] == ["row0008_000.png"]
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert sorted(line["row"] for line in results) == list(range(1, 9))


def test_progress_is_that_of_all_batches(sample, world, monkeypatch):
    heard = []

    def hear(self, stage, done, of, seconds):
        if stage == "steps":
            heard.append((done, of))

    monkeypatch.setattr(Bar, "__call__", hear)
    sample("--prompt", "x", "--num-images", 4, "--batch-size", 2)
    assert {of for _, of in heard} == {4}
    assert heard[-1][0] == 4
    assert heard == sorted(heard)


def test_what_is_transparent_in_a_mask_is_outside(sample, world, tmp_path):
    """A white shape on nothing, as picture editors write it."""
    shape = np.full((64, 64, 4), 255, np.uint8)
    shape[:, :32, 3] = 0
    Image.fromarray(shape).save(tmp_path / "shape.png")
    words = ("--prompt", "x", "--image", world / "ann.png", "--paint-where")
    out = sample(*words, tmp_path / "shape.png")
    sample(*words, world / "right.png")
    assert np.array_equal(pixels(out / "0001_seed0.png"), pixels(out / "0002_seed0.png"))


def test_the_picture_tells_every_option(sample, world, tmp_path, capsys):
    """Defaults too, since another version may have others; that version does not guess."""
    out = sample("--prompt", "x")
    with Image.open(out / "0001_seed0.png") as image:
        about = json.loads(image.text["fusionjax"])
        assert {"seed", "scheduler", "crop", "num_inference_steps", "dtype"} <= about["job"].keys()
        about["version"] = 4
        later = PngInfo()
        later.add_itxt("fusionjax", json.dumps(about))
        image.save(tmp_path / "later.png", pnginfo=later)
    sample("--from", tmp_path / "later.png", status=2)
    assert (
        "in version 4 of its text, and only versions up to 3 are known" in capsys.readouterr().err
    )


def test_faces_without_an_adapter_are_refused_at_once(world, compiled, capsys):
    typed = parse(["--base", f"{world}/base", "--face", f"{world}/ann.png", "--prompt", "x"])
    studio = Studio(typed.job(), typed, Bar(None))
    with pytest.raises(UserError, match="people are given, but no adapter is loaded"):
        studio.requests(*studio.resolved(typed.job()))
    assert not compiled


@pytest.mark.slow
def test_requests_go_on_after_being_stopped(sample, world, monkeypatch, compiled):
    """Stopped in the second batch: what was painted stays, the rest is painted then."""
    rows = [{"prompt": f"picture {i}", "seed": i, "faces": ["ann.png"]} for i in range(7)]
    requests = world / "stopped.jsonl"
    requests.write_text("\n".join(map(json.dumps, rows)))
    words = ("--requests", requests, "--batch-size", 4)
    batches = []

    def stop(self, stage, *_):
        batches.append(stage == "decode")
        if sum(batches) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Bar, "__call__", stop)
        out = sample(*words, status=130)
    names = [f"row{i:04d}_000.png" for i in range(1, 8)]
    results = (out / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["pictures"] for line in results] == [[name] for name in names[:4]]
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert sorted(before) == names[:4]
    assert compiled.count("denoise") == 1  # the batch of three is filled up to four
    sample(*words)
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert sorted(after) == names
    assert before.items() <= after.items()


def test_batches_are_evenly_filled():
    assert [even_batch(pictures, 4) for pictures in (1, 4, 5, 8, 9, 13)] == [1, 4, 3, 4, 3, 4]


def test_a_repeated_picture_needs_the_same_models(sample, world, capsys):
    out = sample("--prompt", "x", "--face", world / "ann.png")
    common = ["--cache", world / "cache", "--output", out, "--quiet", "--trust"]
    capsys.readouterr()
    fusion, aside = world / "fusion.safetensors", world / "aside.safetensors"
    fusion.rename(aside)
    try:
        save_adapter(fusion, *tiny.tiny_fusion(seed=9), base=str(world / "base"))
        assert main([str(word) for word in (*common, "--from", out / "0001_seed0.png")]) == 2
    finally:
        aside.replace(fusion)
    assert "was painted with the fusion" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--promt", "x"], "--promt is not known; did you mean --prompt?"),
        (["--zebra"], "--zebra is not known; `python -m sample --help` lists all options"),
        (["beach"], "'beach' belongs to no option; put texts of several words in quotes"),
        (["--seed", "any"], "--seed: 'any' is no whole number, and not 'random'"),
        (["--format", "gif"], "format is 'gif'; choose one of png, jpeg, jpg, webp"),
        (["--format", "png", "--output", "me.jpg"], "--output ends in .jpg, and --format is png"),
        (["--quality", "80"], "--quality is given, and PNG loses nothing"),
        (["--output-name", "{{sed}}"], "the field 'sed', which is not known; did you mean {seed}?"),
        (["--output-name", "{{id}}"], "the field {id}, which rows have; it goes with --requests"),
        (["--device", "cuda"], "device is 'cuda'; choose one of cpu, gpu, tpu"),
        (["--device", "tpu"], "device is tpu, and JAX finds none here, but cpu"),
        (["--device", "cpu:8"], "device is cpu:8, and JAX finds 8 here, counted from 0"),
        (["--face", "http://localhost:9/a.jpg"], "localhost:9/a.jpg cannot be fetched"),
        (["--show-crops"], "--show-crops needs a photo (--face), and there is none"),
        (["--steps", "many"], "--steps: 'many' is no whole number"),
        (["--guidance-scale", "x"], "--guidance-scale: 'x' is no number"),
        (["--face"], "--face: expected at least one argument"),
        (["--looks", "old"], "--looks is given without --fresh-face"),
        (["--fresh-face", "1", "--no-face"], "--fresh-face and --no-face are both given"),
        (["--scheduler", "DPM++"], "scheduler is 'DPM++'; did you mean 'dpmpp_2m'? Choose one of"),
        (["--crop", "face"], "crop is 'face'; choose one of auto, none"),
        (["--dtype", "bf16"], "dtype is 'bf16'; did you mean 'bfloat16'? Choose one of"),
        (["--output", "{world}/ann.png/out"], "ann.png is a file; name another"),
        (["--save-identity", "{world}/ann.png/x"], "ann.png is a file; name another"),
        (["--attention-share"], "--attention-share needs a person, and there is none"),
        (
            ["--face", "{world}/ann.png", "--save-identity", "ann.id"],
            "its name must end in .safetensors",
        ),
        (
            [
                "--face",
                "{world}/ann.png",
                "--attention-share",
                "--controlnet",
                "x",
                "--control-image",
                "{world}/ann.png",
            ],
            "--attention-share does not see a ControlNet",
        ),
        (["--faces-in-negative", "--face-guidance-scale", "2"], "give one of them"),
        (["--controlnet", "x"], "a ControlNet is given without --control-image"),
        (
            ["--depth-from", "{world}/ann.png", "--controlnet", "x"],
            "--depth-from needs --depth-mod",
        ),
        (["--depth-from", "nobody.png"], "nobody.png does not exist"),
        (["--face", "{world}/ann.png", "{world}/wall.png"], "no face was found in"),
        (["--scene", "{world}/black.yaml"], "black.png is black everywhere: its person would have"),
        (["--scheduler", "pndm", "--steps", "0"], "steps is 0; it must be in 1..999"),
        (["--height", "60"], "height is 60; it must be a multiple of 8, for example 56 or 64"),
        (["--face", "nobody.jpg"], "nobody.jpg does not exist"),
        (["--face-weights", "1"], "--face-weights is given without --face"),
        (["--scene", "s.yaml"], "--scene: s.yaml does not exist"),
        (["--requests", "{world}/base"], "/base is a folder; name a file"),
        (["--requests", "{world}/wall.png", "--share", "1/" + 5000 * "9"], "is not I/N with 1 ≤ I"),
        (["--num-images", "0"], "num_images_per_prompt is 0; it must be in 1..10000"),
        (["--guidance-scale", "0"], "guidance_scale is 0; it must be in 1..1000"),
        (["--face-steps", "1", "0"], "face_steps is 1.0 0.0; it must be two numbers"),
        (["--layer-strength", "up"], "--layer-strength 'up'; write LAYER=FACTOR"),
        (["--layer-strength", "up=1"], "layer_strength names 'up'; the layers are"),
        (["--batch-size", "0"], "batch_size is 0; it must be ≥ 1"),
        (["--control-image", "{world}/ann.png"], "control_image is given without controlnet"),
        (["--mask-blur", "4"], "mask_blur is given without mask_image"),
        (["--image", "{world}/ann.png", "--mask-blur", "4"], "mask_blur is given without mask"),
        (["--strength", "0.3"], "--strength is given without --image, and would do nothing"),
        (["--share", "1/2"], "--share goes with --requests, whose rows it shares out"),
        (
            ["--requests", "{world}/wall.png", "--share", "3/2"],
            "--share '3/2' is not I/N with 1 ≤ I ≤ N, such as 3/16",
        ),
        (["--upscale-strength", "0.3"], "upscale_strength is given without upscale"),
        (["--face-detail-strength", "0.3"], "face_detail_strength is given without face_detail"),
        (["--output", "ann.gif"], "--output is ann.gif, and .gif is not written here"),
        (["--paint-where", "{world}/ann.png"], "mask_image is given without image"),
        (["--depth-from", "{world}/ann.png"], "--depth-from is given without --controlnet"),
        (["--base", "{world}/nothing"], "nothing"),
        (["--fusion", "{world}/nothing"], "nothing' is no adapter"),
        (["--save-identity", "x.safetensors"], "--save-identity needs one person, and there are 0"),
    ],
)
def test_errors_are_one_line_and_status_two(sample, world, words, message, capsys, compiled):
    words = [word.format(world=world) for word in words]
    sample(*([] if "--scene" in words else ["--prompt", "x"]), *words, status=2)
    assert not compiled
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def test_an_adapter_for_another_base_is_refused(sample, world, tmp_path, capsys, compiled):
    params, options = tiny.tiny_fusion()
    name = next(iter(params))
    wrong = {**params, name: {k: np.zeros((48, 48), np.float32) for k in ("kf", "vf")}}
    save_adapter(tmp_path / "wrong.safetensors", wrong, options)
    sample("--prompt", "x", "--base", world / "base", "--fusion", tmp_path / "wrong.safetensors",
           status=2)  # fmt: skip
    assert "was trained for another base model" in capsys.readouterr().err
    assert not compiled


def test_a_safety_checker_is_named_as_not_used(world, tmp_path):
    """Of a folder as people have it; ours has none, and nothing is said."""
    shutil.copytree(world / "base", tmp_path / "base")
    index = tmp_path / "base" / "model_index.json"
    about = json.loads(index.read_text())
    for named, said in ((about["safety_checker"], 0), (["stable_diffusion", "Checker"], 1)):
        index.write_text(json.dumps({**about, "safety_checker": named}))
        typed, out = parse(["--base", f"{tmp_path}/base", "--prompt", "x"]), io.StringIO()
        Studio(typed.job(), typed, Bar(out))
        assert out.getvalue().count("safety checker is not used: no image is checked") == said


def test_an_adapter_for_a_base_of_the_same_shape_is_warned_of(world, tmp_path, capsys):
    """Bases that were trained further are what adapters are used with."""
    params, options = tiny.tiny_fusion()
    adapter = tmp_path / "adapter.safetensors"
    save_adapter(adapter, params, options, base="sd15", base_fingerprint="0" * 16)
    typed = parse(["--base", f"{world}/base", "--fusion", str(adapter), "--prompt", "x"])
    Studio(typed.job(), typed, Bar(None))
    said = capsys.readouterr().err
    assert said.count("warning: ") == 1
    assert "was trained on the base sd15 with fingerprint 0000000000000000; this base has" in said


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


@pytest.mark.slow
def test_a_dry_run_tells_what_is_needed_and_paints_nothing(tmp_path, monkeypatch, capsys):
    """For the embedded model on the present devices: a row for each program."""
    monkeypatch.chdir(tmp_path)
    assert main(["--dry-run", "--num-images", "2", "--steps", "5"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("1 picture of 64×64 with 1 photo on each of 2 × cpu, float32; all ")
    row = r"\| {} \| [\d.]+ GB \| [\d.]+ \| [\d.]+ GB \| \d+ \| xla \|"
    for program in ("encode a photo", "text and faces", "a step", "decode"):
        assert re.search(row.format(program), told), program
    assert "to expect" not in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "h100"], "--target goes with --dry-run"),
        (["--dry-run", "--target", "h10"], "--target is 'h10'; did you mean h100"),
        (["--dry-run", "--requests", __file__], "--dry-run does not go with --requests"),
        (["--dry-run", "--controlnet", "x"], "does not know what a ControlNet needs"),
        (["--dry-run", "--width", "73"], "width is 73; it must be a multiple of"),
    ],
)
def test_what_a_dry_run_cannot_do(words, message, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_picture_that_is_not_finite_fails_alone(sample, tmp_path, monkeypatch, capsys):
    """Of two pictures, and of three rows, the others are there; the exit status tells."""
    run, decoded = Runner.run, []

    def spoilt(self, program, *inputs, **static):
        out = run(self, program, *inputs, **static)
        if program is not programs.decode:
            return out
        decoded.append(program)  # one image after the other
        return out[0], np.array([len(decoded) % 3 != 2])

    monkeypatch.setattr(Runner, "run", spoilt)
    out = sample("--num-images", 3, "--seed", 5, "--batch-size", 3, "--prompt", "x", status=1)
    assert [p.name for p in sorted(out.glob("*seed*"))] == ["0001_seed5.png", "0003_seed7.png"]
    told = capsys.readouterr().err
    assert "the image of seed 6 is not finite, and left out" in told
    assert "1 of 3 images are not finite" in told
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": "a person", "seed": n}) + "\n" for n in range(3)))
    sample("--requests", rows, "--batch-size", 3, status=1, output=tmp_path / "rows")
    lines = [json.loads(x) for x in (tmp_path / "rows/results.jsonl").read_text().splitlines()]
    assert {line["row"]: "not finite" in line.get("error", "") for line in lines} == {
        1: False, 2: True, 3: False,
    }  # fmt: skip


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
        ({"zebra": 1}, "'zebra' is not known; known are prompt, negative_prompt"),
        ({"prompt": 3}, "prompt is 3; it must be a text"),
        ({"steps": 2.5}, "steps is 2.5; it must be a whole number"),
        ({"steps": True}, "steps is True; it must be a whole number"),
        ({"seed": -1}, r"seed is -1; it must be in 0..4294967295"),
        ({"guidance_scale": "7"}, "guidance_scale is '7'; it must be a number"),
        ({"scheduler": "none"}, "scheduler is 'none'; choose one of ddim"),
        ({"people": "ann"}, "people is 'ann'; it must be a list"),
        ({"people": ["ann"]}, "a person is 'ann'; it must have keys such as faces"),
        ({"people": [{}]}, "a person has no faces; name at least one"),
        ({"people": [{"fresh": 1, "faces": ["x"]}]}, "x does not exist"),
        ({"fresh": -1}, "fresh is -1; it must be in 0..4294967295"),
        ({"fresh": 1, "people": []}, "fresh and people are both given"),
        ({"looks": "old"}, "looks are given without fresh"),
        ({"frehs": 1}, "did you mean 'fresh'?"),
        ({"faces": ["a.png"], "people": []}, "faces and people are both given"),
        ({"layer_strength": 2}, "layer_strength is 2; it must be a mapping"),
        ({"face_strength": -2}, "face_strength is -2; it must be in 0..1000000"),
        ({"image_strength": 0}, "strength is 0; it must be in (0, 1]"),
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
    with pytest.raises(UserError, match="a person has faces and an identity"):
        Job.from_mapping({"people": [{**one, "identity": "ann.safetensors"}]})
    with pytest.raises(UserError, match="a person has a box and a mask"):
        Job.from_mapping({"people": [{**one, "box": [0, 0, 1, 1], "mask": one["faces"][0]}]})
    with pytest.raises(UserError, match="2 weights for 1 faces"):
        Job.from_mapping({**one, "weights": [1, 2]})
    with pytest.raises(UserError, match="box has 3 numbers"):
        Job.from_mapping({"people": [{**one, "box": [0, 0, 1]}]})
    job = Job.from_mapping({"prompt": "x", "faces": ["ann.png"], "weights": [2]}, folder=world)
    assert Job.from_mapping(job.to_json()) == job
    assert set(job.to_json()) == {"prompt", "people"}
    assert Job.from_mapping(job.to_json(full=True)) == job


def test_an_adapter_for_the_embedded_base_has_its_defaults(world):
    assert is_embedded(Job())
    assert is_embedded(Job(base="mini"))
    assert is_embedded(Job(fusion=str(MINI_FUSION)))
    assert not is_embedded(Job(fusion=str(world / "fusion.safetensors")))
    assert not is_embedded(Job(fusion="nothing"))


def test_only_what_was_typed_goes_over_a_scene():
    within = Job(prompt="a scene", num_inference_steps=7)
    assert parse(["--seed", "3"]).job(within) == Job(
        prompt="a scene", num_inference_steps=7, seed=3
    )
    assert parse(["--steps", "30"]).job(within).num_inference_steps == 30


def test_sheets_show_small_pictures_large():
    """Pictures and faces of 64 pixels are seen, and none is drawn larger than it needs to be."""
    photos, small = Image.new("RGB", (128, 128), "red"), Image.new("RGB", (64, 32), "blue")
    sheet = contact_sheet([[photos]], [small])
    assert sheet.size[0] > 128 + 256
    counts = {colour: count for count, colour in sheet.getcolors(1 << 16)}
    assert counts[0, 0, 255] == 256 * 128
    assert counts[255, 0, 0] == 128 * 128
    large = contact_sheet([], [Image.new("RGB", (512, 768), "blue")] * 4)
    assert large.size == (2 * (171 + 8) + 8, 2 * (256 + 8) + 8)
    share = np.ones((8, 8, 1)) * 0.25
    assert heat_map(small, share, ["ann.png"]).size == (2 * (256 + 8), 128 + 14)


def test_the_bar_tells_steps_and_compilation():
    out = io.StringIO()
    bar = Bar(out)
    bar.compiling("steps")  # only a terminal waits
    bar("compile", 1, 1, 12.3)
    for done in (10, 20, 30):
        bar("steps", done, 30, 5.0)
    assert out.getvalue().splitlines() == [
        "compiled in 12.3 s", f"[{'#' * 24}] 30/30 steps, 0.5 s a step",
    ]  # fmt: skip
    out = io.StringIO()
    out.isatty = lambda: True
    bar = Bar(out)
    bar.compiling("steps")
    assert "compiling (steps) …" in out.getvalue()
    bar("steps", 10, 30, 60.0)
    assert "10/30 steps, 6 s a step, 2 min 00 s left" in out.getvalue()
