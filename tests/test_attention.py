"""Equations 3 to 5 against NumPy, for every implementation, dtype and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from fusionjax import attention as fused
from fusionjax.errors import UserError

REFERENCES, FACE, TEXT = 3, 20, 7


@functools.cache
def inputs(queries=50, heads=2, features=8, per_query=True):
    rng = np.random.default_rng(0)
    b = 2

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    bias = np.log(rng.uniform(0.1, 2, (b, queries if per_query else 1, REFERENCES)))
    bias[0, :, 1] = fused.INVISIBLE
    bias[1, -1] = fused.INVISIBLE
    return (
        normal(b, queries, heads, features),
        normal(b, TEXT, heads, features),
        normal(b, TEXT, heads, features),
        normal(b, REFERENCES, FACE, heads, features),
        normal(b, REFERENCES, FACE, heads, features),
        jnp.asarray(bias, jnp.float32),
    )


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def literal(query, key, value, face_key, face_value, bias, *, fusion="concat"):
    """Equations 3 to 5, one query at a time, in float64."""
    arrays = (query, key, value, face_key, face_value, bias)
    query, key, value, face_key, face_value, bias = (np.asarray(x, np.float64) for x in arrays)
    out = np.zeros((*query.shape[:3], value.shape[-1]))
    for b, q, n in np.ndindex(*query.shape[:3]):
        m = bias[b, q if bias.shape[1] > 1 else 0]
        faces = face_key[b, :, :, n] @ query[b, q, n] * query.shape[-1] ** -0.5 + m[:, None]
        text = key[b, :, n] @ query[b, q, n] * query.shape[-1] ** -0.5
        v = face_value[b, :, :, n].reshape(-1, value.shape[-1])
        if fusion == "concat":
            weights = softmax(np.concatenate([text, faces.ravel()]))
            out[b, q, n] = weights @ np.concatenate([value[b, :, n], v])
        else:
            out[b, q, n] = softmax(text) @ value[b, :, n]
            out[b, q, n] += np.exp(m.max()) * softmax(faces.ravel()) @ v
    return out


@pytest.fixture(
    params=["direct", "loop over heads", "loop over heads and pictures", "loop over queries"]
)
def path(request, monkeypatch):
    """Every way in which `xla` may compute."""
    if request.param != "direct":
        monkeypatch.setattr(fused, "_DIRECT_SCORES", 0)
        monkeypatch.setattr(fused, "_CPU_BLOCK_BYTES", 0)
        monkeypatch.setattr(fused, "_ACCELERATOR_BLOCK_BYTES", 0)
    if request.param == "loop over heads and pictures":
        monkeypatch.setattr(fused, "_one_device", lambda: True)
    if request.param == "loop over queries":
        monkeypatch.setattr(fused, "_loop_over_heads", fused._loop_over_queries)
    return request.param


@pytest.mark.parametrize("fusion", ["concat", "decoupled"])
@pytest.mark.parametrize("per_query", [True, False])
def test_xla_equals_the_equations(path, fusion, per_query):
    arrays = inputs(queries=150, per_query=per_query)
    ours = fused.attention(*arrays, fusion=fusion, implementation="xla")
    np.testing.assert_allclose(ours, literal(*arrays, fusion=fusion), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2e-2), ("float16", 2e-3)])
def test_sixteen_bits(path, dtype, tolerance):
    *arrays, bias = inputs()
    arrays = [x.astype(dtype) for x in arrays]
    ours = fused.attention(*arrays, bias, implementation="xla")
    assert ours.dtype == dtype
    np.testing.assert_allclose(
        np.asarray(ours, np.float64), literal(*arrays, bias), rtol=tolerance, atol=tolerance
    )


def test_float16_scores_beyond_its_range_stay_finite():
    query, key, value, *_ = (x.astype(jnp.float16) for x in inputs())
    out = fused.attention(query * 200, key * 200, value, implementation="xla")
    assert jnp.isfinite(out).all()


def test_without_faces_it_is_ordinary_attention(path):
    query, key, value, *_ = inputs()
    ours = fused.attention(query, key, value, implementation="xla")
    theirs = jax.nn.dot_product_attention(query, key, value)
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


def test_all_faces_invisible_is_exactly_the_text(path):
    query, key, value, face_key, face_value, bias = inputs()
    plain = fused.attention(query, key, value, implementation="xla")
    hidden = jnp.full_like(bias, fused.INVISIBLE)
    for fusion in ("concat", "decoupled"):
        ours = fused.attention(
            query, key, value, face_key, 1e3 * face_value, hidden,
            fusion=fusion, implementation="xla",
        )  # fmt: skip
        np.testing.assert_allclose(ours, plain, rtol=2e-6, atol=2e-7)


def gradients(function, arrays):
    weight = jnp.cos(jnp.arange(arrays[0].size, dtype=jnp.float32)).reshape(arrays[0].shape)

    def loss(*arrays):
        return (weight * function(*arrays)).sum()

    return jax.jit(jax.grad(loss, argnums=range(6)))(*arrays)


@pytest.mark.parametrize("fusion", ["concat", "decoupled"])
def test_gradients(path, fusion):
    arrays = inputs()
    ours = gradients(
        functools.partial(fused.attention, fusion=fusion, implementation="xla"), arrays
    )

    def plain(query, key, value, face_key, face_value, bias):
        b, _, heads, d = query.shape
        flat_key = face_key.reshape(b, -1, heads, d)
        flat_value = face_value.reshape(b, -1, heads, d)
        m = jnp.repeat(bias, FACE, -1)[:, None]
        if fusion == "decoupled":
            top = bias.max(-1, keepdims=True)
            m = jnp.repeat(bias - top, FACE, -1)[:, None]
            faces = jax.nn.dot_product_attention(query, flat_key, flat_value, bias=m)
            text = jax.nn.dot_product_attention(query, key, value)
            return text + jnp.exp(top)[..., None] * faces
        m = jnp.concatenate([jnp.zeros((*m.shape[:3], TEXT)), m], -1)
        joined = (jnp.concatenate(x, 1) for x in ((key, flat_key), (value, flat_value)))
        return jax.nn.dot_product_attention(query, *joined, bias=m)

    for name, a, b in zip(
        ("query", "key", "value", "face_key", "face_value", "bias"),
        ours,
        gradients(plain, arrays),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name)
        assert jnp.abs(b).max() > 0, name


def test_the_backward_pass_keeps_no_scores(path):
    """What is saved between forward and backward is of the inputs' order, not queries × keys."""
    arrays = inputs(queries=150)
    _, vjp = jax.vjp(functools.partial(fused.attention, implementation="xla"), *arrays)
    saved = sum(leaf.size for leaf in jax.tree.leaves(vjp))
    b, queries, heads, _ = arrays[0].shape
    scores = b * heads * queries * (TEXT + REFERENCES * FACE)
    if path != "direct":
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
    q, k, v = fused._with_bias_as_features(
        query, joined_key, joined_value, bias, FACE, multiple=8, tokens_multiple=64
    )
    assert q.shape[1] % 64 == k.shape[1] % 64 == q.shape[3] % 8 == 0
    out = jax.nn.dot_product_attention(q, k, v, scale=query.shape[-1] ** -0.5)
    np.testing.assert_allclose(
        np.asarray(out[:, : query.shape[1], :, : value.shape[-1]], np.float64),
        literal(*arrays, bias),
        rtol=tolerance,
        atol=tolerance,
    )


def test_tpu_kernel_interpreted(monkeypatch):
    """The Pallas kernel's own arithmetic, on the CPU's interpreter; forward and backward."""
    monkeypatch.setattr(fused, "_DIRECT_SCORES", 0)
    monkeypatch.setattr(fused, "_TPU_QUERIES", 0)
    arrays = inputs(queries=128, heads=1)
    tpu = functools.partial(fused.attention, implementation="tpu")
    with pltpu.force_tpu_interpret_mode():
        ours, ours_gradient = tpu(*arrays), gradients(tpu, arrays)
    np.testing.assert_allclose(ours, literal(*arrays), rtol=1e-4, atol=1e-5)
    xla = functools.partial(fused.attention, implementation="xla")
    for a, b in zip(ours_gradient, gradients(xla, arrays), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_cudnn_falls_back_where_it_cannot(monkeypatch):
    """float32, and heads wider than 128, go to XLA; the others reach cuDNN's call."""
    arrays = inputs()
    ours = fused.attention(*arrays, implementation="cudnn")
    np.testing.assert_allclose(ours, literal(*arrays), rtol=2e-5, atol=2e-6)
    calls = []
    real = jax.nn.dot_product_attention

    def record(query, key, value, *, scale, implementation):
        calls.append((query.shape, key.dtype, implementation))
        return real(query, key, value, scale=scale)

    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    *halves, bias = (x.astype(jnp.float16) for x in arrays)
    ours = fused.attention(*halves, bias, implementation="cudnn")
    assert calls == [((2, 50, 2, 16), jnp.float16, "cudnn")]
    np.testing.assert_allclose(
        np.asarray(ours, np.float64), literal(*halves, bias), rtol=1e-2, atol=5e-3
    )


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


def test_the_cpu_runs_xla():
    assert fused.default_implementation(jnp.bfloat16) == "xla"
