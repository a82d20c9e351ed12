"""Pixels as numbers: encoded pictures, grey levels 0..255, and the models' -1..1.

Axes: b batch (any number of axes), H W pixels.
"""

import io
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image


def to_unit(image: Image.Image | UInt8[np.ndarray, "*b H W 3"]) -> Float[np.ndarray, "*b H W 3"]:
    """From 0..255 to -1..1, float32, as the VAE takes it."""
    return np.asarray(image, np.float32) / 127.5 - 1


def to_bytes(image: Float[Any, "*b H W 3"]) -> UInt8[np.ndarray, "*b H W 3"]:
    """From -1..1 to 0..255, rounded and clipped."""
    return np.clip(np.round((np.asarray(image, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def decode_image(encoded: Any) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes PNG or JPEG bytes (or passes an array on) to RGB.

    Args:
        encoded: the file's bytes, or an array [H, W, 3] of RGB values.

    Returns:
        RGB values.

    Raises:
        ValueError: if the bytes are no picture.
    """
    if isinstance(encoded, np.ndarray) and encoded.dtype == np.uint8 and encoded.ndim == 3:
        return encoded
    import cv2  # here: training on cached latents decodes nothing

    if isinstance(encoded, io.IOBase):
        encoded = encoded.read()
    encoded = bytes(encoded)
    picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR) if encoded else None
    if picture is None:
        raise ValueError("not a readable picture")
    return np.ascontiguousarray(picture[..., ::-1])
