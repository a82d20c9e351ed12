"""Guidance: how the UNet's answers with and without text and faces are put together."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Predict = Callable[[jax.Array, jax.Array], jax.Array]


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
