"""What is measured of pictures that were made: identity, attributes, who is where.

Axes: p people, c cases of a person.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from fusionjax.evaluation import metrics
from fusionjax.evaluation.recogniser import TYPICAL_BOX, Recogniser
from fusionjax.evaluation.suite import PROMPTED, Cases, Pixels
from fusionjax.mini import drawing as mini_world
from fusionjax.mini.people import TRAITS
from fusionjax.mini.places import PLAIN_BACKGROUNDS
from fusionjax.models.base import BaseModel
from fusionjax.pixels import to_unit


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one way of painting reached.

    Who somebody is, the recogniser tells by colours too, and it was trained without line art; so
    line art counts for the prompt only. A share of no pictures is NaN.

    Attributes:
        distances: Identity distance between the person's first photo and the picture, [p, c]; NaN
            for line art.
        distance: Its mean and interval over people.
        recognised: Share of pictures that the recogniser takes for the person.
        prompt: Share of pictures that show what the prompt says, by attribute; of those whose
            prompt says it and whose style can show it.
        traits: Share of pictures that show the person's own trait, by trait.
        psnr: Mean PSNR of the face region against the truth, in decibels.
        ssim: Mean SSIM of the face region against the truth.
    """

    distances: Float[np.ndarray, "p c"]
    distance: metrics.Interval
    recognised: float
    prompt: dict[str, float]
    traits: dict[str, float]
    psnr: float
    ssim: float


def measure(recogniser: Recogniser, cases: Cases, pictures: Sequence[Pixels]) -> Measured:
    """Measures one way of painting.

    Args:
        recogniser: Tells people apart and reads attributes.
        cases: What was to be painted.
        pictures: What was painted, in the order of `cases.flat()`.

    Returns:
        The measurements. Identity is measured against the first photo, whatever photos were used.
    """
    flat = cases.flat()
    boxes = [TYPICAL_BOX] * len(flat)
    photos = recogniser.embed([cases.photos[case.person][0] for case in flat], boxes)
    # Line art has no colours, so that neither they nor a person can be asked of it.
    colored = np.array([case.circumstance.style != "line art" for case in flat])
    distances = metrics.cosine_distance(recogniser.embed(pictures, boxes), photos)
    distances[~colored] = np.nan
    read = recogniser.read(pictures)
    likeness = [
        metrics.face_likeness(picture, case.truth, TYPICAL_BOX)
        for picture, case in zip(pictures, flat, strict=True)
    ]
    by_person = distances.reshape(len(cases.people), -1)
    asked = [vars(case.circumstance) | vars(case.person) for case in flat]
    plain = np.array([case.circumstance.background in PLAIN_BACKGROUNDS for case in flat])
    dyed = np.array([case.circumstance.clothes_color != "" for case in flat])
    every = np.ones(len(flat), bool)
    counted = {
        "expression": every,
        "clothes": every,
        "clothes_color": colored & dyed,
        "background": colored | ~plain,
        "style": every,
    }

    def share(name: str) -> float:
        right = np.array([told[name] == wish[name] for told, wish in zip(read, asked, strict=True)])
        right = right[counted.get(name, colored)]
        return float(right.mean()) if len(right) else float("nan")

    return Measured(
        distances=by_person,
        distance=metrics.bootstrap_mean(by_person),
        recognised=float((distances[colored] < recogniser.threshold).mean()),
        prompt={name: share(name) for name in (*PROMPTED, "style")},
        traits={name: share(name) for name in TRAITS},
        psnr=float(np.mean([each.psnr for each in likeness])),
        ssim=float(np.mean([each.ssim for each in likeness])),
    )


@dataclasses.dataclass(frozen=True)
class Assignment:
    """How two people are kept apart.

    Attributes:
        right: Share of faces that are nearer to the person who belongs there.
        distance: Mean identity distance of a face to the person who belongs there.
        to_other: Mean identity distance to the other person.
        interval: Of `right`, over pictures.
        faces: Whether each face is nearer to the person who belongs there, [pairs, 2].
    """

    right: float
    distance: float
    to_other: float
    interval: metrics.Interval
    faces: Bool[np.ndarray, "pairs 2"]


def measure_pairs(recogniser: Recogniser, cases: Cases, pictures: Sequence[Pixels]) -> Assignment:
    """Measures who is where in pictures of two people.

    Args:
        recogniser: Tells people apart.
        cases: What was to be painted.
        pictures: What was painted, in the order of `cases.pairs`.

    Returns:
        The measurements.
    """
    boxes = mini_world.scene_boxes(2).tolist()
    found = np.stack([recogniser.embed(pictures, [box] * len(pictures)) for box in boxes], axis=1)
    photos = [cases.photos[person][0] for pair in cases.pairs for person in pair.people]
    people = recogniser.embed(photos, [TYPICAL_BOX] * len(photos)).reshape(found.shape)
    right = metrics.assigned(found, people)
    own = 1 - np.sum(found * people, axis=-1)
    other = 1 - np.sum(found * people[:, ::-1], axis=-1)
    interval = metrics.bootstrap(right.astype(np.float64))
    return Assignment(interval.mean, float(own.mean()), float(other.mean()), interval, right)


def autoencoder_psnr(base: BaseModel, pictures: Sequence[Pixels], batch_size: int = 16) -> float:
    """How well the autoencoder gives pictures back.

    Args:
        base: Whose autoencoder.
        pictures: Pictures of one size.
        batch_size: Pictures at once.

    Returns:
        Mean PSNR over the pictures, in decibels.
    """

    @jax.jit
    def back(params: Any, images: Any) -> Any:
        return base.decode(params, base.encode_image(params, images))

    values = []
    for start in range(0, len(pictures), batch_size):
        images = to_unit(np.stack(pictures[start : start + batch_size]))
        again = np.clip(np.asarray(back(base.params, jnp.asarray(images)), np.float32), -1, 1)
        errors = np.mean((again - images) ** 2, axis=(1, 2, 3))
        values += list(10 * np.log10(4 / np.maximum(errors, 1e-10)))
    return float(np.mean(values))
