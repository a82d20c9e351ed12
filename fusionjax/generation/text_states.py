"""What the UNet reads of the prompts: states of chunks, weighted, or given.

Legend: as in `scene.py`; t = 77 · chunks.
"""

import contextlib
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fusionjax.backend.flax_unet import with_vectors
from fusionjax.generation.scene import Scene
from fusionjax.models.base import BaseModel


def text_states(
    base: BaseModel, params: Any, scene: Scene, *, clip_skip: int | None
) -> Float[Array, "b2 t d"]:
    """Text states of the negative prompts, then of the prompts.

    Args:
        base: structure.
        params: its weights.
        scene: the batch.
        clip_skip: how many of the text encoder's last layers are left out.
    """
    b = scene.ids.shape[0]
    ids = jnp.concatenate([scene.negative_ids, scene.ids])
    states = encode_chunks(base, params, ids, clip_skip=clip_skip, vectors=scene.vectors)
    if scene.weights is not None and scene.negative_weights is not None:
        empty = encode_chunks(base, params, scene.empty_ids, clip_skip=clip_skip)
        weights = jnp.concatenate([scene.negative_weights, scene.weights])
        states = weighted(states, weights, empty)
    negative = states[:b] if scene.negative_embeds is None else scene.negative_embeds
    positive = states[b:] if scene.embeds is None else scene.embeds
    return jnp.concatenate([jnp.asarray(each, states.dtype) for each in (negative, positive)])


def encode_chunks(
    base: BaseModel,
    params: Any,
    ids: Int[Array, "b t"],
    *,
    clip_skip: int | None,
    vectors: Float[Array, "1 v d"] | None = None,
) -> Float[Array, "b t d"]:
    """Each chunk's states, one chunk behind the other.

    Args:
        base: structure.
        params: its weights.
        ids: of chunks with their own begin and end.
        clip_skip: how many of the text encoder's last layers are left out.
        vectors: embeddings of the ids that follow the text encoder's own.
    """
    b, t = ids.shape
    length = base.text_encoder.config.max_position_embeddings
    own_words = base.text_encoder.config.vocab_size
    with contextlib.ExitStack() as within:
        if vectors is not None:
            within.enter_context(nn.intercept_methods(with_vectors(vectors[0], own_words)))
        chunks = ids.reshape(b * t // length, length)
        states: Any = base.encode_text(params, chunks, clip_skip=clip_skip)
    return states.reshape(b, t, -1)


def weighted(
    states: Float[Array, "b t d"], weights: Float[Array, "b t"], empty: Float[Array, "1 l d"]
) -> Float[Array, "b t d"]:
    """Moves each token's state away from the empty prompt's, or towards it.

        z' = e + w (z − e)

    e is the empty prompt's state at the same place of a chunk. w = 1 is z itself, exactly; w = 0
    is as if nothing were written. Source: compel (https://github.com/damian0815/compel,
    `EmbeddingsProvider`, for weights above 1). AUTOMATIC1111 multiplies z by w and restores the
    mean of the whole prompt, which changes words that have no weight, and divides by a mean that
    may be zero.

    Args:
        states: z.
        weights: w.
        empty: e, of one chunk.
    """
    e = jnp.tile(empty, (1, states.shape[1] // empty.shape[1], 1)).astype(jnp.float32)
    w = weights[..., None]
    moved = e + w * (states.astype(jnp.float32) - e)
    return jnp.where(w == 1, states, moved.astype(states.dtype))
