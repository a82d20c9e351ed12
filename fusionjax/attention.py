"""Equations 3 to 5: one softmax over the text and the faces.

    K' = [Kc; Kf1; …; Kfr]      V' likewise                         (3, 6)
    S  = softmax(M + α Q K'ᵀ)   α = dim_head^-½                     (4)
    h  = S V'                                                       (5)

M is stored per *reference*, [b, q or 1, r]: it has one value for all keys of a reference and is
zero for the text. λ = 0 and equation 7's −∞ are `INVISIBLE`. How the two equations are computed on
which hardware is in `backend/attention_kernels.py`.

Axes: b batch, q k queries and keys, f keys of one reference, r references, n heads,
d features of a head.
"""

from typing import get_args

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from fusionjax.backend.attention_kernels import kernel_by_name
from fusionjax.backend.blockwise import blockwise
from fusionjax.backend.devices import default_implementation
from fusionjax.errors import UserError
from fusionjax.options import Fusion, Implementation, not_one_of


def attention(
    query: Float[Array, "b q n d"],
    key: Float[Array, "b t n d"],
    value: Float[Array, "b t n v"],
    face_key: Float[Array, "b r f n d"] | None = None,
    face_value: Float[Array, "b r f n v"] | None = None,
    bias: Float[Array, " b #q r"] | None = None,
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
        mesh: With several devices, the mesh over whose axes the batch is sharded. `tpu` and
            `cudnn` need it: the compiler cannot divide their work.

    Returns:
        h of equation 5, before the output projection, in the dtype of `value`. The softmax is
        computed in float32 for every input dtype.

    Raises:
        UserError: On an unknown `fusion` or `implementation`.
    """
    if fusion not in get_args(Fusion):
        raise UserError(not_one_of("fusion", fusion, get_args(Fusion)))
    kernel = kernel_by_name(implementation or default_implementation(query.dtype), mesh)
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
    bias: Float[Array, " b #q r"] | None = None,
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
    receiver = np.repeat(np.arange(1 + references), [key.shape[1], *references * [face_length]])
    indicator = jnp.asarray(receiver[:, None] == np.arange(1 + references), jnp.float32)
    joined_key = jnp.concatenate([key, _join_references(face_key)], axis=1)
    value = jnp.broadcast_to(
        indicator[None, :, None, :], (b, *indicator.shape[:1], heads, 1 + references)
    )
    return blockwise(query, joined_key, value, bias, face_length).mean(2)


def _join_references(faces: Array) -> Array:
    b, references, length, *features = faces.shape
    return faces.reshape(b, references * length, *features)
