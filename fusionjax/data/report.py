"""What a prepared dataset is made of, as a page with pictures: to be seen before a training."""

import base64
import collections
import html
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from fusionjax import photos
from fusionjax.data.picture import Picture
from fusionjax.errors import UserError

KEPT = "kept"
_EXAMPLES = 3  # of each reason, of each part
_SHOWN = 12  # of each reason
_SIDE = 96  # of an example, in pixels
_STEP = 32  # of the faces' sizes
_STYLE = (
    "body{font:16px sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:right}"
    "td:first-child,th:first-child{text-align:left}img{margin:2px;height:96px}"
    "i{display:inline-block;background:#58a;height:.8em}"
)


class Examples:
    """Small pictures of the first few of each kind."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = collections.defaultdict(list)

    def add(self, kind: str, picture: Picture | bytes) -> None:
        """Takes a picture, if it can be read and there are not enough of its kind."""
        if len(self.found[kind]) >= _EXAMPLES:
            return
        content = picture.content if isinstance(picture, Picture) else picture
        try:
            source = io.BytesIO(content) if isinstance(content, bytes) else content
            image = photos.read_photo(source)
        except UserError:
            return
        image.thumbnail((2 * _SIDE, _SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
        self.found[kind].append(base64.b64encode(buffer.getvalue()).decode())


def write_report(
    path: Path,
    examples: Iterable[Mapping[str, list[str]]],
    reasons: Mapping[str, int],
    faces: Iterable[int],
    people: Mapping[str, int],
) -> list[dict[str, list[str]]]:
    """Writes the page.

    Args:
        path: the file.
        examples: of all parts, by kind.
        reasons: how many were dropped, by reason.
        faces: the longer side of each kept picture's face as found, in pixels.
        people: how many kept pictures each has.

    Returns:
        The examples of all parts that are on the page.
    """
    shown: dict[str, list[str]] = collections.defaultdict(list)
    of_parts = []
    for part in examples:
        taken = {kind: pics[: _SHOWN - len(shown[kind])] for kind, pics in part.items()}
        for kind, pictures in taken.items():
            shown[kind] += pictures
        of_parts.append({kind: pictures for kind, pictures in taken.items() if pictures})
    count = sum(people.values())
    sizes = sorted(collections.Counter(_STEP * (side // _STEP) for side in faces).items())
    rows = [(f"{size} to {size + _STEP - 1}", number) for size, number in sizes]
    a_person = collections.Counter(people.values())
    parts = [
        "<!doctype html><meta charset=utf-8><title>Prepared pictures</title>",
        f"<style>{_STYLE}</style>",
        f"<h1>{count:,} pictures of {len(people):,} people</h1>",
        _gallery(shown[KEPT]),
        f"<h2>{sum(reasons.values()):,} dropped</h2>",
        *(
            f"<h3>{number:,} × {html.escape(reason)}</h3>{_gallery(shown[reason])}"
            for reason, number in sorted(reasons.items(), key=lambda row: -row[1])
        ),
        "<h2>Faces</h2>",
        _bars("longer side in the picture as found, in pixels", rows),
        "<h2>People</h2>",
        _bars("pictures a person", [(str(n), c) for n, c in sorted(a_person.items())]),
    ]
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return of_parts


def _gallery(pictures: Iterable[str]) -> str:
    return "".join(f'<img src="data:image/jpeg;base64,{picture}">' for picture in pictures)


def _bars(title: str, rows: Iterable[tuple[str, int]]) -> str:
    rows = list(rows)
    most = max((number for _, number in rows), default=1)
    lines = "".join(
        f"<tr><td>{name}<td>{number:,}"
        f"<td style=text-align:left><i style=width:{20 * number / most:.1f}em></i>"
        for name, number in rows
    )
    return f"<table><tr><th>{title}<th>number<th>{lines}</table>"
