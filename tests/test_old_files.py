"""Files of the first release, with its names for things, still give the pictures that it made."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusionjax.embedded import MINI_FACE
from sample.__main__ import main
from sample.formats import read_picture, read_scene

OLD = Path(__file__).parent / "old_files"
LANCZOS = Image.Resampling.LANCZOS


@pytest.mark.usefixtures("loaded_once")
@pytest.mark.parametrize(
    ("words", "made", "expected"),
    [
        (["--from", OLD / "fresh.png"], "0001_seed3.png", "fresh.png"),
        (["--scene", OLD / "scene.yaml"], "0001_seed4.png", "scene.png"),
        (["--requests", OLD / "requests.jsonl"], "repainted_000.png", "repainted.png"),
    ],
)
def test_the_same_pixels(words, made, expected, tmp_path):
    """A portrait, two people in their places, and a part painted anew; one grey level at most."""
    command = [*map(str, words), "--output", str(tmp_path), "--quiet"]
    assert main(command) == 0
    ours, then = (
        np.asarray(Image.open(path)).astype(int) for path in (tmp_path / made, OLD / expected)
    )
    if made == "repainted_000.png":  # what stays is the given picture now, to the last level
        given = Image.open(MINI_FACE.with_name("dan.png")).convert("RGB").resize((64, 64), LANCZOS)
        stays = np.asarray(Image.open(OLD / "right.png").convert("L").resize((64, 64))) == 0
        assert 0.2 < stays.mean() < 0.8
        assert np.array_equal(ours[stays], np.asarray(given)[stays])
        ours, then = ours[~stays], then[~stays]
    assert np.abs(ours - then).max() <= 1


def test_old_names_are_read_under_the_new():
    job = read_picture(OLD / "fresh.png")
    assert (job.num_inference_steps, job.num_images_per_prompt) == (4, 1)
    assert (job.strength, job.controlnet_conditioning_scale) == (0.8, 1.0)
    assert read_scene(OLD / "scene.yaml").num_inference_steps == 4
