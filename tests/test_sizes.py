"""Pictures whose latents the UNet cannot halve evenly: as PyTorch diffusers resizes its skips."""

import jax.numpy as jnp
import numpy as np
import pytest

from fusionjax.errors import UserError
from fusionjax.masks import layer_bias, reduce_masks
from fusionjax.options import Settings, check_multiple
from tests import tiny
from tests.test_unet import SMALL, World, relative

HEIGHT, WIDTH = 11, 14  # 6×7 and 3×4 at the lower levels


@pytest.fixture(scope="module")
def world():
    return World(SMALL, height=HEIGHT, width=WIDTH, references=3)


def test_the_base_unet_is_pytorchs(world):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        latents, text = (torch.tensor(np.asarray(x)) for x in (world.latents, world.text))
        theirs = world.torch_unet(latents.movedim(-1, 1), 601, text).sample
    assert relative(world.base(), theirs.movedim(1, -1).numpy()) < 1e-5


def test_faces_and_masks_are_those_of_the_equations(world):
    """The photos, of 11×11 latents, are of such a size too."""
    masks = np.zeros((2, 8 * HEIGHT, 8 * WIDTH), bool)
    masks[0, :, :50] = True
    masks[1, 81:, 60:] = True  # within the last, incomplete cell of the lower levels
    strength, owner = (1.0, 0.3, 1.0), (0, 0, 1)
    ours = world.ours(strength, owner, masks)
    assert relative(ours, world.literal(strength, owner, masks)) < 1e-4
    nobody_restricted = world.ours(strength, owner, np.zeros_like(masks))
    assert relative(ours, nobody_restricted) > 1e-3, "the masks changed nothing"


def test_a_cell_may_reach_beyond_the_mask():
    mask = jnp.zeros((1, 1, 5, 3)).at[0, 0, 4, 2].set(1).at[0, 0, 1, 1].set(0.5)
    np.testing.assert_array_equal(
        reduce_masks(mask, (3, 2), (2, 2)).reshape(3, 2), [[0.5, 0], [0, 0], [0, 1]]
    )
    strength, owner = jnp.ones((1, 1)), jnp.zeros((1, 1), jnp.int32)
    assert layer_bias(strength, (3, 2), mask, owner, cell=(2, 2)).shape == (1, 6, 1)


def test_pytorchs_masks_cover_the_same_cells():
    torch = pytest.importorskip("torch")
    import torch.nn.functional as F

    mask = np.random.default_rng(0).random((2, 75, 100), np.float32)
    theirs = F.max_pool2d(torch.tensor(mask), 8, ceil_mode=True).flatten(1)
    ours = reduce_masks(jnp.asarray(mask)[None], (10, 13), (8, 8))[0]
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("value", "nearest"), [(601, "600 or 608"), (4, "8"), (15, "8 or 16"), (599, "592 or 600")]
)
def test_what_is_no_multiple_of_8_is_told_with_the_nearest(value, nearest):
    with pytest.raises(UserError, match=f"^height is {value}; .*, for example {nearest}$"):
        check_multiple("height", value, 8)
    if value > 8:
        with pytest.raises(UserError, match=f"height is {value}; it must be a multiple of 8"):
            Settings(height=value)


@pytest.mark.slow
def test_whole_pictures_of_such_a_size_with_everything():
    """72×88 pixels: latents of 9×11, which the tiny UNet's two levels cannot halve."""
    pipe, people = tiny.tiny_pipe(), list(tiny.tiny_people())
    masks = np.zeros((2, 72, 88), np.float32)
    masks[0, :, :74] = masks[1, 68:, 74:] = 1
    start = tiny.photo(3, 88)[:72]
    part = np.zeros((72, 88, 3), np.uint8)
    part[:, 60:] = 255
    out, swapped = (
        pipe(
            "two people", people, masks=each, image=start, mask_image=part, height=72, width=88,
            face_guidance_scale=2.0, num_inference_steps=2, attention_share=True,
        )
        for each in (masks, masks[::-1])
    )  # fmt: skip
    painted, other = (np.asarray(each.images[0]) for each in (out, swapped))
    assert painted.shape == (72, 88, 3)
    np.testing.assert_array_equal(painted[:, :60], start[:, :60])
    assert (painted[:, 60:] != start[:, 60:]).any()
    assert (painted != other).any(), "the masks changed nothing"
    assert out.attention_share.shape == (1, 9, 11, 3)
    np.testing.assert_allclose(out.attention_share.sum(-1), 1, atol=1e-5)
