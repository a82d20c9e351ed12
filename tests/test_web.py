"""`fusionjax web`: a started server, asked by gradio's own client, against the command line."""

import importlib.util
import json
import os
import re
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

from benchmarks.web_load import Answer, Visit, ask, crowd, seconds_of, summary
from fusionjax.errors import UserError
from fusionjax.identity import Identity
from sample.__main__ import main
from sample.formats import read_picture, read_scene
from sample.inputs import Remembered
from sample.job import Job, Person
from sample.options import parse
from sample.progress import duration
from sample.web.asked import check_pixels, job_of, saved_people, uploaded, uploads
from sample.web.painter import Limits, News, Painter, StoppedError
from sample.web.places import COLOURS, canvas, drawn_masks, read_box
from sample.web.preview import fit_colours, glance
from sample.web.scene import write_scene
from tests import tiny
from tests.web_site import ROOT, pixels, server, unpacked, words, write_world

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
        ({"faces": ["{secret}"]}, "secret.png' is no uploaded file and no saved person; there"),
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
    with pytest.raises(UserError, match=r"large\.png has 3000×2000 pixels, and 5 million are the"):
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
    small = np.stack([tiny.photo(1, 8), tiny.photo(2, 8)]).astype(int) // 2 + 60
    latents = (small / 255) @ rng.normal(size=(3, 4))
    latents = (latents - latents.mean()) / latents.std()
    thumbnails = small.repeat(16, 1).repeat(16, 2).astype(np.uint8)
    person = Identity({}, latents.astype(np.float32), thumbnails, (1.0, 1.0), "base")
    colours = fit_colours([person])
    fitted = np.concatenate([latents, np.ones((2, 8, 8, 1))], -1) @ colours
    assert np.abs(fitted * 255 - small).max() < 5  # the fit is held back a little
    seen = glance(latents.astype(np.float32), colours)
    assert seen.size == (640, 320)
    middle = np.asarray(seen)[20::40, 20::40].astype(int)  # of each latent's square
    assert np.abs(middle - np.concatenate(list(small), 1)).mean() < 6  # edges are softened
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


def test_a_time_is_read_as_the_page_writes_it():
    for seconds in (0, 7, 59, 60, 80, 3600 + 120):
        assert seconds_of(duration(seconds)) == seconds


# With a model: in this process.


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


def command_line(world, archive, folder):
    """The pixels that `python -m sample` makes of a downloaded scene."""
    words = ["--scene", unpacked(archive, folder / "scene"), "--output", folder / "out",
             "--cache", world / "cache", "--quiet"]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    return [pixels(path) for path in sorted((folder / "out").glob("*_seed*.png"))]


SCENE = {
    "prompt": "two people", "num_inference_steps": 3, "seed": 5, "num_images_per_prompt": 2,
    "people": [{"faces": ["ann"], "box": [0, 0, 0.5, 1]},
               {"faces": ["me.png"], "box": [0.5, 0, 1, 1], "strength": 0.5}],
}  # fmt: skip


@pytest.mark.slow
def test_a_job_is_painted_and_its_scene_repeats_it(world, tmp_path):
    """News of every step with a glance, pictures with their text, and the same pixels again."""
    (tmp_path / "in").mkdir()
    options = parse(
        ["--fusion", str(world / "fusion.safetensors"), "--cache", str(world / "cache")]
    )
    painter = Painter(options, options.job(), tmp_path / "in", world / "people", Limits())
    job = painter.job(SCENE, {"me.png": world / "me.png"})
    news = list(painter.paint(job, attention=True))
    assert [each.share for each in news if each.share] == [1 / 3, 2 / 3, 1]
    glances = [each.glance for each in news if each.glance]
    assert glances
    assert {image.size for image in glances} == {(640, 320)}
    done = news[-1].done
    assert [path.name for path in done.pictures] == ["01_seed5.png", "02_seed6.png"]
    assert done.seeds == [5, 6]
    assert [path.name for path in done.maps] == [
        "01_seed5_attention.png", "02_seed6_attention.png"
    ]  # fmt: skip
    own = read_picture(done.pictures[1], remembered=Remembered(""), given={"people": []})
    assert (own.prompt, own.seed, own.num_inference_steps) == ("two people", 6, 3)
    again = command_line(world, done.scene, tmp_path)
    assert len(again) == 2
    for path, repeated in zip(done.pictures, again, strict=True):
        assert np.array_equal(pixels(path), repeated)

    *_, last = painter.encode(painter.job({"prompt": "", "faces": "ann"}, {}), threading.Event())
    words = ["--face", world / "people" / "ann.png", "--save-identity", tmp_path / "i.safetensors",
             "--fusion", world / "fusion.safetensors", "--cache", world / "cache", "--quiet",
             "--prompt", "two people", "--steps", 3, "--output", tmp_path / "saved"]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    assert last.person.name == "person.safetensors"
    encoded, saved = Identity.load(last.person), Identity.load(tmp_path / "i.safetensors")
    assert encoded.states.keys() == saved.states.keys()
    for layer, states in saved.states.items():
        assert np.array_equal(encoded.states[layer], states)

    stop = threading.Event()
    heard: list[News] = []
    running = painter.paint(job, stop=stop)
    heard.append(next(running))
    stop.set()
    with pytest.raises(StoppedError):
        heard += running
    assert not any(each.done for each in heard)
    for changed, message in (
        ({"num_images_per_prompt": 17}, "17 images are asked for; 16 are the most here"),
        ({"width": 4096, "height": 2048}, "8,388,608 pixels are asked for; 4,194,304 are the"),
        ({"upscale": 64}, "upscale is 64"),
        ({"upscale": 16, "width": 264}, "4,325,376 pixels are asked for"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            painter.job({**SCENE, **changed}, {"me.png": world / "me.png"})
    sheet, lines = painter.crops([world / "wall.png"], "auto")
    assert sheet.width > 256
    assert len(lines) == 1
    assert lines[0].startswith("no face was found in wall.png; ")
    with pytest.raises(UserError, match=r"no face was found in wall\.png; "):
        list(painter.paint(painter.job({"prompt": "x", "faces": "w"}, {"w": world / "wall.png"})))


# The server, as a process of its own.

needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="gradio is not installed"
)


@pytest.fixture(scope="module")
def site(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    process, url = server([*words(world), "--queue", 2, "--upload-mb", 0.5], folder)
    yield url, folder
    process.send_signal(signal.SIGINT)
    with process.stdout:
        process.wait(60)
    assert not list(folder.glob("fusionjax-*"))  # what visitors brought and got is gone


@pytest.fixture
def client(site, tmp_path):
    from gradio_client import Client

    def new(name="got"):
        return Client(site[0], verbose=False, download_files=tmp_path / name)

    return new


def refused(client, scene, files=()):
    """The message that a request is refused with."""
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError) as raised:
        client.predict(scene, list(files), api_name="/paint")
    message = str(raised.value)
    assert "\n" not in message
    assert "Traceback" not in message
    return message


@needs_gradio
@pytest.mark.slow
def test_a_picture_through_the_api_is_the_command_lines(world, site, client, tmp_path):
    from gradio_client import handle_file

    pictures, archive, told = client().predict(
        SCENE, [handle_file(world / "me.png")], api_name="/paint"
    )
    again = command_line(world, archive, tmp_path)
    assert len(pictures) == len(again) == 2
    for got, repeated in zip(pictures, again, strict=True):
        assert np.array_equal(pixels(got), repeated)
        assert read_picture(Path(got), given={"people": []}).prompt == "two people"
    assert told == []
    with zipfile.ZipFile(archive) as file:
        assert sorted(file.namelist()) == ["ann.png", "me.png", "scene.yaml"]
        assert str(site[1]) not in file.read("scene.yaml").decode()


@needs_gradio
@pytest.mark.slow
def test_what_is_wrong_is_one_line_and_nothing_else_is_opened(world, site, client):
    from gradio_client import handle_file

    asker, meta = client(), {"_type": "gradio.FileData"}
    wall = handle_file(world / "wall.png")
    assert refused(asker, {"prompt": "x", "faces": "wall.png"}, [wall]).startswith(
        "no face was found in wall.png; cut a square around it"
    )
    for path in ("/etc/passwd", str(world / "me.png"), f"{site[1]}/log", "../log"):
        given = [{"path": path}]  # with its meta the client would upload its own
        message = refused(asker, {"prompt": "x", "faces": Path(path).name}, given)
        assert "is no uploaded file; upload it first" in message
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(2)
        link = f"http://127.0.0.1:{listening.getsockname()[1]}/a.png"
        for more in ({}, {"is_stream": True}, {"url": link}):
            given = [{"path": link, "meta": meta, **more}]
            assert "a link is no uploaded file" in refused(asker, {"prompt": "x"}, given)
        with pytest.raises(TimeoutError):  # nobody has called
            listening.accept()
    for scene, message in (
        (
            {"prompt": "x", "faces": str(world / "me.png")},
            "is no uploaded file and no saved person",
        ),
        ({"prompt": "x", "base": "mini"}, "base is chosen where the page is started"),
        ({"prompt": "x", "faces": "dan"}, "'dan' is no uploaded file and no saved person"),
        ("x", "a scene is 'x'; it must have keys"),
    ):
        assert message in refused(asker, scene)
    assert "Traceback" not in (site[1] / "log").read_text()


@needs_gradio
@pytest.mark.slow
def test_only_what_was_uploaded_or_painted_is_served(world, site, client):
    import httpx

    url, folder = site
    for path in (world / "me.png", world / "people" / "ann.png", folder / "log", "/etc/passwd"):
        assert httpx.get(f"{url}/gradio_api/file={path}").status_code == 403
    with (world / "large.png").open("wb") as file:
        file.write(b"\0" * 600_000)
    with (world / "large.png").open("rb") as file:
        answer = httpx.post(f"{url}/gradio_api/upload", files={"files": file})
    assert answer.status_code == 413
    root = next(folder.glob("fusionjax-*"))
    assert root.stat().st_mode & 0o077 == 0


@needs_gradio
@pytest.mark.slow
def test_two_visitors_at_once_one_cancelled_and_a_full_queue(client):
    """One model: they wait for each other, and each gets what they asked for."""

    def scene(seed, steps=3):
        return {**SCENE, "people": [{"faces": "ann"}], "seed": seed, "num_inference_steps": steps,
                "num_images_per_prompt": 1}  # fmt: skip

    first, second = client("first"), client("second")
    jobs = [each.submit(scene(seed), [], api_name="/paint") for each, seed in
            ((first, 1), (second, 2))]  # fmt: skip
    got = [job.result(300)[0][0] for job in jobs]
    assert [read_picture(Path(path), given={"people": []}).seed for path in got] == [1, 2]
    assert not np.array_equal(pixels(got[0]), pixels(got[1]))

    long = first.submit(scene(3, 999), [], api_name="/paint")
    while not any("step" in line for _, _, lines in long.outputs() for line in lines):
        time.sleep(0.1)
    others = [second.submit(scene(seed), [], api_name="/paint") for seed in (4, 5, 6, 7)]
    long.cancel()
    errors = [error for job in others if (error := job.exception(300)) is not None]
    assert errors
    assert all("queue" in str(error).lower() for error in errors)
    answered = [job.result()[0][0] for job in others if job.exception() is None]
    assert len(answered) == 4 - len(errors) >= 2
    assert not any(scene for _, scene, _ in long.outputs())


@needs_gradio
@pytest.mark.slow
def test_a_crowd_is_answered_or_told_when_to_ask_again(site):
    """Eight at once where two may wait: pictures for all, refusals before, promises mostly kept."""
    scene = {**SCENE, "people": [{"faces": "ann"}], "num_images_per_prompt": 1}
    for seed in (1, 2):  # from then on it is known how long one takes
        assert not ask(Visit(site[0]), Answer(0, seed), scene).error
    answers, _ = crowd(site[0], visitors=8, requests=12, scene=scene)
    told = summary(answers)
    assert (told["pictures"], told["errors"]) == (12, [])
    assert told["refusals"] >= 9  # of twelve, one is made and two wait
    assert told["promised"] >= 2
    assert told["share_of_promise_p50"] <= 1


@needs_gradio
@pytest.mark.slow
def test_curl_as_the_page_says(site):
    """The line of docs/web.md, with this server's port."""
    page = (ROOT / "docs" / "web.md").read_text()
    line = re.search(r"^curl (?:.*\\\n)*.*", page, re.MULTILINE)[0]
    line = line.replace("http://127.0.0.1:7860", site[0]).replace('"cleo"', '"ann"')
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    last = re.findall(r"event: (\w+)\ndata: (.*)\n", done.stdout)[-1]
    assert last[0] == "complete"
    assert json.loads(last[1])[0][0]["orig_name"].endswith(".png")


@needs_gradio
@pytest.mark.slow
def test_a_port_in_use_and_what_belongs_on_the_page(world, tmp_path):
    def error(*words):
        done = subprocess.run(
            [sys.executable, "-m", "fusionjax", "web", *map(str, words)],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        return done.stderr.splitlines()[-1]

    assert error("--prompt", "x") == (
        "error: --prompt is said on the page, not where it is started"
    )
    assert error("--people", "none") == "error: --people is none, which is no folder"
    assert "--upload-mb is 0; it must be in" in error("--upload-mb", 0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = ["--fusion", world / "fusion.safetensors", "--port", port]
        assert error(*words).startswith(f"error: 127.0.0.1:{port} cannot be listened on (")
