"""`--show-crops`: a sheet of photos, where each is cut, and what is cut out."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageOps

from fusionjax.errors import UserError, shortened
from fusionjax.files import file_and_face
from fusionjax.identity import Identity
from fusionjax.photos import cut_photo, read_photo
from sample.job import Person

_CELL, _GAP, _LINE = 256, 8, 16  # of a picture's side, between pictures, of a line of text
_INK, _PAPER, _BAD, _SQUARE = (40, 40, 40), (255, 255, 255), (190, 20, 20), (30, 160, 60)


class Crop(NamedTuple):
    """A photo on the sheet.

    Attributes:
        name: of its file.
        whole: the photo, reduced, with the square that is taken; None if it cannot be read.
        cut: what is taken; None if nothing can be.
        reason: why not; empty if it can.
    """

    name: str
    whole: Image.Image | None
    cut: Image.Image | None
    reason: str = ""


def crops_of(person: Person, size: int, crop: str) -> list[Crop]:
    """The photos of a person as they are cut.

    Args:
        person: with faces; of identity files their own small pictures are shown.
        size: of what is cut out, in pixels: the base model's own.
        crop: as for `photos.prepare_photo`, whose warnings are told.
    """
    crops: list[Crop] = []
    for face in person.faces:
        name = face.replace("\\", "/").rpartition("/")[2]
        try:
            if face.endswith(".safetensors"):
                small = Identity.load(face).thumbnails
                crops += [Crop(name, None, Image.fromarray(pixels)) for pixels in small]
                continue
            found = cut_photo(face, size, crop)
        except UserError as error:
            crops.append(Crop(name, _whole(face), None, str(error)))
        else:
            crops.append(Crop(name, _reduced(found.whole, found.square), found.cut))
    return crops


def _whole(face: str) -> Image.Image | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # told already
        try:
            return _reduced(read_photo(file_and_face(face)[0]), None)
        except UserError:
            return None


def _reduced(photo: Image.Image, square: tuple[int, int, int, int] | None) -> Image.Image:
    small = ImageOps.contain(photo, (_CELL, _CELL), Image.Resampling.LANCZOS)
    if square is not None:
        scale = small.width / photo.width
        box = [min(round(side * scale), max(small.size) - 1) for side in square]
        ImageDraw.Draw(small).rectangle(box, outline=_SQUARE, width=3)
    return small


def crops_sheet(people: Sequence[Sequence[Crop]]) -> Image.Image:
    """A row for each photo: it, with the square that is taken; what is cut out; its name.

    Args:
        people: each person's photos; a line parts them.
    """
    rows = [(number, crop) for number, own in enumerate(people, 1) for crop in own]
    height = _CELL + _LINE + 2 * _GAP
    sheet = Image.new("RGB", (2 * _CELL + 3 * _GAP, height * len(rows)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    last = 1
    for row, (number, crop) in enumerate(rows):
        top = row * height + _GAP
        if number != last:
            draw.line([(0, top - _GAP), (sheet.width, top - _GAP)], _INK)
        last = number
        if crop.whole is not None:
            sheet.paste(crop.whole, (_GAP, top))
        if crop.cut is not None:
            sheet.paste(crop.cut.resize((_CELL, _CELL)), (2 * _GAP + _CELL, top))
        else:
            left = 2 * _GAP + _CELL
            draw.rectangle(
                [(left, top), (left + _CELL - 1, top + _CELL - 1)], outline=_BAD, width=3
            )
            draw.text((left + _GAP, top + _GAP), "not used", _BAD)
        who = f"person {number}: " if len(people) > 1 else ""
        draw.text((_GAP, top + _CELL + 2), shortened(f"{who}{crop.name}", 80), _INK)
    return sheet
