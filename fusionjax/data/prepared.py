"""One picture of a source as a training example, or the reason why it is none."""

import dataclasses
import io
import re
import warnings
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from fusionjax import photos
from fusionjax.data.picture import Picture
from fusionjax.errors import UserError, at_least, printable
from fusionjax.face_detection import detect, embed
from fusionjax.options import CROPS, not_one_of

PEOPLE = ("source", "own", "cluster")
_LONGEST_CAPTION = 2_000
_CLEARLY = 0.5  # of the largest face's area, that a second one must be below to be somebody behind


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What a picture must be to be kept.

    Attributes:
        size: side of every picture in pixels: the base model's.
        crop: `auto` cuts the largest square around the person's face; `none` keeps the picture
            whole, with white beside it up to a square.
        smallest_picture: its shorter side as found, in pixels.
        smallest_face: the longer side of a face as found, in pixels; smaller ones do not count.
        most_faces: more of them, and the picture is dropped.
        shortest_caption: in characters.
        language: of the caption, two letters such as `en`; nothing takes any.
        least_sharpness: least variance of the Laplacian of a face; 100 drops blurred ones.
        people: `source`: whose a picture is is what the source says, if it does; `own`: each face
            is a person of its own; `cluster`: faces that are alike are one person's, whatever the
            source says. Of pictures with several people each face is then a person of its own.
    """

    size: int = 512
    crop: str = "auto"
    smallest_picture: int = 256
    smallest_face: int = 64
    most_faces: int = 3
    shortest_caption: int = 1
    language: str = ""
    least_sharpness: float = 0.0
    people: str = "source"

    def __post_init__(self) -> None:
        at_least(32, size=self.size, smallest_picture=self.smallest_picture)
        at_least(1, smallest_face=self.smallest_face, most_faces=self.most_faces)
        at_least(1, shortest_caption=self.shortest_caption)
        at_least(0, least_sharpness=self.least_sharpness)
        if self.language:
            from py3langid import rank

            if self.language not in (known := sorted(name for name, _ in rank("a caption"))):
                raise UserError(not_one_of("language", self.language, known))
        if self.crop not in CROPS:
            raise UserError(not_one_of("crop", self.crop, CROPS))
        if self.people not in PEOPLE:
            raise UserError(not_one_of("people", self.people, PEOPLE))


class Dropped(Exception):
    """The reason why a picture is not kept, in words that are the same for all like it."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A picture that is kept.

    Attributes:
        image: the square with the faces inside, JPEG.
        face: the person's face alone, JPEG; None where each face is its own person.
        boxes: of the faces in the square, [people, 4]: ymin, xmin, ymax, xmax in [0, 1].
        caption: what is said of it.
        person: whose picture it is; of pictures of nobody's that is known, their own name.
        look: 64 bits that are alike for pictures that look alike.
        face_pixels: the longer side of the largest face in the picture as found.
        likeness: by which the only face is compared with others, float16 [128]; None where they
            are not.
    """

    image: bytes
    face: bytes | None
    boxes: Float[np.ndarray, "p 4"]
    caption: str
    person: str
    look: int
    face_pixels: int
    likeness: Float[np.ndarray, "128"] | None = None


def prepare_picture(picture: Picture, wishes: Wishes) -> Prepared:
    """Finds the faces of a picture and cuts it.

    Args:
        picture: of a source.
        wishes: what it must be.

    Returns:
        The example.

    Raises:
        Dropped: if it cannot be used.
    """
    caption = " ".join(picture.caption.split())
    if len(caption) < wishes.shortest_caption:
        raise Dropped("no caption" if not caption else "a caption that is too short")
    if len(caption) > _LONGEST_CAPTION:
        raise Dropped(f"a caption of more than {_LONGEST_CAPTION:,} characters")
    if wishes.language and _language(caption) != wishes.language:
        raise Dropped(f"a caption in another language than {wishes.language}")
    image = _read(picture)
    if min(image.size) < wishes.smallest_picture:
        raise Dropped(f"smaller than {wishes.smallest_picture} pixels")
    found = [face for face in detect(image) if max(face.box[2:]) >= wishes.smallest_face]
    faces = [face.box for face in found]
    if not faces:
        raise Dropped(f"no face of {wishes.smallest_face} pixels or more was found")
    if len(faces) > wishes.most_faces:
        raise Dropped(f"more than {wishes.most_faces} faces")
    known = picture.person if wishes.people == "source" else None
    compared = wishes.people == "cluster" and len(faces) == 1
    if known is not None:
        first, *others = (box[2] * box[3] for box in faces)
        if others and others[0] > _CLEARLY * first:
            raise Dropped("several faces, and which of them is the person's is not said")
        faces = faces[:1]
    square, inside = _square(image, faces) if wishes.crop == "auto" else _around(image, faces)
    boxes = _boxes(inside, square)
    face = image.crop(photos.face_square(faces[0], *image.size))
    if wishes.least_sharpness > 0 and _sharpness(face) < wishes.least_sharpness:
        raise Dropped("a blurred face")
    whole = _cut(image, square)
    return Prepared(
        jpeg(whole, wishes.size),
        jpeg(face, wishes.size) if known is not None or compared else None,
        boxes,
        caption,
        printable(picture.name if known is None else known),
        look_of(whole),
        max(faces[0][2:]),
        embed(image, found[0]).astype(np.float16) if compared else None,
    )


def _language(caption: str) -> str:
    from py3langid import classify  # here: reading its model takes a moment

    return str(classify(caption)[0])


def _read(picture: Picture) -> Image.Image:
    content: Any = picture.content
    if isinstance(content, bytes):
        content = io.BytesIO(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow says of odd EXIF
            return photos.read_photo(content)
    except UserError as error:
        # The reader's own words, without what differs from picture to picture.
        words = str(error).replace(str(content), "the photo").partition(";")[0]
        raise Dropped(re.sub(r"\d[\d×.,]*", "N", words)) from None


def _square(
    image: Image.Image, faces: list[tuple[int, int, int, int]]
) -> tuple[tuple[int, int, int, int], list[tuple[int, int, int, int]]]:
    """The largest square around the first face's middle, and the faces in it."""
    left, top, width, height = faces[0]
    side = min(image.size)
    x = min(max(round(left + width / 2 - side / 2), 0), image.width - side)
    y = min(max(round(top + height / 2 - side / 2), 0), image.height - side)
    inside = [
        (a, b, w, h) for a, b, w, h in faces
        if x <= a + w / 2 <= x + side and y <= b + h / 2 <= y + side
    ]  # fmt: skip
    return (x, y, x + side, y + side), inside


def _around(
    image: Image.Image, faces: list[tuple[int, int, int, int]]
) -> tuple[tuple[int, int, int, int], list[tuple[int, int, int, int]]]:
    """The smallest square that holds the whole picture in its middle, and all its faces."""
    side = max(image.size)
    x, y = (image.width - side) // 2, (image.height - side) // 2
    return (x, y, x + side, y + side), faces


def _cut(image: Image.Image, square: tuple[int, int, int, int]) -> Image.Image:
    """What lies in a square; white where the picture has ended."""
    left, top, right, bottom = square
    cut = Image.new("RGB", (right - left, bottom - top), "white")
    cut.paste(image, (-left, -top))
    return cut


def _boxes(
    faces: list[tuple[int, int, int, int]], square: tuple[int, int, int, int]
) -> Float[np.ndarray, "p 4"]:
    x, y, right, _ = square
    corners = [(top - y, left - x, top + h - y, left + w - x) for left, top, w, h in faces]
    boxes = np.clip(np.array(corners, np.float32) / (right - x), 0, 1)
    if (boxes[:, 2:] <= boxes[:, :2]).any():
        raise Dropped("a face of no size")
    return boxes


def jpeg(image: Image.Image, size: int) -> bytes:
    """A square as JPEG of that side."""
    buffer = io.BytesIO()
    resized = image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
    resized.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _sharpness(face: Image.Image) -> float:
    import cv2

    grey = np.asarray(face.convert("L").resize((128, 128)))
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())


def look_of(image: Image.Image) -> int:
    """The difference hash: whether each of 8×8 points is brighter than its right neighbour."""
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BILINEAR), np.int16)
    bits = np.packbits(small[:, :-1] > small[:, 1:])
    return int.from_bytes(bits.tobytes())
