"""Guidance: how the UNet's answers with and without text and faces are put together.

Legend: b images, g branches of the guidance, first the negative prompt's.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# latents [g·b, h, w, c] and timesteps [g·b], branch by branch → the UNet's answers
Predict = Callable[[Array, Array], Array]


def branch_weights(
    text: Float[np.ndarray, " b"], faces: Float[np.ndarray, " b"] | None = None
) -> Float[np.ndarray, "b g"]:
    """The weight of each branch's answer, which sum to 1 for each image.

    With u the answer to the negative prompt, t to the prompt and f to prompt and faces:
    u + text · (f − u), or with a scale for the faces of their own
    u + text · (t − u) + faces · (f − t).

    Args:
        text: the guidance scale; where all are 1, one branch is enough.
        faces: the faces' own scale, which asks for a third branch.

    Returns:
        Weights for 1, 2 or 3 branches.
    """
    text = np.asarray(text, np.float32)
    if faces is not None:
        faces = np.asarray(faces, np.float32)
        return np.stack([1 - text, text - faces, faces], -1)
    if (text == 1).all():
        return np.ones((len(text), 1), np.float32)
    return np.stack([1 - text, text], -1)


def guided(
    predict: Predict,
    weights: Float[Array | np.ndarray, "#b g"],
    rescale: Float[Array | np.ndarray, " b"] | None = None,
) -> Predict:
    """Classifier-free guidance in one pass: all branches are one batch.

    Args:
        predict: answers for g branches of b images, the first branch's images first.
        weights: from `branch_weights`; one row may serve all images.
        rescale: φ in [0, 1]: how much of the guided answer's standard deviation becomes that of
            the answer to prompt and faces (equations 15 and 16 of arXiv 2305.08891); None: 0.

    Returns:
        A function of the latents [b, h, w, c] and timesteps [b] of the images.
    """
    branches = weights.shape[-1]

    def answer(latents: Array, timesteps: Array) -> Array:
        answers = predict(for_branches(latents, branches), for_branches(timesteps, branches))
        each = answers.reshape(branches, *latents.shape)
        # A sum and no product of matrices, which a TPU would round to 16 bits.
        by_branch = jnp.reshape(jnp.transpose(weights), (branches, -1, *[1] * (latents.ndim - 1)))
        mixed = (by_branch * each).sum(0)
        if rescale is None:
            return mixed
        axes = tuple(range(1, latents.ndim))
        factor = each[-1].std(axes, keepdims=True) / mixed.std(axes, keepdims=True)
        share = jnp.reshape(rescale, (-1, *[1] * (latents.ndim - 1)))
        return mixed * (share * factor + 1 - share)

    return answer


def for_branches(array: Array, branches: int) -> Array:
    """The same for each branch."""
    return jnp.tile(array, (branches, *[1] * (array.ndim - 1)))


def of_branches(negative: Any, positive: Any, branches: int) -> Any:
    """What each branch is given: the first the negative, the others the positive."""
    parts = [*[negative] * (branches > 1), positive, *[positive] * (branches > 2)]
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)
