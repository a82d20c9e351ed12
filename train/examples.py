"""From a dataset's rows to batches: cached latents, and what of them an adapter is shown.

Legend: p people, h w rows and columns of the latents, c channels.
"""

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fusionjax.command import progress_bar
from fusionjax.data import build_cache, cache
from fusionjax.data.encoders import batch_size_for, encoders_of
from fusionjax.data.records import open_records
from fusionjax.errors import UserError
from fusionjax.models.base import BaseModel
from train.config import AdapterRun
from train.faces import box_weight, nearest_face
from train.processes import on_first_process

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
    posterior: bool = False,
    most_skipped: float,
    most_people: int | None = None,
) -> cache.CachedLatents:
    """Opens the cache of a split, and makes it first if there is none.

    Each process encodes its share of the parts on its own devices; the first puts them together.

    Args:
        base: its autoencoder, tokenizer and text encoder are used.
        mesh: pictures are encoded on all its devices.
        data: the dataset's folder.
        split: of the dataset.
        folder: caches of several splits lie side by side in it.
        made_from: as `cache.made_from` tells it.
        with_references: whether the references are needed too.
        text_states: whether the captions' text states are needed too.
        posterior: whether the deviations of the posterior are.
        most_skipped: the largest share of examples that may be skipped.
        most_people: the most people that a picture may show; None is any number.

    Returns:
        The examples.
    """
    here = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    encoders = encoders_of(base, here, text_states=text_states, posterior=posterior)
    options: dict[str, Any] = {
        "batch_size": batch_size_for(BATCH, len(here)),
        "with_references": with_references,
        "most_skipped": most_skipped,
        "most_people": most_people,
        "side": base.picture_side if with_references else None,
    }
    place = cache.folder_of_split(folder, split)
    about = build_cache.about_split(split, made_from, **options)

    def made(share: tuple[int, int] | None = None) -> tuple[cache.CachedLatents | None, str]:
        with progress_bar(f"latents of {split}", delay=0.5) as progress:
            return build_cache.cached_latents(
                folder, lambda: open_records(data, split), encoders,
                split=split, about=made_from, share=share, progress=progress, **options,
            )  # fmt: skip

    def fits() -> bool:
        return place.is_dir() and not cache.differs_in_content_alone(place, about)

    def put_together() -> None:
        while jax.process_count() > 1 and build_cache.parts_missing(place, count, about, **options):
            time.sleep(0.2)
        _, how = made()
        print(f"latents of {split}: {how}")

    if is_new := not fits():
        count = len(open_records(data, split))
        if jax.process_count() > 1:
            made((jax.process_index() + 1, jax.process_count()))
    on_first_process(put_together, fits)
    latents, _ = made()
    assert latents is not None  # which only a share leaves out
    if is_new and latents.skipped and jax.process_index() == 0:
        where = place / "skipped.tsv"
        print(f"{latents.skipped} examples of {split} cannot be used; {where} lists them")
    return latents


def with_references(
    example: dict[str, Any], rng: np.random.Generator, config: AdapterRun
) -> dict[str, np.ndarray]:
    """Draws the references: up to `config.references` of the photos, first one of each person.

    Args:
        example: Of the cache.
        rng: Decides which photos, how many, and in which order.
        config: The run.

    Returns:
        The arrays, see `shapes_with_references`.
    """
    photos, owners, boxes = (example[name] for name in ("references", "owners", "face_boxes"))
    if not len(photos):
        raise UserError("an example of the cache has no reference; make the cache again")
    most = config.references
    shown = min(most, len(np.unique(owners)))
    count = int(rng.integers(shown, min(most, len(photos)) + 1))
    order = rng.permutation(len(photos))
    _, firsts = np.unique(owners[order], return_index=True)
    order = np.concatenate([order[np.sort(firsts)], np.delete(order, firsts)])[:count]
    references = np.zeros((most, *photos.shape[1:]), np.float32)
    references[:count] = photos[order]
    latents = example["latents"]
    if config.sample_posterior:
        latents = latents + example["deviations"] * rng.standard_normal(latents.shape, np.float32)
    size = latents.shape[:2]
    arrays = {
        "latents": latents,
        "text": example["text_states" if config.text_states else "tokens"],
        "references": references,
        "present": (np.arange(most) < count).astype(np.float32),
        "weight": box_weight(boxes, size, config.face_weight),
    }
    if config.people > 1:
        arrays["owner"] = np.zeros(most, np.int32)
        arrays["owner"][:count] = owners[order]
        arrays["masks"] = nearest_face(boxes, size, config.people)
    return arrays


def shapes_with_references(config: AdapterRun, unet: Any, text: Any) -> dict[str, Any]:
    """What `with_references` gives, batched.

    Args:
        config: The run.
        unet: Whose latents.
        text: One caption as the batch holds it, [1, ...].
    """
    grid, most = (unet.sample_size, unet.sample_size), config.references
    shapes = {
        "latents": (*grid, unet.in_channels),
        "references": (most, *grid, unet.in_channels),
        "present": (most,),
        "weight": grid,
        "text": text.shape[1:],
    }
    if config.people > 1:
        shapes |= {"masks": (config.people, *grid), "owner": (most,)}
    dtypes = {"owner": jnp.int32, "text": text.dtype}
    return {
        name: jax.ShapeDtypeStruct((config.batch_size, *shape), dtypes.get(name, jnp.float32))
        for name, shape in shapes.items()
    }
