"""Samplers: how a picture's latents get from noise to clean, one UNet answer at a time.

Every sampler offered here is a linear multistep method: the next latents are a weighted sum of
the present ones, of the UNet's last few answers and (ancestral sampling) of fresh noise. The
weights depend on the noise schedule only, so they are worked out beforehand in float64 and a
sampler is a table with one row for each call of the UNet. `advance` applies a row; it is the same
function for every sampler, and which sampler it is remains data inside a `lax.scan`.

Of the latents' two spaces `rows` tells.

Legend: s rows (calls of the UNet), b batch; a_t the schedule's `alphas_cumprod`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fusionjax.diffusion import tables
from fusionjax.diffusion.noise_schedule import NoiseSchedule
from fusionjax.diffusion.rows import HISTORY, Rows
from fusionjax.errors import UserError
from fusionjax.options import SCHEDULERS, check_number, not_one_of


class Carry(NamedTuple):
    """What a sampler hands from row to row: x, x* and the history of m, newest first."""

    latents: Float[Array, "b ..."]
    anchor: Float[Array, "b ..."]
    history: tuple[Float[Array, "b ..."], ...]

    @classmethod
    def start(cls, latents: Float[Array, "b ..."]) -> "Carry":
        """The state before the first row.

        Args:
            latents: the noise at the first level, see `Plan.start_noise`.

        Returns:
            The state; what it remembers is zero and no row looks at it before it is set.
        """
        return cls(latents, latents, (jnp.zeros_like(latents),) * HISTORY)


_ROOM = 64


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sampler with its number of steps settled.

    Attributes:
        rows: the table, float32 numpy arrays.
        start_clean: the share of a given picture's latents in the first row's latents.
        start_noise: the share of the unit starting noise in them.
    """

    rows: Rows
    start_clean: float
    start_noise: float

    def __len__(self) -> int:
        return len(self.rows.timesteps)

    @property
    def room(self) -> int:
        """The number of rows that programs are compiled for: more than one number of steps."""
        return -(-len(self) // _ROOM) * _ROOM

    def table(self) -> Rows:
        """The rows as programs take them: a first axis of length 1, then zeros up to `room`."""
        behind = self.room - len(self)
        return Rows(*(np.pad(c, [(0, behind), *[(0, 0)] * (c.ndim - 1)])[None] for c in self.rows))


def plan(schedule: NoiseSchedule, name: str, steps: int, *, strength: float | None = None) -> Plan:
    """Works out a sampler's table.

    Args:
        schedule: the base model's noise schedule and prediction type.
        name: one of `SCHEDULERS`; the ending "_karras" asks for the spacing of Karras et al.
            2022, eq. 5 (ρ = 7).
        steps: noise levels to visit, in [1, num_train_timesteps). PNDM calls the UNet once more.
        strength: None to start from noise alone; in (0, 1] to start from a given picture
            and run only this share of the steps.

    Returns:
        The plan.

    Raises:
        UserError: for an unknown name, a number of steps out of range, or a strength that leaves
            no step to run.
    """
    if name not in SCHEDULERS:
        raise UserError(not_one_of("scheduler", name, SCHEDULERS))
    if not 1 <= steps < schedule.num_train_timesteps:
        raise UserError(
            f"num_inference_steps is {steps}; it must be in 1..{schedule.num_train_timesteps - 1}"
        )
    first = 0
    if strength is not None:
        check_number("strength", strength, 0, 1, above=True)
        first = steps - min(int(steps * strength), steps)
        if first == steps:
            raise UserError(
                f"strength {strength} of {steps} steps leaves none to run; "
                f"use at least {math.ceil(1000 / steps) / 1000:g} or more steps"
            )
    built = tables.build(schedule, name, steps, first)
    rows, start_clean, start_noise, init_noise = built
    if strength is None:
        start_clean, start_noise = 0.0, init_noise
    return Plan(
        Rows(*(np.asarray(column, np.float32) for column in rows)),
        float(start_clean),
        float(start_noise),
    )


def advance(
    row: Rows,
    carry: Carry,
    model_output: Float[Array, "b ..."],
    noise: Float[Array, "b ..."] | float = 0.0,
) -> Carry:
    """One step of a sampler.

    Args:
        row: one row of the table (each field with its first axis indexed away).
        carry: the state before the step.
        model_output: the UNet's answer o at `row.timesteps` to `row.input_scale · latents`.
        noise: fresh unit noise; only rows whose `noise` is not zero use it.

    Returns:
        The state after the step.
    """
    x = carry.latents
    m = x * row.take_latents + model_output * row.take_output
    latents = x * row.keep + carry.anchor * row.keep_anchor + noise * row.noise
    for weight, past in zip(row.weights, (m, *carry.history), strict=True):
        latents = latents + past * weight
    remembered = (m, *carry.history[:-1])
    return Carry(
        latents,
        jnp.where(row.anchor > 0, x, carry.anchor),
        tuple(
            jnp.where(row.remember > 0, new, old)
            for new, old in zip(remembered, carry.history, strict=True)
        ),
    )


# row, the carry after it → the carry to go on with
Settle = Callable[[Rows, Carry], Carry]


def sample(
    predict: Callable[[Array, Array, Array], Array],
    carry: Carry,
    rows: Rows,
    *,
    span: tuple[Array | int, Array | int] | None = None,
    noise: Callable[[Array], Array] | None = None,
    settle: Settle | None = None,
) -> Carry:
    """Runs a sampler: the only loop over its rows.

    Args:
        predict: (latents as the UNet wants them, timesteps [b], the row's number) → its answer,
            guidance included.
        carry: the state before the first row that is run.
        rows: the table.
        span: the rows to run, from and until; they may be data. None is all.
        noise: the row's number → unit noise, for samplers that add some.
        settle: has the last word on each row's result.

    Returns:
        The state after the last row.
    """
    rows = jax.tree.map(jnp.asarray, rows)
    first, until = (0, len(rows.timesteps)) if span is None else span

    def step(index: Array, carry: Carry) -> Carry:
        row = jax.tree.map(lambda column: column[index], rows)
        timesteps = jnp.full(carry.latents.shape[0], row.timesteps)
        answer = predict(carry.latents * row.input_scale, timesteps, index)
        carry = advance(row, carry, answer, 0.0 if noise is None else noise(index))
        return carry if settle is None else settle(row, carry)

    return jax.lax.fori_loop(first, until, step, carry)
