"""Hidden letters: they can be read and not be seen, in every kind of picture and file."""

import io
import subprocess
import sys

import numpy as np
import pytest
import skimage.data
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from fusionjax import watermark
from fusionjax.errors import UserError
from sample.job import Job
from sample.watermark_command import main as read_command
from sample.web.asked import job_of
from tests import tiny

SIDES = (64, 512)
KINDS = ("photo", "drawing", "white", "black", "noise")


def picture(kind, side):
    if kind == "photo":
        image = Image.fromarray(skimage.data.astronaut()).resize((side, side))
    elif kind == "drawing":
        image = Image.fromarray(tiny.photo(1)).resize((side, side))
    elif kind == "noise":
        noise = np.random.default_rng(0).integers(0, 256, (side, side, 3))
        image = Image.fromarray(noise.astype(np.uint8))
    else:
        image = Image.new("RGB", (side, side), kind)
    return np.asarray(image)


def saved(pixels, format, **words):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **words)
    return np.asarray(Image.open(file).convert("RGB"))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", KINDS)
def test_letters_are_read_and_not_seen(kind, side):
    """Also where black and white leave no room to one side; and nothing is read without them."""
    pixels = picture(kind, side)
    marked = watermark.embed(pixels, "ann 2026")
    assert watermark.read(marked) == "ann 2026"
    assert watermark.read(saved(marked, "JPEG", quality=90)) == "ann 2026"
    assert watermark.read(pixels) is None
    assert peak_signal_noise_ratio(pixels, marked) > 42
    if kind in ("photo", "drawing"):
        assert structural_similarity(pixels, marked, channel_axis=2) > 0.96
    assert np.array_equal(marked, watermark.embed(pixels, "ann 2026"))


@pytest.mark.parametrize("kind", ["photo", "drawing", "noise"])
def test_large_pictures_stand_more(kind):
    marked = watermark.embed(picture(kind, 512), "ä/7")
    noise = np.random.default_rng(1).normal(0, 5, marked.shape)
    for changed in (
        saved(marked, "JPEG", quality=50),
        saved(marked, "WEBP", quality=80),
        np.clip(marked + noise, 0, 255).astype(np.uint8),
        np.clip(marked * 0.98 + 2, 0, 255).astype(np.uint8),
    ):
        assert watermark.read(changed) == "ä/7"


def test_what_takes_it_out_reads_as_nothing():
    marked = watermark.embed(picture("photo", 512), "ann")
    for changed in (marked[3:], marked[:, ::-1], marked[::2, ::2], marked[:4], marked[:40, :40]):
        assert watermark.read(np.ascontiguousarray(changed)) is None


def test_sides_that_are_no_whole_blocks_and_no_letters():
    pixels = picture("photo", 512)[:93, :131]
    marked = watermark.embed(pixels, "")
    assert watermark.read(marked) == ""
    assert np.array_equal(marked[88:], pixels[88:])
    assert np.array_equal(marked[:, 128:], pixels[:, 128:])


@pytest.mark.parametrize(
    ("text", "message"),
    [("123456789", "9 bytes; it may have 8"), ("äöüßé", "10 bytes"), ("a\0b", "character 0")],
)
def test_what_has_no_room_is_told_without_a_model(text, message):
    with pytest.raises(UserError, match=message):
        Job(watermark=text)


def test_the_page_is_started_with_one():
    within = Job(watermark="ann")
    assert job_of({"prompt": "x"}, {}, within).watermark == "ann"
    with pytest.raises(UserError, match="watermark is chosen where the page is started"):
        job_of({"prompt": "x", "watermark": ""}, {}, within)


def test_the_command_names_what_it_cannot_read(tmp_path, capfd):
    assert read_command([str(tmp_path / "missing.png")]) == 2
    assert "missing.png" in capfd.readouterr().err
    done = subprocess.run(
        [sys.executable, "-m", "fusionjax", "watermark", "--help"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "IMAGE" in done.stdout
