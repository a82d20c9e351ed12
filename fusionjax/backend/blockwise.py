"""Equations 4 and 5 by XLA, one block of queries after the other, forward and backward.

M has one value for all keys of a reference and none for the text, so no queries × keys array is
ever kept.

Axes: b batch, q k queries and keys, f keys of one reference, r references, n heads, d features of
a head.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array

# λ = 0 and equation 7's −∞: a finite number whose exponential is exactly zero in every float type.
INVISIBLE = -1e9

# Scores of one block of queries. On a CPU they stay in its cache; more at once are slower.
_CPU_BLOCK_BYTES = 8 * 2**20
_ACCELERATOR_BLOCK_BYTES = 256 * 2**20
# What an accelerator's matrix units take without padding every block.
_ACCELERATOR_QUERIES, _ACCELERATOR_KEYS = 128, 64
# Below this many scores a loop costs more than it saves.
DIRECT_SCORES = 2**22


class _How(NamedTuple):
    """How blocks are computed; the last keys are padding, those before them the references'."""

    face_length: int  # keys of one reference
    hidden: int = 0  # keys that are padding
    ones: int | None = None  # the feature of V that holds ones, after which come no others of V's
    half: bool = False  # keep scores in float16


def blockwise(
    query: Array, key: Array, value: Array, bias: Array | None, face_length: int
) -> Array:
    """Attention over blocks of queries: the scores of one block exist at a time.

    On a CPU, whose matrix products are fastest two by two, the loops run over heads, pictures and
    query blocks; on an accelerator over query blocks. A loop over a sharded batch would gather it
    on every device, so pictures are kept together where the process has several. The backward
    pass works a block's scores out again from its rows' log-sum-exp (arXiv 2205.14135).
    """
    b, queries, heads, _ = query.shape
    if bias is None:
        bias = jnp.zeros((b, 1, 0), jnp.float32)
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    arrays = (query, key, value, bias[:, None].astype(jnp.float32))
    if b * heads * queries * key.shape[2] <= DIRECT_SCORES:
        out, _ = _attend(*arrays, _How(face_length))
    else:
        out = _in_blocks(*arrays, face_length)
    return out.swapaxes(1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _in_blocks(query: Array, key: Array, value: Array, bias: Array, face_length: int) -> Array:
    return _in_blocks_forward(query, key, value, bias, face_length)[0]


def _in_blocks_forward(
    query: Array, key: Array, value: Array, bias: Array, face_length: int
) -> tuple[Array, tuple[Array, ...]]:
    out, log_sum = jax.lax.platform_dependent(
        query, key, value, bias,
        cpu=functools.partial(_forward_on_cpu, face_length=face_length),
        default=functools.partial(_forward_on_accelerator, face_length=face_length),
    )  # fmt: skip
    return out, (query, key, value, bias, out, log_sum)


def _in_blocks_backward(
    face_length: int, saved: tuple[Array, ...], slope: Array
) -> tuple[Array, ...]:
    query, key, value, bias, out, log_sum = saved
    # Σ_k P dP of every row, which the slope of its softmax subtracts.
    mean = (slope.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
    *slopes, of_bias = jax.lax.platform_dependent(
        query, key, value, bias, log_sum, slope, mean,
        cpu=functools.partial(_backward_on_cpu, face_length=face_length),
        default=functools.partial(_backward_on_accelerator, face_length=face_length),
    )  # fmt: skip
    of_bias = of_bias.sum(1, keepdims=True)
    return *slopes, of_bias if bias.shape[2] > 1 else of_bias.sum(2, keepdims=True)


_in_blocks.defvjp(_in_blocks_forward, _in_blocks_backward)


def _forward_on_cpu(
    query: Array, key: Array, value: Array, bias: Array, *, face_length: int
) -> tuple[Array, Array]:
    def one(query: Array, key: Array, value: Array, bias: Array) -> tuple[Array, Array]:
        how, blocks = _How(face_length), _cpu_blocks(query, key)
        return _forward(query, key, value, bias, how, blocks)

    return _over_heads(one, (query, key, value), bias)


def _backward_on_cpu(
    query: Array, key: Array, value: Array, bias: Array,
    log_sum: Array, slope: Array, mean: Array, *, face_length: int,
) -> tuple[Array, ...]:  # fmt: skip
    def one(
        query: Array, key: Array, value: Array, log_sum: Array, slope: Array, mean: Array,
        bias: Array,
    ) -> tuple[Array, ...]:  # fmt: skip
        how, blocks = _How(face_length), _cpu_blocks(query, key)
        return _backward(query, key, value, bias, log_sum, slope, mean, how, blocks)

    return _over_heads(one, (query, key, value, log_sum, slope, mean), bias)


def _over_heads(body: Callable[..., Any], arrays: tuple[Array, ...], bias: Array) -> Any:
    """`body` for each head, and on one device for each picture, one after the other."""

    def one_head(of_head: tuple[Array, ...]) -> Any:
        if _one_device():
            return jax.lax.map(lambda x: body(*x), (*of_head, bias[:, 0]))
        return body(*of_head, bias[:, 0])

    out = jax.lax.map(one_head, tuple(x.swapaxes(0, 1) for x in arrays))
    return jax.tree.map(lambda x: x.swapaxes(0, 1), out)


def _one_device() -> bool:
    return jax.device_count() == 1


def _forward_on_accelerator(
    query: Array, key: Array, value: Array, bias: Array, *, face_length: int
) -> tuple[Array, Array]:
    features = value.shape[-1]
    how = _How(face_length, -key.shape[-2] % _ACCELERATOR_KEYS, features, _is_half(query))
    # The weights' sums come out of the product with the values, as one more feature of ones:
    # adding them up by themselves would read all scores once more.
    value = jnp.concatenate([value, jnp.ones_like(value[..., :1])], -1)
    value = pad(value, -1, features + 8)
    key, value = (pad(x, -2, key.shape[-2] + how.hidden) for x in (key, value))
    blocks = _accelerator_blocks(query, key)
    return _forward(query, key, value, bias, how, blocks)


def _backward_on_accelerator(
    query: Array, key: Array, value: Array, bias: Array,
    log_sum: Array, slope: Array, mean: Array, *, face_length: int,
) -> tuple[Array, ...]:  # fmt: skip
    keys = key.shape[-2]
    how = _How(face_length, -keys % _ACCELERATOR_KEYS, half=_is_half(query))
    key, value = (pad(x, -2, keys + how.hidden) for x in (key, value))
    of_query, of_key, of_value, of_bias = _backward(
        query, key, value, bias, log_sum, slope, mean, how, _accelerator_blocks(query, key)
    )
    return of_query, of_key[..., :keys, :], of_value[..., :keys, :], of_bias


def _cpu_blocks(query: Array, key: Array) -> tuple[int, int]:
    """How many blocks, of how many queries each."""
    *leading, queries, _ = query.shape
    most = max(_CPU_BLOCK_BYTES // (4 * math.prod(leading) * key.shape[-2]), 64)
    blocks = math.ceil(queries / most)
    return blocks, math.ceil(queries / blocks)


def _accelerator_blocks(query: Array, key: Array) -> tuple[int, int]:
    """Likewise, in whole tiles of the matrix units: few added queries first, then few blocks."""
    *leading, queries, _ = query.shape
    step = _ACCELERATOR_QUERIES
    most = _ACCELERATOR_BLOCK_BYTES // (4 * math.prod(leading) * key.shape[-2])
    sizes = range(step, max(most // step, 1) * step + 1, step)
    block = min(sizes, key=lambda size: (math.ceil(queries / size) * size, -size))
    return math.ceil(queries / block), block


def _forward(
    query: Array,
    key: Array,
    value: Array,
    bias: Array,
    how: _How,
    blocks: tuple[int, int],
) -> tuple[Array, Array]:
    """`_attend` block by block."""
    queries, per_query = query.shape[-2], bias.shape[-2] > 1

    def one_block(arrays: tuple[Array, Array | None]) -> tuple[Array, Array]:
        query, m = arrays
        return _attend(query, key, value, bias if m is None else m, how)

    of_blocks = (_to_blocks(query, blocks), _to_blocks(bias, blocks) if per_query else None)
    out, log_sum = jax.lax.map(one_block, of_blocks)
    return _from_blocks(out, queries), _from_blocks(log_sum[..., None], queries)[..., 0]


def _backward(
    query: Array, key: Array, value: Array, bias: Array,
    log_sum: Array, slope: Array, mean: Array,
    how: _How, blocks: tuple[int, int],
) -> tuple[Array, Array, Array, Array]:  # fmt: skip
    """The slopes of Q, K, V and of M, [... q r], block by block.

    With P the softmax, dO the output's slope and dP = dO Vᵀ: dS = P (dP − Σ P dP), dQ = α dS K,
    dK = α dSᵀ Q, dV = Pᵀ dO, and dM is dS summed over the keys of a reference.
    """
    queries, references = query.shape[-2], bias.shape[-1]
    scale = query.shape[-1] ** -0.5
    per_query = bias.shape[-2] > 1

    def one_block(
        sums: tuple[Array, Array], arrays: tuple[Array | None, ...]
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        query, slope, log_sum, mean, m = cast(tuple[Array, ...], arrays)
        m = bias if m is None else m
        scores, factor = _scores(query, key, how)
        weights = jnp.exp(factor * _biased(scores, m / factor, how) - log_sum)
        of_weights = _product("...qd,...kd->...qk", slope, value)
        of_logits = weights * (of_weights - mean)
        end = key.shape[-2] - how.hidden
        faces = of_logits[..., end - references * how.face_length : end]
        of_bias = faces.reshape(*faces.shape[:-1], references, how.face_length).sum(-1)
        weights, of_logits = (x.astype(query.dtype) for x in (weights, of_logits))
        # Keys come last: XLA on a CPU is slow where a product adds up over an array's rows.
        of_key = sums[0] + scale * _product("...qd,...qk->...dk", query, of_logits)
        of_value = sums[1] + _product("...qd,...qk->...dk", slope, weights)
        of_query = scale * _product("...qk,...kd->...qd", of_logits, key)
        return (of_key, of_value), (of_query.astype(query.dtype), of_bias)

    of_rows = (query, slope, log_sum[..., None], mean[..., None])
    rows = tuple(_to_blocks(x, blocks) for x in of_rows)
    of_key, of_value = (jnp.zeros_like(x.swapaxes(-1, -2), jnp.float32) for x in (key, value))
    sums, (of_query, of_bias) = jax.lax.scan(
        one_block, (of_key, of_value), (*rows, _to_blocks(bias, blocks) if per_query else None)
    )
    of_key, of_value = (x.swapaxes(-1, -2).astype(key.dtype) for x in sums)
    return _from_blocks(of_query, queries), of_key, of_value, _from_blocks(of_bias, queries)


def _to_blocks(x: Array, blocks: tuple[int, int]) -> Array:
    """[... q d] → [blocks ... block d]; the last block is filled up with zeros."""
    count, block = blocks
    x = pad(x, -2, count * block)
    return jnp.moveaxis(x.reshape(*x.shape[:-2], count, block, x.shape[-1]), -3, 0)


def _from_blocks(x: Array, queries: int) -> Array:
    count, *leading, block, features = x.shape
    joined = jnp.moveaxis(x, 0, -3).reshape(*leading, count * block, features)
    return joined[..., :queries, :]


def pad(x: Array, axis: int, length: int) -> Array:
    """Zeros at the end of an axis, until it is so long."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, length - x.shape[axis])
    return jnp.pad(x, padding)


def _product(axes: str, a: Array, b: Array) -> Array:
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)


def _attend(query: Array, key: Array, value: Array, bias: Array, how: _How) -> tuple[Array, Array]:
    """Equations 4 and 5 on [... q d], [... k d] and M [... q r]; the softmax in float32.

    Args:
        query: Q.
        key: K.
        value: V.
        bias: M of every reference.
        how: what the last keys are, and so on; the output has what V has before its ones.

    Returns:
        h, and the log-sum-exp of every row [... q].
    """
    scores, scale = _scores(query, key, how)
    scores = _biased(scores, bias / scale, how)
    # The factor α comes last, where it costs no pass over the scores of its own.
    highest = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.exp(scale * (scores - highest))
    out = _product("...qk,...kd->...qd", weights.astype(value.dtype), value)
    if how.ones is None:
        total = weights.sum(-1, keepdims=True)
    else:
        out, total = out[..., : how.ones], out[..., how.ones : how.ones + 1]
    return (out / total).astype(value.dtype), (scale * highest + jnp.log(total))[..., 0]


def _is_half(query: Array) -> bool:
    return query.dtype == jnp.float16


def _scores(query: Array, key: Array, how: _How) -> tuple[Array, float]:
    """Q Kᵀ up to a factor, and what it is to be multiplied with to be α Q Kᵀ.

    In float16, where a GPU has no flash kernel, most of attention's time goes into moving scores
    between passes. They are kept in the 11 bits of their factors then, with as much of α before
    the product as rounds nothing; the sums inside the product, and the softmax, are in float32.
    """
    scale = query.shape[-1] ** -0.5
    if not how.half:
        return _product("...qd,...kd->...qk", query, key), scale
    before = 2.0 ** math.floor(math.log2(scale))
    scores = jnp.einsum(
        "...qd,...kd->...qk",
        query * jnp.asarray(before, query.dtype),
        key,
        preferred_element_type=jnp.float16,
    )
    largest = float(jnp.finfo(jnp.float16).max)
    return jnp.clip(scores, -largest, largest).astype(jnp.float32), scale / before


def _biased(scores: Array, bias: Array, how: _How) -> Array:
    """Scores [... q k] plus M [... q r], which is zero for the text and hides what is padding."""
    if not bias.shape[-1] and not how.hidden:
        return scores
    faces = jnp.repeat(bias.astype(jnp.float32), how.face_length, axis=-1)
    text = scores.shape[-1] - faces.shape[-1] - how.hidden
    parts = [jnp.zeros((*faces.shape[:-1], text), jnp.float32), faces]
    if how.hidden:
        parts.append(jnp.full((*faces.shape[:-1], how.hidden), INVISIBLE, jnp.float32))
    return scores + jnp.concatenate(parts, axis=-1)
