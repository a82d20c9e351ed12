"""One method's pictures, measured one by one, by whatever measures a suite has for them.

Legend: g rows (people, or groups of them), q pictures of each, i people wanted in a picture.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from fusionjax.errors import UserError
from fusionjax.evaluation.judges import Person, Seen
from fusionjax.photos import read_photo

FAILURES = ("missing", "unreadable", "no face")


class Ask(NamedTuple):
    """A picture that is wanted.

    Attributes:
        people: who should be in it.
        prompt: and what they should do.
        picture: the file, a picture, or what was seen in it already; None if there is none.
    """

    people: Sequence[Person]
    prompt: str
    picture: Path | Image.Image | Seen | None


Asked = Callable[[int, int], Ask | None]
"""A row's picture by their numbers; None where there is none to be."""
Measure = Callable[[Seen | None, Sequence[Person]], Mapping[str, Any]]
"""From what is seen in a picture (None: there is nothing to look at) and who should be in it to
numbers, or an array of one for each person, by name; always the same names."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """What one method reached.

    Attributes:
        values: by measure, of each picture, [g, q], or of each person in it, [g, q, i]. NaN where
            a picture failed, a face was not found, or nobody is wanted.
        faces: found in each picture, [g, q]; −1 where there was no picture to look at.
        wanted: people wanted in each, [g, q]; 0 where no picture is.
        failures: pictures by what is wrong with them.
        extra: files in the folder that are not looked for.
    """

    values: Mapping[str, Float[np.ndarray, "g q ..."]]
    faces: Int[np.ndarray, "g q"]
    wanted: Int[np.ndarray, "g q"]
    failures: dict[str, int]
    extra: int

    def __getitem__(self, measure: str) -> Float[np.ndarray, "g q ..."]:
        return self.values[measure]

    def counts(self) -> dict[str, int]:
        """Pictures by the number of faces in them, and by what is wrong: all that are wanted."""
        found = (self.wanted > 0) & (self.faces > 0)
        return {
            "pictures": int((self.wanted > 0).sum()),
            "as many faces as people": int((found & (self.faces == self.wanted)).sum()),
            "too few": int((found & (self.faces < self.wanted)).sum()),
            "too many": int((found & (self.faces > self.wanted)).sum()),
            **self.failures,
            "with a person twice": int((self["twice"] > 0).sum()),
            "not looked for": self.extra,
        }

    def without_face(self) -> tuple[int, int]:
        """People who got no face, and all who were wanted."""
        return int((self.wanted - np.clip(self.faces, 0, self.wanted)).sum()), int(
            self.wanted.sum()
        )


def score(
    asked: Asked,
    shape: tuple[int, int],
    see: Callable[[Image.Image], Seen],
    measure: Measure,
    *,
    extra: int = 0,
    clip: Callable[[Image.Image, str], float] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Measures one method's pictures.

    Args:
        asked: what is wanted.
        shape: rows, and the most pictures of one.
        see: looks at a picture.
        measure: what is measured.
        extra: see `Scores`.
        clip: picture and prompt to 100 × cosine, the measure "text".
        progress: called with the pictures done and their number.
    """
    rows: dict[tuple[int, ...], dict[str, Any]] = {}
    faces, wanted = np.full(shape, -1), np.zeros(shape, np.int64)
    failures = dict.fromkeys(FAILURES, 0)
    for place in np.ndindex(shape):
        if progress is not None:
            progress(place[0] * shape[1] + place[1] + 1, shape[0] * shape[1])
        if (ask := asked(*place)) is None:
            continue
        wanted[place] = len(ask.people)
        picture, text = ask.picture, np.nan
        image = None if picture is None or isinstance(picture, Seen) else _read(picture)
        seen = picture if isinstance(picture, Seen) else None
        if image is not None:
            seen = see(image)
            if clip is not None:
                text = clip(image, ask.prompt)
        if seen is not None:
            faces[place] = len(seen.centres)
            failures["no face"] += not len(seen.centres)
        else:
            failures["missing" if picture is None else "unreadable"] += 1
        rows[place] = {**measure(seen, ask.people), **({} if clip is None else {"text": text})}
    values = {}
    for name, first in next(iter(rows.values()), {}).items():
        trailing = (int(wanted.max()),) if np.ndim(first) else ()
        values[name] = np.full((*shape, *trailing), np.nan)
        for place, row in rows.items():
            value = np.asarray(row[name], np.float64)
            here: Any = (*place, *(slice(size) for size in value.shape))
            values[name][here] = value
    return Scores(values, faces, wanted, failures, extra)


def _read(picture: Path | Image.Image) -> Image.Image | None:
    try:
        return read_photo(picture)
    except UserError:
        return None
