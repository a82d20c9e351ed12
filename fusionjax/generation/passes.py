"""An image in several passes: painted, enlarged and painted again from there.

The second pass ("hires fix") is image to image at a size at which the base alone would repeat what
it shows; with the same people, whose masks grow with the image.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from fusionjax.generation.generate import Generated, generate_each
from fusionjax.generation.request import Request
from fusionjax.generation.runner import Runner
from fusionjax.options import Settings
from fusionjax.pixels import to_unit


def generate_passes(
    runner: Runner, requests: Sequence[Request], settings: Settings, *, batch_size: int, **how: Any
) -> Iterator[Generated]:
    """Generates batch by batch, each in all passes that its settings ask for.

    Args:
        runner: of the model.
        requests: alike and checked.
        settings: what they share.
        batch_size: images at once.
        **how: see `generate_each`.

    Yields:
        The images in the order of the requests. Attention's shares are the first pass's.

    Raises:
        UserError: if the memory does not hold a batch.
    """
    larger = settings.second_pass
    if larger is None:
        yield from generate_each(runner, requests, settings, batch_size=batch_size, **how)
        return
    again = how | {"attention_share": False}
    for start in range(0, len(requests), batch_size):
        chunk = requests[start : start + batch_size]
        first = list(generate_each(runner, chunk, settings, batch_size=batch_size, **how))
        wanted = [
            enlarged(request, each.pixels, larger)
            for request, each in zip(chunk, first, strict=True)
            if each.pixels is not None
        ]
        second = generate_each(runner, wanted, larger, batch_size=batch_size, **again)
        grid = runner.model.grid(*larger.size)
        for each in first:
            latents = np.full((*grid, each.latents.shape[-1]), np.nan, each.latents.dtype)
            done = Generated(None, latents, None) if each.pixels is None else next(second)
            yield done._replace(attention_share=each.attention_share)


def enlarged(request: Request, pixels: np.ndarray, larger: Settings) -> Request:
    """What the second pass is asked for.

    Args:
        request: of the first.
        pixels: what it painted, [H, W, 3].
        larger: the second's settings.
    """
    height, width = larger.size
    factor = height / pixels.shape[0]
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)

    def grown(array: np.ndarray) -> Float[np.ndarray, "H W"]:
        nearest = Image.Resampling.NEAREST  # a mask with hard edges keeps them
        return np.asarray(Image.fromarray(array).resize((width, height), nearest))

    changes: dict[str, Any] = {"image": to_unit(image), "latents": None}
    if request.masks is not None:
        changes["masks"] = np.stack([grown(np.float32(mask)) for mask in request.masks])
    if request.mask_image is not None:
        changes["mask_image"] = grown(np.float32(request.mask_image))
        changes["mask_blur"] = min(request.mask_blur * factor, 1000.0)
    if request.control_image is not None:
        channels = np.moveaxis(np.float32(request.control_image), -1, 0)
        changes["control_image"] = np.stack([_smooth(each, larger) for each in channels], -1)
    return dataclasses.replace(request, **changes)


def _smooth(channel: Float[np.ndarray, "h w"], larger: Settings) -> Float[np.ndarray, "H W"]:
    height, width = larger.size
    bilinear = Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(channel).resize((width, height), bilinear))
