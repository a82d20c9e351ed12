"""Pictures while training: the sampler's loop, compiled once for a fixed number of pictures."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fusionjax.schedulers import Carry, Plan, Rows, advance

Predict = Callable[[jax.Array, jax.Array], jax.Array]


def sample(predict: Predict, noise: jax.Array, plan: Plan) -> jax.Array:
    """Runs a deterministic sampler from unit noise.

    Args:
        predict: (latents [b, h, w, c], timesteps [b]) → the UNet's answer, guidance included.
        noise: unit normal [b, h, w, c].
        plan: as from `fusionjax.schedulers.plan`.

    Returns:
        Clean latents [b, h, w, c].
    """

    def one(carry: Carry, row: Rows) -> tuple[Carry, None]:
        timesteps = jnp.full(noise.shape[0], row.timesteps)
        return advance(row, carry, predict(carry.latents * row.input_scale, timesteps)), None

    carry, _ = jax.lax.scan(
        one, Carry.start(noise * plan.start_noise), jax.tree.map(jnp.asarray, plan.rows)
    )
    return carry.latents


def guided(predict: Predict, scale: float) -> Predict:
    """Classifier-free guidance in one pass of twice the batch.

    Args:
        predict: (latents, timesteps) → the UNet's answer; the first half of what it is given
            stands for the empty prompt, the second for the prompts.
        scale: 1 is no guidance.

    Returns:
        A function of latents and timesteps.
    """

    def both(latents: jax.Array, timesteps: jax.Array) -> jax.Array:
        without, with_text = jnp.split(
            predict(jnp.tile(latents, (2, 1, 1, 1)), jnp.tile(timesteps, 2)), 2
        )
        return without + scale * (with_text - without)

    return both
