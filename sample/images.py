"""Image files as they are written, and the text that they carry: PNG in a chunk of its own, JPEG
and WebP in the user comment of their EXIF.
"""

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionjax.errors import UserError
from fusionjax.files import open_regular, whole_file

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
"""The format that a file's name says."""
FORMATS = ("png", "jpeg", "jpg", "webp")
QUALITY = 95
"""Of JPEG and WebP, unless told otherwise; in 1..100."""
_CHUNK = "fusionjax"
_DESCRIPTION, _EXIF, _USER_COMMENT = 0x010E, 0x8769, 0x9286
_ASCII = b"ASCII\0\0\0"  # what the comment's first eight bytes say of the others
_MOST_PIXELS = 8192**2
_FULL_COLOURS = 90  # the quality from which JPEG keeps the colours of every pixel


def suffix_of(format: str) -> str:
    """What the names of a format's files end in."""
    return {"jpeg": ".jpg"}.get(format, f".{format}")


def save(
    image: "Image.Image",
    path: Path,
    *,
    quality: int | None = None,
    text: str | None = None,
    description: str | None = None,
    replace: bool = True,
) -> None:
    """Writes an image in the format that its name says, whole or not at all.

    Args:
        image: to be written, mode "RGB".
        path: ends in one of `SUFFIXES`.
        quality: of JPEG and WebP; None is `QUALITY`.
        text: that it carries, in ASCII; None is none.
        description: of what is seen, for other programs to show.
        replace: a file of that name may be there already.

    Raises:
        UserError: if it cannot be written.
        FileExistsError: without `replace`, if the name is taken.

    Warns:
        UserWarning: if the format has no room for the text.
    """
    words: dict[str, Any] = {}
    format = SUFFIXES[path.suffix.lower()]
    if format == "png":
        words["pnginfo"] = _chunks(text, description)
    else:
        words["exif"] = _exif(path, format, text, description)
        words["quality"] = quality or QUALITY
        if format == "jpeg" and words["quality"] >= _FULL_COLOURS:
            words["subsampling"] = 0
    try:
        with whole_file(path, replace=replace) as beside:
            image.save(beside, format.upper(), **words)
    except FileExistsError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


def _chunks(text: str | None, description: str | None) -> Any:
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    if text:
        chunks.add_itxt(_CHUNK, text)
    if description:
        chunks.add_itxt("Description", description)
    return chunks


def _exif(path: Path, format: str, text: str | None, description: str | None) -> bytes:
    """The texts as EXIF; where JPEG has no room for both, without the description."""
    from PIL import Image

    for with_description in (True, False):
        exif = Image.Exif()
        if text:
            exif.get_ifd(_EXIF)[_USER_COMMENT] = _ASCII + text.encode("ascii")
        if description and with_description:
            exif[_DESCRIPTION] = description.encode("utf-8")  # type: ignore[assignment]
        content = exif.tobytes() if text or description else b""
        if format != "jpeg" or len(content) <= 65533:
            return content
    warnings.warn(
        f"{path} has no room for its text of {len(content):,} bytes (JPEG: 65,533), so it carries "
        "none, and --from cannot repeat it; PNG and WebP can carry it",
        stacklevel=3,
    )
    return b""


def text_of(path: str | os.PathLike[str]) -> str:
    """The text that an image carries; empty if none.

    Args:
        path: a PNG, a JPEG or a WebP.

    Raises:
        UserError: if it is no such image, is damaged, or larger than any that is made here.
    """
    from PIL import Image

    try:
        with open_regular(path) as file, Image.open(file, formats=["PNG", "JPEG", "WEBP"]) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise UserError(
                    f"{path} has {image.width}×{image.height} pixels; none made here has"
                )
            if image.format == "PNG":
                image.load()  # the text may come after the pixels
                return str(image.info.get(_CHUNK) or "")
            comment = image.getexif().get_ifd(_EXIF).get(_USER_COMMENT, b"")
            if not isinstance(comment, bytes) or not comment.startswith(_ASCII):
                return ""
            return comment.removeprefix(_ASCII).decode("ascii", "replace")
    except UserError:
        raise
    except Exception:  # of every kind: Pillow's decoders raise what they meet
        raise UserError(f"{path} is not a picture that can be read") from None
