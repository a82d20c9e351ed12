"""What is measured of pictures of real people, of one in each or of several.

Legend: i people wanted in a picture, f faces found in it, n photos, d features of a recogniser.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy.optimize import linear_sum_assignment
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from fusionjax.errors import UserError, shortened
from fusionjax.evaluation.groups import place_at
from fusionjax.evaluation.judges import SFACE, Judges, Person, Recogniser, Seen
from fusionjax.evaluation.people import Subject
from fusionjax.photos import read_photo

LIKENESS = ("psnr", "wrapped", "ssim")
BY_EACH = ("distance", "recognised", "to_others", "from_rest", "confused", "twice")
"""What each recogniser measures of several people in a picture; SFace more."""


def know(subject: Subject, judges: Judges) -> Person:
    """Looks at a person's photos.

    Raises:
        UserError: if one cannot be read, or shows no face.
    """
    found = []
    for path in subject.photos:
        seen = judges.see(read_photo(path))
        if SFACE.name not in seen.vectors:
            raise UserError(f"no face was found in {shortened(str(path), 200)}; take it away")
        found.append(seen)
    return tuple(found)


def of_one(judges: Judges, seen: Seen | None, people: Sequence[Person]) -> dict[str, float]:
    """Measures a picture of one person, by its largest face.

    Args:
        judges: who measures.
        seen: what they see in the picture; None if there is none.
        people: the person.

    Returns:
        What `Judges.compare` gives; `copied`, see `copying`, by SFace; and of the aligned face
        crops, against the reference's, `psnr` in decibels, `wrapped`, see `wrapped_psnr`, and
        `ssim`. NaN where a face was not found.
    """
    found = dict.fromkeys((*judges.measures, "copied", *LIKENESS), np.nan)
    if seen is None:
        return found
    (person,) = people
    found |= judges.compare(seen, person)
    if SFACE.name in seen.vectors:
        found["copied"] = _copied(seen.vectors[SFACE.name][0], person)
    crop, reference = seen.crop, person[0].crop
    if crop is not None and reference is not None:
        same = not (crop != reference).any()
        found["psnr"] = 100.0 if same else peak_signal_noise_ratio(reference, crop, data_range=255)
        found["wrapped"] = wrapped_psnr(reference, crop)
        found["ssim"] = structural_similarity(reference, crop, channel_axis=-1, data_range=255)
    return found


def of_several(
    judges: Judges, placed: bool, seen: Seen | None, people: Sequence[Person]
) -> dict[str, Any]:
    """Measures a picture of several people: who is there, where, and who looks like whom.

    With D[f, i] a recogniser's distance of face f and person i's photo, each person gets the face
    σ(i) of the one-to-one assignment with the smallest Σ D[σ(i), i], by the Hungarian algorithm.
    Each recogniser assigns and measures by itself.

    Args:
        judges: who measures.
        placed: whether the people were to be in columns side by side.
        seen: what judges see in the picture, everybody looked at; None if there is none.
        people: who should be in it; with `placed` from left to right.

    Returns:
        Of each recogniser, its prefix before the name: `distance`, D[σ(i), i]; `recognised`, 1
        where that is within its bound, else 0, also for whoever has no face; `to_others`, the mean
        distance of the face and the person's other true photos; `from_rest`, the mean of
        D[σ(i), j] over the other people j ≠ i in the picture; `confused`, 1 where some D[σ(i), j]
        is smaller than D[σ(i), i]; all [i]. `twice`: people of whom two or more faces are in the
        picture; a face counts as of the person whose photo it is nearest to, within the bound. Of
        SFace `to_rest`, the mean cosine, in place of `from_rest`; `copied`, see `copying`; and
        `in_place`, 1 where the face's middle lies in the person's own column, else 0. NaN where
        the face was not found, or nobody was told the places.
    """
    found: dict[str, Any] = {}
    faces = {}
    for each in judges.recognisers:
        by_each, faces[each.name] = _by(each, seen, people)
        found |= {f"{each.prefix}{name}": values for name, values in by_each.items()}
    found["to_rest"] = 1 - found.pop("from_rest")
    found |= {name: np.full(len(people), np.nan) for name in ("copied", "in_place")}
    for i, face in enumerate(faces[SFACE.name]):
        if seen is None or face < 0:
            continue
        found["copied"][i] = _copied(seen.vectors[SFACE.name][face], people[i])
        if placed:
            found["in_place"][i] = place_at(float(seen.centres[face]), len(people)) == i
    return found


def _by(
    each: Recogniser, seen: Seen | None, people: Sequence[Person]
) -> tuple[dict[str, Any], Int[np.ndarray, " i"]]:
    """`BY_EACH` by one recogniser, and the number of each person's face, −1 for who has none."""
    found: dict[str, Any] = {name: np.full(len(people), np.nan) for name in BY_EACH}
    found["twice"], faces = 0, np.full(len(people), -1)
    # It can judge those only in whose photo it finds a face.
    known = np.array([i for i, who in enumerate(people) if each.name in who[0].vectors], np.int64)
    found["recognised"][known] = 0
    if seen is None or each.name not in seen.vectors or not len(known):
        return found, faces
    ours = seen.vectors[each.name]
    distances = np.stack(
        [each.distances(ours, people[i][0].vectors[each.name]).min(axis=1) for i in known], axis=1
    )
    faces[known] = assign(-distances)
    for column, i in enumerate(known):
        if (face := faces[i]) < 0:
            continue
        own, rest = distances[face, column], np.delete(distances[face], column)
        found["distance"][i] = own
        found["recognised"][i] = own <= each.bound
        others = [photo.vectors[each.name] for photo in people[i][1:] if each.name in photo.vectors]
        if others:
            apart = [each.distance(ours[face : face + 1], vectors) for vectors in others]
            found["to_others"][i] = np.mean(apart)
        if len(rest):
            found["from_rest"][i] = rest.mean()
            found["confused"][i] = rest.min() < own
    taken_for = distances.argmin(axis=1)[distances.min(axis=1) <= each.bound]
    found["twice"] = int((np.bincount(taken_for, minlength=1) > 1).sum())
    return found, faces


def assign(likeness: Float[np.ndarray, "f i"]) -> Int[np.ndarray, " i"]:
    """Which face is whose: the one-to-one assignment whose likenesses have the largest sum.

    Of [[0.6, 0.5], [0.5, 0.1]] the first face is nearest to the first person, and so is the
    second; 0.5 + 0.5 is more than 0.6 + 0.1, so the first face is the second person's.

    Args:
        likeness: of each face and each person, cosines for instance.

    Returns:
        The number of each person's face; −1 for those who get none.
    """
    faces, people = linear_sum_assignment(likeness, maximize=True)
    of_person = np.full(likeness.shape[1], -1)
    of_person[people] = faces
    return of_person


def _copied(vector: Float[np.ndarray, " d"], person: Person) -> float:
    """`copying` of a face, by SFace."""
    reference, *others = (
        photo.vectors[SFACE.name][0] for photo in person if SFACE.name in photo.vectors
    )
    rest = np.reshape(others, (-1, len(vector)))
    return copying(float(vector @ reference), rest @ vector, rest @ reference)


def copying(
    to_reference: float,
    to_others: Float[np.ndarray, " n"],
    reference_to_others: Float[np.ndarray, " n"],
) -> float:
    """How far a picture copies the reference rather than knows the person.

    (θ_other − θ_reference) over the angle between reference and other photo (WithAnyone, arXiv
    2510.14975): 1 is a copy, 0 as near to both, negative nearer to the others.

    Args:
        to_reference: cosine of picture and reference.
        to_others: cosines of the picture and the other true photos.
        reference_to_others: cosines of the reference and those.

    Returns:
        The mean over the other photos; NaN if there is none.
    """
    if not len(to_others):
        return float("nan")
    angles = [np.arccos(np.clip(c, -1, 1)) for c in (to_others, to_reference, reference_to_others)]
    return float(np.mean((angles[0] - angles[1]) / np.maximum(angles[2], 1e-3)))


def wrapped_psnr(a: UInt8[np.ndarray, "h w 3"], b: UInt8[np.ndarray, "h w 3"]) -> float:
    """What comes out for PSNR where differences of bytes are squared as bytes.

    Both wrap around at 256, so that unrelated pictures have a mean of about 105, which is 27.9
    decibels, and everything else nearly that.
    """
    wrapped = (a - b) * (a - b)
    mean = float(np.mean(wrapped))
    return 10 * np.log10(255**2 / mean) if mean else 100.0
