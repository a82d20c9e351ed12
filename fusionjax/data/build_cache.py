"""Makes caches: pictures and captions encoded once, in parts, and put together whole.

    examples → parts, beside the cache → the cache

A part is some hundred examples. It is a folder of the cache's own arrays, whole or not there, so
that a run that was stopped goes on where it was, and several processes share the work.

Axes: b batch, n examples, h w c latent grid and channels, H W pixels, t d tokens and text features.
"""

import collections
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fusionjax.data.cache import (
    DIGEST_BYTES,
    DIGESTS,
    LATENTS,
    SKIPPED,
    TEXT_STATES,
    VERSION,
    WHAT,
    CachedLatents,
    differs_in_content_alone,
    folder_of_split,
)
from fusionjax.data.cache_part import (
    CacheOptions,
    KnownLatents,
    check_people,
    write_part,
)
from fusionjax.data.encoders import Encoders
from fusionjax.errors import UserError
from fusionjax.files import (
    check_room,
    locked,
    size_of,
    take_place,
    wait_for_shares,
    whole_folder,
    write_whole,
)
from fusionjax.pixels import decode_image

PART = 512  # examples
_OPTIONS = {field.name for field in dataclasses.fields(CacheOptions)}
Progress = Callable[[int, int], None]


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


def write_cache(
    folder: str | Path,
    source: Any,
    encoders: Encoders,
    *,
    about: dict[str, Any],
    share: tuple[int, int] | None = None,
    known: KnownLatents | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> collections.Counter[str] | None:
    """Encodes every distinct picture of a dataset.

    An example without references gets augmented views of its own face instead. One of several
    people has `face_boxes` [people, 4] in place of `face_box`, and `owners`, whose photo each
    reference is. What cannot be used (an unreadable picture, an empty caption, no reference and no
    face's box) is skipped, counted and listed in the cache's `skipped.tsv`.

    Args:
        folder: where the cache goes; must not be one yet, without `known`. The parts lie in
            `FOLDER.unfinished` until it is whole.
        source: random-access examples with `image`, `caption`, `references`, and `face_box`, or
            `face_boxes` and `owners`.
        encoders: what encodes pictures and captions.
        about: what the cache is made from (dataset, split, weights); checked when it is opened.
        share: (i, n) does the i-th of n shares of the parts and no more, i from 1; once all have,
            a call without it puts the cache together.
        known: latents that need not be computed; the cache that they are of is replaced.
        progress: called with the examples done and their number.
        **options: of `CacheOptions`.

    Returns:
        How many examples were skipped, by reason; None after a share.

    Raises:
        UserError: if the folder is in use, pictures are not of the base's size or differ in size,
            show too many people, or too much was skipped.
    """
    folder, how = Path(folder), CacheOptions(**options)
    if folder.exists() and known is None:
        if share is not None:
            return None  # the others did not need this process
        raise UserError(f"{str(folder)!r} already exists; remove it or name another folder")
    if not len(source):
        raise UserError("the dataset holds no examples; there is nothing to cache")
    if how.side is not None:
        _check_side(source[0]["image"], how.side)
    unfinished = _unfinished(folder)
    index, count = share or (1, 1)
    own = unfinished if share is None else unfinished / f"share-{index}-of-{count}"
    own.mkdir(parents=True, exist_ok=True)
    with locked(own):
        if share is None:
            wait_for_shares(unfinished)
        parts = _parts(folder, len(source), about, how)
        mine = parts[index - 1 :: count]
        total, done = sum(len(span) for span, _ in mine), 0

        def tell(number: int) -> None:
            if progress is not None:
                progress(done + number, total)

        for span, place in mine:
            if not place.is_dir():
                write_part(place, source, span, encoders, how, known, tell)
                _check_room(place, [place for _, place in parts])
            done += len(span)
            tell(0)
        if share is not None:
            return None
        reasons = _assemble(folder, [place for _, place in parts], len(source), about, how)
    shutil.rmtree(unfinished)
    return reasons


def _check_room(done: Path, parts: list[Path]) -> None:
    """All parts are as large as one that is done; the whole is written when they all are."""
    missing = sum(not place.is_dir() for place in parts)
    check_room(done.parent, size_of(done) * (missing + len(parts)))


def parts_missing(
    folder: str | Path, examples: int, about: dict[str, Any], **options: Any
) -> list[Path]:
    """The parts of a cache that are still to be made, by whichever process.

    Args:
        folder: as for `write_cache`, and so are the others.
        examples: of the dataset.
        about: see there.
        **options: see there.
    """
    parts = _parts(Path(folder), examples, about, CacheOptions(**options))
    return [place for _, place in parts if not place.is_dir()]


def _unfinished(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.unfinished")


def _parts(
    folder: Path, examples: int, about: dict[str, Any], how: CacheOptions
) -> list[tuple[range, Path]]:
    """Which examples each part has, and where it goes: elsewhere for whatever is made otherwise."""
    made_by = [about, examples, PART, how.batch_size, how.with_references, how.views, how.seed]
    key = hashlib.blake2b(json.dumps(made_by, sort_keys=True).encode(), digest_size=8).hexdigest()
    starts = range(0, examples, PART)
    return [
        (range(start, min(start + PART, examples)), _unfinished(folder) / key / f"{number:06d}")
        for number, start in enumerate(starts)
    ]


def cached_latents(
    folder: str | Path,
    records: Callable[[], Any],
    encoders: Encoders,
    *,
    split: str,
    about: dict[str, Any],
    **options: Any,
) -> tuple[CachedLatents | None, str]:
    """Opens the cache of a split; makes it first if there is none, or if its dataset has changed.

    Args:
        folder: caches of several splits lie side by side in it.
        records: opens the examples; called only if the cache must be made.
        encoders: as for `write_cache`.
        split: the split's name.
        about: what else tells one cache from another.
        **options: the further arguments of `write_cache`.

    Returns:
        The cache, None after a share; and whether it was made, brought up to date or found.

    Raises:
        UserError: as `write_cache`, and if the cache was made from something else.
    """
    place = folder_of_split(folder, split)
    about = about_split(split, about, **options)
    how = "found as it should be"
    if not place.exists():
        write_cache(place, records(), encoders, about=about, **options)
        how = "made"
    elif differs_in_content_alone(place, about):
        known = KnownLatents(place)
        write_cache(place, records(), encoders, about=about, known=known, **options)
        how = (
            f"brought up to date with its dataset: {known.taken:,} pictures were there, "
            f"{known.missing:,} are new"
        )
    if options.get("share") is not None:
        return None, how
    latents = CachedLatents(place, about)
    if (most := options.get("most_people")) is not None:
        check_people(latents.most_people, most)
    return latents, how


def about_split(split: str, about: dict[str, Any], **options: Any) -> dict[str, Any]:
    """All that a split's cache is made from.

    Args:
        split: its name.
        about: of the dataset and the base.
        **options: of `CacheOptions`.
    """
    how = CacheOptions(**{name: value for name, value in options.items() if name in _OPTIONS})
    views = how.views if how.with_references else 0
    return {"split": split, "references": how.with_references, "views": views, **about}


# --- all parts ------------------------------------------------------------------------------------


def _assemble(
    folder: Path, places: list[Path], examples: int, about: dict[str, Any], how: CacheOptions
) -> collections.Counter[str]:
    """Puts parts together, each picture once; what was at the folder's place makes room."""
    lines = "".join((place / SKIPPED).read_text(encoding="utf-8") for place in places)
    skipped = lines.splitlines()
    reasons = collections.Counter(line.partition("\t")[2] for line in skipped)
    places = [place for place in places if (place / LATENTS).is_file()]
    if len(skipped) > how.most_skipped * examples or not places:
        listed = folder.with_name(f"{folder.name}.skipped.tsv")
        write_whole(listed, lines)
        told = ", ".join(f"{count} × {reason}" for reason, count in reasons.most_common())
        raise UserError(
            f"{len(skipped)} of {examples} examples cannot be used ({told}), more than the "
            f"share of {how.most_skipped} that may be skipped; they are listed in {str(listed)!r}. "
            "Mend them, or allow more (--data.most-skipped of a run, --most-skipped of "
            "`python -m fusionjax cache`)"
        )
    whole, replaced = (_unfinished(folder) / name for name in ("whole", "replaced"))
    for left in (whole, replaced):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    with whole_folder(whole) as beside:
        _join(beside, places)
        (beside / SKIPPED).write_text(lines, encoding="utf-8")
        (beside / WHAT).write_text(json.dumps({"version": VERSION, **about}, indent=2) + "\n")
    take_place(whole, folder, replaced)
    return reasons


def _join(folder: Path, places: list[Path]) -> None:
    """Writes the arrays of a whole cache; the large ones are copied part by part."""

    def of_parts(name: str) -> list[np.ndarray]:
        return [np.load(place / f"{name}.npy") for place in places]

    digests = of_parts("digests")
    _, firsts, of_distinct = np.unique(
        np.concatenate(digests).view(f"S{DIGEST_BYTES}"), return_index=True, return_inverse=True
    )
    order = np.argsort(firsts)  # by where a picture comes first
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    ends = np.cumsum([len(part) for part in digests])
    numbers = np.split(rank[of_distinct.reshape(-1)], ends[:-1])
    firsts = np.sort(firsts)
    np.save(folder / DIGESTS, np.concatenate(digests)[firsts])
    rows = [part - start for part, start in zip(
        np.split(firsts, np.searchsorted(firsts, ends[:-1])), [0, *ends[:-1]], strict=True
    )]  # fmt: skip
    _copy(folder / LATENTS, places, rows)
    if (places[0] / TEXT_STATES).is_file():
        _copy(folder / TEXT_STATES, places, [np.arange(len(part)) for part in of_parts("target")])
    for name in ("target", "references"):
        parts = [own[part] for own, part in zip(numbers, of_parts(name), strict=True)]
        np.save(folder / f"{name}.npy", np.concatenate(parts).astype(np.int32))
    for name in ("owners", "tokens", "face_boxes"):
        np.save(folder / f"{name}.npy", np.concatenate(of_parts(name)))
    for name in ("reference_starts", "face_box_starts"):
        lengths = np.concatenate([np.diff(part) for part in of_parts(name)])
        np.save(folder / f"{name}.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def _copy(path: Path, places: list[Path], rows: list[np.ndarray]) -> None:
    """Writes some rows of each part's array of that name, one part after the other."""
    shape = np.load(places[0] / path.name, mmap_mode="r").shape[1:]
    whole = np.lib.format.open_memmap(path, "w+", np.float16, (sum(map(len, rows)), *shape))
    done = 0
    for place, own in zip(places, rows, strict=True):  # only one is open at a time
        whole[done : done + len(own)] = np.load(place / path.name, mmap_mode="r")[own]
        done += len(own)
    whole.flush()
