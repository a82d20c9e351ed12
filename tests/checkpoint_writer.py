"""Saves checkpoints without end, for a test that kills it: `python -m tests.checkpoint_writer DIR`.

Everything in a checkpoint tells its step, so that a mixture of two would be seen.
"""

import dataclasses
import itertools
import sys

import jax
import jax.numpy as jnp

from fusionjax.models.checkpoint import Checkpoints


@dataclasses.dataclass
class State:
    ema: dict[str, jax.Array]
    more: jax.Array


jax.tree_util.register_dataclass(State, ["ema", "more"], [])


def state_of(step: int) -> State:
    return State({"x": jnp.full((64, 256), step, jnp.float32)}, jnp.full((300, 300), -step))


if __name__ == "__main__":
    checkpoints = Checkpoints(sys.argv[1])
    for step in itertools.count(1):
        checkpoints.save(step, state_of(step), {"next": step}, 1 / step if step % 3 else None)
