"""Depth maps of photos, by any depth model that PyTorch transformers can run.

    depth_map("room.jpg", "Intel/dpt-large").save("depth.png")

The map is what depth ControlNets were trained on: near is white, far is black. Needs PyTorch.
"""

import os
from typing import Any

import numpy as np
from PIL import Image

from fusionjax.errors import UserError
from fusionjax.photos import PhotoSource, read_photo


def depth_map(photo: PhotoSource, model: str | os.PathLike[str]) -> Image.Image:
    """Estimates the depth of every pixel.

    Args:
        photo: as `photos.read_photo` takes it.
        model: a depth model of transformers: a folder or a name on the hub.

    Returns:
        The map, of the photo's size, mode "RGB": white is nearest, black is farthest.

    Raises:
        UserError: if PyTorch or the model is missing, or the photo cannot be read.
    """
    try:
        import torch
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation
    except ImportError as error:
        raise UserError(
            f"depth maps need PyTorch, which is not installed ({error}); "
            "`pip install fusionjax[torch]`, or give a finished map as control image"
        ) from None
    image = read_photo(photo)
    try:
        # The slow processor works without torchvision.
        processor: Any = AutoImageProcessor.from_pretrained(model, use_fast=False)
        network: Any = AutoModelForDepthEstimation.from_pretrained(model).eval()
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"{model} is no depth model here, and the hub did not give it ({reason})"
        ) from None
    with torch.no_grad():
        inverse_depth = network(**processor(image, return_tensors="pt")).predicted_depth
        inverse_depth = torch.nn.functional.interpolate(
            inverse_depth[:, None], (image.height, image.width), mode="bicubic"
        )
    values = inverse_depth[0, 0].double().numpy()
    low, high = values.min(), values.max()
    grey = np.round((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
