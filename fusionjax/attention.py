"""Equations 3 to 5: one softmax over the text and the faces.

    K' = [Kc; Kf1; …; Kfr]      V' likewise                         (3, 6)
    S  = softmax(M + α Q K'ᵀ)   α = dim_head^-½                     (4)
    h  = S V'                                                       (5)

M is stored per *reference*, [b, q or 1, r]: it has one value for all keys of a reference and is
zero for the text, so no queries × keys array is ever kept. λ = 0 and equation 7's −∞ are
`INVISIBLE`: a finite number whose exponential is exactly zero in every float type.

Axes: b batch, q k queries and keys, f keys of one reference, r references, n heads,
d features of a head.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from fusionjax.errors import UserError

Fusion = Literal["concat", "decoupled"]
Implementation = Literal["xla", "cudnn", "tpu"]

INVISIBLE = -1e9

# Scores of one block of queries. On a CPU they stay in its cache; more at once are slower.
_CPU_BLOCK_BYTES = 8 * 2**20
_ACCELERATOR_BLOCK_BYTES = 256 * 2**20
# Fewer queries than this gain nothing from a flash kernel on a TPU.
_TPU_QUERIES = 1024
# Below this many scores a loop costs more than it saves.
_DIRECT_SCORES = 2**22

# query, key, value, bias [b, q or 1, r] of the last r·f keys, keys of one reference → output
_Kernel = Callable[[Array, Array, Array, Array | None, int], Array]


def attention(
    query: Float[Array, "b q n d"],
    key: Float[Array, "b t n d"],
    value: Float[Array, "b t n v"],
    face_key: Float[Array, "b r f n d"] | None = None,
    face_value: Float[Array, "b r f n v"] | None = None,
    bias: Float[Array, "b #q r"] | None = None,
    *,
    fusion: Fusion | str = "concat",
    implementation: Implementation | str | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "b q n v"]:
    """Attends from image tokens to text keys and face keys (equations 3 to 5).

    Without face keys it is ordinary attention, and serves the self-attention layers too.

    Args:
        query: Q of the image tokens; float32, bfloat16 or float16.
        key: Kc, the text's keys (or, in self-attention, the image's).
        value: Vc.
        face_key: Kf of every reference.
        face_value: Vf.
        bias: M: log λ plus equation 7 for each query and reference, natural logarithm; a second
            axis of length 1 holds for all queries. `INVISIBLE` or less hides a reference. None
            is zero everywhere (λ = 1).
        fusion: `concat` is the paper's one softmax. `decoupled` adds a second softmax over the
            faces alone, scaled by its largest λ (IP-Adapter, arXiv 2308.06721, eq. 5, where all
            λ are equal).
        implementation: `xla` (blockwise, runs anywhere), `cudnn` (Ampere or newer, 16-bit
            inputs), `tpu` (Pallas flash kernel); None chooses by `default_implementation`. A
            layer that the named kernel cannot do (a head too wide for cuDNN) runs by `xla`.
        mesh: With several devices, the mesh over whose axes the batch is sharded. Only `tpu`
            needs it: a Pallas kernel cannot be partitioned by the compiler.

    Returns:
        h of equation 5, before the output projection, in the dtype of `value`. The softmax is
        computed in float32 for every input dtype.

    Raises:
        UserError: On an unknown `fusion` or `implementation`.
    """
    if fusion not in get_args(Fusion):
        raise UserError(f"fusion is {fusion!r}; choose one of {', '.join(get_args(Fusion))}")
    kernel = _kernel(implementation or default_implementation(query.dtype), mesh)
    if face_key is None or face_value is None:
        return kernel(query, key, value, None, 0)

    face_length = face_key.shape[2]
    face_key, face_value = _join_references(face_key), _join_references(face_value)
    if fusion == "concat":
        joined_key = jnp.concatenate([key, face_key], axis=1)
        joined_value = jnp.concatenate([value, face_value], axis=1)
        return kernel(query, joined_key, joined_value, bias, face_length)

    from_text = kernel(query, key, value, None, 0)
    if bias is None:
        return from_text + kernel(query, face_key, face_value, None, 0)
    # The strongest reference of a query sets the scale, the others count relative to it, so that
    # the output is continuous in every λ and no row of the softmax is empty.
    strongest = bias.max(-1, keepdims=True)
    from_faces = kernel(query, face_key, face_value, bias - strongest, face_length)
    scale = jnp.exp(strongest).astype(from_faces.dtype)
    return from_text + scale[..., None] * from_faces


def attention_share(
    query: Float[Array, "b q n d"],
    key: Float[Array, "b t n d"],
    face_key: Float[Array, "b r f n d"],
    bias: Float[Array, "b #q r"] | None = None,
) -> Float[Array, "b q s"]:
    """The share of the shared softmax that the text and each reference receive, mean of heads.

    Args:
        query: Q of the image tokens.
        key: Kc.
        face_key: Kf of every reference.
        bias: As for `attention`.

    Returns:
        s = 1 + r shares of every query, the text's first; they sum to 1.
    """
    b, references, face_length, heads, _ = face_key.shape
    receiver = jnp.repeat(
        jnp.arange(1 + references),
        jnp.array([key.shape[1]] + references * [face_length]),
        total_repeat_length=key.shape[1] + references * face_length,
    )
    indicator = jax.nn.one_hot(receiver, 1 + references, dtype=jnp.float32)
    joined_key = jnp.concatenate([key, _join_references(face_key)], axis=1)
    value = jnp.broadcast_to(
        indicator[None, :, None, :], (b, *indicator.shape[:1], heads, 1 + references)
    )
    return _blockwise(query, joined_key, value, bias, face_length).mean(2)


def default_implementation(
    dtype: jax.typing.DTypeLike, devices: Sequence[jax.Device] | None = None
) -> Implementation:
    """The fastest implementation for inputs of `dtype`.

    Args:
        dtype: Of queries, keys and values.
        devices: What it will run on; None is this process's devices.

    Returns:
        Its name.
    """
    devices = jax.devices() if devices is None else devices
    device = devices[0]
    if device.platform == "gpu" and jnp.dtype(dtype).itemsize == 2:
        capability = str(getattr(device, "compute_capability", "0.0"))
        if float(capability.partition(".")[0]) >= 8:
            return "cudnn"
    if device.platform == "tpu" and len(devices) == 1:
        return "tpu"
    return "xla"


def _kernel(implementation: str, mesh: Mesh | None) -> _Kernel:
    if implementation == "xla":
        return _blockwise
    if implementation == "cudnn":
        return _cudnn
    if implementation == "tpu":
        return functools.partial(_tpu, mesh=mesh)
    raise UserError(
        f"implementation is {implementation!r}; choose one of {', '.join(get_args(Implementation))}"
    )


def _join_references(faces: Array) -> Array:
    b, references, length, *features = faces.shape
    return faces.reshape(b, references * length, *features)


# --- blockwise XLA ----------------------------------------------------------------------------


def _blockwise(
    query: Array, key: Array, value: Array, bias: Array | None, face_length: int
) -> Array:
    """Attention over blocks of queries: the scores of one block exist at a time.

    On a CPU, whose matrix products are fastest two by two, the loops run over heads, pictures and
    query blocks; on an accelerator over query blocks. A loop over a sharded batch would gather it
    on every device, so pictures are kept together where the process has several. The body is
    rematerialised, so the backward pass keeps no scores either.
    """
    b, queries, heads, _ = query.shape
    direct = b * heads * queries * key.shape[1] <= _DIRECT_SCORES
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    if bias is None:
        bias = jnp.zeros((b, 1, 0), jnp.float32)
    if direct:
        return _attend(query, key, value, bias[:, None], face_length).swapaxes(1, 2)

    def on_cpu(*arrays: Array) -> Array:
        return _loop_over_heads(*arrays, face_length=face_length)

    def on_accelerator(*arrays: Array) -> Array:
        return _loop_over_queries(*arrays, face_length=face_length)

    out = jax.lax.platform_dependent(query, key, value, bias, cpu=on_cpu, default=on_accelerator)
    return out.swapaxes(1, 2)


def _loop_over_heads(
    query: Array, key: Array, value: Array, bias: Array, *, face_length: int
) -> Array:
    def one_picture(arrays: tuple[Array, Array, Array, Array]) -> Array:
        return _map_query_blocks(*arrays, face_length, _CPU_BLOCK_BYTES)

    def one_head(arrays: tuple[Array, Array, Array]) -> Array:
        pictures = (*arrays, bias)
        return jax.lax.map(one_picture, pictures) if _one_device() else one_picture(pictures)

    out = jax.lax.map(one_head, tuple(x.swapaxes(0, 1) for x in (query, key, value)))
    return out.swapaxes(0, 1)


def _one_device() -> bool:
    return jax.device_count() == 1


def _loop_over_queries(
    query: Array, key: Array, value: Array, bias: Array, *, face_length: int
) -> Array:
    return _map_query_blocks(
        query, key, value, bias[:, None], face_length, _ACCELERATOR_BLOCK_BYTES
    )


def _map_query_blocks(
    query: Array, key: Array, value: Array, bias: Array, face_length: int, block_bytes: int
) -> Array:
    """`_attend` for at most `block_bytes` of scores at a time."""
    *leading, queries, _ = query.shape
    block = max(block_bytes // (4 * math.prod(leading) * key.shape[-2]), 64)
    blocks = math.ceil(queries / block)
    block = math.ceil(queries / blocks)
    per_query = bias.shape[-2] > 1

    @jax.checkpoint
    def one_block(arrays: tuple[Array, Array | None]) -> Array:
        query_block, bias_block = arrays
        return _attend(
            query_block, key, value, bias if bias_block is None else bias_block, face_length
        )

    bias_blocks = _to_blocks(bias, blocks, block) if per_query else None
    out = jax.lax.map(one_block, (_to_blocks(query, blocks, block), bias_blocks))
    return jnp.moveaxis(out, 0, -3).reshape(*leading, blocks * block, -1)[..., :queries, :]


def _to_blocks(x: Array, blocks: int, block: int) -> Array:
    x = _pad(x, x.ndim - 2, blocks * block)
    return jnp.moveaxis(x.reshape(*x.shape[:-2], blocks, block, x.shape[-1]), -3, 0)


def _pad(x: Array, axis: int, length: int) -> Array:
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, length - x.shape[axis])
    return jnp.pad(x, padding)


def _attend(query: Array, key: Array, value: Array, bias: Array, face_length: int) -> Array:
    """Equations 4 and 5 on [... q d], [... k d] and M [... q r]; the softmax in float32."""
    scale = query.shape[-1] ** -0.5
    scores = jnp.einsum("...qd,...kd->...qk", query, key, preferred_element_type=jnp.float32)
    if bias.shape[-1]:
        scores = scores + _bias_of_keys(bias / scale, key.shape[-2], face_length)
    # The factor α comes last, where it costs no pass over the scores of its own.
    weights = jnp.exp(scale * (scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True))))
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum(
        "...qk,...kd->...qd",
        weights.astype(value.dtype),
        value,
        preferred_element_type=jnp.float32,
    )
    return (out / total).astype(value.dtype)


def _bias_of_keys(bias: Array, keys: int, face_length: int) -> Array:
    """M of equation 4 for a block of queries: [... q r] → [... q k], zero for the text."""
    faces = jnp.repeat(bias.astype(jnp.float32), face_length, axis=-1)
    text = jnp.zeros((*faces.shape[:-1], keys - faces.shape[-1]), jnp.float32)
    return jnp.concatenate([text, faces], axis=-1)


# --- flash kernels ----------------------------------------------------------------------------


def _cudnn(query: Array, key: Array, value: Array, bias: Array | None, face_length: int) -> Array:
    """cuDNN's flash attention; heads wider than it takes go to `_blockwise`."""
    query_, key_, value_ = _with_bias_as_features(query, key, value, bias, face_length, multiple=8)
    if query_.shape[-1] > 128 or query.dtype.itemsize != 2:
        return _blockwise(query, key, value, bias, face_length)
    out = jax.nn.dot_product_attention(
        query_, key_, value_, scale=query.shape[-1] ** -0.5, implementation="cudnn"
    )
    return out[..., : value.shape[-1]]


def _tpu(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None,
    face_length: int,
    *,
    mesh: Mesh | None,
) -> Array:
    """Pallas' flash attention for TPU; short sequences, where it gains nothing, by `_blockwise`."""
    b, queries, heads, _ = query.shape
    if queries < _TPU_QUERIES or b * heads * queries * key.shape[1] <= _DIRECT_SCORES:
        return _blockwise(query, key, value, bias, face_length)

    scale = query.shape[-1] ** -0.5

    def flash(query: Array, key: Array, value: Array) -> Array:
        # Imported here: Pallas is slow to import, and only a TPU runs this.
        from jax.experimental.pallas.ops.tpu import flash_attention

        heads_first = (x.swapaxes(1, 2) for x in (query, key, value))
        return flash_attention.flash_attention(*heads_first, sm_scale=scale).swapaxes(1, 2)

    arrays = _with_bias_as_features(
        query, key, value, bias, face_length, multiple=128, tokens_multiple=128
    )
    if mesh is not None and mesh.size > 1:
        spec = PartitionSpec(mesh.axis_names)
        flash = jax.shard_map(flash, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return flash(*arrays)[:, :queries, :, : value.shape[-1]]


def _with_bias_as_features(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None,
    face_length: int,
    *,
    multiple: int,
    tokens_multiple: int = 1,
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
        multiple: Features are padded with zeros to a multiple of this.
        tokens_multiple: Queries and keys are padded to a multiple of this; added keys are hidden.

    Returns:
        The three arrays with the same, padded, number of features.
    """
    _, queries, _, features = query.shape
    keys = key.shape[1]
    hidden_keys = -keys % tokens_multiple
    if bias is None:
        bias = jnp.zeros((b, 1, 0))
    references = bias.shape[-1]
    owner = jnp.repeat(
        jnp.arange(-1, references + 1),  # text, references, padding
        jnp.array([keys - references * face_length, *references * [face_length], hidden_keys]),
        total_repeat_length=keys + hidden_keys,
    )
    if hidden_keys:
        bias = jnp.pad(bias, ((0, 0), (0, 0), (0, 1)), constant_values=INVISIBLE)

    key, value = (_pad(x, 1, keys + hidden_keys) for x in (key, value))
    query = _pad(query, 1, queries + -queries % tokens_multiple)
    if groups := bias.shape[-1]:
        lowest = max(INVISIBLE, 0.25 * float(jnp.finfo(query.dtype).min))
        wanted = jnp.maximum(bias.astype(jnp.float32) * features**0.5, lowest)
        coarse = wanted.astype(query.dtype)
        fine = (wanted - coarse.astype(jnp.float32)).astype(query.dtype)
        m = jnp.concatenate([coarse, fine], -1)
        if m.shape[1] > 1:
            m = _pad(m, 1, query.shape[1])
        is_owner = jnp.tile(jax.nn.one_hot(owner, groups, dtype=key.dtype), (1, 2))
        query = jnp.concatenate(
            [query, jnp.broadcast_to(m[:, :, None], (*query.shape[:3], 2 * groups))], -1
        )
        key = jnp.concatenate(
            [key, jnp.broadcast_to(is_owner[None, :, None], (*key.shape[:3], 2 * groups))], -1
        )
    width = max(query.shape[-1], value.shape[-1])
    width += -width % multiple
    return _pad(query, 3, width), _pad(key, 3, width), _pad(value, 3, width)
