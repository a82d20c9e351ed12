"""Latents and captions of a whole dataset, computed once and memory-mapped afterwards.

Training then needs no VAE on the device and decodes no pictures; with text states it needs no text
encoder there either. A cache is a folder:

    cache.json              what it was made from; written last, so a folder without it is no cache
    latents.npy             [p, h, w, c] float16: each distinct picture once; with the posterior's
                            standard deviations behind its means, [p, h, w, 2c]; if asked for
    digests.npy             [p, 16] uint8: what tells pictures apart (older caches have none)
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
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fusionjax import schema
from fusionjax.data.records import content_digest, dataset_info
from fusionjax.errors import UserError
from fusionjax.models.base import BaseModel

VERSION = 2
WHAT = "cache.json"
SKIPPED = "skipped.tsv"
TEXT_STATES = "text_states.npy"
_REMEMBERED = "dataset.json"
DIGESTS = "digests.npy"
LATENTS = "latents.npy"
DIGEST_BYTES = 16
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


_DATASET = ("dataset", "content")  # what of `made_from` tells of it
# What of `made_from` an older cache, or one that holds less, need not say, and the remedy if asked.
_MAY_LACK = {
    "text_encoder": "text states",
    "posterior": "deviations of the posterior",
}


def made_from(
    base: BaseModel,
    data: str | Path,
    folder: str | Path | None = None,
    *,
    text_states: bool = False,
    posterior: bool = False,
) -> dict[str, str]:
    """What decides the contents of a cache: digests of the dataset and of what encodes it.

    Args:
        base: its autoencoder, tokenizer and text encoder are used.
        data: the dataset's folder; where it lies does not matter.
        folder: that the caches of its splits lie in; what the dataset's files hold is remembered
            there, so that they are not read again as long as they do not change. None reads them.
        text_states: whether the cache is to hold text states.
        posterior: whether it is to hold the posterior's deviations beside its means.

    Returns:
        For `about`.

    Raises:
        UserError: if there is no dataset.
    """
    info = dataset_info(data)
    remembered = None if folder is None else Path(folder) / _REMEMBERED
    vocabulary = repr(sorted(base.tokenizer.get_vocab().items())).encode()
    about = {
        "dataset": _digest([info.read_bytes()]),
        "content": content_digest(info.parent, remembered),
        "autoencoder": _digest_of_weights(base.params["vae"]),
        "tokenizer": _digest([vocabulary]),
    }
    if text_states:
        about["text_encoder"] = _digest_of_weights(base.params["text_encoder"])
    if posterior:
        about["posterior"] = "mean and deviation"
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


def read_about(folder: Path) -> dict[str, Any]:
    """What a finished cache was made from.

    Raises:
        UserError: if there is no finished cache.
    """
    if not (folder / WHAT).is_file():
        raise UserError(f"{str(folder)!r} holds no {WHAT}; it is no finished cache")
    return schema.read_json(folder / WHAT)


def _agrees(found: dict[str, Any], name: str, value: Any) -> bool:
    if name in ("content", "views") and name not in found:
        return True  # an older cache, which knows its dataset by `dataset` alone
    return bool(found.get(name) == value)


def differs_in_content_alone(folder: Path, about: dict[str, Any]) -> bool:
    """Whether a cache fits but for its dataset, so that its latents can serve the changed one.

    Args:
        folder: of a split.
        about: what the cache should be made from.

    Raises:
        UserError: if there is no finished cache.
    """
    found = read_about(folder)
    wanted = {"version": VERSION, **about}
    changed = any(not _agrees(found, name, about.get(name)) for name in _DATASET)
    # One that holds more than is asked for would lose it.
    return (
        changed
        and not found.keys() - wanted.keys()
        and all(_agrees(found, name, wanted[name]) for name in wanted.keys() - set(_DATASET))
    )


class CachedLatents:
    """A cache as random-access examples.

    `skipped` is how many examples of the dataset could not be used; the folder's `skipped.tsv`
    lists them, and `most_people` the most people in one picture. Each example is `latents`
    [h, w, c] float32, `references` [r, h, w, c] float32 (r may be 0), `owners` [r], `tokens` [t],
    `face_boxes` [people, 4]; where there are any, `text_states` [t, d] float16, and `deviations`
    [h, w, c], by which the picture's latents spread around their means.
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
        found = read_about(folder)
        wanted = {"version": VERSION, **(about or {})}
        for name, value in sorted(wanted.items(), key=lambda item: item[0] in _DATASET):
            if name in _MAY_LACK and name not in found:
                raise UserError(
                    f"the cache {str(folder)!r} holds no {_MAY_LACK[name]}; remove it, so that it "
                    "is made again, or do not ask for them"
                )
            if not _agrees(found, name, value):
                thing = _DATASET[0] if name in _DATASET else name
                raise UserError(
                    f"the cache {str(folder)!r} was made from another {thing} "
                    f"({found.get(name)!r}, not {value!r}); remove it, so that it is made again"
                )
        self.skipped = len((folder / SKIPPED).read_text(encoding="utf-8").splitlines())
        self._arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
        self.most_people = int(np.diff(self._arrays["face_box_starts"]).max())
        states = folder / TEXT_STATES
        self._text_states = np.load(states, mmap_mode="r") if states.is_file() else None
        self._has_deviations = "posterior" in found

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
        if self._has_deviations:
            split = np.split(example["latents"], 2, axis=-1)
            example["latents"], example["deviations"] = split
            example["references"] = np.split(example["references"], 2, axis=-1)[0]
        if self._text_states is not None:
            example["text_states"] = np.asarray(self._text_states[index])
        return example


def text(value: Any) -> str:
    """A text feature as str, whether it was stored as bytes or not."""
    return value.decode() if isinstance(value, bytes) else str(value)
