"""How equations 4 and 5 are computed: by XLA block by block, by cuDNN, or by Pallas on a TPU.

A kernel is given Q, K, V and M per reference, [b, q or 1, r]: one value for all keys of a
reference. The last r · f keys are those of the references; the text's, before them, have no M.

Axes: b batch, q k queries and keys, f keys of one reference, r references, n heads, d features of
a head, v features of a value.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from fusionjax.backend.blockwise import DIRECT_SCORES, INVISIBLE, blockwise, pad
from fusionjax.errors import UserError
from fusionjax.options import IMPLEMENTATIONS, Implementation, not_one_of

# Fewer queries than this gain nothing from a flash kernel on a TPU.
_TPU_QUERIES = 1024
# Blocks of Pallas' flash attention, and what share of the tokens a larger one may add as padding.
_TPU_BLOCKS, _TPU_PADDING = (512, 384, 256, 128), 1 / 16
# cuDNN's widest head on an A100.
_CUDNN_FEATURES = 128

# query, key, value, bias [b, q or 1, r] of the last r·f keys, keys of one reference → output
Kernel = Callable[[Array, Array, Array, Array | None, int], Array]


def kernel_by_name(implementation: Implementation | str, mesh: Mesh | None = None) -> Kernel:
    """The kernel of an implementation; what it cannot do it leaves to `blockwise`.

    Args:
        implementation: its name.
        mesh: see `attention.attention`.

    Raises:
        UserError: for an unknown name.
    """
    kernels: dict[str, Kernel] = {
        "xla": blockwise,
        "cudnn": functools.partial(_cudnn, mesh=mesh),
        "tpu": functools.partial(_tpu, mesh=mesh),
    }
    if implementation not in kernels:
        raise UserError(not_one_of("implementation", implementation, IMPLEMENTATIONS))
    return kernels[implementation]


def _cudnn(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None,
    face_length: int,
    *,
    mesh: Mesh | None,
) -> Array:
    """cuDNN's flash attention; heads wider than it takes go to `blockwise`."""
    # Its backward pass refuses an odd number of keys.
    arrays = _with_bias_as_features(query, key, value, bias, face_length, keys_multiple=2)
    if arrays[0].shape[-1] > _CUDNN_FEATURES or query.dtype.itemsize != 2:
        return blockwise(query, key, value, bias, face_length)

    def flash(query_: Array, key_: Array, value_: Array) -> Array:
        return jax.nn.dot_product_attention(
            query_, key_, value_, scale=query.shape[-1] ** -0.5, implementation="cudnn"
        )

    return _by_batch(flash, mesh, query.shape[0])(*arrays)[..., : value.shape[-1]]


def _tpu(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None,
    face_length: int,
    *,
    mesh: Mesh | None,
) -> Array:
    """Pallas' flash attention for TPU; short sequences, where it gains nothing, by `blockwise`.

    So is a batch that a mesh does not divide, such as the few pictures of a training run's grid.
    """
    b, queries, heads, _ = query.shape
    shards = 1 if mesh is None else mesh.size
    few = queries < _TPU_QUERIES or b * heads * queries * key.shape[1] <= DIRECT_SCORES
    if few or b % shards:
        return blockwise(query, key, value, bias, face_length)

    block_q, block_k = _tpu_block(queries), _tpu_block(key.shape[1])
    scale = query.shape[-1] ** -0.5

    def flash(query: Array, key: Array, value: Array) -> Array:
        # Imported here: Pallas is slow to import, and only a TPU runs this.
        from jax.experimental.pallas.ops.tpu import flash_attention

        sizes = flash_attention.BlockSizes(
            block_b=1, block_q=block_q, block_k_major=block_k, block_k=block_k,
            block_q_major_dkv=block_q, block_q_dkv=block_q,
            block_k_major_dkv=block_k, block_k_dkv=block_k,
            block_q_dq=block_q, block_k_major_dq=block_k, block_k_dq=block_k,
        )  # fmt: skip
        heads_first = (x.swapaxes(1, 2) for x in (query, key, value))
        out = flash_attention.flash_attention(*heads_first, sm_scale=scale, block_sizes=sizes)
        return out.swapaxes(1, 2)

    arrays = _with_bias_as_features(
        query, key, value, bias, face_length, queries_multiple=block_q, keys_multiple=block_k
    )
    return _by_batch(flash, mesh, b)(*arrays)[:, :queries, :, : value.shape[-1]]


def _by_batch(flash: Callable[..., Array], mesh: Mesh | None, b: int) -> Callable[..., Array]:
    """A kernel that each device of a mesh runs on its part of the batch, if that can be divided.

    The compiler cannot cut Pallas' kernels up, and cuDNN's only where Q, K and V lie alike, as
    pictures and an empty prompt that all of them share do not.
    """
    if mesh is None or b % mesh.size:
        return flash
    spec = PartitionSpec(mesh.axis_names)
    return jax.shard_map(flash, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)


def _tpu_block(tokens: int) -> int:
    """The largest block that adds little padding to so many tokens."""
    return next(
        block
        for block in _TPU_BLOCKS
        if -tokens % block <= _TPU_PADDING * tokens or block == min(_TPU_BLOCKS)
    )


def _with_bias_as_features(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None,
    face_length: int,
    *,
    queries_multiple: int = 1,
    keys_multiple: int = 1,
) -> tuple[Array, Array, Array]:
    """Writes M into extra features, so that any attention kernel applies it.

    M has one value for each query and reference, so it is a product of rank r: with the features
    M / α appended to Q and "is a key of reference j" appended to K, α Q Kᵀ + M is α Q'K'ᵀ. Two
    features a reference hold M as a 16-bit number and its remainder.

    Args:
        query: [b, q, n, d].
        key: [b, k, n, d].
        value: [b, k, n, v].
        bias: [b, q or 1, r] or None.
        face_length: Keys of one reference; the last r · face_length keys belong to references.
        queries_multiple: Queries are padded to a multiple of this.
        keys_multiple: Keys are padded to a multiple of this; added keys are hidden.

    Returns:
        The three arrays with the same number of features, a multiple of 8.
    """
    b, queries, _, features = query.shape
    keys = key.shape[1]
    hidden = -keys % keys_multiple
    if bias is None:
        bias = jnp.zeros((b, 1, 0), jnp.float32)
    references = bias.shape[-1]
    owner = np.repeat(  # text, references, padding
        np.arange(-1, references + 1),
        [keys - references * face_length, *references * [face_length], hidden],
    )
    if hidden:
        bias = jnp.pad(bias, ((0, 0), (0, 0), (0, 1)), constant_values=INVISIBLE)

    key, value = (pad(x, 1, keys + hidden) for x in (key, value))
    query = pad(query, 1, queries + -queries % queries_multiple)
    if groups := bias.shape[-1]:
        lowest = max(INVISIBLE, 0.25 * float(jnp.finfo(query.dtype).min))
        wanted = jnp.maximum(bias.astype(jnp.float32) * features**0.5, lowest)
        coarse = wanted.astype(query.dtype)
        fine = (wanted - coarse.astype(jnp.float32)).astype(query.dtype)
        m = jnp.concatenate([coarse, fine], -1)
        if m.shape[1] > 1:
            m = pad(m, 1, query.shape[1])
        is_owner = jnp.asarray(np.tile(owner[:, None] == np.arange(groups), (1, 2)), key.dtype)
        query, key = (
            jnp.concatenate([x, jnp.broadcast_to(more, (*x.shape[:3], 2 * groups))], -1)
            for x, more in ((query, m[:, :, None]), (key, is_owner[None, :, None]))
        )
    width = max(query.shape[-1], value.shape[-1])
    width += -width % 8
    return pad(query, 3, width), pad(key, 3, width), pad(value, 3, width)
