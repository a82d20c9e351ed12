"""Who judges real people's faces: SFace, other recognisers, the head's pose, its expression.

Legend: n m faces, f faces that YuNet finds in a picture, d features, e expressions.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fusionjax.evaluation.pose import pose, turned
from fusionjax.face_detection import SAME_PERSON, Face, aligned, detect, embed

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
    def prefix(self) -> str:
        """What the names of its measures begin with; nothing for SFace, which always judges."""
        return "" if self.name == SFACE.name else f"{self.name.lower().replace('-', '_')}_"

    def distances(
        self, ours: Float[np.ndarray, "n d"], others: Float[np.ndarray, "m d"]
    ) -> Float[np.ndarray, "n m"]:
        """Of each of our faces and each of the others."""
        ours, others = (vectors.astype(np.float64) for vectors in (ours, others))
        if self.euclidean:
            return np.linalg.norm(ours[:, None] - others, axis=-1)
        ours, others = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (ours, others))
        return np.maximum(1 - ours @ others.T, 0)  # rounding makes nothing nearer than a copy

    def distance(self, ours: Float[np.ndarray, "n d"], others: Float[np.ndarray, "m d"]) -> float:
        """Of the two faces that are nearest to each other, where a picture shows several."""
        return float(self.distances(ours, others).min())


SFACE = Recogniser("SFace", 1 - SAME_PERSON)


@dataclasses.dataclass(frozen=True)
class Family:
    """Recognisers that look at a picture together.

    Attributes:
        recognisers: who.
        about: how they find and align faces, where their bounds are from, and their version.
        see: a picture, and faces that YuNet finds there, to features by name; who finds no face
            is not in it.
        expression: a picture to the shares of expressions; None if no face is found. None if the
            family reads no expressions.
    """

    recognisers: tuple[Recogniser, ...]
    about: str
    see: Callable[[Image.Image, Sequence[Face]], Mapping[str, Vectors]]
    expression: Callable[[Image.Image], Float[np.ndarray, " e"] | None] | None = None


@dataclasses.dataclass(frozen=True)
class Seen:
    """What all of them say of a picture; None and absent where they found no face.

    Attributes:
        vectors: who each face is, by recogniser.
        centres: where the middles of the faces that YuNet finds are, as fractions of the width.
        crop: of the largest face, aligned.
        pose: and its yaw, pitch and roll.
        expression: shares of expressions.
    """

    vectors: Mapping[str, Vectors]
    centres: Float[np.ndarray, " f"] = dataclasses.field(default_factory=lambda: np.zeros(0))
    crop: UInt8[np.ndarray, "112 112 3"] | None = None
    pose: Float[np.ndarray, "3"] | None = None
    expression: Float[np.ndarray, " e"] | None = None


Person = tuple[Seen, ...]
"""What judges see in a person's photos: the one that is shown, then other true ones."""


@dataclasses.dataclass(frozen=True)
class Judges:
    """All that are at hand, SFace among them.

    Attributes:
        families: further recognisers.
        absent: what is not measured, and what would measure it, a sentence each.
        closely: whether they look at the largest face's crop, pose and expression too.
    """

    families: tuple[Family, ...] = ()
    absent: tuple[str, ...] = ()
    closely: bool = True

    @property
    def further(self) -> tuple[Recogniser, ...]:
        """The recognisers of all families."""
        return tuple(itertools.chain.from_iterable(each.recognisers for each in self.families))

    @property
    def recognisers(self) -> tuple[Recogniser, ...]:
        """SFace and the others."""
        return (SFACE, *self.further)

    @property
    def reads_expressions(self) -> bool:
        """Whether one of them does."""
        return self.closely and any(each.expression is not None for each in self.families)

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of what `compare` gives."""
        by_recogniser = [
            f"{each.prefix}{what}"
            for each in self.recognisers
            for what in ("distance", "verified", "to_others")
        ]
        return (
            *by_recogniser,
            *(POSE if self.closely else ()),
            *([EXPRESSION] if self.reads_expressions else []),
        )

    def see(self, image: Image.Image, *, everybody: bool = False) -> Seen:
        """Looks at a picture.

        Args:
            image: an upright RGB picture.
            everybody: whether YuNet's faces are all looked at, not the largest alone.
        """
        faces = detect(image)
        looked_at = faces if everybody else faces[:1]
        vectors: dict[str, Vectors] = {}
        if looked_at:
            vectors[SFACE.name] = np.stack([embed(image, face) for face in looked_at])
        for family in self.families:  # they may find a face where YuNet finds none
            vectors |= family.see(image, looked_at)
        centres = [(face.box[0] + face.box[2] / 2) / image.width for face in faces]
        seen = Seen(vectors, np.array(centres, np.float64))
        if not self.closely:
            return seen
        readers = [each.expression for each in self.families if each.expression is not None]
        return dataclasses.replace(
            seen,
            crop=aligned(image, faces[0]) if faces else None,
            pose=pose(image, faces[0]) if faces else None,
            expression=readers[0](image) if readers else None,
        )

    def compare(self, seen: Seen, person: Sequence[Seen]) -> dict[str, float]:
        """Compares a picture with a person's photos.

        Args:
            seen: the picture.
            person: the photo that is shown, then the other true photos.

        Returns:
            By name: distance to the photo, whether it is verified, mean distance to the others;
            differences of pose in degrees; of expressions half the sum of the differences of their
            shares, from 0 to 1. NaN where one of two faces was not found.
        """
        reference, *others = person
        found = dict.fromkeys(self.measures, np.nan)
        for each in self.recognisers:
            own = seen.vectors.get(each.name)
            if own is None:
                continue
            if (shown := reference.vectors.get(each.name)) is not None:
                found[f"{each.prefix}distance"] = distance = each.distance(own, shown)
                found[f"{each.prefix}verified"] = float(distance <= each.bound)
            rest = [other.vectors[each.name] for other in others if each.name in other.vectors]
            if rest:
                distances = [each.distance(own, vectors) for vectors in rest]
                found[f"{each.prefix}to_others"] = float(np.mean(distances))
        if seen.pose is not None and reference.pose is not None:
            apart = turned(seen.pose, reference.pose)
            found |= {name: float(angle) for name, angle in zip(POSE, apart, strict=True)}
        if seen.expression is not None and reference.expression is not None:
            found[EXPRESSION] = float(np.abs(seen.expression - reference.expression).sum() / 2)
        return found
