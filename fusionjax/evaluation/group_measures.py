"""What is measured of pictures of several people: who is there, where, and who looks like whom.

Legend: g groups, q pictures of a group, i people wanted in a picture, f faces found in it,
d features of a recogniser.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from PIL import Image
from scipy.optimize import linear_sum_assignment

from fusionjax.evaluation.faces import FAILURES, Progress, copying, read_or_count
from fusionjax.evaluation.groups import place_at
from fusionjax.face_detection import SAME_PERSON, detect, embed

EACH = ("distance", "to_others", "copied", "in_place", "to_rest", "confused", "recognised")
"""What is measured of each person in a picture."""


class Wanted(NamedTuple):
    """A person who should be in a picture.

    Attributes:
        reference: the likeness of the photo that is shown, of unit length.
        others: those of other true photos.
    """

    reference: Float[np.ndarray, " d"]
    others: Float[np.ndarray, "n d"]


class Seen(NamedTuple):
    """The faces in a picture.

    Attributes:
        vectors: who each is, of unit length.
        centres: where its middle is, as a fraction of the width.
    """

    vectors: Float[np.ndarray, "f d"]
    centres: Float[np.ndarray, " f"]


class Ask(NamedTuple):
    """A picture that is wanted.

    Attributes:
        people: who should be in it.
        prompt: and what they should do.
        picture: the file, or a picture; None if there is none.
    """

    people: Sequence[Wanted]
    prompt: str
    picture: Path | Image.Image | None


@dataclasses.dataclass(frozen=True)
class GroupScores:
    """What one method reached. NaN: that person's face was not found, or nobody is wanted there.

    With C[f, i] the cosine of face f and person i's photo, each person gets the face σ(i) of the
    one-to-one assignment with the largest Σ C[σ(i), i], by the Hungarian algorithm.

    Attributes:
        distance: 1 − C[σ(i), i], [g, q, i].
        to_others: mean of 1 − cosine of the face and the person's other true photos, [g, q, i].
        copied: how far the face copies the photo, see `faces.copying`, [g, q, i].
        in_place: 1 where the face's middle lies in the person's own column, else 0, [g, q, i];
            NaN everywhere where nobody was told the places.
        to_rest: mean of C[σ(i), j] over the other people j ≠ i in the picture, [g, q, i].
        confused: 1 where some C[σ(i), j] is larger than C[σ(i), i], else 0, [g, q, i].
        recognised: 1 where the distance is below the recogniser's bound for one person, else 0;
            also 0 for whoever has no face, in whatever picture, missing ones included, [g, q, i].
        twice: people of whom two or more faces are in a picture, [g, q]. A face counts as of the
            person whose photo it is nearest to, if they are one person's by the same bound.
        faces: faces found, [g, q]; −1 where there was no picture to look at.
        wanted: people wanted, [g, q]; 0 where no picture is.
        failures: pictures by what is wrong with them.
        extra: files in the folder that are not looked for.
        text: 100 × cosine of picture and prompt by CLIP, [g, q]; None without a CLIP.
    """

    distance: Float[np.ndarray, "g q i"]
    to_others: Float[np.ndarray, "g q i"]
    copied: Float[np.ndarray, "g q i"]
    in_place: Float[np.ndarray, "g q i"]
    to_rest: Float[np.ndarray, "g q i"]
    confused: Float[np.ndarray, "g q i"]
    recognised: Float[np.ndarray, "g q i"]
    twice: Int[np.ndarray, "g q"]
    faces: Int[np.ndarray, "g q"]
    wanted: Int[np.ndarray, "g q"]
    failures: dict[str, int]
    extra: int
    text: Float[np.ndarray, "g q"] | None = None

    def counts(self) -> dict[str, int]:
        """Pictures by the number of faces in them, and by what is wrong: all that are wanted."""
        found = (self.wanted > 0) & (self.faces > 0)
        return {
            "pictures": int((self.wanted > 0).sum()),
            "as many faces as people": int((found & (self.faces == self.wanted)).sum()),
            "too few": int((found & (self.faces < self.wanted)).sum()),
            "too many": int((found & (self.faces > self.wanted)).sum()),
            **self.failures,
            "with a person twice": int((self.twice > 0).sum()),
            "not looked for": self.extra,
        }

    def without_face(self) -> tuple[int, int]:
        """People who got no face, and all who were wanted."""
        return int((self.wanted - np.clip(self.faces, 0, self.wanted)).sum()), int(
            self.wanted.sum()
        )


def look(image: Image.Image) -> Seen:
    """Finds the faces in a picture, and whose they are."""
    faces = detect(image)
    vectors = [embed(image, face) for face in faces]
    centres = [(face.box[0] + face.box[2] / 2) / image.width for face in faces]
    return Seen(np.stack(vectors) if vectors else np.zeros((0, 0)), np.array(centres))


def assign(cosines: Float[np.ndarray, "f i"]) -> Int[np.ndarray, " i"]:
    """Which face is whose: the one-to-one assignment whose cosines have the largest sum.

    Of [[0.6, 0.5], [0.5, 0.1]] the first face is nearest to the first person, and so is the
    second; 0.5 + 0.5 is more than 0.6 + 0.1, so the first face is the second person's.

    Args:
        cosines: of each face and each person.

    Returns:
        The number of each person's face; −1 for those who get none.
    """
    faces, people = linear_sum_assignment(cosines, maximize=True)
    of_person = np.full(cosines.shape[1], -1)
    of_person[people] = faces
    return of_person


def measure(
    seen: Seen, people: Sequence[Wanted], *, placed: bool
) -> tuple[dict[str, Float[np.ndarray, " i"]], int]:
    """Measures one picture, see `GroupScores`.

    Args:
        seen: its faces, one at least.
        people: who should be in it; with `placed` from left to right.
        placed: whether they were to be in columns side by side.

    Returns:
        `EACH` by name, and how many people are there twice.
    """
    cosines = seen.vectors @ np.stack([person.reference for person in people]).T
    found = {name: np.full(len(people), np.nan) for name in EACH}
    found["recognised"][:] = 0
    for i, face in enumerate(assign(cosines)):
        if face < 0:
            continue
        person, vector, own = people[i], seen.vectors[face], cosines[face, i]
        to_others, rest = person.others @ vector, np.delete(cosines[face], i)
        found["distance"][i] = 1 - own
        found["recognised"][i] = own > SAME_PERSON
        found["copied"][i] = copying(float(own), to_others, person.others @ person.reference)
        if len(to_others):
            found["to_others"][i] = np.mean(1 - to_others)
        if placed:
            found["in_place"][i] = place_at(float(seen.centres[face]), len(people)) == i
        if len(rest):
            found["to_rest"][i] = rest.mean()
            found["confused"][i] = rest.max() > own
    taken_for = cosines.argmax(axis=1)[cosines.max(axis=1) > SAME_PERSON]
    return found, int((np.bincount(taken_for, minlength=1) > 1).sum())


def score(
    asked: Callable[[int, int], Ask | None],
    shape: tuple[int, int],
    *,
    placed: bool,
    extra: int = 0,
    clip: Callable[[Image.Image, str], float] | None = None,
    progress: Progress | None = None,
) -> GroupScores:
    """Measures one method's pictures.

    Args:
        asked: a group's picture by their numbers; None where there is none to be.
        shape: groups, and the most pictures of one.
        placed: see `measure`.
        extra: see `GroupScores`.
        clip: picture and prompt to 100 × cosine.
        progress: called with the pictures done and their number.
    """
    rows: dict[tuple[int, ...], dict[str, np.ndarray]] = {}
    twice, wanted = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    faces, text = np.full(shape, -1), np.full(shape, np.nan)
    failures = dict.fromkeys(FAILURES, 0)
    for place in np.ndindex(shape):
        if progress is not None:
            progress(place[0] * shape[1] + place[1] + 1, shape[0] * shape[1])
        ask = asked(*place)
        if ask is None:
            continue
        wanted[place] = len(ask.people)
        rows[place] = {"recognised": np.zeros(len(ask.people))}
        image = read_or_count(ask.picture, failures)
        if image is None:
            continue
        if clip is not None:
            text[place] = clip(image, ask.prompt)
        seen = look(image)
        faces[place] = len(seen.centres)
        if not len(seen.centres):
            failures["no face"] += 1
            continue
        rows[place], twice[place] = measure(seen, ask.people, placed=placed)
    most = int(wanted.max(initial=0))
    each = {name: np.full((*shape, most), np.nan) for name in EACH}
    for place, row in rows.items():
        for name, values in row.items():
            each[name][place][: len(values)] = values
    return GroupScores(
        **each, twice=twice, faces=faces, wanted=wanted, failures=failures, extra=extra,
        text=None if clip is None else text,
    )  # fmt: skip
