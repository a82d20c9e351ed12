"""Depth maps with a tiny random depth model."""

import warnings

import numpy as np
import pytest
from diffusers import ControlNetModel
from PIL import Image
from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

from fusionjax.errors import UserError
from fusionjax.interop.torch_depth import depth_map
from sample.__main__ import main
from tests import tiny
from tests.test_controlnet import CONFIG
from tests.torch_reference import randomise


@pytest.fixture
def model(tmp_path):
    config = DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=16, backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' and torch's own deprecations
        DPTForDepthEstimation(config).save_pretrained(tmp_path)
        size = {"height": 32, "width": 32}
        DPTImageProcessor(size=size, do_resize=True).save_pretrained(tmp_path)
    return tmp_path


def test_a_map_of_the_photos_size_uses_all_grey_levels(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = depth_map(tiny.photo(1, 96)[:, :64], model)
    assert image.size == (64, 96)
    grey = np.asarray(image)
    assert (grey.min(), grey.max()) == (0, 255)
    assert np.array_equal(grey[..., 0], grey[..., 2])


@pytest.mark.slow
def test_the_command_paints_by_the_depth_of_a_photo(model, tmp_path):
    """Photo → depth map → ControlNet → picture, and the picture again from its own file."""
    base = tiny.tiny_base()
    base.save_pretrained(tmp_path / "base", np.float32)
    randomise(ControlNetModel(**CONFIG), 3).save_pretrained(tmp_path / "controlnet")
    Image.fromarray(tiny.photo(1)).save(tmp_path / "room.png")
    words = f"""
        --base {tmp_path}/base --controlnet {tmp_path}/controlnet --depth-model {model}
        --depth-from {tmp_path}/room.png --prompt x --steps 2 --quiet
    """.split()
    common = ["--output", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main([*common, *words]) == 0
    assert (
        main([*common, "--quiet", "--trust", "--from", str(tmp_path / "out" / "0002_seed0.png")])
        == 0
    )
    depth, one, again = (
        np.asarray(Image.open(tmp_path / "out" / name))
        for name in ("0001_depth.png", "0002_seed0.png", "0003_seed0.png")
    )
    assert (depth.min(), depth.max()) == (0, 255)
    assert np.array_equal(one, again)


def test_what_is_no_depth_model_is_named(tmp_path):
    with pytest.raises(UserError, match="is no depth model here"):
        depth_map(tiny.photo(1), tmp_path)
