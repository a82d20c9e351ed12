"""Makes caches: pictures and captions encoded once, and written whole.

Axes: b batch, n examples, h w c latent grid and channels, H W pixels, t d tokens and text features.
"""

import collections
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fusionjax.data.augment import augment, face_square
from fusionjax.data.batches import filled
from fusionjax.data.cache import (
    ARRAYS,
    SKIPPED,
    TEXT_STATES,
    VERSION,
    WHAT,
    CachedLatents,
    folder_of_split,
    text,
)
from fusionjax.errors import UserError
from fusionjax.files import write_whole
from fusionjax.pixels import decode_image, to_unit

Encode = Callable[[Float[np.ndarray, "b H W 3"]], Any]
Tokenize = Callable[[Sequence[str]], Int[np.ndarray, "b t"]]
EncodeText = Callable[[Int[np.ndarray, "b t"]], Any]


def write_cache(
    folder: str | Path,
    source: Any,
    encode: Encode,
    tokenize: Tokenize,
    *,
    about: dict[str, Any],
    encode_text: EncodeText | None = None,
    batch_size: int = 64,
    with_references: bool = True,
    views: int = 4,
    seed: int = 0,
    most_skipped: float = 0.05,
    most_people: int | None = None,
    side: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> collections.Counter[str]:
    """Encodes every distinct picture of a dataset.

    An example without references gets `views` augmented views of its own face instead. One of
    several people has `face_boxes` [people, 4] in place of `face_box`, and `owners`, whose photo
    each reference is. What cannot be used (an unreadable picture, an empty caption, no reference
    and no face's box) is skipped, counted and listed in the cache's `skipped.tsv`.

    Args:
        folder: where the cache goes; must not be one yet.
        source: random-access examples with `image`, `caption`, `references`, and `face_box`, or
            `face_boxes` and `owners`.
        encode: pictures in [-1, 1] to scaled latents [b, h, w, c]; always called with
            `batch_size` pictures.
        tokenize: captions to token ids.
        about: what the cache is made from (dataset, split, weights); checked when it is opened.
        encode_text: token ids to text states [b, t, d], which the cache then holds; always called
            with `batch_size` captions.
        batch_size: pictures, and captions, encoded together.
        with_references: False leaves the references out.
        views: augmented views of a face that has no other picture.
        seed: of the augmentation.
        most_skipped: the largest share of examples that may be skipped.
        most_people: the most people that a picture may show; None is any number.
        side: of the base's own pictures, in pixels; None is any.
        progress: called with the examples done and their number.

    Returns:
        How many examples were skipped, by reason.

    Raises:
        UserError: if the folder is in use, pictures are not of the base's size or differ in size,
            show too many people, or too much was skipped.
    """
    folder = Path(folder)
    import grain  # here: only making a cache needs it

    if folder.exists():
        raise UserError(f"{str(folder)!r} already exists; remove it or name another folder")
    if not len(source):
        raise UserError("the dataset holds no examples; there is nothing to cache")
    if side is not None:
        _check_side(source[0]["image"], side)
    encoder = _Encoder(encode, batch_size)
    captions, targets, references, starts = [], [], [], [0]
    owners, boxes, box_starts = [], [], [0]
    skipped: list[tuple[int, str]] = []

    def read(number: int) -> _Read | str:
        rng = np.random.default_rng([seed, number])
        return _read(source[number], rng, views=views if with_references else 0)

    threads = os.cpu_count() or 1
    ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=8 * threads)
    examples = grain.MapDataset.source(range(len(source))).map(read).to_iter_dataset(ahead)
    for number, found in enumerate(examples):
        if isinstance(found, str):
            skipped.append((number, found))
        else:
            if most_people is not None:
                _check_people(len(found.face_boxes), most_people)
            captions.append(found.caption)
            targets.append(encoder.add(found.target))
            references += [encoder.add(photo) for photo in found.photos]
            starts.append(len(references))
            owners += found.owners
            boxes += list(found.face_boxes)
            box_starts.append(len(boxes))
        if progress is not None:
            progress(number + 1, len(source))
    reasons = collections.Counter(reason for _, reason in skipped)
    lines = "".join(f"{number}\t{reason}\n" for number, reason in skipped)
    if len(skipped) > most_skipped * len(source) or not targets:
        listed = folder.with_name(f"{folder.name}.skipped.tsv")
        write_whole(listed, lines)
        told = ", ".join(f"{count} × {reason}" for reason, count in reasons.most_common())
        raise UserError(
            f"{len(skipped)} of {len(source)} examples cannot be used ({told}), more than the "
            f"share of {most_skipped} that may be skipped; they are listed in {str(listed)!r}. "
            "Mend them, or allow more (--data.most-skipped of a run, --most-skipped of "
            "`python -m fusionjax cache`)"
        )
    tokens = [tokenize(captions[i : i + 1024]) for i in range(0, len(captions), 1024)]
    arrays = {
        "latents": encoder.latents(),
        "target": np.asarray(targets, np.int32),
        "references": np.asarray(references, np.int32),
        "reference_starts": np.asarray(starts, np.int64),
        "owners": np.asarray(owners, np.int32),
        "tokens": np.concatenate(tokens).astype(np.int32),
        "face_boxes": np.stack(boxes),
        "face_box_starts": np.asarray(box_starts, np.int64),
    }
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for name in ARRAYS:
        np.save(unfinished / f"{name}.npy", arrays[name])
    if encode_text is not None:
        _write_text_states(unfinished / TEXT_STATES, arrays["tokens"], encode_text, batch_size)
    (unfinished / SKIPPED).write_text(lines, encoding="utf-8")
    (unfinished / WHAT).write_text(json.dumps({"version": VERSION, **about}, indent=2) + "\n")
    unfinished.rename(folder)
    return reasons


def cached_latents(
    folder: str | Path,
    records: Callable[[], Any],
    encode: Encode,
    tokenize: Tokenize,
    *,
    split: str,
    about: dict[str, Any],
    **options: Any,
) -> CachedLatents:
    """Opens the cache of a split, and makes it first if there is none.

    Args:
        folder: caches of several splits lie side by side in it.
        records: opens the examples; called only if the cache must be made.
        encode: as for `write_cache`.
        tokenize: as for `write_cache`.
        split: the split's name.
        about: what else tells one cache from another.
        **options: the further arguments of `write_cache`.

    Returns:
        The cache.

    Raises:
        UserError: as `write_cache`, and if the cache was made from something else.
    """
    place = folder_of_split(folder, split)
    about = {"split": split, "references": options.get("with_references", True), **about}
    if not place.exists():
        write_cache(place, records(), encode, tokenize, about=about, **options)
    latents = CachedLatents(place, about)
    if (most := options.get("most_people")) is not None:
        _check_people(latents.most_people, most)
    return latents


def _write_text_states(
    path: Path, tokens: Int[np.ndarray, "n t"], encode: EncodeText, batch_size: int
) -> None:
    """Writes them batch by batch: those of a large dataset are larger than its latents."""
    states: Any = None
    for start in range(0, len(tokens), batch_size):
        part = tokens[start : start + batch_size]
        encoded = np.asarray(encode(filled(part, batch_size)))[: len(part)]
        if states is None:
            shape = (len(tokens), *encoded.shape[1:])
            states = np.lib.format.open_memmap(path, "w+", np.float16, shape)
        states[start : start + len(part)] = encoded
    states.flush()


def _check_side(encoded: Any, side: int) -> None:
    try:
        height, width, _ = decode_image(encoded).shape
    except ValueError:  # it is skipped, and counted, in its turn
        return
    if (height, width) != (side, side):
        raise UserError(
            f"the dataset's pictures have {width}×{height} pixels, the base's own {side}×{side}; "
            f"prepare them anew (--size {side}), or name another base"
        )


def _check_people(found: int, most: int) -> None:
    if found > most:
        raise UserError(
            f"a picture shows {found} people, and people is {most}; raise --people, or name a "
            "split without such pictures (--data.train-split, --data.validation-split)"
        )


class _UnusableError(Exception):
    """The reason why an example is skipped."""


@dataclasses.dataclass(frozen=True)
class _Read:
    """An example with its pictures decoded; `owners` has an entry for each of `photos`."""

    caption: str
    target: np.ndarray
    photos: list[np.ndarray]
    owners: list[int]
    face_boxes: np.ndarray


def _read(example: Any, rng: np.random.Generator, *, views: int) -> _Read | str:
    """Reads an example, without references if there are to be no views.

    Returns:
        It, or the reason why it cannot be used.
    """
    try:
        caption = text(example["caption"]).strip()
        if not caption:
            return "empty caption"
        faces = _face_boxes(example)
        target = _decoded(example["image"])
        photos, owners = _photos(example, target, faces, views, rng) if views else ([], [])
    except _UnusableError as reason:
        return str(reason)
    return _Read(caption, target, photos, owners, faces)


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
    example: Any, target: np.ndarray, faces: np.ndarray, views: int, rng: np.random.Generator
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
    shown = [(augment(face, rng), owner) for owner, face in enumerate(own) for _ in range(views)]
    return [photo for photo, _ in shown], [owner for _, owner in shown]


class _Encoder:
    """Collects distinct pictures and encodes them in full batches."""

    def __init__(self, encode: Encode, batch_size: int) -> None:
        self._encode, self._batch_size = encode, batch_size
        self._numbers: dict[bytes, int] = {}
        self._shape: tuple[int, ...] | None = None
        self._waiting: list[np.ndarray] = []
        self._done: list[np.ndarray] = []

    def add(self, picture: np.ndarray) -> int:
        """Takes a picture; returns its number."""
        if self._shape not in (None, picture.shape):
            raise UserError(
                f"one picture has shape {picture.shape}, another {self._shape}; "
                "all must have the same size"
            )
        self._shape = picture.shape
        key = hashlib.blake2b(picture.tobytes(), digest_size=16).digest()
        if key not in self._numbers:
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
        pictures = to_unit(filled(np.stack(self._waiting), self._batch_size))
        latents = np.asarray(self._encode(pictures), np.float32)
        self._done.append(latents[:count].astype(np.float16))
        self._waiting = []
