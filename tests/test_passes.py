"""The second pass at a larger size, and its repetition from the image's text."""

import numpy as np
import pytest
from PIL import Image

from fusionjax.errors import NotFiniteWarning, UserError
from fusionjax.generation.passes import enlarged
from fusionjax.generation.request import Request
from fusionjax.options import Settings
from sample.__main__ import main
from tests import tiny

STEPS = 4


@pytest.fixture(scope="module")
def pipe():
    return tiny.tiny_pipe()


@pytest.fixture(scope="module")
def people():
    return list(tiny.tiny_people())


def test_two_passes_in_one_call_are_the_two_calls_by_hand(pipe, people):
    """Two images in batches of one, so that each batch has both of its passes."""
    masks = np.zeros((2, 64, 64), np.float32)
    masks[0, :, :32] = masks[1, :, 32:] = 1
    options = {"num_inference_steps": STEPS, "seed": 5, "guidance_scale": 1.0, "batch_size": 1}
    names = ["a garden", "a library"]
    both = pipe(names, people, masks=masks, upscale=1.3, upscale_strength=0.5, **options)
    first = pipe(names, people, masks=masks, **options)
    assert [image.size for image in both.images] == [(80, 80)] * 2, "83.2 is rounded"
    assert both.latents.shape == (2, 10, 10, 4)
    place = np.repeat(np.arange(64), 2)[(np.arange(80) * 2 + 1) * 64 // 80]  # nearest
    for index, name in enumerate(names):
        larger = first.images[index].resize((80, 80), Image.Resampling.LANCZOS)
        second = pipe(
            name, people, masks=masks[:, place][:, :, place], image=larger, strength=0.5,
            height=80, width=80, **{**options, "seed": 5 + index},
        )  # fmt: skip
        np.testing.assert_allclose(both.latents[index], second.latents[0], atol=1e-5)


def test_everything_grows_with_the_image():
    rng = np.random.default_rng(0)
    request = Request(
        "x",
        masks=(rng.random((2, 16, 24)) > 0.5).astype(np.float32),
        mask_image=np.eye(16, 24, dtype=np.float32),
        image=np.zeros((16, 24, 3), np.float32),
        control_image=np.full((16, 24, 3), 0.25, np.float32),
        latents=np.zeros((2, 3, 4)),
        mask_blur=2.0,
    )
    larger = Settings(height=16, width=24, upscale=2.0).second_pass
    pixels = tiny.photo(1, 24)[:16]
    second = enlarged(request, pixels, larger)
    np.testing.assert_array_equal(second.masks, request.masks.repeat(2, 1).repeat(2, 2))
    np.testing.assert_array_equal(second.mask_image, request.mask_image.repeat(2, 0).repeat(2, 1))
    assert second.mask_blur == 4
    assert second.latents is None
    np.testing.assert_allclose(second.control_image, np.full((32, 48, 3), 0.25), atol=1e-6)
    middle = second.image.reshape(16, 2, 24, 2, 3).mean((1, 3))
    assert np.abs((middle + 1) * 127.5 - pixels).mean() < 2


def test_an_image_that_is_not_finite_stays_out_of_the_second_pass(pipe, people):
    """Shapes are those of the test before: nothing is compiled for it."""
    bad = np.full((8, 8, 4), np.inf, np.float32)
    good = np.random.default_rng(0).standard_normal((8, 8, 4), np.float32)
    settings = Settings(height=64, width=64, num_inference_steps=STEPS, upscale=1.25)
    masks = np.zeros((2, 64, 64), np.float32)
    masks[0, :, :32] = masks[1, :, 32:] = 1
    requests = [
        Request("x", identities=people, masks=masks, latents=latents, guidance_scale=1.0)
        for latents in (bad, good)
    ]
    with pytest.warns(NotFiniteWarning):
        out = pipe.generate(requests, settings, batch_size=1)
    assert out.images[0] is None
    assert out.images[1].size == (80, 80)
    assert out.latents.shape == (2, 10, 10, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"upscale": 1.0}, r"upscale is 1; it must be in \(1, 16\]"),
        ({"upscale_strength": 0.0}, r"upscale_strength is 0; it must be in \(0, 1\]"),
        ({"upscale": 16.0, "height": 1024}, r"height is 16384; it must be in 8\.\.8192"),
    ],
)
def test_what_cannot_be_enlarged(pipe, settings, message):
    before = pipe.runner.compilations
    with pytest.raises(UserError, match=message):
        pipe("x", **{"height": 64, "width": 64, **settings})
    assert pipe.runner.compilations == before


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny.tiny_base().save_pretrained(folder, np.float32)
    return folder


@pytest.mark.slow
def test_a_command_with_everything_is_repeated_by_its_picture(base, tmp_path, monkeypatch, capsys):
    """Enlarged at its sides, softly, in two passes, at a size that is no multiple of 16."""
    monkeypatch.chdir(tmp_path)
    start = tiny.photo(3)
    Image.fromarray(start).save("start.png")
    words = ["--base", str(base), "--prompt", "a garden", "--no-face", "--steps", "2",
             "--guidance-scale", "1", "--image", "start.png", "--mask-blur", "2",
             "--outpaint", "0", "0", "8", "24", "--upscale", "1.25", "--output", "out",
             "--strength", "1", "--upscale-strength", "1"]  # fmt: skip
    assert main(words) == 0
    assert "a second pass enlarges what is painted to 88×112" in capsys.readouterr().err
    image = np.asarray(Image.open("out/0001_seed0.png"))
    assert image.shape == (112, 88, 3), "72×88 pixels, 1.25 times"
    assert main(["--from", "out/0001_seed0.png", "--trust", "--output", "out", "--quiet"]) == 0
    np.testing.assert_array_equal(np.asarray(Image.open("out/0002_seed0.png")), image)
    padded = Image.fromarray(np.pad(start, ((0, 24), (0, 8), (0, 0)), "edge"))
    larger = padded.resize((88, 112), Image.Resampling.LANCZOS)
    corner = np.abs(image[:60, :60].astype(int) - np.asarray(larger)[:60, :60])
    assert np.median(corner) <= 1, "far from what is new it is the picture, enlarged"
    assert main(["--dry-run", "--upscale", "2"]) == 2
    assert "in place of --upscale give the larger size" in capsys.readouterr().err
