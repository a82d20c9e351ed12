"""Depth maps with a tiny random depth model."""

import warnings

import numpy as np
import pytest
from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

from fusionjax.errors import UserError
from fusionjax.interop.torch_depth import depth_map
from tests import tiny


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


def test_what_is_no_depth_model_is_named(tmp_path):
    with pytest.raises(UserError, match="is no depth model here"):
        depth_map(tiny.photo(1), tmp_path)
