"""Cached latents of a dataset's split, computed with a progress bar when first asked for."""

from pathlib import Path

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from fusionjax.backend.sharding import batch_sharding, make_mesh
from fusionjax.data import build_cache, cache
from fusionjax.data.records import open_records
from fusionjax.models.base import BaseModel
from train.processes import by_the_first

BATCH = 64


def cached_latents(
    base: BaseModel,
    mesh: Mesh,
    *,
    data: str,
    split: str,
    folder: Path,
    made_from: dict[str, str],
    with_references: bool,
    text_states: bool = False,
    most_skipped: float,
    most_people: int | None = None,
) -> cache.CachedLatents:
    """Opens the cache of a split, and makes it first if there is none.

    Args:
        base: its autoencoder, tokenizer and text encoder are used.
        mesh: pictures are encoded on all its devices.
        data: the dataset's folder.
        split: of the dataset.
        folder: caches of several splits lie side by side in it.
        made_from: as `cache.made_from` tells it.
        with_references: whether the references are needed too.
        text_states: whether the captions' text states are needed too.
        most_skipped: the largest share of examples that may be skipped.
        most_people: the most people that a picture may show; None is any number.

    Returns:
        The examples.
    """
    encode, encode_text = jax.jit(base.encode_image), jax.jit(base.encode_text)
    # The first process works alone; it cannot read what lies on the others' devices.
    devices = [device for device in mesh.devices.flat if device.process_index == 0]
    sharding = batch_sharding(make_mesh(devices=devices))

    def opened() -> cache.CachedLatents:
        with tqdm(desc=f"latents of {split}", unit="picture", delay=0.5) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            return build_cache.cached_latents(
                folder,
                lambda: open_records(data, split),
                lambda images: encode(base.params, jax.device_put(images, sharding)),
                base.tokenize,
                split=split,
                about=made_from,
                encode_text=(
                    lambda tokens: encode_text(base.params, jax.device_put(tokens, sharding))
                )
                if text_states
                else None,
                batch_size=-(-BATCH // len(devices)) * len(devices),
                with_references=with_references,
                most_skipped=most_skipped,
                most_people=most_people,
                progress=progress,
            )

    place = cache.folder_of_split(folder, split)
    new = not place.is_dir()
    by_the_first(opened, place.is_dir)
    latents = opened()
    if new and latents.skipped and jax.process_index() == 0:
        where = place / "skipped.tsv"
        tqdm.write(f"{latents.skipped} examples of {split} cannot be used; {where} lists them")
    return latents
