"""What is measured of a face beside SFace's likeness: other recognisers', its pose, its expression.

Legend: n faces, d features, e expressions.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

from fusionjax.evaluation.pose import pose, turned
from fusionjax.face_detection import Face

POSE = ("yaw", "pitch", "roll")
EXPRESSION = "expression"
Vectors = Float[np.ndarray, "n d"]


@dataclasses.dataclass(frozen=True)
class Recogniser:
    """A network that says how far two faces are apart.

    Attributes:
        name: as it is published.
        bound: up to which distance it takes two faces for one person's.
        euclidean: whether its distance is Euclidean; else it is cosine.
    """

    name: str
    bound: float
    euclidean: bool = False

    @property
    def key(self) -> str:
        """Its name within the names of measures."""
        return self.name.lower().replace("-", "_")

    def distance(self, ours: Vectors, others: Vectors) -> float:
        """Of the two faces that are nearest to each other, where a picture shows several."""
        if self.euclidean:
            return float(np.linalg.norm(ours[:, None] - others, axis=-1).min())
        ours, others = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (ours, others))
        return float((1 - ours @ others.T).min())


@dataclasses.dataclass(frozen=True)
class Family:
    """Recognisers that look at a picture together.

    Attributes:
        recognisers: who.
        about: how they find and align faces, where their bounds are from, and their version.
        see: a picture, and the largest face that YuNet finds there, to features by name; who finds
            no face is not in it.
        expression: a picture to the shares of expressions; None if no face is found. None if the
            family reads no expressions.
    """

    recognisers: tuple[Recogniser, ...]
    about: str
    see: Callable[[Image.Image, Face | None], Mapping[str, Vectors]]
    expression: Callable[[Image.Image], Float[np.ndarray, " e"] | None] | None = None


@dataclasses.dataclass(frozen=True)
class Seen:
    """What all of them say of a picture; None and absent where they found no face."""

    vectors: Mapping[str, Vectors]
    pose: Float[np.ndarray, "3"] | None
    expression: Float[np.ndarray, " e"] | None


@dataclasses.dataclass(frozen=True)
class Judges:
    """All that are at hand.

    Attributes:
        families: recognisers.
        absent: what is not measured, and what would measure it, a sentence each.
    """

    families: tuple[Family, ...] = ()
    absent: tuple[str, ...] = ()

    @property
    def recognisers(self) -> tuple[Recogniser, ...]:
        """Of all families."""
        return tuple(itertools.chain.from_iterable(each.recognisers for each in self.families))

    @property
    def reads_expressions(self) -> bool:
        """Whether one of them does."""
        return any(each.expression is not None for each in self.families)

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of what `compare` gives."""
        by_recogniser = [
            f"{each.key}_{what}"
            for each in self.recognisers
            for what in ("distance", "verified", "to_others")
        ]
        return (*by_recogniser, *POSE, *([EXPRESSION] if self.reads_expressions else []))

    def see(self, image: Image.Image, faces: Sequence[Face]) -> Seen:
        """Looks at a picture.

        Args:
            image: an upright RGB picture.
            faces: what `detect` finds there; it may be nothing, as others may find more.
        """
        face = faces[0] if faces else None
        vectors: dict[str, Vectors] = {}
        expression = None
        for family in self.families:
            vectors |= family.see(image, face)
            if family.expression is not None:
                expression = family.expression(image)
        return Seen(vectors, None if face is None else pose(image, face), expression)

    def compare(self, seen: Seen, known: Sequence[Seen]) -> dict[str, float]:
        """Compares a picture with a person's photos.

        Args:
            seen: the picture.
            known: the photo that is shown, then the other true photos.

        Returns:
            By name: distance to the photo, whether it is verified, mean distance to the others;
            differences of pose in degrees; of expressions half the sum of the differences of their
            shares, from 0 to 1. NaN where one of two faces was not found.
        """
        reference, *others = known
        found = dict.fromkeys(self.measures, np.nan)
        for each in self.recognisers:
            own = seen.vectors.get(each.name)
            if own is None:
                continue
            if (shown := reference.vectors.get(each.name)) is not None:
                found[f"{each.key}_distance"] = distance = each.distance(own, shown)
                found[f"{each.key}_verified"] = float(distance <= each.bound)
            rest = [other.vectors[each.name] for other in others if each.name in other.vectors]
            if rest:
                distances = [each.distance(own, vectors) for vectors in rest]
                found[f"{each.key}_to_others"] = float(np.mean(distances))
        if seen.pose is not None and reference.pose is not None:
            apart = turned(seen.pose, reference.pose)
            found |= {name: float(angle) for name, angle in zip(POSE, apart, strict=True)}
        if seen.expression is not None and reference.expression is not None:
            found[EXPRESSION] = float(np.abs(seen.expression - reference.expression).sum() / 2)
        return found
