"""Batches in an order that the seed decides, read ahead of the device."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from fusionjax.data.records import Example
from fusionjax.errors import UserError


def stacked(examples: Sequence[Example]) -> Example:
    """A batch of examples that have the same arrays."""
    return {name: np.stack([each[name] for each in examples]) for name in examples[0]}


def filled(batch: np.ndarray, size: int) -> np.ndarray:
    """A batch of `size`, filled with its last entry."""
    return np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])


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
