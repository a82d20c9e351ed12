"""Pictures of pictures: the contact sheet, and where attention went."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from sample.job import Job

if TYPE_CHECKING:
    from fusionjax.identity import Identity

_GAP = 8
_CELL = 256  # the longer side of a picture on a sheet, in pixels; a face has half of it
_INK, _PAPER = (40, 40, 40), (255, 255, 255)


def contact_sheet(
    people: Sequence[Sequence[Image.Image]], pictures: Sequence[Image.Image]
) -> Image.Image:
    """Faces on the left, one column a person; pictures on the right.

    Args:
        people: each person's photos.
        pictures: what was painted, all of one size.

    Returns:
        The sheet.
    """
    cell = _fitted(pictures[0].size)
    columns = min(len(pictures), max(1, int(np.ceil(np.sqrt(len(pictures))))))
    rows = -(-len(pictures) // columns)
    face = max(cell) // 2
    deepest = max((len(photos) for photos in people), default=0)
    left = len(people) * (face + _GAP)
    size = (
        left + (2 * _GAP if people else 0) + columns * (cell[0] + _GAP) + _GAP,
        max(rows * (cell[1] + _GAP), deepest * (face + _GAP)) + _GAP,
    )
    sheet = Image.new("RGB", size, _PAPER)
    for i, photos in enumerate(people):
        for j, photo in enumerate(photos):
            at = (_GAP + i * (face + _GAP), _GAP + j * (face + _GAP))
            sheet.paste(photo.resize((face, face), Image.Resampling.LANCZOS), at)
    if people:
        x = left + _GAP
        ImageDraw.Draw(sheet).line([(x, _GAP), (x, size[1] - _GAP)], _INK)
    for k, picture in enumerate(pictures):
        at = (
            left + (2 * _GAP if people else 0) + _GAP + k % columns * (cell[0] + _GAP),
            _GAP + k // columns * (cell[1] + _GAP),
        )
        sheet.paste(picture.resize(cell, Image.Resampling.LANCZOS), at)
    return sheet


def _fitted(size: tuple[int, int]) -> tuple[int, int]:
    """A picture's size on a sheet: small pictures are enlarged, large ones reduced."""
    scale = _CELL / max(size)
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def heat_map(picture: Image.Image, shares: np.ndarray, names: Sequence[str]) -> Image.Image:
    """A picture, and beside it for each photo where it was attended to.

    Args:
        picture: what was painted.
        shares: [rows, columns, r], the share of the attention that each place gave to each photo.
        names: of the photos.

    Returns:
        The picture and r maps in a row, small pictures enlarged. Red is the photo's largest
        share, which is written below; white is none.
    """
    if max(picture.size) < _CELL:
        picture = picture.resize(_fitted(picture.size), Image.Resampling.LANCZOS)
    width, height = picture.size
    line = 14
    sheet = Image.new("RGB", ((width + _GAP) * (1 + len(names)), height + line), _PAPER)
    sheet.paste(picture, (0, 0))
    grey = np.asarray(picture.convert("L").convert("RGB")) * 0.5 + 127.5
    for i, name in enumerate(names):
        share = shares[..., i]
        most = max(float(share.max()), 1e-12)
        heat = Image.fromarray((share / most * 255).astype(np.uint8))
        weight = np.asarray(heat.resize(picture.size, Image.Resampling.BICUBIC))[..., None] / 255
        mixed = grey * (1 - 0.8 * weight) + np.array((220, 30, 30)) * 0.8 * weight
        x = (width + _GAP) * (i + 1)
        sheet.paste(Image.fromarray(mixed.astype(np.uint8)), (x, 0))
        ImageDraw.Draw(sheet).text((x, height + 1), f"{most:.0%} {name}"[: width // 6], _INK)
    return sheet


def thumbnails(person: "Identity") -> list[Any]:
    return [Image.fromarray(pixels) for pixels in person.thumbnails]


def _photo_names(job: Job, people: Sequence["Identity"]) -> list[str]:
    """A name for each photo of each person, in the pipeline's order."""
    names = []
    for number, (person, identity) in enumerate(zip(job.people, people, strict=True), 1):
        own = [Path(face).name for face in person.faces]
        if person.fresh is not None:
            own = [f"fresh {person.fresh}"]
        if len(own) != len(identity):  # an identity file holds several photos
            own = [f"person {number} photo {i}" for i in range(1, len(identity) + 1)]
        names += own
    return names


def share_map(image: Any, share: Any, job: Job, people: Sequence["Identity"]) -> Image.Image:
    """Where each photo of a job was attended to in an image; see `heat_map`."""
    names = _photo_names(job, people)
    return heat_map(image, share[..., 1 : 1 + len(names)], names)


def print_shares(shares: Sequence[Any], job: Job, people: Sequence["Identity"]) -> None:
    """The text's share, each person's, and where a person has several photos each photo's."""
    text, *of_photos = np.mean([share.mean((0, 1)) for share in shares], 0)
    photos = list(zip(_photo_names(job, people), of_photos, strict=False))
    parts = [f"text {text:.1%}"]
    for number, person in enumerate(people, 1):
        own, photos = photos[: len(person)], photos[len(person) :]
        told = ", ".join(f"{name} {share:.1%}" for name, share in own)
        total = sum(share for _, share in own)
        parts.append(told if len(own) == 1 else f"person {number} {total:.1%} ({told})")
    print(f"attention: {', '.join(parts)}")
