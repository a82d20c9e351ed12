"""ControlNets against PyTorch diffusers' own, and in the pipeline."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from safetensors.numpy import save_file

from fusionjax.errors import UserError
from fusionjax.models.controlnet import ControlNet, original_names
from fusionjax.pipeline import FusionPipeline
from tests import tiny
from tests.torch_reference import randomise

CONFIG = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
    "conditioning_embedding_out_channels": (8, 8, 16, 16),
}


@pytest.fixture(scope="module")
def model():
    return randomise(ControlNetModel(**CONFIG), 3)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("controlnet")
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def network(folder):
    return ControlNet.from_pretrained(folder)


def test_residuals_are_pytorchs(model, network):
    rng = np.random.default_rng(0)
    # No even number of latents: the levels below round up.
    latents, image = rng.standard_normal((2, 9, 7, 4)), rng.random((2, 72, 56, 3))
    text = rng.standard_normal((2, 7, 32))
    strength = np.array([1.0, 0.5])
    with torch.no_grad():
        down, mid = model(
            torch.tensor(latents).float().movedim(-1, 1), 37,
            torch.tensor(text).float(), torch.tensor(image).float().movedim(-1, 1),
            return_dict=False,
        )  # fmt: skip
    ours = jax.jit(network.residuals)(
        network.params, *(jnp.asarray(x, jnp.float32) for x in (latents, np.full(2, 37), text)),
        *(jnp.asarray(x, jnp.float32) for x in (image, strength)),
    )  # fmt: skip
    assert len(ours["down_residuals"]) == len(down)
    for mine, theirs in zip(
        (*ours["down_residuals"], ours["mid_residual"]), (*down, mid), strict=True
    ):
        expected = theirs.movedim(1, -1).numpy() * strength[:, None, None, None]
        np.testing.assert_allclose(mine, expected, atol=1e-4 * np.abs(expected).max())


def test_the_original_layout_is_the_one_that_diffusers_converts(model):
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    state = model.state_dict()
    originals = original_names(state, CONFIG["layers_per_block"])
    assert len(set(originals.values())) == len(state)
    checkpoint = {originals[name]: tensor for name, tensor in state.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = convert_controlnet_checkpoint(checkpoint, dict(model.config))
    assert converted.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(converted[name], tensor)


def test_the_pipeline_follows_the_control_image(network):
    pipe = FusionPipeline(
        tiny.tiny_base(), *tiny.tiny_fusion(), controlnet=network, devices=jax.devices()[:1]
    )
    options = {"num_inference_steps": 2, "control_image": tiny.photo(1)}
    with_control = pipe("a garden", **options).latents
    other_image = pipe("a garden", **{**options, "control_image": tiny.photo(2)}).latents
    without = pipe("a garden", **options, controlnet_conditioning_scale=0.0).latents
    plain = tiny.tiny_pipe()("a garden", num_inference_steps=2).latents
    assert np.abs(with_control - other_image).max() > 1e-2
    np.testing.assert_allclose(without, plain, atol=1e-3 * np.abs(plain).max())
    with pytest.raises(UserError, match="a ControlNet is loaded, but no control image is given"):
        pipe("a garden", num_inference_steps=2)
    with pytest.raises(UserError, match="controlnet_conditioning_scale is -1"):
        pipe("a garden", **options, controlnet_conditioning_scale=-1.0)


def test_a_controlnet_for_another_base_is_refused(network):
    wide = ControlNet(network.module.clone(cross_attention_dim=48), network.params)
    with pytest.raises(UserError, match="its cross_attention_dim is 48, the base's 32"):
        FusionPipeline(tiny.tiny_base(), *tiny.tiny_fusion(), controlnet=wide)
    coarse = network.module.clone(conditioning_embedding_out_channels=(8, 8, 16))
    with pytest.raises(UserError, match="its pixels per latent is 4, the base's 8"):
        FusionPipeline(tiny.tiny_base(), controlnet=ControlNet(coarse, network.params))
    nine = ControlNet(network.module.clone(in_channels=9), network.params)
    with pytest.raises(UserError, match="its in_channels is 9, the base's 4"):
        FusionPipeline(tiny.tiny_base(), controlnet=nine)
    inpaints = tiny.tiny_base().unet.clone(in_channels=9)
    network.check_fits(inpaints, 8)  # it reads the latents alone


def test_what_is_no_controlnet_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="is no file or folder; name a ControlNet"):
        ControlNet.from_pretrained(tmp_path / "nothing")
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(UserError, match=r"is not a ControlNet for Stable Diffusion 1\.x"):
        ControlNet.from_pretrained(tmp_path)
    config = (folder / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"ControlNetModel"', '"UNet2DModel"'))
    with pytest.raises(UserError, match="describes a 'UNet2DModel'; a ControlNetModel is needed"):
        ControlNet.from_pretrained(tmp_path)
