"""Latents and captions of a whole dataset, computed once and memory-mapped afterwards.

Training then needs no VAE on the device and decodes no pictures; with text states it needs no text
encoder there either. A cache is a folder:

    cache.json              what it was made from; written last, so a folder without it is no cache
    latents.npy             [p, h, w, c] float16: each distinct picture once
    target.npy              [n] the picture of each example
    references.npy          [m] the pictures of all examples' references, one after the other
    reference_starts.npy    [n + 1] where each example's references start in it
    owners.npy              [m] whose photo each of them is: a number in the example's face boxes
    tokens.npy              [n, t] token ids of the captions
    text_states.npy         [n, t, d] float16: what the text encoder makes of them; if asked for
    face_boxes.npy          [f, 4] ymin, xmin, ymax, xmax in [0, 1], of all examples
    face_box_starts.npy     [n + 1] where each example's boxes start in it
    skipped.tsv             examples that could not be used, and why
"""

import hashlib
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fusionjax.data.records import dataset_info
from fusionjax.errors import UserError
from fusionjax.models.base import BaseModel

VERSION = 2
WHAT = "cache.json"
SKIPPED = "skipped.tsv"
TEXT_STATES = "text_states.npy"
ARRAYS = (
    "latents",
    "target",
    "references",
    "reference_starts",
    "owners",
    "tokens",
    "face_boxes",
    "face_box_starts",
)


def made_from(base: BaseModel, data: str | Path, *, text_states: bool = False) -> dict[str, str]:
    """What decides the contents of a cache: digests of the dataset and of what encodes it.

    Args:
        base: its autoencoder, tokenizer and text encoder are used.
        data: the dataset's folder; where it lies does not matter.
        text_states: whether the cache is to hold text states.

    Returns:
        For `about`.

    Raises:
        UserError: if there is no dataset.
    """
    info = dataset_info(data)
    vocabulary = repr(sorted(base.tokenizer.get_vocab().items())).encode()
    about = {
        "dataset": _digest([info.read_bytes()]),
        "autoencoder": _digest_of_weights(base.params["vae"]),
        "tokenizer": _digest([vocabulary]),
    }
    if text_states:
        about["text_encoder"] = _digest_of_weights(base.params["text_encoder"])
    return about


def _digest_of_weights(params: Any) -> str:
    return _digest(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params))


def _digest(parts: Iterable[bytes]) -> str:
    total = hashlib.blake2b(digest_size=8)
    for part in parts:
        total.update(part)
    return total.hexdigest()


def folder_of_split(folder: str | Path, split: str) -> Path:
    """Where `cached_latents` keeps a split, different for different slices."""
    plain = "".join(letter if letter.isalnum() else "-" for letter in split)
    name = plain if plain == split else f"{plain}-{zlib.crc32(split.encode()):08x}"
    return Path(folder) / name


class CachedLatents:
    """A cache as random-access examples.

    `skipped` is how many examples of the dataset could not be used; the folder's `skipped.tsv`
    lists them, and `most_people` the most people in one picture. Each example is `latents`
    [h, w, c] float32, `references` [r, h, w, c] float32 (r may be 0), `owners` [r], `tokens` [t],
    `face_boxes` [people, 4], and `text_states` [t, d] float16 where there are any.
    """

    def __init__(self, folder: str | Path, about: dict[str, Any] | None = None) -> None:
        """Opens a cache without reading it.

        Args:
            folder: what `write_cache` wrote.
            about: what it must have been made from; None accepts anything.

        Raises:
            UserError: if there is no cache, or it was made from something else.
        """
        folder = Path(folder)
        if not (folder / WHAT).is_file():
            raise UserError(f"{str(folder)!r} holds no {WHAT}; it is no finished cache")
        found = json.loads((folder / WHAT).read_text())
        if "text_encoder" in (about or {}) and "text_encoder" not in found:
            raise UserError(
                f"the cache {str(folder)!r} holds no text states; remove it, so that it is made "
                "again, or do not ask for them"
            )
        for name, value in {"version": VERSION, **(about or {})}.items():
            if found.get(name) != value:
                raise UserError(
                    f"the cache {str(folder)!r} was made from another {name} "
                    f"({found.get(name)!r}, not {value!r}); remove it, so that it is made again"
                )
        self.skipped = len((folder / SKIPPED).read_text(encoding="utf-8").splitlines())
        self._arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
        self.most_people = int(np.diff(self._arrays["face_box_starts"]).max())
        states = folder / TEXT_STATES
        self._text_states = np.load(states, mmap_mode="r") if states.is_file() else None

    def __len__(self) -> int:
        return len(self._arrays["target"])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        index = index.__index__()
        a = self._arrays
        start, stop = a["reference_starts"][index : index + 2]
        first_face, end_of_faces = a["face_box_starts"][index : index + 2]
        example = {
            "latents": np.asarray(a["latents"][a["target"][index]], np.float32),
            "references": np.asarray(a["latents"][a["references"][start:stop]], np.float32),
            "owners": np.asarray(a["owners"][start:stop]),
            "tokens": np.asarray(a["tokens"][index]),
            "face_boxes": np.asarray(a["face_boxes"][first_face:end_of_faces]),
        }
        if self._text_states is not None:
            example["text_states"] = np.asarray(self._text_states[index])
        return example


def text(value: Any) -> str:
    """A text feature as str, whether it was stored as bytes or not."""
    return value.decode() if isinstance(value, bytes) else str(value)
