"""What is measured: distances, intervals, likeness of a face region, assignment of people.

Legend: b cases, d features, p people, i identities in a picture, h w pixels,
draws of the bootstrap.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

RESAMPLES = 2000


class Interval(NamedTuple):
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def cosine_distance(
    a: Float[np.ndarray, "b d"], b: Float[np.ndarray, "b d"]
) -> Float[np.ndarray, " b"]:
    """1 − cosine of the angle between vectors: 0 the same direction, 1 a right angle, 2 opposite.

    Args:
        a: Vectors of any length but zero.
        b: Vectors to compare them with, one by one.

    Returns:
        The distances.

    Raises:
        ValueError: If a vector is zero.
    """
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    if not lengths.all():
        raise ValueError("a vector of length zero has no direction")
    return 1 - np.sum(a * b, axis=-1) / lengths


def bootstrap(
    values: Float[np.ndarray, "p ..."],
    statistic: Callable[[np.ndarray], float] = np.mean,
    seed: int = 0,
) -> Interval:
    """A statistic with its 95 % percentile bootstrap interval.

    Whole rows are drawn again, so that the cases of one person, which are not independent, stay
    together.

    Args:
        values: A row for each person.
        statistic: From rows to a number.
        seed: Of the drawing.

    Returns:
        The statistic of all rows, and the interval.
    """
    drawn = [statistic(values[chosen]) for chosen in _draws(len(values), seed)]
    return _interval(statistic(values), drawn)


def bootstrap_mean(values: Float[np.ndarray, "p ..."], seed: int = 0) -> Interval:
    """`bootstrap` of the mean of what is not NaN, of all draws at once.

    Args:
        values: A row for each person.
        seed: Of the drawing.

    Returns:
        The mean, and its interval.
    """
    return _interval(np.nanmean(values), _means(values, _draws(len(values), seed)))


def _draws(count: int, seed: int) -> Int[np.ndarray, "draws p"]:
    return np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))


def _means(
    values: Float[np.ndarray, "p ..."], draws: Int[np.ndarray, "draws p"]
) -> Float[np.ndarray, " draws"]:
    flat = values.reshape(len(values), -1)
    there = ~np.isnan(flat)
    sums, counts = np.where(there, flat, 0).sum(axis=1), there.sum(axis=1)
    means: np.ndarray = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    return means


def _interval(found: float | np.floating, drawn: Any) -> Interval:
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Interval(float(found), float(low), float(high))


def ratio_of_means(
    ours: Float[np.ndarray, "p ..."], theirs: Float[np.ndarray, "p ..."], seed: int = 0
) -> Interval:
    """Mean of one method's values over the mean of another's, for the same people.

    Args:
        ours: A row for each person; NaN is left out.
        theirs: Likewise, the same people in the same order.
        seed: Of the bootstrap.

    Returns:
        The ratio and its interval.
    """
    draws = _draws(len(ours), seed)
    found = np.nanmean(ours) / np.nanmean(theirs)
    return _interval(found, _means(ours, draws) / _means(theirs, draws))


class Likeness(NamedTuple):
    """How alike two face regions are, pixel by pixel."""

    psnr: float
    ssim: float


def face_likeness(
    picture: UInt8[np.ndarray, "h w 3"],
    truth: UInt8[np.ndarray, "h2 w2 3"],
    box: tuple[float, float, float, float],
    shift: int = 4,
) -> Likeness:
    """PSNR and SSIM of the face region, where the picture is shifted to fit the truth best.

    A prompt does not say where exactly a head is, so that a perfect picture may be some pixels off.

    Args:
        picture: The picture to judge.
        truth: The picture that it should be.
        box: The face's ymin, xmin, ymax, xmax in the truth, as fractions.
        shift: The largest shift that is tried, in pixels.

    Returns:
        PSNR in decibels (100 where the regions are equal) and SSIM, at the shift of the best PSNR.

    Raises:
        ValueError: If the pictures have different sizes.
    """
    if picture.shape != truth.shape:
        raise ValueError(f"the picture is {picture.shape} and the truth {truth.shape}")
    height, width = truth.shape[:2]
    top, bottom = round(max(box[0], 0) * height), round(min(box[2], 1) * height)
    left, right = round(max(box[1], 0) * width), round(min(box[3], 1) * width)
    face = truth[top:bottom, left:right]
    padded = np.pad(picture, ((shift, shift), (shift, shift), (0, 0)), mode="edge")
    best: tuple[float, np.ndarray] | None = None
    for down in range(2 * shift + 1):
        for over in range(2 * shift + 1):
            region = padded[top + down : bottom + down, left + over : right + over]
            error = float(np.mean((region.astype(np.float64) - face) ** 2))
            if best is None or error < best[0]:
                best = error, region
    assert best is not None
    error, region = best
    psnr = peak_signal_noise_ratio(face, region, data_range=255) if error else 100.0
    ssim = structural_similarity(face, region, channel_axis=-1, data_range=255)
    return Likeness(float(psnr), float(ssim))


def assigned(
    faces: Float[np.ndarray, "b i d"], people: Float[np.ndarray, "b i d"]
) -> Bool[np.ndarray, "b i"]:
    """Whether each face is nearer to the person who belongs there than to everyone else.

    Args:
        faces: Unit vectors of the faces in each picture, by place.
        people: Unit vectors of the people's photos; who belongs to which place.

    Returns:
        True where the nearest person is the right one.
    """
    cosines = np.einsum("bid,bjd->bij", faces, people)
    return cosines.argmax(axis=-1) == np.arange(faces.shape[1])
