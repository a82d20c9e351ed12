"""Photos of people, from files as cameras, phones and scanners write them, to square pictures.

A photo is read upright, opaque, 8-bit and sRGB (`read_photo`), the face is found and cut out with
a margin (`find_faces`, `face_square`), and the square is brought to the size at which the base
model looks at photos (`prepare_photo`).
"""

import contextlib
import functools
import io
import math
import os
import warnings
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from fusionjax.errors import UserError, shortened
from fusionjax.face_detection import detect
from fusionjax.files import file_and_face, open_regular
from fusionjax.options import CROPS, not_one_of

PhotoSource = str | os.PathLike[str] | BinaryIO | io.IOBase | Image.Image | np.ndarray
Box = tuple[int, int, int, int]

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "JPEG2000", "HEIF")
_HEIF_KINDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
MAX_PIXELS = 50_000_000  # which take 0.8 GB while transparency is removed
MAX_JPEG_PIXELS = 178_956_970  # decoded at a fraction; Pillow's own limit
MIN_SIDE = 32
_DECODE_SIDE = 4096  # larger JPEGs are decoded at a half, a quarter or an eighth
_LEAST_CUT = 128  # a smaller photo has no room for more than a face: it is cut out already
_NEARLY = 0.7  # in area: boxes of faces as large differ a little with the photo's size
_FACE_SHARE = 0.5  # of the square's side that the detector's box (brows to chin) takes


def read_photo(source: PhotoSource, *, behind: str = "white") -> Image.Image:
    """Reads a photo as 8-bit sRGB, upright.

    EXIF rotation is applied, colour profiles and CMYK are converted, 16-bit pictures are scaled to
    8 bits, transparent ones are laid on a colour, and very large JPEGs are decoded at a fraction of
    their size.

    Args:
        source: a file, an open one, a Pillow image, or an array [h, w, 3] of uint8.
        behind: the colour behind what is transparent.

    Returns:
        The picture, mode "RGB".

    Raises:
        UserError: if there is no such file, it is not a picture of one of `FORMATS` or is cut off,
            it is animated or has several pages, holds more than `MAX_PIXELS` (`MAX_JPEG_PIXELS`),
            or is smaller than `MIN_SIDE`.
    """
    name = _name_of(source)
    with contextlib.ExitStack() as files, warnings.catch_warnings():
        # Pillow warns of large pictures, which are refused here, and of odd tags, which matter not.
        warnings.simplefilter("ignore")
        try:
            image = _to_rgb(_opened(source, name, files), name, behind)
        except UserError:
            raise
        except Image.DecompressionBombError:
            raise _too_large(name, MAX_JPEG_PIXELS) from None
        except UnidentifiedImageError:
            raise UserError(_not_read(source, name)) from None
        except Exception as error:  # of every kind: Pillow's decoders raise what they meet
            raise UserError(f"{name} is damaged or cut off: {shortened(str(error), 120)}") from None
    return _checked(image, name)


@functools.cache
def _know_heif() -> None:
    """Has Pillow read HEIC, as phones write it, where pillow-heif is installed."""
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()


def _known() -> list[str]:
    """Not every format that Pillow knows: some start other programs, or are hardly ever used."""
    _know_heif()
    Image.init()
    return [format for format in FORMATS if format in Image.OPEN]  # AVIF: not in every release


def _not_read(source: Any, name: str) -> str:
    known = _known()
    if "HEIF" not in known and _is_heif(source):
        return (
            f"{name} is a HEIC picture, which pillow-heif reads (pip install 'fusionjax[heif]'); "
            "or save it as JPEG"
        )
    return f"{name} is not a picture that can be read here; save it as one of {', '.join(known)}"


def _is_heif(source: Any) -> bool:
    """By the first bytes: the name of an ISO base media file's kind."""
    with contextlib.suppress(Exception):
        if hasattr(source, "read"):
            source.seek(0)
            start = source.read(12)
        else:
            with open(source, "rb") as file:
                start = file.read(12)
        return start[4:8] == b"ftyp" and start[8:] in _HEIF_KINDS
    return False


def _name_of(source: Any) -> str:
    if isinstance(source, str | os.PathLike):
        return shortened(os.fspath(source), 120)
    if isinstance(source, Image.Image):
        return shortened(getattr(source, "filename", "") or "the image", 120)
    return "the photo" if hasattr(source, "read") else "the array"


def _opened(source: Any, name: str, files: contextlib.ExitStack) -> Image.Image:
    """The picture, decoded; nothing is decoded that is too large."""
    if isinstance(source, Image.Image):
        return source
    if not isinstance(source, str | os.PathLike) and not hasattr(source, "read"):
        return _from_array(source)
    if isinstance(source, str | os.PathLike):
        if os.path.isdir(source):
            raise UserError(f"{name} is a folder; name the pictures in it")
        source = files.enter_context(open_regular(source))
    image = files.enter_context(Image.open(source, formats=_known()))
    frames = getattr(image, "n_frames", 1)
    # Phones store a second view or a depth map in the same JPEG ("MPO"); of HEIC's the main one
    # is open.
    if frames > 1 and image.format not in ("MPO", "HEIF"):
        raise UserError(
            f"{name} is animated or has several pages ({frames} frames); save one as a still "
            "picture"
        )
    of_jpeg = image.format in ("JPEG", "MPO")
    if image.width * image.height > (most := MAX_JPEG_PIXELS if of_jpeg else MAX_PIXELS):
        raise _too_large(name, most)
    if max(image.size) > 2 * _DECODE_SIDE:
        # Only JPEG listens; it decodes at the least fraction that is not below this size.
        image.draft("RGB", (_DECODE_SIDE // 2, _DECODE_SIDE // 2))
    image.load()
    return image


def _too_large(name: str, most: int) -> UserError:
    return UserError(f"{name} has more than {most // 10**6} million pixels; reduce it first")


def find_faces(image: Image.Image) -> list[Box]:
    """Finds faces, the largest first.

    Args:
        image: an upright RGB picture.

    Returns:
        Boxes from the brows to the chin: (left, top, width, height) in pixels.
    """
    return [face.box for face in detect(image)]


def face_square(
    box: tuple[int, int, int, int], width: int, height: int
) -> tuple[int, int, int, int]:
    """The square around a face: hair, chin and some shoulder, inside the picture.

    Args:
        box: left, top, width, height of the face in pixels, from brows to chin.
        width: of the picture.
        height: of the picture.

    Returns:
        left, top, right, bottom in pixels. At the picture's edge the square is moved, and where it
        would be larger than the picture it has the length of the shorter side.
    """
    left, top, box_width, box_height = box
    side = min(round(max(box_width, box_height) / _FACE_SHARE), width, height)
    x = round(left + box_width / 2 - side / 2)
    y = round(top + box_height / 2 - side / 2)
    x, y = min(max(x, 0), width - side), min(max(y, 0), height - side)
    return x, y, x + side, y + side


def prepare_photo(source: PhotoSource, size: int, crop: str = "auto") -> Image.Image:
    """Reads a photo and cuts out what the reference pass shall see.

    Args:
        source: as for `read_photo`; a file's name may end in what chooses a face: `#2` the second
            from the left, `#310,120` the one at this column and row, `#260,60,360,180` a box
            (left, top, right, bottom), whether or not a face is found there.
        size: side of the result in pixels: the base model's own picture size.
        crop: `auto` cuts a square around the largest face, of several as large the leftmost. A
            photo of size × size in which none is found, or that is too small to look for one,
            counts as cut out already. `none` looks for no face: the photo is used whole, and what
            is not square gets white beside it.

    Returns:
        The picture, size × size, mode "RGB".

    Raises:
        UserError: as `read_photo`; for an unknown `crop`; if `auto` finds no face, or not the one
            that is chosen.

    Warns:
        UserWarning: if `auto` chooses among several faces, or takes a photo whole for want of one;
            if `none` adds to it.
    """
    return cut_photo(source, size, crop).cut


class Cut(NamedTuple):
    """A photo and what is cut out of it.

    Attributes:
        whole: the photo, upright.
        square: left, top, right, bottom of what is taken, in its pixels; None is all of it.
        cut: what the reference pass sees.
    """

    whole: Image.Image
    square: tuple[int, int, int, int] | None
    cut: Image.Image


def cut_photo(source: PhotoSource, size: int, crop: str = "auto") -> Cut:
    """As `prepare_photo`, and tells where the square was."""
    if crop not in CROPS:
        raise UserError(not_one_of("crop", crop, CROPS))
    which: tuple[int, ...] = ()
    if isinstance(source, str | os.PathLike):
        source, which = file_and_face(os.fspath(source))
    image = read_photo(source)
    fits, name = image.size == (size, size), _name_of(source)
    if which and (crop == "none" or (fits and size < _LEAST_CUT)):
        raise UserError(
            f"{_with(name, which)} chooses a face, and none is looked for ("
            + ('crop="none"' if crop == "none" else f"the photo has the base's own {size} pixels")
            + "); leave that out"
        )
    if fits and (crop == "none" or size < _LEAST_CUT):
        return Cut(image, None, image)
    square = None
    if crop == "auto":
        faces = [_boxed(image, which, name)] if len(which) == 4 else find_faces(image)
        if not faces and fits:
            warnings.warn(
                f"no face was found in {name}; it has the size that the base looks at, so it is "
                'used whole (crop="none" or --crop none says that this is meant)',
                stacklevel=2,
            )
            return Cut(image, None, image)
        if not faces:
            raise UserError(
                f"no face was found in {name}; cut a square around it yourself and pass "
                'crop="none" (--crop none)'
            )
        if len(which) == 1:
            face = _numbered(faces, which, name)
        elif len(which) == 2:
            face = _at(faces, which, image.size, name)
        else:
            face = _chosen(faces)
        if len(faces) > 1 and not which:
            left, top, width, height = face
            warnings.warn(
                f"{len(faces)} faces were found in {name}; taken is the one of {width}×{height} "
                f"pixels around {left + width // 2}, {top + height // 2} (column, row); another is "
                "chosen by its number from the left, as in photo.jpg#2, or by a point in it, as in "
                "photo.jpg#310,120",
                stacklevel=2,
            )
        square = face_square(face, *image.size)
    elif image.width != image.height:
        warnings.warn(
            f"{name} has {image.width}×{image.height} pixels; it is used whole, with white beside "
            "it up to a square: cut a square out yourself, so that the face is larger",
            stacklevel=2,
        )
        padded = ImageOps.pad(image, (size, size), Image.Resampling.LANCZOS, color="white")
        return Cut(image, None, padded)
    part = image.crop(square) if square else image
    return Cut(image, square, ImageOps.fit(part, (size, size), Image.Resampling.LANCZOS))


def _with(name: str, which: Sequence[int]) -> str:
    """A photo's name with what chooses a face."""
    return f"{name}#{','.join(map(str, which))}"


def _boxed(image: Image.Image, which: Sequence[int], name: str) -> Box:
    """The face that a box says, found or not."""
    left, top, right, bottom = which
    if not (left < right <= image.width and top < bottom <= image.height):
        raise UserError(
            f"{_with(name, which)} is no box in {image.width}×{image.height} pixels; give left, "
            "top, right and bottom of the face"
        )
    return left, top, right - left, bottom - top


def _numbered(faces: list[Box], which: Sequence[int], name: str) -> Box:
    """The face of that number from the left, from 1."""
    if which[0] > len(faces):
        raise UserError(
            f"{_with(name, which)}: {len(faces)} face{'s were' if len(faces) > 1 else ' was'} "
            "found there, numbered from the left; name one of them"
        )
    return sorted(faces, key=lambda face: _middle(face)[0])[which[0] - 1]


def _middle(face: Box) -> tuple[float, float]:
    """Column and row."""
    return face[0] + face[2] / 2, face[1] + face[3] / 2


def _at(faces: list[Box], which: Sequence[int], size: tuple[int, int], name: str) -> Box:
    """The face at that column and row: of those in whose squares they lie the nearest."""
    column, row = which

    def is_in_square(face: Box) -> bool:
        left, top, right, bottom = face_square(face, *size)
        return left <= column < right and top <= row < bottom

    there = [face for face in faces if is_in_square(face)]
    if not there:
        places = "; ".join(f"{x:.0f},{y:.0f}" for x, y in map(_middle, faces))
        raise UserError(f"{_with(name, which)}: no face was found there, but at {places}")
    return min(there, key=lambda face: math.dist(_middle(face), (column, row)))


def _chosen(faces: list[Box]) -> Box:
    """The largest face; of those that are nearly as large the leftmost, whatever the photo's size
    makes of their boxes.
    """
    largest = max(width * height for *_, width, height in faces)
    return min(face for face in faces if face[2] * face[3] > _NEARLY * largest)


def _from_array(array: Any) -> Image.Image:
    array = np.asarray(array)  # JAX's too
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise UserError(
            f"a photo given as an array has shape {array.shape} and type {array.dtype}; "
            "it must be [height, width, 3] of uint8"
        )
    return Image.fromarray(array)


def _checked(image: Image.Image, name: str) -> Image.Image:
    if min(image.size) < MIN_SIDE:
        raise UserError(
            f"{name} has {image.width}×{image.height} pixels; each side needs at least {MIN_SIDE}"
        )
    return image


def _to_rgb(image: Image.Image, name: str, behind: str) -> Image.Image:
    """8-bit sRGB, opaque, upright."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise UserError(f"{name} holds floating-point pixels; save it with 8 or 16 bits a channel")
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.round(np.clip(levels, 0, 65535) / 257).astype(np.uint8))
    profile = image.info.get("icc_profile")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, behind), image).convert("RGB")
    if profile and image.mode in ("RGB", "CMYK", "L"):
        try:
            return ImageCms.profileToProfile(
                image,
                ImageCms.ImageCmsProfile(io.BytesIO(profile)),
                ImageCms.createProfile("sRGB"),
                outputMode="RGB",
            )  # type: ignore[return-value]
        except (ImageCms.PyCMSError, OSError):
            pass  # a profile of another colour space than the pixels: it says nothing
    return image.convert("RGB")
