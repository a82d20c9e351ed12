"""Latents and token ids of a whole dataset, computed once and memory-mapped afterwards.

Training then needs no VAE on the device and decodes no pictures. A cache is a folder:

    cache.json              what it was made from; written last, so a folder without it is no cache
    latents.npy             [p, h, w, c] float16: each distinct picture once
    target.npy              [n] the picture of each example
    references.npy          [m] the pictures of all examples' references, one after the other
    reference_starts.npy    [n + 1] where each example's references start in it
    tokens.npy              [n, t] token ids of the captions
    face_boxes.npy          [n, 4] ymin, xmin, ymax, xmax in [0, 1]
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from fusionjax.data.pipeline import decode_image, to_unit
from fusionjax.errors import UserError

VERSION = 1
_WHAT = "cache.json"
_ARRAYS = ("latents", "target", "references", "reference_starts", "tokens", "face_boxes")

Encode = Callable[[Float[np.ndarray, "b H W 3"]], Any]
Tokenize = Callable[[Sequence[str]], Int[np.ndarray, "b t"]]


def write_cache(
    folder: str | Path,
    source: Any,
    encode: Encode,
    tokenize: Tokenize,
    *,
    about: dict[str, Any],
    batch_size: int = 64,
    with_references: bool = True,
    prepare: Callable[[UInt8[np.ndarray, "H W 3"]], UInt8[np.ndarray, "H W 3"]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Encodes every distinct picture of a dataset.

    Args:
        folder: where the cache goes; must not be one yet.
        source: random-access examples with `image`, `caption`, `references`, `face_box`.
        encode: pictures in [-1, 1] to scaled latents [b, h, w, c]; always called with
            `batch_size` pictures.
        tokenize: captions to token ids.
        about: what the cache is made from (dataset, split, weights); checked when it is opened.
        batch_size: pictures encoded together.
        with_references: False leaves the references out.
        prepare: makes every picture the same size; None if they are already.
        progress: called with the examples done and their number.

    Raises:
        UserError: if the folder is in use, or a picture cannot be read.
    """
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"{str(folder)!r} already exists; remove it or name another folder")
    if not len(source):
        raise UserError("the dataset holds no examples; there is nothing to cache")
    encoder = _Encoder(encode, batch_size, prepare)
    tokens, targets, references, starts, boxes = [], [], [], [0], []
    for number in range(len(source)):
        example = source[number]
        targets.append(encoder.add(example["image"], f"example {number}"))
        if with_references:
            for reference in example["references"]:
                references.append(encoder.add(reference, f"a reference of example {number}"))
        starts.append(len(references))
        boxes.append(np.asarray(example["face_box"], np.float32))
        tokens.append(text(example["caption"]))
        if progress is not None:
            progress(number + 1, len(source))
    arrays = {
        "latents": encoder.latents(),
        "target": np.asarray(targets, np.int32),
        "references": np.asarray(references, np.int32),
        "reference_starts": np.asarray(starts, np.int64),
        "tokens": np.concatenate(
            [tokenize(tokens[i : i + 1024]) for i in range(0, len(tokens), 1024)]
        ).astype(np.int32),
        "face_boxes": np.stack(boxes),
    }
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for name in _ARRAYS:
        np.save(unfinished / f"{name}.npy", arrays[name])
    (unfinished / _WHAT).write_text(json.dumps({"version": VERSION, **about}, indent=2) + "\n")
    unfinished.rename(folder)


class CachedLatents:
    """A cache as random-access examples.

    Each example is `latents` [h, w, c] float32, `references` [r, h, w, c] float32 (r may be 0),
    `tokens` [t], `face_box` [4].
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
        if not (folder / _WHAT).is_file():
            raise UserError(f"{str(folder)!r} holds no {_WHAT}; it is no finished cache")
        made_from = json.loads((folder / _WHAT).read_text())
        for name, value in {"version": VERSION, **(about or {})}.items():
            if made_from.get(name) != value:
                raise UserError(
                    f"the cache {str(folder)!r} was made with {name} {made_from.get(name)!r}, "
                    f"not {value!r}; remove it, so that it is made again"
                )
        self._arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}

    def __len__(self) -> int:
        return len(self._arrays["target"])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        index = index.__index__()
        a = self._arrays
        start, stop = a["reference_starts"][index : index + 2]
        return {
            "latents": np.asarray(a["latents"][a["target"][index]], np.float32),
            "references": np.asarray(a["latents"][a["references"][start:stop]], np.float32),
            "tokens": np.asarray(a["tokens"][index]),
            "face_box": np.asarray(a["face_boxes"][index]),
        }


def text(value: Any) -> str:
    """A text feature as str, whether it was stored as bytes or not."""
    return value.decode() if isinstance(value, bytes) else str(value)


class _Encoder:
    """Collects distinct pictures and encodes them in full batches."""

    def __init__(self, encode: Encode, batch_size: int, prepare: Any) -> None:
        self._encode, self._batch_size, self._prepare = encode, batch_size, prepare
        self._numbers: dict[bytes, int] = {}
        self._waiting: list[np.ndarray] = []
        self._done: list[np.ndarray] = []

    def add(self, encoded: Any, what: str) -> int:
        """Takes a picture's bytes; returns its number."""
        data = encoded.tobytes() if isinstance(encoded, np.ndarray) else bytes(encoded)
        key = hashlib.blake2b(data, digest_size=16).digest()
        if key not in self._numbers:
            try:
                picture = decode_image(encoded)
            except ValueError as error:
                raise UserError(f"{what} is {error}") from None
            if self._prepare is not None:
                picture = self._prepare(picture)
            if self._waiting and picture.shape != self._waiting[0].shape:
                raise UserError(
                    f"{what} has shape {picture.shape}, another picture {self._waiting[0].shape}; "
                    "all must have the same size"
                )
            self._numbers[key] = len(self._numbers)
            self._waiting.append(picture)
            if len(self._waiting) == self._batch_size:
                self._flush()
        return self._numbers[key]

    def latents(self) -> np.ndarray:
        """All latents, float16, by number."""
        if self._waiting:
            self._flush()
        return np.concatenate(self._done)

    def _flush(self) -> None:
        count = len(self._waiting)
        filled = self._waiting + [self._waiting[-1]] * (self._batch_size - count)
        latents = np.asarray(self._encode(to_unit(np.stack(filled))), np.float32)
        self._done.append(latents[:count].astype(np.float16))
        self._waiting = []
