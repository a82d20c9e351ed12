"""Pictures in rows and columns, with words beside and above them."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_SIDE, _GAP, _HEAD, _WORDS, _FONT = 128, 4, 20, 150, 11  # pixels; all grow with the side
_LETTERS, _LINES = 25, 8  # what fits beside a picture

Row = tuple[str, Sequence[Image.Image | None]]


def labelled_sheet(
    columns: Sequence[str], rows: Sequence[Row], *, side: int = _SIDE
) -> Image.Image:
    """A sheet of pictures.

    Args:
        columns: what stands above each.
        rows: of each what stands beside it, and a picture for every column; None leaves it out.
            Where nothing stands beside any row, there is no room for it.
        side: height of a picture on the sheet, in pixels; the letters grow with it.

    Returns:
        The sheet; a column is as wide as its widest picture.
    """

    def of(pixels: int) -> int:
        return max(round(pixels * side / _SIDE), 1)

    shown = [[None if each is None else _of_height(each, side) for each in row] for _, row in rows]
    columns_of = zip(*shown, strict=True)
    widths = [max((each.width for each in column if each), default=side) for column in columns_of]
    left = of(_WORDS) if any(words for words, _ in rows) else 0
    places = [left + sum(widths[:n]) + n * of(_GAP) for n in range(len(columns))]
    size = places[-1] + widths[-1] + of(_GAP), of(_HEAD) + len(rows) * (side + of(_GAP))
    canvas, font = Image.new("RGB", size, "white"), ImageFont.load_default(of(_FONT))
    write = ImageDraw.Draw(canvas)
    for place, name in zip(places, columns, strict=True):
        write.text((place, of(3)), name, fill="black", font=font)
    for number, ((words, _), pictures) in enumerate(zip(rows, shown, strict=True)):
        top = of(_HEAD) + number * (side + of(_GAP))
        write.multiline_text((of(3), top + of(3)), _wrapped(words), fill="black", font=font)
        for place, picture in zip(places, pictures, strict=True):
            if picture is not None:
                canvas.paste(picture, (place, top))
    return canvas


def stacked(sheets: Sequence[Image.Image]) -> Image.Image:
    """Sheets one below the other."""
    size = max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)
    canvas, top = Image.new("RGB", size, "white"), 0
    for sheet in sheets:
        canvas.paste(sheet, (0, top))
        top += sheet.height
    return canvas


def _of_height(picture: Image.Image, height: int) -> Image.Image:
    width = max(round(picture.width * height / picture.height), 1)
    return picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def _wrapped(text: str) -> str:
    lines = textwrap.wrap(text, _LETTERS, max_lines=_LINES, placeholder=" …")
    return "\n".join(lines)
