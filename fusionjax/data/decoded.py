"""An example of a dataset, its pictures decoded and its boxes checked, or why it cannot be used.

Axes: H W pixels of a picture.
"""

import dataclasses
import hashlib
from typing import Any

import numpy as np

from fusionjax.data.augment import augment, face_square
from fusionjax.data.cache import DIGEST_BYTES, text
from fusionjax.errors import UserError
from fusionjax.pixels import decode_image


class _UnusableError(Exception):
    """The reason why an example is skipped."""


@dataclasses.dataclass(frozen=True)
class DecodedExample:
    """An example with its pictures decoded; `owners` has an entry for each of `photos`."""

    caption: str
    target: np.ndarray
    photos: list[np.ndarray]
    owners: list[int]
    face_boxes: np.ndarray


def decode_example(example: Any, *, views: int, seed: int = 0) -> DecodedExample | str:
    """Decodes an example's pictures, and checks what it says of them.

    Args:
        example: of a dataset.
        views: augmented views of a face that has no other picture; 0 leaves references out.
        seed: of the augmentation, which depends on the picture beside it: an example has the same
            views wherever in the dataset it stands.

    Returns:
        It, or the reason why it cannot be used.

    Raises:
        UserError: if no example of such a dataset can be used.
    """
    try:
        caption = text(example["caption"]).strip()
        if not caption:
            return "empty caption"
        faces = _face_boxes(example)
        target = _decoded(example["image"])
        photos, owners = _photos(example, target, faces, views, seed) if views else ([], [])
    except _UnusableError as reason:
        return str(reason)
    return DecodedExample(caption, target, photos, owners, faces)


def _decoded(encoded: Any) -> np.ndarray:
    try:
        return decode_image(encoded)
    except ValueError:
        raise _UnusableError("unreadable picture") from None


_MOST_OVERHANG = 0.5  # of the picture's side, that a face's box may reach over its edge


def _face_boxes(example: Any) -> np.ndarray:
    """The boxes of all faces in the picture, [people, 4], cut at the picture's edge."""
    name = "face_boxes" if "face_boxes" in example else "face_box"
    if name not in example:
        raise UserError("the dataset has neither face_box nor face_boxes; build it with one")
    boxes = np.asarray(example[name], np.float32)
    if boxes.ndim != 1 + (name == "face_boxes") or boxes.shape[-1] != 4:
        needed = "[people, 4]" if name == "face_boxes" else "[4]"
        raise UserError(f"the dataset's {name} has shape {list(boxes.shape)}; it must be {needed}")
    boxes = boxes.reshape(-1, 4)
    inside = np.clip(boxes, 0, 1)
    if not len(boxes):
        raise _UnusableError("no face's box")
    if not (boxes[:, :2] < boxes[:, 2:]).all():
        raise _UnusableError("face's box of no size")
    if (np.abs(boxes - inside) > _MOST_OVERHANG).any() or (inside[:, :2] >= inside[:, 2:]).any():
        raise _UnusableError("face's box not in fractions of the picture")
    return inside


def _photos(
    example: Any, target: np.ndarray, faces: np.ndarray, views: int, seed: int
) -> tuple[list[np.ndarray], list[int]]:
    """The references, or views of the target's own faces; and whose each is."""
    if count := len(example["references"]):
        if len(faces) > 1 and "owners" not in example:
            raise UserError(
                "the dataset has several face_boxes and no owners; say whose photo each of the "
                "references is"
            )
        owners = [int(owner) for owner in example.get("owners", [0] * count)]
        if len(owners) != count:
            raise _UnusableError("not an owner for each reference")
        if not all(0 <= owner < len(faces) for owner in owners):
            raise _UnusableError("a reference of nobody in the picture")
        return [_decoded(photo) for photo in example["references"]], owners
    if target.shape[0] != target.shape[1]:
        raise _UnusableError("no reference, and the picture is not square")
    try:
        own = [face_square(target, box, target.shape[0]) for box in faces]
    except ValueError:
        raise _UnusableError("no reference and no face") from None
    rng = np.random.default_rng([seed, int.from_bytes(picture_digest(target))])
    shown = [(augment(face, rng), owner) for owner, face in enumerate(own) for _ in range(views)]
    return [photo for photo, _ in shown], [owner for _, owner in shown]


def picture_digest(picture: np.ndarray) -> bytes:
    """16 bytes that are a picture's own."""
    return hashlib.blake2b(picture.tobytes(), digest_size=DIGEST_BYTES).digest()
