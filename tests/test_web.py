"""`fusionjax web`: a started server, asked by gradio's own client, against the command line."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusionjax.embedded import ASSETS
from fusionjax.errors import UserError
from fusionjax.identity import Identity
from fusionjax.interop.adapter_file import save_adapter
from sample.__main__ import main
from sample.formats import read_picture, read_scene
from sample.inputs import Remembered
from sample.job import Job, Person
from sample.web.asked import check_pixels, job_of, saved_people, uploaded, uploads
from sample.web.places import COLOURS, canvas, drawn_masks, read_box
from sample.web.preview import fit_colours, glance
from sample.web.scene import write_scene
from tests import tiny

ROOT = Path(__file__).parents[1]


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


# What is asked for, without a model.


@pytest.fixture
def files(tmp_path):
    """Two uploads and a file beside them that nobody uploaded."""
    (tmp_path / "in").mkdir()
    for name in ("in/ann.png", "in/ben.png", "secret.png"):
        Image.fromarray(tiny.photo(1)).save(tmp_path / name)
    return {name: tmp_path / "in" / name for name in ("ann.png", "ben.png")}


def test_what_is_asked_for_is_the_command_lines_job(files):
    """The keys of a scene, with files by name; models are those that the page was started with."""
    values = {
        "prompt": "two people", "steps": 7, "seed": 3,
        "people": [{"faces": ["ann.png#2"], "box": [0, 0, 0.5, 1]},
                   {"identity": "ben.png", "mask": "ann.png", "strength": 0.5}],
    }  # fmt: skip
    job = job_of(values, files, Job(base="mini", dtype="float32"))
    assert job == Job(
        prompt="two people", num_inference_steps=7, seed=3, base="mini", dtype="float32",
        people=(Person(faces=(f"{files['ann.png']}#2",), box=(0, 0, 0.5, 1)),
                Person(faces=(str(files["ben.png"]),), mask=str(files["ann.png"]), strength=0.5)),
    )  # fmt: skip
    assert job_of({"faces": "ann.png"}, files, Job()).people == (
        Person(faces=(str(files["ann.png"]),)),
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "a scene is []; it must have keys"),
        ({"promt": "x"}, "did you mean 'prompt'"),
        ({"base": "mini"}, "base is chosen where the page is started"),
        ({"lora": ["a"]}, "lora is chosen where the page is started"),
        ({"controlnet": "a"}, "controlnet is chosen where the page is started"),
        ({"textual_inversion": ["ann.png"]}, "textual_inversion is chosen where the page"),
        ({"faces": ["{secret}"]}, "secret.png' is no uploaded file and no saved person; there are "),
        ({"faces": ["../secret.png"]}, "'../secret.png' is no uploaded file"),
        ({"faces": ["{secret}#1"]}, "is no uploaded file"),
        ({"faces": ["http://127.0.0.1/ann.png"]}, "is no uploaded file"),
        ({"people": [{"identity": "{secret}"}]}, "is no uploaded file"),
        ({"people": [{"faces": ["ann.png"], "mask": "{secret}"}]}, "is no uploaded file"),
        ({"image": "{secret}"}, "is no uploaded file"),
        ({"paint_where": "{secret}", "image": "ann.png"}, "is no uploaded file"),
        ({"image": {"path": "{secret}"}}, "is no file's name"),
        ({"people": ["ann.png"]}, "a person is 'ann.png'; it must have keys"),
        ({"people": "ann.png"}, "people is 'ann.png'; it must be a list"),
        ({"people": [{"faces": ["ann.png"]}] * 9}, "9 people are asked for; 8 are the most"),
        ({"faces": ["ann.png"] * 17}, "17 files are given; 16 are the most"),
        ({"faces": ["ann.png"], "steps": 10**9}, "num_inference_steps is 1000000000; it must be"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_for_is_told_in_a_line(files, tmp_path, values, message):
    text = json.dumps(values).replace("{secret}", str(tmp_path / "secret.png"))
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        job_of(json.loads(text), files, Job())
    assert "\n" not in str(raised.value)


def test_uploads_are_those_that_lie_in_their_folder(files, tmp_path):
    folder = tmp_path / "in"
    given = [{"path": str(files["ann.png"]), "orig_name": "me.png"}, str(files["ben.png"])]
    assert uploads(given, folder) == {"me.png": files["ann.png"], "ben.png": files["ben.png"]}
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    elsewhere = ["secret.png", "in/../secret.png", "in/link.png", "in", "none.png", "in/a\0b"]
    for path in [*(f"{tmp_path}/{name}" for name in elsewhere), "", None, 3, {}]:
        with pytest.raises(UserError, match="is no uploaded file"):
            uploaded(path, folder)
    with pytest.raises(UserError, match=r"two files are called 'ben.png'"):
        uploads([{"path": str(files["ann.png"]), "orig_name": "ben.png"}, *given], folder)


def test_saved_people_are_the_files_of_their_folder(files, tmp_path):
    folder = tmp_path / "in"
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    for name in (".hidden.png", "notes.txt", "cleo.safetensors"):
        (folder / name).touch()
    assert saved_people(folder) == {
        "ann": files["ann.png"], "ben": files["ben.png"], "cleo": folder / "cleo.safetensors"
    }  # fmt: skip
    assert saved_people(None) == {}


def test_a_photo_of_too_many_pixels_is_told_before_it_is_decoded(tmp_path):
    path = tmp_path / "large.png"
    Image.new("1", (3000, 2000)).save(path)
    check_pixels(path, 6_000_000)
    with pytest.raises(UserError, match="large.png has 3000×2000 pixels, and 5 million are the"):
        check_pixels(path, 5_999_999)
    path.write_bytes(b"no picture")
    with pytest.raises(UserError, match="is not a picture that can be read here"):
        check_pixels(path, 10)


def test_a_drawing_is_a_mask_for_each_colour():
    """Edges that the brush softens belong to the colour that most of them is; the rest to none."""
    assert canvas(128, 64).size == (640, 320)
    drawing = np.zeros((4, 6, 4), np.uint8)
    for person, columns in ((0, slice(0, 2)), (2, slice(4, 6))):
        colour = bytes.fromhex(COLOURS[person][1:])
        drawing[:, columns] = [*colour, 255]
    drawing[0, 0, 3] = 127
    drawing[1, 0, :3] += 9  # as the browser's compression leaves it
    first, second, third = drawn_masks([Image.fromarray(drawing)], 3)
    assert second is None
    expected = np.zeros((4, 6), int)
    expected[:, :2] = 255
    expected[0, 0] = 0
    assert np.array_equal(np.asarray(first), expected)
    assert np.asarray(third).nonzero()[1].tolist() == [4, 5] * 4
    assert drawn_masks([], 2) == [None, None]


def test_a_box_is_typed():
    assert read_box("0, 0.5 .5  1") == (0, 0.5, 0.5, 1)
    assert read_box(" ") == ()
    for text in ("0 0 1", "a b c d", "0.5 0 0.2 1", "nan 0 1 1"):
        with pytest.raises(UserError, match="box is"):
            read_box(text)


def test_latents_are_seen_in_colours_without_a_decoder():
    """Where pixels are a linear function of the latents, the glance finds it."""
    rng = np.random.default_rng(0)
    small = rng.integers(40, 200, (2, 8, 8, 3))
    latents = (small / 255) @ rng.normal(size=(3, 4)) + rng.normal(size=4)
    thumbnails = small.repeat(16, 1).repeat(16, 2).astype(np.uint8)
    person = Identity({}, latents.astype(np.float32), thumbnails, (1.0, 1.0), "base")
    colours = fit_colours([person])
    seen = np.asarray(glance(latents.astype(np.float32), colours).resize((16, 8), Image.BOX))
    assert np.abs(seen - np.concatenate(list(small), 1)).mean() < 12  # resampling blurs noise
    assert fit_colours([]) is None


def test_a_scene_has_its_files_beside_it(files, tmp_path):
    """Two photos of one name, one of them twice, and which face: each is what it was."""
    (tmp_path / "other").mkdir()
    Image.fromarray(tiny.photo(2)).save(tmp_path / "other" / "ann.png")
    faces = (f"{files['ann.png']}#2", str(tmp_path / "other" / "ann.png"), str(files["ann.png"]))
    job = Job(prompt="", seed=4, people=(Person(faces=faces, box=(0, 0, 1, 1)),))
    write_scene(tmp_path / "scene.zip", job)
    with zipfile.ZipFile(tmp_path / "scene.zip") as archive:
        assert archive.namelist() == ["scene.yaml", "ann.png", "2_ann.png"]
        assert str(tmp_path) not in archive.read("scene.yaml").decode()
        archive.extractall(tmp_path / "scene")
    read = read_scene(tmp_path / "scene" / "scene.yaml")
    folder = tmp_path / "scene"
    assert read == Job(
        prompt="", seed=4,
        people=(Person(faces=(f"{folder}/ann.png#2", f"{folder}/2_ann.png", f"{folder}/ann.png"),
                       box=(0, 0, 1, 1)),),
    )  # fmt: skip
    for stored, own in (("ann.png", files["ann.png"]), ("2_ann.png", faces[1])):
        assert (folder / stored).read_bytes() == Path(own).read_bytes()
