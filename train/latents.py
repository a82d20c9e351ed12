"""Cached latents of a dataset's split, computed when they are first asked for."""

import zlib
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from fusionjax.base import BaseModel
from fusionjax.data.cache import CachedLatents, write_cache
from fusionjax.data.pipeline import open_records
from fusionjax.sharding import batch_sharding

BATCH = 64


def cached_latents(
    base: BaseModel,
    mesh: Mesh,
    *,
    data: str,
    split: str,
    folder: Path,
    made_from: dict[str, Any],
    with_references: bool,
) -> CachedLatents:
    """Opens the cache of a split, and makes it first if there is none.

    Args:
        base: its autoencoder and tokenizer are used.
        mesh: pictures are encoded on all its devices.
        data: the dataset's folder.
        split: of the dataset.
        folder: caches of several splits lie side by side in it.
        made_from: tells one base's cache from another's.
        with_references: whether the references are needed too.

    Returns:
        The examples.
    """
    place = folder / _file_name(split)
    about = {
        "dataset": str(Path(data).absolute()),
        "split": split,
        "references": with_references,
        **made_from,
    }
    if not place.exists():
        records = open_records(data, split)
        sharding = batch_sharding(mesh)
        encode = jax.jit(base.encode_image)
        with tqdm(total=len(records), desc=f"latents of {split}", unit="picture") as bar:
            write_cache(
                place,
                records,
                lambda images: encode(base.params, jax.device_put(images, sharding)),
                base.tokenize,
                about=about,
                batch_size=-(-BATCH // mesh.size) * mesh.size,
                with_references=with_references,
                progress=lambda done, _: bar.update(done - bar.n),
            )
    return CachedLatents(place, about)


def _file_name(split: str) -> str:
    """A folder's name for a split, different for different slices."""
    plain = "".join(letter if letter.isalnum() else "-" for letter in split)
    return plain if plain == split else f"{plain}-{zlib.crc32(split.encode()):08x}"
