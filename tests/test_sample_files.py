"""What images are called, the text that they carry, and where their photos are found; no models."""

import http.server
import json
import subprocess
import sys
import threading
import tomllib
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from fusionjax.errors import UserError
from sample.formats import is_another, read_picture, read_scene, write_picture
from sample.images import save, text_of
from sample.inputs import Remembered, checksum, checksums
from sample.job import Job, Person
from sample.links import fetched
from sample.names import Output, next_number, values_of

ROOT = Path(__file__).parents[1]
PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "private" / "ann.png"
    path.parent.mkdir()
    Image.fromarray(PIXELS).save(path)
    return path


@pytest.fixture
def written(photo, tmp_path):
    """An image of a job with a photo, in a folder of its own."""
    job = Job(prompt="Größe 雪", people=(Person(faces=(str(photo),)),), width=64, height=64)

    def write(name, **words):
        path = tmp_path / "out" / name
        path.parent.mkdir(exist_ok=True)
        write_picture(path, PIXELS, job, checksums(job), {"base": "f" * 16}, **words)
        return path, job

    return write


# --- the text -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".JPEG"])
def test_every_format_carries_the_job(written, photo, ending):
    path, job = written(f"a{ending}")
    remembered = Remembered(str(photo.parent))
    with pytest.raises(UserError, match="is neither beside it nor in the current folder; put it"):
        read_picture(path, trust=False, remembered=remembered)
    remembered.add(checksums(job))
    assert read_picture(path, trust=False, remembered=remembered) == job
    assert read_picture(path, remembered=Remembered(str(photo.parent))) == job  # another process
    assert str(photo.parent).encode() not in path.read_bytes()
    bare, _ = written(f"bare{ending}", metadata=False)
    assert text_of(bare) == ""
    assert bare.stat().st_size < path.stat().st_size


def test_other_programs_read_it_in_exif(written):
    path, _ = written("a.jpg")
    with Image.open(path) as image:
        exif = image.getexif()
        comment = exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
        assert exif[ExifTags.Base.ImageDescription].encode("latin-1") == "Größe 雪".encode()
    assert comment[:8] == b"ASCII\0\0\0"
    assert json.loads(comment[8:])["job"]["prompt"] == "Größe 雪"


def test_jpeg_says_where_it_has_no_room(tmp_path):
    image = Image.fromarray(PIXELS)
    save(image, tmp_path / "a.jpg", text="x" * 40000, description="y" * 40000)
    assert text_of(tmp_path / "a.jpg") == "x" * 40000
    with pytest.warns(UserWarning, match=r"b.jpg has no room for its text of 70,\d+ bytes"):
        save(image, tmp_path / "b.jpg", text="x" * 70000)
    assert text_of(tmp_path / "b.jpg") == ""
    save(image, tmp_path / "b.webp", text="x" * 70000)
    assert text_of(tmp_path / "b.webp") == "x" * 70000


def test_quality_is_the_formats(tmp_path):
    """Less of it is a smaller file; 90 and more keeps the colours of every pixel."""
    image = Image.fromarray(PIXELS)
    for format in ("jpg", "webp"):
        for quality in (30, 95):
            save(image, tmp_path / f"{quality}.{format}", quality=quality)
        sizes = [(tmp_path / f"{quality}.{format}").stat().st_size for quality in (30, 95)]
        assert 2 * sizes[0] < sizes[1]
    for quality, brightness in ((30, (2, 2)), (95, (1, 1))):  # samples for one of colour
        with Image.open(tmp_path / f"{quality}.jpg") as saved:
            assert [part[1:3] for part in saved.layer] == [brightness, (1, 1), (1, 1)]


# --- photos found again ---------------------------------------------------------------------------


def test_a_photo_is_found_beside_the_image_by_name_and_content(written, photo):
    path, _ = written("a.png")
    beside = path.with_name("ann.png")
    beside.write_bytes(b"another")
    with pytest.raises(UserError, match=r"a.png was painted from ann.png, which has changed since"):
        read_picture(path)
    beside.write_bytes(photo.read_bytes())
    assert read_picture(path, trust=False).people[0].faces == (str(beside),)


def test_photos_of_one_name_are_told_apart(tmp_path):
    for folder, level in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (64, 64), (level,) * 3).save(tmp_path / folder / "1.png")
    faces = tuple(str(tmp_path / folder / "1.png") for folder in "ab")
    job = Job(prompt="x", people=(Person(faces=faces),))
    path, sums = tmp_path / "x.png", checksums(job)
    write_picture(path, PIXELS, job, sums, {})
    assert json.loads(text_of(path))["files"].keys() == {"1.png", "2/1.png"}
    remembered = Remembered(str(tmp_path))
    remembered.add(sums)
    assert read_picture(path, remembered=remembered) == job
    assert not is_another(path, job, sums)
    assert is_another(path, job, dict.fromkeys(faces, "0" * 16))


def test_people_given_anew_need_no_old_photo(written, photo):
    path, _ = written("a.png")
    photo.unlink()
    assert read_picture(path, given={"fresh": 7}).people == ()
    assert read_picture(path, given={"people": []}).prompt == "Größe 雪"
    job = Job(prompt="x", image=str(photo), strength=0.3)
    start = photo.with_name("start.png")
    Image.fromarray(PIXELS).save(photo)
    write_picture(start, PIXELS, job, checksums(job), {})
    assert read_picture(start, given={"fresh": 7}).strength == 0.3  # the start's, not a person's
    with pytest.raises(UserError, match=r"was painted from ann.png"):
        read_picture(path, given={"seed": 7})


def test_models_in_the_users_home_are_named_from_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sd15").mkdir()
    job = Job(prompt="x", base=str(tmp_path / "sd15"))
    write_picture(tmp_path / "x.png", PIXELS, job, {}, {})
    assert json.loads(text_of(tmp_path / "x.png"))["job"]["base"] == "~/sd15"
    assert read_picture(tmp_path / "x.png") == job


def test_a_list_that_cannot_be_written_or_read_stops_nobody(tmp_path):
    (tmp_path / "file").write_text("no folder")
    Remembered(str(tmp_path / "file")).add({"a": "0" * 16})
    (tmp_path / "inputs.jsonl").write_text(
        '{"digest": "ab"}\nnull\n{"digest": "cd", "path": "c"}\n{'
    )
    assert Remembered(str(tmp_path)).place("cd") == "c"
    assert Remembered("").place("cd") is None


# --- names ----------------------------------------------------------------------------------------


def test_names_of_fields(tmp_path):
    values = values_of(Job(prompt="A cat, on: a mat/..", seed=7, width=64, height=32), 1, 5)
    began = datetime(2026, 1, 31, 23, 59, 58)
    for pattern, name in {
        "{index}_{seed}.jpg": "0005_7.jpg",
        "{date}/{time}_{width}x{height}": "2026-01-31/235958_64x32.png",
        "{prompt}-{index:06}{{}}": "a-cat-on-a-mat-000005{}.png",
        "{number}": "001.png",
    }.items():
        output = Output.of(tmp_path, pattern, None)
        output = Output(output.folder, output.pattern, output.suffix, began)
        assert output.path(values) == tmp_path / name
    assert Output.of(tmp_path / "me.webp", None, None).path(values) == tmp_path / "me.webp"
    (tmp_path / "old.jpg").mkdir()  # a folder is one, whatever its name
    assert Output.of(tmp_path / "old.jpg", None, None).folder == tmp_path / "old.jpg"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{sed}", "did you mean {seed}"),
        ("{zebra}", "there are {index}, {seed}, {number}"),
        ("{prompt.x}", "not known"),
        ("{seed", "a brace that is meant is written twice"),
        ("{seed!r}", "only numbers take digits"),
        ("{date:4}", "only numbers take digits"),
        ("{seed:99999}", "only numbers take digits"),
        ("../x", "within the folder"),
        ("/x", "within the folder"),
        ("a//b", "within the folder"),
        ("x" * 250, "255 at most"),
    ],
)
def test_what_is_no_name(pattern, message, tmp_path):
    with pytest.raises(UserError) as error:
        Output.of(tmp_path, pattern, None)
    assert message in str(error.value)


def test_nothing_is_overwritten(tmp_path, capsys):
    def write(path):
        with path.open("x"):
            pass

    values = values_of(Job(prompt="x", width=8, height=8), 0, 1)
    fixed, counted = Output.of(tmp_path / "me.png", None, None), Output.of(tmp_path, None, "webp")
    names = [out.write(values, write).name for out in (fixed, fixed, counted, counted)]
    assert names == ["me.png", "me-2.png", "0001_seed0.webp", "0002_seed0.webp"]
    assert (
        capsys.readouterr().err
        == f"{tmp_path}/me.png is there already; written as {tmp_path}/me-2.png\n"
    )
    assert next_number(tmp_path) == 3
    with pytest.raises(UserError, match="the same for all rows; it needs"):
        Output.of(tmp_path, "{seed}", None, of_rows=True)
    assert (
        Output.of(tmp_path, "{id}", None, of_rows=True).path({**values, "id": "ann"}, 2).name
        == "ann-2.png"
    )


# --- faces ----------------------------------------------------------------------------------------


def test_links_are_fetched_for_a_command_line_and_for_no_file(photo, tmp_path):
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path.startswith("/ann.png") else 404)
            self.end_headers()
            self.wfile.write(photo.read_bytes())

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        link = f"http://127.0.0.1:{server.server_port}/ann.png?size=1#2"
        file, _, number = fetched(link, tmp_path / "out").partition("#")
        assert (Path(file).read_bytes(), number) == (photo.read_bytes(), "2")
        assert Path(file).name == f"photo_{checksum(photo)}.png"
        with pytest.raises(UserError, match=r"nobody.png cannot be fetched \(.*404|Not Found"):
            fetched(f"http://127.0.0.1:{server.server_port}/nobody.png", tmp_path)
    finally:
        server.shutdown()
        server.server_close()
    (tmp_path / "scene.yaml").write_text("{prompt: x, people: [{faces: ['https://x.org/a.jpg']}]}")
    with pytest.raises(UserError, match="is a link, which a file may not have fetched"):
        read_scene(tmp_path / "scene.yaml")


def test_a_folder_stands_for_its_photos(tmp_path):
    for name in ("b.jpg", "a.PNG", ".c.jpg", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    (person,) = Job.from_mapping({"faces": ["."]}, folder=tmp_path).people
    assert [Path(face).name for face in person.faces] == ["a.PNG", "b.jpg"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty is a folder without photos"):
        Job.from_mapping({"faces": ["empty"]}, folder=tmp_path)


def test_a_seed_may_be_drawn():
    seeds = {Job.from_mapping({"seed": "random"}).seed for _ in range(8)}
    assert len(seeds) == 8
    assert Job.from_mapping({}).seed == 0


# --- commands -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["fusionjax", "sample", "train", "fusionjax evaluate"])
def test_version_is_told_without_jax(command):
    """From the very module that packages are built with; quickly, since nothing is imported."""
    said = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", *command.split(), "--version"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    project = (ROOT / "pyproject.toml").read_text()
    version = tomllib.loads(project)["project"]["version"]
    assert said.stdout.startswith(f"fusionjax {version} (Python 3.")
    imported = {line.rpartition("|")[2].strip() for line in said.stderr.splitlines()}
    assert not {"jax", "numpy", "PIL"} & imported


def test_a_device_is_chosen_before_jax_starts():
    code = (
        "import os, sys; from sample.device import prepare, chosen; prepare('cpu:0'); "
        "assert 'jax' not in sys.modules; assert os.environ['JAX_PLATFORMS'] == 'cpu'; "
        "print(chosen('cpu:0')); prepare('gpu')"
    )
    words = [sys.executable, "-c", code]
    said = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "CpuDevice(id=0)" in said.stdout
