"""Drawn pictures with their faces and attributes, in memory.

Axes: b pictures, h w pixels.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from fusionjax.errors import UserError
from fusionjax.evaluation.recogniser import ATTRIBUTES
from fusionjax.mini.people import TRAITS


@dataclass(frozen=True)
class Pictures:
    """Pictures in memory with what is true of them.

    Attributes:
        images: All pictures.
        people: Each picture's person, a number in `identities`.
        labels: Each picture's attributes as choice numbers, -1 where unknown.
        identities: The people's names.
    """

    images: UInt8[np.ndarray, "b h w 3"]
    people: Int[np.ndarray, " b"]
    labels: dict[str, Int[np.ndarray, " b"]]
    identities: list[str]


def load_pictures(folder: str | Path, split: str) -> Pictures:
    """Reads a split of `mini_faces`: the pictures and each person's reference photos.

    Args:
        folder: The dataset's folder.
        split: "train", "validation" or "test".

    Returns:
        The pictures. Of a reference photo only the traits are known, and that its style is plain.

    Raises:
        UserError: If there is no such dataset.
    """
    import tensorflow_datasets as tfds

    if not (Path(folder) / "dataset_info.json").is_file():
        raise UserError(
            f"data {str(folder)!r} holds no dataset_info.json; build it with "
            "`python -m fusionjax.data.mini_faces FOLDER`"
        )
    images: list[np.ndarray] = []
    owners: list[str] = []
    told: list[dict[str, str]] = []
    seen: set[str] = set()
    for example in tfds.builder_from_directory(str(folder)).as_data_source(split):
        person = example["identity"].decode()
        true = json.loads(example["attributes"])
        images.append(example["image"])
        owners.append(person)
        told.append(true)
        if person not in seen:
            seen.add(person)
            traits = {**{trait: true[trait] for trait in TRAITS}, "style": "plain"}
            for photo in example["references"]:
                images.append(photo)
                owners.append(person)
                told.append(traits)
    identities = sorted(seen)
    numbers = {name: number for number, name in enumerate(identities)}
    labels = {
        name: np.array([choices.index(true[name]) if name in true else -1 for true in told])
        for name, choices in ATTRIBUTES.items()
    }
    return Pictures(
        np.stack(images), np.array([numbers[name] for name in owners]), labels, identities
    )
