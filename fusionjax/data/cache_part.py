"""A part of a cache: some hundred examples encoded, in a folder of the cache's own arrays.

Axes: b batch, n examples, h w c latent grid and channels, H W pixels, t d tokens and text features.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fusionjax.data.batches import filled
from fusionjax.data.cache import ARRAYS, DIGEST_BYTES, DIGESTS, LATENTS, SKIPPED, TEXT_STATES
from fusionjax.data.decoded import DecodedExample, decode_example, picture_digest
from fusionjax.data.encoders import Encode, Encoders, EncodeText
from fusionjax.errors import UserError
from fusionjax.files import whole_folder
from fusionjax.pixels import to_unit


@dataclasses.dataclass(frozen=True)
class CacheOptions:
    """How a cache is made.

    Attributes:
        batch_size: pictures, and captions, encoded together.
        with_references: False leaves the references out.
        views: augmented views of a face that has no other picture.
        seed: of the augmentation.
        most_skipped: the largest share of examples that may be skipped.
        most_people: the most people that a picture may show; None is any number.
        side: of the base's own pictures, in pixels; None is any.
    """

    batch_size: int = 64
    with_references: bool = True
    views: int = 4
    seed: int = 0
    most_skipped: float = 0.05
    most_people: int | None = None
    side: int | None = None


class KnownLatents:
    """The latents of a cache by their pictures' digests.

    Attributes:
        taken: how many were asked for and found.
        missing: how many were not.
    """

    def __init__(self, folder: Path) -> None:
        """Opens what a cache holds; an older one, without digests, knows none."""
        self.taken = self.missing = 0
        path = folder / DIGESTS
        digests = np.load(path) if path.is_file() else np.zeros((0, DIGEST_BYTES), np.uint8)
        # As texts of a fixed length, which have an order; zeros at an end make no two equal.
        texts = digests.view(f"S{DIGEST_BYTES}").reshape(-1)
        self._order = np.argsort(texts)
        self._sorted = texts[self._order]
        self._latents = np.load(folder / LATENTS, mmap_mode="r")

    def get(self, digest: bytes) -> np.ndarray | None:
        """A picture's latents, float16, if they are known."""
        wanted = np.array(digest, f"S{DIGEST_BYTES}")
        place = int(np.searchsorted(self._sorted, wanted))
        if place < len(self._sorted) and self._sorted[place] == wanted:
            self.taken += 1
            return np.asarray(self._latents[self._order[place]])
        self.missing += 1
        return None


def write_part(
    place: Path,
    source: Any,
    span: range,
    encoders: Encoders,
    how: CacheOptions,
    known: KnownLatents | None,
    progress: Callable[[int], object],
) -> None:
    """Encodes some examples into a folder, whole or not at all.

    Args:
        place: the folder to be; it holds arrays only if an example could be used.
        source: random-access examples.
        span: their numbers.
        encoders: what encodes them.
        how: the options.
        known: latents that need not be computed.
        progress: called with how many are done.

    Raises:
        UserError: if pictures differ in size, or show too many people.
    """
    encoder = _Encoder(encoders.images, how.batch_size, known)
    captions, targets, references, starts = [], [], [], [0]
    owners, boxes, box_starts = [], [], [0]
    skipped: list[str] = []
    for number, found in zip(span, _decoded(source, span, how), strict=True):
        if isinstance(found, str):
            skipped.append(f"{number}\t{found}\n")
        else:
            if how.most_people is not None:
                check_people(len(found.face_boxes), how.most_people)
            captions.append(found.caption)
            targets.append(encoder.add(found.target))
            references += [encoder.add(photo) for photo in found.photos]
            starts.append(len(references))
            owners += found.owners
            boxes += list(found.face_boxes)
            box_starts.append(len(boxes))
        progress(number - span.start + 1)
    with whole_folder(place, or_there=True) as beside:
        (beside / SKIPPED).write_text("".join(skipped), encoding="utf-8")
        if not targets:
            return
        tokens = encoders.tokenize(captions).astype(np.int32)
        arrays = {
            "latents": encoder.latents(),
            "target": np.asarray(targets, np.int32),
            "references": np.asarray(references, np.int32),
            "reference_starts": np.asarray(starts, np.int64),
            "owners": np.asarray(owners, np.int32),
            "tokens": tokens,
            "face_boxes": np.stack(boxes),
            "face_box_starts": np.asarray(box_starts, np.int64),
        }
        for name in ARRAYS:
            np.save(beside / f"{name}.npy", arrays[name])
        np.save(beside / DIGESTS, encoder.digests())
        if encoders.text is not None:
            np.save(beside / TEXT_STATES, _text_states(tokens, encoders.text, how.batch_size))


def _decoded(source: Any, span: range, how: CacheOptions) -> Iterator[DecodedExample | str]:
    """The examples in order, read ahead by threads."""
    import grain  # here: only making a cache needs it

    views = how.views if how.with_references else 0

    def decode(number: int) -> DecodedExample | str:
        return decode_example(source[number], views=views, seed=how.seed)

    threads = os.cpu_count() or 1
    ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=8 * threads)
    return iter(grain.MapDataset.source(span).map(decode).to_iter_dataset(ahead))


def _text_states(
    tokens: Int[np.ndarray, "n t"], encode: EncodeText, batch_size: int
) -> Float[np.ndarray, "n t d"]:
    states = []
    for start in range(0, len(tokens), batch_size):
        part = tokens[start : start + batch_size]
        states.append(np.asarray(encode(filled(part, batch_size)))[: len(part)])
    return np.concatenate(states).astype(np.float16)


class _Encoder:
    """Collects distinct pictures and encodes them in full batches, but for those known."""

    def __init__(self, encode: Encode, batch_size: int, known: KnownLatents | None) -> None:
        self._encode, self._batch_size, self._known = encode, batch_size, known
        self._numbers: dict[bytes, int] = {}
        self._shape: tuple[int, ...] | None = None
        self._waiting: list[tuple[int, np.ndarray]] = []
        self._done: dict[int, np.ndarray] = {}

    def add(self, picture: np.ndarray) -> int:
        """Takes a picture; returns its number."""
        if self._shape not in (None, picture.shape):
            raise UserError(
                f"one picture has shape {picture.shape}, another {self._shape}; "
                "all must have the same size"
            )
        self._shape = picture.shape
        digest = picture_digest(picture)
        if digest not in self._numbers:
            number = self._numbers[digest] = len(self._numbers)
            latents = self._known.get(digest) if self._known is not None else None
            if latents is not None:
                self._done[number] = latents
            else:
                self._waiting.append((number, picture))
            if len(self._waiting) == self._batch_size:
                self._flush()
        return self._numbers[digest]

    def latents(self) -> np.ndarray:
        """All latents, float16, by number."""
        if self._waiting:
            self._flush()
        return np.stack([self._done[number] for number in range(len(self._numbers))])

    def digests(self) -> np.ndarray:
        """The pictures' digests, uint8 [p, 16], by number."""
        return np.frombuffer(b"".join(self._numbers), np.uint8).reshape(-1, DIGEST_BYTES)

    def _flush(self) -> None:
        numbers, pictures = zip(*self._waiting, strict=True)
        batch = to_unit(filled(np.stack(pictures), self._batch_size))
        latents = np.asarray(self._encode(batch), np.float32).astype(np.float16)
        self._done.update(zip(numbers, latents, strict=False))  # what fills the batch is left out
        self._waiting = []


def check_people(found: int, most: int) -> None:
    if found > most:
        raise UserError(
            f"a picture shows {found} people, and people is {most}; raise --people, or name a "
            "split without such pictures (--data.train-split, --data.validation-split)"
        )
