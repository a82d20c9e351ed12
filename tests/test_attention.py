"""Equations 3 to 5 against NumPy, for every implementation, dtype and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn_calls
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu import flash_attention as pallas
from jax.sharding import Mesh

from fusionjax import attention as fused
from fusionjax.backend import attention_kernels, blockwise
from fusionjax.backend.blockwise import INVISIBLE
from fusionjax.errors import UserError

REFERENCES, FACE, TEXT = 3, 20, 7


@functools.cache
def inputs(queries=50, heads=2, features=8, per_query=True, face=FACE):
    """Q, Kc, Vc, Kf, Vf, M; with 7 keys of the text, an even `face` is an odd number of keys."""
    rng = np.random.default_rng(0)
    b = 2

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    bias = np.log(rng.uniform(0.1, 2, (b, queries if per_query else 1, REFERENCES)))
    bias[0, :, 1] = INVISIBLE
    bias[1, -1] = INVISIBLE
    return (
        normal(b, queries, heads, features),
        normal(b, TEXT, heads, features),
        normal(b, TEXT, heads, features),
        normal(b, REFERENCES, face, heads, features),
        normal(b, REFERENCES, face, heads, features),
        jnp.asarray(bias, jnp.float32),
    )


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def literal(query, key, value, face_key=None, face_value=None, bias=None, *, fusion="concat"):
    """Equations 3 to 5, one query at a time, in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    out = np.zeros((*query.shape[:3], value.shape[-1]))
    for b, q, n in np.ndindex(*query.shape[:3]):
        scaled = query[b, q, n] * query.shape[-1] ** -0.5
        text, vc = key[b, :, n] @ scaled, value[b, :, n]
        if face_key is None:
            out[b, q, n] = softmax(text) @ vc
            continue
        kf, vf = (np.asarray(x[b, :, :, n], np.float64) for x in (face_key, face_value))
        m = np.zeros(len(kf))
        if bias is not None:
            m = np.asarray(bias, np.float64)[b, q if bias.shape[1] > 1 else 0]
        faces, vf = (kf @ scaled + m[:, None]).ravel(), vf.reshape(-1, vf.shape[-1])
        if fusion == "concat":
            weights = softmax(np.concatenate([text, faces]))
            out[b, q, n] = weights @ np.concatenate([vc, vf])
        else:
            out[b, q, n] = softmax(text) @ vc + np.exp(m.max()) * softmax(faces) @ vf
    return out


def plain(query, key, value, face_key=None, face_value=None, bias=None, *, fusion="concat"):
    """The same by XLA's own attention, to be differentiated."""
    if face_key is None:
        return jax.nn.dot_product_attention(query, key, value)
    b, r, f, heads, _ = face_key.shape
    bias = jnp.zeros((b, 1, r)) if bias is None else bias
    face_key, face_value = (x.reshape(b, r * f, heads, -1) for x in (face_key, face_value))
    m = jnp.repeat(bias, f, -1)[:, None]
    if fusion == "decoupled":
        top = bias.max(-1, keepdims=True)
        m = jnp.repeat(bias - top, f, -1)[:, None]
        faces = jax.nn.dot_product_attention(query, face_key, face_value, bias=m)
        return jax.nn.dot_product_attention(query, key, value) + jnp.exp(top)[..., None] * faces
    m = jnp.concatenate([jnp.zeros((*m.shape[:3], key.shape[1])), m], -1)
    joined = (jnp.concatenate(x, 1) for x in ((key, face_key), (value, face_value)))
    return jax.nn.dot_product_attention(query, *joined, bias=m)


def gradients(function, arrays):
    """Of every array, by a loss that weighs all outputs differently."""
    arrays = tuple(arrays)
    size = arrays[0].size
    weight = jnp.cos(jnp.arange(size, dtype=jnp.float32)).reshape(arrays[0].shape)

    def loss(*arrays):
        return (weight * function(*arrays).astype(jnp.float32)).sum()

    return jax.jit(jax.grad(loss, argnums=range(len(arrays))))(*arrays)


XLA = ["direct", "loop over heads", "loop over heads and pictures", "loop over queries"]


@pytest.fixture(params=[*XLA, "cudnn", "tpu"])
def implementation(request, monkeypatch):
    """The name of an implementation; each way in which `xla` computes, stand-ins for the others.

    The stand-ins refuse what the kernels refuse, and compute with XLA's own attention.
    """
    monkeypatch.setattr(jax.nn, "dot_product_attention", refusing_what_cudnn_refuses)
    monkeypatch.setattr(pallas, "flash_attention", refusing_what_pallas_refuses)
    monkeypatch.setattr(attention_kernels, "_TPU_QUERIES", 0)
    monkeypatch.setattr(attention_kernels, "DIRECT_SCORES", 0)
    if request.param != "direct":
        monkeypatch.setattr(blockwise, "DIRECT_SCORES", 0)
        monkeypatch.setattr(blockwise, "_CPU_BLOCK_BYTES", 0)
        monkeypatch.setattr(blockwise, "_ACCELERATOR_BLOCK_BYTES", 0)
    if request.param == "loop over heads and pictures":
        monkeypatch.setattr(blockwise, "_one_device", lambda: True)
    if request.param == "loop over queries":
        monkeypatch.setattr(blockwise, "_forward_on_cpu", blockwise._forward_on_accelerator)
        monkeypatch.setattr(blockwise, "_backward_on_cpu", blockwise._backward_on_accelerator)
    return request.param if request.param in ("cudnn", "tpu") else "xla"


dot_product_attention = jax.nn.dot_product_attention


def refusing_what_cudnn_refuses(query, key, value, *, implementation=None, **options):
    if implementation == "cudnn":
        assert query.dtype.itemsize == 2
        assert query.dtype == key.dtype == value.dtype
        assert query.shape[-1] == key.shape[-1] == value.shape[-1] <= 128
        assert query.shape[-1] % 8 == key.shape[1] % 2 == 0
    return dot_product_attention(query, key, value, **options)


def refusing_what_pallas_refuses(query, key, value, *, sm_scale, block_sizes):
    assert query.dtype == key.dtype == value.dtype
    assert query.shape[-1] == key.shape[-1] == value.shape[-1]
    assert query.shape[2] % block_sizes.block_q == key.shape[2] % block_sizes.block_k == 0
    assert block_sizes.has_backward_blocks
    arrays = (x.swapaxes(1, 2) for x in (query, key, value))
    return dot_product_attention(*arrays, scale=sm_scale).swapaxes(1, 2)


def case(faces, bias, *, queries=150, face=FACE):
    """The arrays of one case: with faces or without; M for every query, one for all, or none."""
    arrays = inputs(queries=queries, per_query=bias == "per query", face=face)
    if faces == "none":
        return arrays[:3]
    if faces == "hidden":
        return (*arrays[:5], jnp.full_like(arrays[5], INVISIBLE))
    return arrays[:5] if bias == "none" else arrays


CASES = [
    ("none", "none"),
    ("seen", "none"),
    ("seen", "per query"),
    ("seen", "for all"),
    ("hidden", "per query"),
    ("hidden", "for all"),
]
EVEN, ODD = 21, FACE  # keys of a face that give an even and an odd number of keys with the text's
# What a kernel is used with: type, tolerance, keys of a face.
FLOAT, BRAIN, HALF = (
    ("float32", 2e-5, EVEN),
    ("bfloat16", 3e-2, ODD),
    ("float16", 4e-3, ODD),
)


def with_types(*pairs):
    return pytest.mark.parametrize(
        ("implementation", "types"), pairs, indirect=["implementation"], ids=str
    )


@pytest.mark.parametrize("fusion", ["concat", "decoupled"])
@pytest.mark.parametrize(("faces", "bias"), CASES)
@with_types(
    *((way, FLOAT) for way in (*XLA, "tpu")),
    *((way, BRAIN) for way in ("direct", "loop over queries", "cudnn", "tpu")),
    *((way, HALF) for way in ("loop over queries", "cudnn")),
)
def test_it_equals_the_equations(implementation, types, fusion, faces, bias):
    dtype, tolerance, face = types
    arrays = case(faces, bias, face=face, queries=70)
    arrays = [x if i == 5 else x.astype(dtype) for i, x in enumerate(arrays)]
    ours = fused.attention(*arrays, fusion=fusion, implementation=implementation)
    assert ours.dtype == dtype
    expected = literal(*arrays, fusion=fusion)
    absolute = tolerance / (10 if dtype == "float32" else 4)
    np.testing.assert_allclose(
        np.asarray(ours, np.float64), expected, rtol=tolerance, atol=absolute
    )


@pytest.mark.parametrize("fusion", ["concat", "decoupled"])
@pytest.mark.parametrize(("faces", "bias"), [CASES[i] for i in (0, 2, 3, 4)])
@with_types(*((way, FLOAT) for way in (*XLA, "tpu")), ("cudnn", BRAIN))
def test_gradients(implementation, types, fusion, faces, bias):
    dtype, _, face = types
    arrays = case(faces, bias, face=face)
    halves = [x if i == 5 else x.astype(dtype) for i, x in enumerate(arrays)]
    ours = gradients(
        functools.partial(fused.attention, fusion=fusion, implementation=implementation), halves
    )
    theirs = gradients(
        functools.partial(plain, fusion=fusion), [x.astype(jnp.float32) for x in halves]
    )
    names = ("query", "key", "value", "face_key", "face_value", "bias")
    for name, a, b in zip(names[: len(ours)], ours, theirs, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if name == "bias" and dtype != "float32":
            continue  # a sum of many slopes in 16 bits
        tolerance = 1e-4 if dtype == "float32" else 5e-2
        scale = max(np.abs(b).max(), 1e-3)
        np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=tolerance, err_msg=name)
        if faces != "hidden":
            assert np.abs(b).max() > 0, name


def test_float16_scores_beyond_its_range_stay_finite(implementation):
    query, key, value, *_ = (x.astype(jnp.float16) for x in inputs())
    out = fused.attention(query * 200, key * 200, value, implementation="xla")
    assert jnp.isfinite(out).all()


def test_all_faces_invisible_is_exactly_the_text(implementation):
    query, key, value, face_key, face_value, bias = inputs()
    text = fused.attention(query, key, value, implementation="xla")
    hidden = jnp.full_like(bias, INVISIBLE)
    for fusion in ("concat", "decoupled"):
        ours = fused.attention(
            query, key, value, face_key, 1e3 * face_value, hidden,
            fusion=fusion, implementation="xla",
        )  # fmt: skip
        np.testing.assert_allclose(ours, text, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("implementation", XLA, indirect=True)
def test_the_backward_pass_keeps_no_scores(implementation, request):
    """What is saved between forward and backward is of the inputs' order, not queries × keys."""
    arrays = inputs(queries=150)
    _, vjp = jax.vjp(functools.partial(fused.attention, implementation="xla"), *arrays)
    saved = sum(leaf.size for leaf in jax.tree.leaves(vjp))
    b, queries, heads, _ = arrays[0].shape
    scores = b * heads * queries * (TEXT + REFERENCES * FACE)
    if "direct" not in request.node.name:
        assert saved < scores


# --- flash kernels ----------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("bfloat16", 3e-2)])
@pytest.mark.parametrize("per_query", [True, False])
def test_bias_as_features_is_the_bias(dtype, tolerance, per_query):
    """What cuDNN and the TPU kernel are given, run by XLA's attention."""
    *arrays, bias = inputs(per_query=per_query)
    arrays = [x.astype(dtype) for x in arrays]
    query, key, value, face_key, face_value = arrays
    joined_key = jnp.concatenate([key, fused._join_references(face_key)], 1)
    joined_value = jnp.concatenate([value, fused._join_references(face_value)], 1)
    q, k, v = attention_kernels._with_bias_as_features(
        query, joined_key, joined_value, bias, FACE, queries_multiple=32, keys_multiple=64
    )
    assert q.shape[1] % 32 == k.shape[1] % 64 == q.shape[3] % 8 == 0
    out = jax.nn.dot_product_attention(q, k, v, scale=query.shape[-1] ** -0.5)
    np.testing.assert_allclose(
        np.asarray(out[:, : query.shape[1], :, : value.shape[-1]], np.float64),
        literal(*arrays, bias),
        rtol=tolerance,
        atol=tolerance,
    )


def test_tpu_kernel_interpreted(monkeypatch):
    """The Pallas kernel's own arithmetic, on the CPU's interpreter; forward and backward."""
    monkeypatch.setattr(attention_kernels, "DIRECT_SCORES", 0)
    monkeypatch.setattr(attention_kernels, "_TPU_QUERIES", 0)
    arrays = inputs(queries=128, heads=1)
    tpu = functools.partial(fused.attention, implementation="tpu")
    with pltpu.force_tpu_interpret_mode():
        ours, ours_gradient = tpu(*arrays), gradients(tpu, arrays)
    np.testing.assert_allclose(ours, literal(*arrays), rtol=1e-4, atol=1e-5)
    xla = functools.partial(fused.attention, implementation="xla")
    for a, b in zip(ours_gradient, gradients(xla, arrays), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("tokens", "block", "padded"),
    [(4096, 512, 4096), (77, 128, 128), (4173, 384, 4224), (8269, 512, 8704), (1101, 384, 1152),
     (6144, 512, 6144), (7500, 512, 7680)],
)  # fmt: skip
def test_blocks_of_the_tpu_kernel_add_little(tokens, block, padded):
    assert attention_kernels._tpu_block(tokens) == block
    assert -tokens % block + tokens == padded


@pytest.mark.parametrize(
    ("queries", "keys", "heads", "expected"),
    [(4096, 4096, 8, (2, 2048)), (4096, 4224, 16, (8, 512)), (1024, 1024, 16, (1, 1024)),
     (64, 77, 8, (1, 128))],
)  # fmt: skip
def test_blocks_of_an_accelerator_are_whole_tiles(queries, keys, heads, expected):
    query, key = jnp.zeros((1, heads, queries, 1)), jnp.zeros((1, heads, keys, 1))
    count, block = blockwise._accelerator_blocks(query, key)
    assert (count, block) == expected
    assert block % 128 == 0
    assert count * block >= queries


def test_cudnn_falls_back_where_it_cannot(monkeypatch):
    """float32, and heads wider than 128, go to XLA; the others reach cuDNN's call."""
    arrays = inputs()
    ours = fused.attention(*arrays, implementation="cudnn")
    np.testing.assert_allclose(ours, literal(*arrays), rtol=2e-5, atol=2e-6)
    calls = []

    def record(query, key, value, *, scale, implementation):
        calls.append((query.shape, key.shape, key.dtype, implementation))
        return dot_product_attention(query, key, value, scale=scale)

    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    *halves, bias = (x.astype(jnp.float16) for x in arrays)
    ours = fused.attention(*halves, bias, implementation="cudnn")
    assert calls == [((2, 50, 2, 16), (2, 68, 2, 16), jnp.float16, "cudnn")]
    np.testing.assert_allclose(
        np.asarray(ours, np.float64), literal(*halves, bias), rtol=1e-2, atol=5e-3
    )
    wide = (x.astype(jnp.float16) for x in inputs(features=160)[:3])
    fused.attention(*wide, implementation="cudnn")
    assert len(calls) == 1


# --- lowering for hardware that is not here ---------------------------------------------------


# Queries, keys of the text, references × keys of a face, features of a head: Stable Diffusion's.
REAL = [(4096, 4096, None, 40), (4096, 77, None, 40), (4096, 77, (1, 4096), 40),
        (1024, 77, (2, 1024), 80), (256, 77, (4, 256), 160)]  # fmt: skip


def shapes(queries, text, faces, features, dtype, batch=2):
    def array(*shape, dtype=dtype):
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

    own = array(batch, queries, 8, features), *[array(batch, text, 8, features)] * 2
    if faces is None:
        return own
    of_faces = [array(batch, *faces, 8, features)] * 2
    return *own, *of_faces, array(batch, queries, faces[0], dtype=jnp.float32)


@pytest.mark.parametrize(
    ("real", "backward"), [(REAL[2], False), *((real, True) for real in REAL)], ids=str
)
@pytest.mark.parametrize(
    ("platform", "implementation", "dtype"),
    [("cuda", "cudnn", "bfloat16"), ("cuda", "cudnn", "float16"), ("cuda", "xla", "float16"),
     ("cuda", "xla", "float32"), ("tpu", "tpu", "bfloat16"), ("tpu", "tpu", "float32")],
)  # fmt: skip
def test_it_lowers_for(platform, implementation, dtype, real, backward, monkeypatch):
    """A name that does not exist, a refused shape or a wrong layout fails without the device."""
    monkeypatch.setattr(cudnn_calls, "check_cudnn_version", lambda: 91002)

    def forward(*arrays):
        return fused.attention(*arrays, implementation=implementation)

    def loss(*arrays):
        return forward(*arrays).astype(jnp.float32).sum()

    arrays = shapes(*real, dtype)
    function = jax.grad(loss, argnums=range(len(arrays))) if backward else forward
    lowered = jax.jit(function).trace(*arrays).lower(lowering_platforms=(platform,))
    calls = {"cudnn": "__cudnn$fmha", "tpu": "tpu_custom_call", "xla": ""}[implementation]
    flash = real[3] <= 128 if implementation == "cudnn" else real[0] >= 1024
    assert (calls in lowered.as_text()) == (flash or implementation == "xla")


def test_kernels_lower_for_a_mesh(monkeypatch):
    """Each device has its own pictures; what does not divide is not divided."""
    monkeypatch.setattr(cudnn_calls, "check_cudnn_version", lambda: 91002)
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    for platform, implementation, call in (
        ("tpu", "tpu", "tpu_custom_call"),
        ("cuda", "cudnn", "__cudnn$fmha"),
    ):
        for batch in (2, 3):
            arrays = shapes(1024, 77, (1, 1024), 40, "bfloat16", batch)
            lowered = (
                jax.jit(
                    functools.partial(fused.attention, implementation=implementation, mesh=mesh)
                )
                .trace(*arrays)
                .lower(lowering_platforms=(platform,))
            ).as_text()
            assert ("sdy.manual_computation" in lowered) == (batch == 2)
            assert (call in lowered) == (batch == 2 or implementation == "cudnn")


@pytest.mark.parametrize("implementation", ["cudnn"], indirect=True)
def test_a_mesh_changes_nothing(implementation):
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    arrays = [x if i == 5 else x.astype(jnp.bfloat16) for i, x in enumerate(inputs())]
    attend = functools.partial(fused.attention, implementation=implementation)
    ours = jax.jit(functools.partial(attend, mesh=mesh))(*arrays)
    np.testing.assert_array_equal(ours, jax.jit(attend)(*arrays))


# --- shares and errors ------------------------------------------------------------------------


def test_shares_by_hand():
    """With all logits equal, a share is a count of keys times λ."""
    query, key = jnp.zeros((1, 2, 1, 4)), jnp.ones((1, 7, 1, 4))
    face_key = jnp.ones((1, 2, 3, 1, 4))
    bias = jnp.log(jnp.array([[[1.0, 2.0], [0.5, 1.0]]]))
    share = fused.attention_share(query, key, face_key, bias)
    np.testing.assert_allclose(
        share[0], [[7 / 16, 3 / 16, 6 / 16], [7 / 11.5, 1.5 / 11.5, 3 / 11.5]], rtol=1e-6
    )


def test_shares_are_those_of_attention():
    query, key, _, face_key, _, bias = inputs(heads=1)
    share = fused.attention_share(query, key, face_key, bias)
    # Values that are 1 for the text and 0 for faces turn attention's output into the text's share.
    value, face_value = jnp.ones_like(key), jnp.zeros_like(face_key)
    out = fused.attention(query, key, value, face_key, face_value, bias, implementation="xla")
    np.testing.assert_allclose(share[..., 0], out[..., 0, 0], rtol=1e-5, atol=1e-7)


def test_unknown_names_are_refused():
    arrays = inputs()
    with pytest.raises(UserError, match="fusion is 'add'; choose one of concat, decoupled"):
        fused.attention(*arrays, fusion="add")
    with pytest.raises(UserError, match="implementation is 'rocm'; choose one of xla, cudnn, tpu"):
        fused.attention(*arrays, implementation="rocm")
