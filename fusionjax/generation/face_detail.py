"""Small faces painted again, each at the size at which the base paints faces well.

A face of few pixels is of few latents, too few for a person to be seen in. So a square around it is
cut out and enlarged to the side that the base was trained on, painted again from there with its
person alone and of "a person" (a prompt of several people is not true of it), and laid back with a
soft edge. How far that leaves what is there decides how much of expression and clothes stays.

Places come from a face detector; of a person whose face it does not find, from the mask, at whose
top a head is.

Of the mini world's faces of 16 pixels it makes somewhat better ones, still hardly recognised
(`benchmarks/face_detail.py`); with Stable Diffusion it has not been measured.

Legend: H W pixels of the image, i identities.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fusionjax.face_detection import detect
from fusionjax.generation.generate import Generated
from fusionjax.generation.request import FaceDetail, Request
from fusionjax.generation.starting_image import blurred
from fusionjax.options import Settings
from fusionjax.photos import face_square
from fusionjax.pixels import to_unit

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
# requests, settings → images
Generate = Callable[[Sequence[Request], Settings], Iterable[Generated]]
PROMPT = "a person"
_LOOKED_AT = 640  # a smaller image is enlarged before faces are looked for
_MARGIN, _SOFT = 0.15, 0.05  # of the square's side: what stays, and the Gaussian between
_AROUND_HEAD = 1.25  # the square's side, of the width of a mask with a head at its top


class _Place(NamedTuple):
    """Where somebody's face is, and how that is known; no box where it is not."""

    box: Box | None
    why: str


def with_detailed_faces(
    requests: Sequence[Request],
    images: Sequence[Generated],
    settings: Settings,
    side: int,
    generate: Generate,
) -> list[Generated]:
    """Paints every small face of a batch again.

    Args:
        requests: what was asked for, at the images' size.
        images: what was painted.
        settings: of the pass that paints faces, see `Settings.face_pass`.
        side: of the square that is painted, in pixels.
        generate: paints it.

    Returns:
        The images, each with what became of its faces.
    """
    todo: list[tuple[int, int, _Place]] = []
    told: list[list[FaceDetail]] = [[] for _ in images]
    for index, (request, image) in enumerate(zip(requests, images, strict=True)):
        if image.pixels is None:
            continue
        for person, place in enumerate(find_places(image.pixels, request)):
            reason = _left(place.box, request, side)
            if place.box is None or reason:
                told[index].append(FaceDetail(person, place.box, None, reason or place.why))
            else:
                todo.append((index, person, place))
    # All crops before the first is laid back: of two people side by side none sees the other's.
    wanted = [
        _request(requests[index], person, images[index].pixels, place.box, side)
        for index, person, place in todo
    ]
    pixels = [image.pixels for image in images]
    for (index, person, place), done in zip(todo, generate(wanted, settings), strict=True):
        assert place.box is not None
        if done.pixels is None:
            told[index].append(FaceDetail(person, place.box, None, "it was not finite"))
            continue
        pixels[index] = _laid_back(pixels[index], done.pixels, place.box, requests[index], person)
        told[index].append(FaceDetail(person, place.box, side, place.why))
    return [
        image._replace(pixels=new, faces=tuple(sorted(faces, key=lambda face: face.person)))
        for image, new, faces in zip(images, pixels, told, strict=True)
    ]


def find_places(pixels: UInt8[np.ndarray, "H W 3"], request: Request) -> list[_Place]:
    """Where each person's face is.

    A face belongs to the person in whose mask it lies; without masks, the largest belong to the
    people from left to right.

    Args:
        pixels: the image.
        request: its people and their masks.
    """
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    scale = max(1.0, _LOOKED_AT / max(image.size))
    larger = image.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    found = [_scaled(face.box, 1 / scale) for face in detect(larger)]
    squares = [face_square(face, width, height) for face in found]
    people = len(request.identities)
    if request.masks is None:
        if len(found) < people:
            why = f"{len(found)} faces were found for {people} people; masks would tell whose"
            if people == 1:
                why = "no face was found"
            return [_Place(None, why)] * people
        return [_Place(square, "found") for square in sorted(squares[:people], key=_middle)]
    places = []
    for person in range(people):
        shares = [_shares(request.masks, face) for face in found]  # the largest face first
        own = [
            square
            for square, share in zip(squares, shares, strict=True)
            if share[person] > 0.5 and share[person] == share.max()
        ]
        head = _Place(_head(request.masks[person]), "no face was found; at the top of the mask")
        places.append(_Place(own[0], "found") if own else head)
    return places


def _scaled(box: Box, factor: float) -> Box:
    left, top, width, height = (round(part * factor) for part in box)
    return left, top, width, height


def _middle(box: Sequence[int]) -> float:
    return (box[0] + box[2]) / 2


def _shares(masks: Float[np.ndarray, "i H W"], face: Sequence[int]) -> Float[np.ndarray, " i"]:
    """How much of a face lies in each mask."""
    left, top, width, height = face
    rows, columns = slice(max(top, 0), top + height), slice(max(left, 0), left + width)
    within = masks[:, rows, columns]
    return within.mean((1, 2)) if within.size else np.zeros(len(masks), masks.dtype)


def _head(mask: Float[np.ndarray, "H W"]) -> Box:
    """The square at the top of a mask, a little wider than what is in it."""
    rows, columns = (np.flatnonzero((mask > 0.5 * mask.max()).any(axis)) for axis in (1, 0))
    height, width = mask.shape
    within = min(len(rows), len(columns))
    side = min(round(_AROUND_HEAD * within), height, width)
    left = round((columns[0] + columns[-1] + 1 - side) / 2)
    left = min(max(left, 0), width - side)
    top = min(max(int(rows[0]) - (side - within) // 2, 0), height - side)
    return (left, top, left + side, top + side)


def _left(box: Box | None, request: Request, side: int) -> str:
    """Why a face is left as it is; empty if it is not."""
    if box is None:
        return ""
    if box[2] - box[0] >= side:
        return f"it is no smaller than the {side} pixels that the base was trained on"
    left, top, right, bottom = box
    stays = request.mask_image
    if stays is not None and not stays[top:bottom, left:right].any():
        return "it lies where the image stays"
    return ""


def _request(request: Request, person: int, pixels: Any, box: Box | None, side: int) -> Request:
    """A face's square, enlarged, with its person alone."""
    strengths = np.broadcast_to(request.face_strength, len(request.identities))
    changes: dict[str, Any] = {}
    if request.control_image is not None:
        levels = np.round(np.clip(request.control_image, 0, 1) * 255).astype(np.uint8)
        changes["control_image"] = _square(levels, box, side).astype(np.float32) / 255
    return dataclasses.replace(
        request,
        prompt=PROMPT,
        prompt_embeds=None,
        negative_prompt_embeds=None,
        identities=(request.identities[person],),
        face_strength=float(strengths[person]),
        image=to_unit(_square(pixels, box, side)),
        masks=None,
        mask_image=None,
        latents=None,
        **changes,
    )


def _square(pixels: Any, box: Any, side: int) -> UInt8[np.ndarray, "s s 3"]:
    cut = Image.fromarray(pixels).crop(box)
    return np.asarray(cut.resize((side, side), Image.Resampling.LANCZOS))


def _laid_back(
    pixels: Any, painted: UInt8[np.ndarray, "s s 3"], box: Box, request: Request, person: int
) -> UInt8[np.ndarray, "H W 3"]:
    """The image with a face in its place, under a soft edge, and nothing of it on other people."""
    height, width = pixels.shape[:2]
    left, top, right, bottom = box
    side = right - left
    small = Image.fromarray(painted).resize((side, bottom - top), Image.Resampling.LANCZOS)
    share = soft_square(box, width, height)
    if request.masks is not None:
        others = np.delete(request.masks, person, 0).max(0, initial=0)
        share = share * (1 - blurred(others.astype(np.float32), _SOFT * side))
    if request.mask_image is not None:
        share = share * blurred(request.mask_image, request.mask_blur)
    out = pixels.astype(np.float32)
    weight = share[top:bottom, left:right, None]
    here = out[top:bottom, left:right]
    out[top:bottom, left:right] = weight * np.asarray(small, np.float32) + (1 - weight) * here
    return np.round(out).astype(np.uint8)


def soft_square(box: Box, width: int, height: int) -> Float[np.ndarray, "H W"]:
    """1 in the middle of a square, 0 on its border and outside, soft between.

    Args:
        box: the square; where it ends with the image it has no edge.
        width: of the image in pixels.
        height: likewise.
    """
    left, top, right, bottom = box
    side = right - left
    margin = max(round(_MARGIN * side), 1)
    reach = side  # beyond the image the square goes on, so that its border there is no edge
    canvas = np.zeros((height + 2 * reach, width + 2 * reach), np.float32)
    y0 = 0 if top <= 0 else reach + top + margin
    y1 = len(canvas) if bottom >= height else reach + bottom - margin
    x0 = 0 if left <= 0 else reach + left + margin
    x1 = canvas.shape[1] if right >= width else reach + right - margin
    canvas[y0:y1, x0:x1] = 1
    soft = blurred(canvas, _SOFT * side)
    return soft[reach : reach + height, reach : reach + width]
