"""An image in several passes: painted, enlarged and painted again, small faces once more.

The second pass ("hires fix") is image to image at a size at which the base alone would repeat what
it shows; with the same people, whose masks grow with the image.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from fusionjax.generation.face_detail import with_detailed_faces
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
    if settings.second_pass is None and not settings.face_detail:
        yield from generate_each(runner, requests, settings, batch_size=batch_size, **how)
        return
    for start in range(0, len(requests), batch_size):
        chunk = requests[start : start + batch_size]
        done = list(generate_each(runner, chunk, settings, batch_size=batch_size, **how))
        if (larger := settings.second_pass) is not None:
            chunk, done = _second_pass(runner, chunk, done, larger, batch_size, how)
        if settings.face_detail:
            done = _face_pass(runner, chunk, done, settings, batch_size, how)
        yield from done


def _second_pass(
    runner: Runner,
    requests: Sequence[Request],
    first: Sequence[Generated],
    larger: Settings,
    batch_size: int,
    how: Mapping[str, Any],
) -> tuple[list[Request], list[Generated]]:
    """The requests at the larger size, and what is painted."""
    blank = np.zeros((1, 1, 3), np.uint8)
    wanted = [
        enlarged(request, blank if each.pixels is None else each.pixels, larger)
        for request, each in zip(requests, first, strict=True)
    ]
    good = [request for request, each in zip(wanted, first, strict=True) if each.pixels is not None]
    second = generate_each(
        runner, good, larger, batch_size=batch_size, **{**how, "attention_share": False}
    )
    grid, done = runner.model.grid(*larger.size), []
    for each in first:
        latents = np.full((*grid, each.latents.shape[-1]), np.nan, each.latents.dtype)
        again = Generated(None, latents, None) if each.pixels is None else next(second)
        done.append(again._replace(attention_share=each.attention_share))
    return wanted, done


def _face_pass(
    runner: Runner,
    requests: Sequence[Request],
    images: Sequence[Generated],
    settings: Settings,
    batch_size: int,
    how: Mapping[str, Any],
) -> list[Generated]:
    """Small faces painted again; a callback does not hear of its steps."""
    side = runner.model.photo_side

    def generate(wanted: Sequence[Request], settings: Settings) -> Iterator[Generated]:
        size = min(batch_size, 1 << (len(wanted) - 1).bit_length() if wanted else 1)
        progress = how.get("progress")
        return generate_each(runner, wanted, settings, batch_size=size, progress=progress)

    return with_detailed_faces(requests, images, settings.face_pass(side), side, generate)


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
        changes["masks"] = np.stack([grown(mask.astype(np.float32)) for mask in request.masks])
    if request.mask_image is not None:
        changes["mask_image"] = grown(request.mask_image.astype(np.float32))
        changes["mask_blur"] = min(request.mask_blur * factor, 1000.0)
    if request.control_image is not None:
        channels = np.moveaxis(request.control_image.astype(np.float32), -1, 0)
        changes["control_image"] = np.stack([_smooth(each, larger) for each in channels], -1)
    return dataclasses.replace(request, **changes)


def _smooth(channel: Float[np.ndarray, "h w"], larger: Settings) -> Float[np.ndarray, "H W"]:
    height, width = larger.size
    bilinear = Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(channel).resize((width, height), bilinear))
