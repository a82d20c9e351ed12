"""Soft edges, and images that are enlarged at their sides."""

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from fusionjax.errors import UserError
from fusionjax.generation.starting_image import blurred, outpainted_size, starting_point
from fusionjax.options import Description
from tests import tiny


@pytest.fixture(scope="module")
def paint():
    pipe = tiny.tiny_pipe()

    def call(**options):
        out = pipe("a garden", num_inference_steps=2, guidance_scale=1.0, strength=1.0, **options)
        return np.asarray(out.images[0]).astype(int)

    return call


def half(edge=32):
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[:, edge:] = 255
    return mask


@pytest.mark.parametrize("radius", [0.5, 4, 33])
def test_a_blurred_mask_is_the_one_of_diffusers(radius):
    mask = tiny.photo(2)[..., 0]
    theirs = VaeImageProcessor.blur(Image.fromarray(mask), radius)
    np.testing.assert_array_equal(blurred(np.float32(mask) / 255, radius) * 255, theirs)


def test_no_blur_leaves_a_soft_mask_as_it_is():
    mask = np.random.default_rng(0).random((8, 8), np.float32)
    assert blurred(mask, 0) is mask


def test_far_from_a_soft_edge_nothing_changes_and_the_seam_is_gone(paint):
    start = tiny.photo(3)
    hard, soft = (paint(image=start, mask_image=half(), mask_blur=blur) for blur in (0.0, 3.0))
    np.testing.assert_array_equal(soft[:, :22], start[:, :22])
    np.testing.assert_array_equal(hard[:, :32], start[:, :32])
    np.testing.assert_array_equal(soft[:, 42:], hard[:, 42:])
    seams = [np.abs(image[:, 32] - image[:, 31]).mean() for image in (hard, soft)]
    steps = np.abs(np.diff(soft[:, 22:42], axis=1)).mean()
    assert seams[0] > 20, "there is no seam to soften"
    assert seams[1] < 0.5 * seams[0]
    assert seams[1] < 3 * steps


def test_an_image_is_enlarged_and_what_is_new_is_painted(paint):
    start = tiny.photo(3)[:48, :40]
    out = paint(image=start, outpaint=(8, 0, 16, 16))
    assert out.shape == (64, 64, 3)
    np.testing.assert_array_equal(out[:48, 8:48], start)
    border = np.ones((64, 64), bool)
    border[:48, 8:48] = False
    around = np.pad(start, ((0, 16), (8, 16), (0, 0)), "edge").astype(int)
    assert np.abs(out - around)[border].mean() > 10


def test_a_soft_edge_lies_within_the_image_that_is_enlarged():
    start = starting_point(tiny.photo(3), None, (96, 64), (32, 0, 0, 0), mask_blur=4.0)
    share = blurred(start["mask_image"], 4.0)
    assert (share[:, :32] == 1).all(), "what was put there to begin with would be seen"
    assert (share[:, 64:] == 0).all()
    assert np.diff(share[0]).min() > -0.15
    np.testing.assert_array_equal(start["image"][:, 0], start["image"][:, 32])


def test_a_mask_and_outpainting_go_together():
    start = starting_point(tiny.photo(3), half(48), (72, 64), (8, 0, 0, 0))
    expected = np.zeros((64, 72))
    expected[:, :8] = expected[:, 56:] = 1
    np.testing.assert_array_equal(start["mask_image"], expected)
    assert start["outpaint"] == ()


def test_an_enlarged_image_keeps_its_size_unless_one_is_given():
    image = tiny.photo(3)
    assert outpainted_size(image, {"outpaint": (8, 0, 0, 16)}) == {"height": 80, "width": 72}
    assert outpainted_size(image, {"outpaint": (8, 0, 0, 16), "height": 96}) == {"width": 72}
    assert outpainted_size(image, {}) == outpainted_size(None, {"outpaint": (8, 0, 0, 0)}) == {}
    with pytest.raises(UserError, match=r"^width of the image .* is 70; .* example 64 or 72$"):
        outpainted_size(image, {"outpaint": (6, 0, 0, 0)})


def test_what_cannot_be_enlarged_is_told_before_anything_is_compiled(paint):
    with pytest.raises(UserError, match="outpaint is 1 2; it must be four numbers of pixels"):
        Description(outpaint=(1, 2))
    with pytest.raises(UserError, match="outpaint is given without an image to enlarge"):
        paint(outpaint=(8, 0, 0, 0))
    with pytest.raises(UserError, match=r"leaves nothing of 64×64 pixels"):
        paint(image=tiny.photo(1), outpaint=(64, 0, 0, 0), height=64, width=64)
    with pytest.raises(UserError, match=r"64×64 pixels .* another shape than 32×64"):
        paint(image=tiny.photo(1), outpaint=(32, 0, 0, 0), height=64, width=64)
    with pytest.raises(UserError, match="mask_blur is -1"):
        paint(image=tiny.photo(1), mask_blur=-1.0)
