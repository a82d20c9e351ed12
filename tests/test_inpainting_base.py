"""Bases that were trained to inpaint: their UNet has nine input channels."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file

from configs import mini
from fusionjax.backend.sharding import make_mesh
from fusionjax.errors import UserError
from fusionjax.interop.torch_diffusers import load_fusion
from fusionjax.models.base import BaseModel
from fusionjax.pipeline import FusionPipeline
from tests import torch_reference as reference
from tests.test_interop_torch import (
    PROMPTS,
    SIDE,
    make_adapter,
    photos,  # noqa: F401
    relative,
    starting_noise,
)
from train.objectives.adapter import AdapterObjective

STEPS = 6


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Stable Diffusion's parts, with a UNet of nine channels."""
    pipe = reference.pipeline(tmp_path_factory.mktemp("words"))
    unet = UNet2DConditionModel(**reference.UNET_SMALL, in_channels=9)
    pipe.unet = reference.randomise(unet, 2)
    return pipe


@pytest.fixture(scope="module")
def folder(plain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "inpainting"
    plain.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(folder):
    return BaseModel.from_pretrained(folder)


@pytest.fixture
def theirs(folder):
    pipe = StableDiffusionInpaintPipeline.from_pretrained(folder)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents_of(pipe, image):
    """The middle of the posterior; the pipeline itself draws from it, another each time."""
    pixels = torch.from_numpy(np.moveaxis(image, -1, 0)[None].astype(np.float32))
    return pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor


def paint_theirs(pipe, image, mask, strength):
    """`image` in [-1, 1] and `mask`, 1 where to paint, by PyTorch's own inpainting.

    Latents that it is given it takes as they are: so they have the noise of the first step here.
    """
    known, start = image * (mask[..., None] < 0.5), torch.from_numpy(starting_noise(1))
    start = start.permute(0, 3, 1, 2)
    if strength < 1:
        pipe.scheduler.set_timesteps(STEPS)
        first = pipe.scheduler.timesteps[STEPS - int(STEPS * strength)][None]
        start = pipe.scheduler.add_noise(latents_of(pipe, image), start, first)
    out = pipe(
        PROMPTS[0], image=latents_of(pipe, image), masked_image_latents=latents_of(pipe, known),
        mask_image=torch.from_numpy(mask)[None, None], negative_prompt="th", output_type="latent",
        latents=start, guidance_scale=5.0, strength=strength, num_inference_steps=STEPS,
        height=SIDE, width=SIDE,
    )  # fmt: skip
    return out.images.permute(0, 2, 3, 1).numpy()


def paint_ours(pipe, people=(), **options):
    out = pipe(
        PROMPTS[0], people, negative_prompt="th", guidance_scale=5.0,
        num_inference_steps=STEPS, height=SIDE, width=SIDE, scheduler="ddim",
        latents=starting_noise(1), **options,
    )  # fmt: skip
    return np.asarray(out.latents), np.asarray(out.images[0])


def window():
    mask = np.zeros((SIDE, SIDE), np.float32)
    mask[8:28, 6:20] = 1
    return mask


def test_an_image_is_inpainted_as_pytorch_does(base, theirs, photos, tmp_path):  # noqa: F811
    """With nobody, and with a person, whose photo goes through the nine channels as well."""
    params, options = make_adapter(base, 0, tmp_path / "adapter.safetensors")
    ours = FusionPipeline(base, params, options)
    mask, image = window(), photos[3]
    pixels = np.asarray(image, np.float32) / 127.5 - 1
    given = {"image": image, "mask_image": Image.fromarray(np.uint8(255 * mask)), "strength": 0.7}
    latents, painted = paint_ours(ours, **given)
    expected = paint_theirs(theirs, pixels, mask, strength=0.7)
    assert relative(latents, expected) < 1e-3
    np.testing.assert_array_equal(painted[mask < 0.5], np.asarray(image)[mask < 0.5])
    assert relative(paint_theirs(theirs, pixels, 1 - mask, strength=0.7), expected) > 0.05

    fusion = load_fusion(theirs, tmp_path / "adapter.safetensors")
    person = ours.encode_identity(photos[0], crop="none")
    for layer, states in fusion.encode_identity(photos[0], crop="none").states.items():
        assert relative(person.states[layer].astype(np.float32), states.astype(np.float32)) < 2**-7
    fusion.show(person)
    latents, _ = paint_ours(ours, person, **given)
    seen = paint_theirs(theirs, pixels, mask, strength=0.7)
    assert relative(latents, seen) < 1e-3
    assert relative(seen, expected) > 0.02


def test_text_alone_paints_all(base, theirs):
    """Nothing is known then: as diffusers is told by a mask that is white everywhere."""
    latents, _ = paint_ours(FusionPipeline(base))
    nothing = np.zeros((SIDE, SIDE, 3), np.float32)
    expected = paint_theirs(theirs, nothing, np.ones((SIDE, SIDE), np.float32), strength=1.0)
    assert relative(latents, expected) < 1e-3


def test_a_matched_photo_is_seen_by_nine_channels(base, photos, tmp_path):  # noqa: F811
    params, options = make_adapter(base, 0, tmp_path / "adapter.safetensors", reference="matched")
    pipe = FusionPipeline(base, params, options)
    latents, _ = paint_ours(pipe, pipe.encode_identity(photos[0], crop="none"))
    assert relative(latents, paint_ours(pipe)[0]) > 0.02


def test_one_file_is_the_folder(plain, base, tmp_path):
    save_file(reference.original_state(plain), tmp_path / "inpainting.safetensors")
    plain.tokenizer.save_pretrained(tmp_path / "tokenizer")
    found = BaseModel.from_pretrained(tmp_path / "inpainting.safetensors")
    assert found.is_inpainting
    assert found.fingerprint == base.fingerprint


def test_no_adapter_is_trained_on_it(folder):
    run = dataclasses.replace(mini.config, base=str(folder))
    with pytest.raises(UserError, match="is an inpainting model; train on the base that it was"):
        AdapterObjective(run, make_mesh(devices=jax.devices()[:1]))


def test_a_mask_that_paints_nothing_is_told(base):
    image, grey = Image.new("RGB", (SIDE, SIDE)), Image.new("L", (SIDE, SIDE), 102)
    pipe = FusionPipeline(base)
    with pytest.raises(UserError, match=r"mask_image is at most 0\.40 of white, and an inpainting"):
        pipe(PROMPTS[0], image=image, mask_image=grey, num_inference_steps=STEPS)
