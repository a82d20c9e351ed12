"""From a dataset's folder to batches: the order depends on the seed alone, never on timing.

Legend: b batch, H W picture pixels.
"""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from fusionjax.errors import UserError

Example = dict[str, Any]


def dataset_info(folder: str | Path) -> Path:
    """The file that says what the TFDS dataset in a folder holds.

    Raises:
        UserError: if there is no dataset.
    """
    info = Path(folder) / "dataset_info.json"
    if not info.is_file():
        raise UserError(
            f"data.folder is {str(folder)!r}; it holds no dataset_info.json: name the folder "
            "of a TFDS dataset, or build one first"
        )
    return info


def open_records(folder: str | Path, split: str) -> Any:
    """Opens one split of a TFDS ArrayRecord dataset; pictures stay encoded.

    Args:
        folder: the folder that holds `dataset_info.json`.
        split: a split's name, slice or sum, such as `train`, `train[:100]` or `train+scenes`.

    Returns:
        A random-access source of examples: `len(source)`, `source[i]`.

    Raises:
        UserError: if there is no such dataset or split.
    """
    dataset_info(folder)
    import tensorflow_datasets as tfds

    class Encoded(tfds.decode.SkipDecoding):
        """Leaves a picture's bytes as they are, in a sequence too."""

        def decode_batch_example_np(self, example: Any) -> Any:
            return example

    builder = tfds.builder_from_directory(str(folder))
    known = sorted(builder.info.splits)
    for name in re.split(r"\s*\+\s*", re.sub(r"\[.*?\]", "", split)):
        if name not in known:
            raise UserError(
                f"split {name!r} is not in {str(folder)!r}; there are {', '.join(known)}"
            )
    encoded = {
        key: Encoded()
        for key, feature in builder.info.features.items()
        if isinstance(getattr(feature, "feature", feature), tfds.features.Image)
    }
    return builder.as_data_source(split, decoders=encoded or None)


def decode_image(encoded: Any) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes PNG or JPEG bytes (or passes an array on) to RGB.

    Args:
        encoded: the file's bytes, or an array [H, W, 3] of RGB values.

    Returns:
        RGB values.

    Raises:
        ValueError: if the bytes are no picture.
    """
    if isinstance(encoded, np.ndarray) and encoded.dtype == np.uint8 and encoded.ndim == 3:
        return encoded
    import cv2  # here: training on cached latents decodes nothing

    if isinstance(encoded, io.IOBase):
        encoded = encoded.read()
    encoded = bytes(encoded)
    picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR) if encoded else None
    if picture is None:
        raise ValueError("not a readable picture")
    return np.ascontiguousarray(picture[..., ::-1])


def to_unit(image: UInt8[np.ndarray, "*b H W 3"]) -> Float[np.ndarray, "*b H W 3"]:
    """From 0..255 to -1..1, float32."""
    return image.astype(np.float32) / 127.5 - 1


def to_bytes(image: Float[Any, "*b H W 3"]) -> UInt8[np.ndarray, "*b H W 3"]:
    """From -1..1 to 0..255, rounded and clipped."""
    return np.clip(np.round((np.asarray(image, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def stacked(examples: Sequence[Example]) -> Example:
    """A batch of examples that have the same arrays."""
    return {name: np.stack([each[name] for each in examples]) for name in examples[0]}


class Batches(Iterator[Example]):
    """An endless iterator over batches whose position can be saved and set.

    Each pass over the data is shuffled anew. Of several processes each gets its share of every
    batch; together they see what a single process would.
    """

    def __init__(
        self,
        source: Any,
        make: Callable[[Example, np.random.Generator], Example],
        *,
        batch_size: int,
        seed: int,
        threads: int = 2,
        buffered: int = 4,
    ) -> None:
        """Sets the order up; nothing is read yet.

        Args:
            source: random-access examples.
            make: turns one example into arrays; its generator depends on the seed and the
                example's position alone.
            batch_size: examples a batch over all processes.
            seed: decides the order and what `make` draws.
            threads: threads that read ahead.
            buffered: batches kept ready.

        Raises:
            UserError: if a batch cannot be filled or shared out.
        """
        import grain  # here: only reading batches needs it

        processes = jax.process_count()
        if batch_size % processes:
            raise UserError(
                f"batch_size is {batch_size}; it must be a multiple of the {processes} processes"
            )
        if len(source) < processes:
            raise UserError(f"the split holds {len(source)} examples for {processes} processes")
        # Process p of n takes parts p, p + n, …: the n parts of a batch are the very examples that
        # a single process would put into it, in the same order and drawn alike.
        dataset = (
            grain.MapDataset.source(source)
            .seed(seed)
            .shuffle()
            .repeat()
            .random_map(make)
            .batch(batch_size // processes)
            .slice(slice(jax.process_index(), None, processes))
        )
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffered)
        self._iterator = iter(dataset.to_iter_dataset(options))

    def __next__(self) -> Example:
        return next(self._iterator)

    def position(self) -> dict[str, Any]:
        """Where the iterator is, as JSON values."""
        return self._iterator.get_state()

    def seek(self, position: dict[str, Any]) -> None:
        """Goes to a position that `position` returned in a run with the same data and seed."""
        self._iterator.set_state(position)

    def close(self) -> None:
        """Stops reading ahead."""
        self._iterator.close()
