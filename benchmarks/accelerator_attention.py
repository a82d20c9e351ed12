"""Every attention implementation against equations 3 to 5 in float32, forward and backward.

The exact answer is written out here, without automatic differentiation and one head at a time, in
float32 at the highest precision; that this is what the device computes is checked against float64
on the host. Inputs of 16 bits are rounded before both computations, so only what happens inside
counts.

How wrong an answer may be, with u the unit roundoff of its type (2⁻⁸ bfloat16, 2⁻¹¹ float16,
2⁻²⁴ float32):

* 16 bits. The weights of the softmax and the answer are each rounded once, independently: the
  root-mean-square error is below u of the answer's, and the largest stays within a few times
  that. Backwards there are two or three more roundings, and sums over blocks of queries that are
  kept in 16 bits: a random walk of 17 steps of a third of u at 4,096 queries. The bounds are 2u
  and 8u forward, 4u and 16u backward, of the root mean square and of the largest entry.
* float16 by XLA. The scores too are kept in 16 bits, so a softmax's weight is wrong by u times its
  score, a few u here. The bounds are twice the above.
* 32 bits. Scores are sums of d products that the softmax turns into relative errors, and the
  answers are sums of up to 16,461 terms: 2⁻²⁴ √16461 ≈ 128u where the roundings are independent;
  an approximate exponential adds to it. The bounds are 256u and 1024u forward, twice that backward.
* A reference that is hidden gets gradients that are zero exactly.

A mistake in the mathematics (a bias that is not applied, a key that is dropped, a head mixed up)
changes the answer by a tenth or more, in 16 bits too.

Legend: b pictures, q k queries and keys, n heads, d features, r references, f keys of a reference.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator_models import sixteen_bits
from benchmarks.accelerator_report import Outcome, Row, Skip
from fusionjax import attention as fused
from fusionjax.backend.blockwise import INVISIBLE
from fusionjax.backend.devices import default_implementation
from fusionjax.options import IMPLEMENTATIONS

PICTURES, HEADS = 2, 8
# dtype: unit roundoff, and the bounds in it of root mean square and largest error, forward;
# backward they are twice that
_BOUNDS = {
    "float32": (2.0**-24, 256.0, 1024.0),
    "bfloat16": (2.0**-8, 2.0, 8.0),
    "float16": (2.0**-11, 2.0, 8.0),
    "float16, scores too": (2.0**-11, 4.0, 16.0),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One shape of attention.

    Attributes:
        queries: image tokens.
        keys: of the text, or of the image itself.
        features: of a head.
        references: photos, each with as many keys as there are queries.
        bias: `none`; `weights`: λ of each photo; `masks`: one for each query too, some photos
            hidden from it; `hidden`: every photo hidden from every query.
        fusion: as `FusionOptions.fusion`.
    """

    queries: int
    keys: int
    features: int
    references: int = 0
    bias: str = "none"
    fusion: str = "concat"

    def __str__(self) -> str:
        keys = self.keys + self.references * self.queries
        photos = f" {self.references} photos, bias {self.bias}" if self.references else ""
        fusion = "" if self.fusion == "concat" else f" {self.fusion}"
        return f"{self.queries}×{keys} d{self.features}{photos}{fusion}"


# The most telling first, in case that time runs out.
FULL = (
    Case(4096, 77, 40, 1, "weights"),
    Case(4096, 4096, 40),
    Case(4096, 77, 40),
    Case(4096, 77, 40, 2, "masks"),
    Case(4096, 77, 40, 1, "hidden"),
    Case(4096, 77, 40, 4, "weights"),
    Case(1024, 1024, 80),
    Case(1024, 77, 80, 2, "masks"),
    Case(256, 256, 160),
    Case(256, 77, 160, 2, "masks"),
    Case(4096, 77, 40, 2, "masks", "decoupled"),
    Case(4096, 77, 40, 1, "none"),
    Case(4096, 77, 80, 1, "weights"),
    Case(4096, 77, 160, 1, "weights"),
    Case(1024, 77, 80),
    Case(4096, 77, 40, 4, "masks"),
    Case(1024, 77, 80, 1, "hidden", "decoupled"),
    Case(64, 77, 160, 4, "weights"),
)
SMALL = (
    Case(512, 77, 8, 1, "masks"),  # enough scores for the loop over blocks
    Case(64, 64, 8),
    Case(64, 77, 16, 2, "hidden"),
    Case(64, 77, 16, 2, "masks", "decoupled"),
)


def rows(device: jax.Device, *, small: bool) -> list[Row]:
    """The formula against the host, then every implementation and type at every shape."""
    cases = SMALL if small else FULL
    able = able_implementations(device)
    planned = [
        Row(f"attention formula {case}", "formula", functools.partial(check_formula, case))
        for case in dict.fromkeys(case for case in cases if case.bias in ("none", "masks"))
    ][: 1 if small else 4]
    for name in IMPLEMENTATIONS:
        if name not in able:
            row = Row(f"attention {name}", "skip", functools.partial(_skip, name, device))
            planned.append(row)
    for number, case in enumerate(cases):
        for implementation in able:
            for dtype in _types(device, implementation, number, small=small):
                planned.append(
                    Row(
                        f"attention {implementation} {dtype} {case}",
                        f"attention {implementation}",
                        functools.partial(check_case, implementation, dtype, case),
                    )
                )
    return planned


def _types(device: jax.Device, implementation: str, number: int, *, small: bool) -> Iterator[str]:
    """In which types a case is checked: what is run by few is checked in some cases."""
    best = able_implementations(device)[0]
    own = sixteen_bits(device)
    if implementation == best or number % 2 == 0:
        yield own
    if implementation != "cudnn":  # whose float32 goes to `xla`
        yield "float32"
    if device.platform != "tpu" and not small and number % 3 == 0:  # a TPU has no float16
        yield "bfloat16" if own == "float16" else "float16"


def able_implementations(device: jax.Device) -> tuple[str, ...]:
    """What the device can do."""
    best = default_implementation(jnp.bfloat16, [device])
    return ("xla",) if best == "xla" else (best, "xla")


def _skip(implementation: str, device: jax.Device) -> Outcome:
    why = {
        "cudnn": "needs a GPU of compute capability 8 or newer",
        "tpu": "needs a TPU; Pallas' interpreter is too slow to stand in for it",
    }
    raise Skip(f"{why[implementation]}; this is {device.device_kind} ({device.platform})")


def check_case(implementation: str, dtype: str, case: Case) -> Outcome:
    """One implementation at one shape."""
    inputs, bias, slope = make_inputs(case, dtype)

    def program(inputs: Any, bias: Any, slope: Any) -> Any:
        def attend(inputs: Any) -> Any:
            return fused.attention(
                inputs["query"],
                inputs["key"],
                inputs["value"],
                inputs.get("face key"),
                inputs.get("face value"),
                bias,
                fusion=case.fusion,
                implementation=implementation,
            )

        output, backward = jax.vjp(attend, inputs)
        return output, backward(slope)[0]

    # Else a GPU computes float32 in TF32 and a TPU in bfloat16.
    with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
        output, gradients = jax.jit(program)(inputs, bias, slope)
    expected, expected_gradients = exact(case, inputs, bias, slope)
    pairs = {"output": (output, expected)} | {
        f"gradient of {name}": (gradients[name], expected_gradients[name]) for name in inputs
    }
    rounded = {
        ("tpu", "float32"): "bfloat16",  # multiplied so, whatever precision is asked for
        ("xla", "float16"): "float16, scores too",
    }
    return compare(pairs, rounded.get((implementation, dtype), dtype))


def compare(pairs: dict[str, tuple[Any, Any]], rounded: str) -> Outcome:
    """What is wrong with answers, each against what is expected; see the head of this file."""
    roundoff, mean_bound, largest_bound = _BOUNDS[rounded]
    shares, errors, wrong = {}, {}, []
    for name, (found_, expected_) in pairs.items():
        factor = 1 if name == "output" else 2
        found, expected = (np.asarray(x, np.float32) for x in (found_, expected_))
        if found.shape != expected.shape:
            wrong.append(f"{name} has shape {found.shape}; it must be {expected.shape}")
            continue
        error = np.abs(found - expected)
        error[~np.isfinite(error)] = np.inf
        where = np.unravel_index(int(error.argmax()), error.shape)
        scale = float(np.abs(expected).max())
        if scale == 0:  # of a hidden photo
            shares[name] = 0.0 if error.max() == 0 else np.inf
            errors[name] = [float(error.max())] * 2
            bounds = [0.0, 0.0]
        else:
            relative = np.sqrt(np.square(error).mean() / np.square(expected).mean())
            errors[name] = [float(relative), float(error.max() / scale)]
            bounds = [factor * bound * roundoff for bound in (mean_bound, largest_bound)]
            shares[name] = max(e / b for e, b in zip(errors[name], bounds, strict=True))
        if not shares[name] <= 1:
            axes = ["picture", "photo", "token", "head", "feature"]
            if error.ndim == 4:
                axes.remove("photo")
            place = ", ".join(f"{axis} {i}" for axis, i in zip(axes, where, strict=True))
            wrong.append(
                f"{name}: relative root-mean-square error {errors[name][0]:.3g} (bound "
                f"{bounds[0]:.3g}), largest error {errors[name][1]:.3g} of the largest entry "
                f"(bound {bounds[1]:.3g}), worst at {place}: {found[where]:.6g} for "
                f"{expected[where]:.6g}"
            )
    worst = max(shares, key=lambda name: shares[name]) if shares else "nothing"
    share = shares.get(worst, np.inf)
    text = f"worst is {worst}, error {share:.2f} of its bound"
    return Outcome(text, {"worst": worst, "share_of_bound": share, "errors": errors}, wrong)


def make_inputs(case: Case, dtype: str) -> tuple[dict[str, jax.Array], jax.Array | None, jax.Array]:
    """Queries, keys, values; M; and the slope of the loss with respect to the output."""
    rng = np.random.default_rng(0)

    def draw(*shape: int, scale: float = 1.0) -> jax.Array:
        values = scale * rng.standard_normal((PICTURES, *shape, HEADS, case.features), np.float32)
        return jnp.asarray(values.astype(jnp.dtype(dtype)))

    # Queries of twice the keys' scale make the softmax prefer some keys, as a trained one does.
    inputs = {
        "query": draw(case.queries, scale=2.0),
        "key": draw(case.keys),
        "value": draw(case.keys),
    }
    if case.references:
        inputs["face key"] = draw(case.references, case.queries)
        inputs["face value"] = draw(case.references, case.queries)
    bias = _bias(case, rng)
    return inputs, None if bias is None else jnp.asarray(bias), draw(case.queries)


def _bias(case: Case, rng: np.random.Generator) -> np.ndarray | None:
    if not case.references or case.bias == "none":
        return None
    shape = (PICTURES, 1, case.references)
    if case.bias == "hidden":
        return np.full(shape, INVISIBLE, np.float32)
    strength = np.log(rng.uniform(0.2, 1.5, shape)).astype(np.float32)
    if case.bias == "weights":
        return strength
    hidden = rng.random((PICTURES, case.queries, case.references)) < 0.4
    return np.where(hidden, np.float32(INVISIBLE), strength)


def exact(
    case: Case, inputs: dict[str, jax.Array], bias: jax.Array | None, slope: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Equations 3 to 5 and their gradients, in float32."""
    single = {name: x.astype(jnp.float32) for name, x in inputs.items()}
    shape = (PICTURES, case.queries, case.references)
    bias = jnp.zeros(shape) if bias is None else jnp.broadcast_to(bias, shape)
    with jax.default_matmul_precision("highest"):
        return _exact(single, bias, slope.astype(jnp.float32), decoupled=case.fusion != "concat")


@functools.partial(jax.jit, static_argnames="decoupled")
def _exact(inputs: Any, bias: jax.Array, slope: jax.Array, *, decoupled: bool) -> Any:
    face_shape = inputs["face key"].shape if "face key" in inputs else None

    def per_head(x: jax.Array) -> jax.Array:  # [b, (r,) k, n, d] → [b·n, (r·)k, d]
        x = x.reshape(x.shape[0], -1, *x.shape[-2:])
        return x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[-1])

    def per_picture(x: jax.Array, shape: Any) -> jax.Array:
        return x.reshape(PICTURES, HEADS, -1, x.shape[-1]).swapaxes(1, 2).reshape(shape)

    def one_head(x: Any) -> Any:
        bias = x.pop("bias")
        query, key, value, slope = (x[name] for name in ("query", "key", "value", "slope"))
        if face_shape is None:
            return _softmax_attention(query, key, value, None, slope)
        of_keys = jnp.repeat(bias, face_shape[2], axis=-1)
        texts = key.shape[0]
        if not decoupled:
            of_keys = jnp.pad(of_keys, ((0, 0), (texts, 0)))
            key = jnp.concatenate([key, x["face key"]])
            value = jnp.concatenate([value, x["face value"]])
            out, dq, dk, dv = _softmax_attention(query, key, value, of_keys, slope)
            return out, dq, dk[:texts], dv[:texts], dk[texts:], dv[texts:]
        strongest = bias.max(-1, keepdims=True)
        factor = jnp.exp(strongest)
        out, dq, dk, dv = _softmax_attention(query, key, value, None, slope)
        faces = _softmax_attention(
            query, x["face key"], x["face value"], of_keys - strongest, factor * slope
        )
        return out + factor * faces[0], dq + faces[1], dk, dv, faces[2], faces[3]

    heads = {name: per_head(x) for name, x in inputs.items()} | {"slope": per_head(slope)}
    heads["bias"] = jnp.repeat(bias, HEADS, axis=0)
    out, *gradients = jax.lax.map(one_head, heads)
    names = ("query", "key", "value", "face key", "face value")
    return per_picture(out, slope.shape), {
        name: per_picture(x, inputs[name].shape) for name, x in zip(names, gradients, strict=False)
    }


def _softmax_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None, slope: jax.Array
) -> tuple[jax.Array, ...]:
    """Output, and gradients of query, key and value, of one head: [q d], [k d]."""
    scale = query.shape[-1] ** -0.5
    scores = scale * (query @ key.T)
    weights = jax.nn.softmax(scores if bias is None else scores + bias, axis=-1)
    out = weights @ value
    of_weights = slope @ value.T
    of_scores = weights * (of_weights - (slope * out).sum(-1, keepdims=True))
    return out, scale * (of_scores @ key), scale * (of_scores.T @ query), weights.T @ slope


def check_formula(case: Case) -> Outcome:
    """`exact` on the device against float64 on the host, for some queries."""
    inputs, bias, slope = make_inputs(case, "float32")
    output, gradients = exact(case, inputs, bias, slope)
    some = np.linspace(0, case.queries - 1, 16).astype(int)
    host = {name: np.asarray(x, np.float64) for name, x in inputs.items()}
    slope_ = np.asarray(slope, np.float64)[:, some]
    query = host["query"][:, some]
    scale = case.features**-0.5
    shape = (PICTURES, case.queries, case.references)
    of_photos = np.zeros(shape) if bias is None else np.asarray(bias, np.float64)
    of_photos = np.broadcast_to(of_photos, shape)[:, some]

    def attend(key: Any, value: Any, of_keys: Any, slope: Any) -> tuple[Any, Any]:
        scores = scale * np.einsum("bqnd,bknd->bnqk", query, key) + of_keys[:, None]
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out = np.einsum("bnqk,bknd->bqnd", weights, value)
        of_weights = np.einsum("bqnd,bknd->bnqk", slope, value)
        of_scores = weights * (of_weights - np.einsum("bqnd,bqnd->bnq", slope, out)[..., None])
        return out, scale * np.einsum("bnqk,bknd->bqnd", of_scores, key)

    parts: list[Any] = [(host["key"], host["value"], np.zeros((PICTURES, len(some), case.keys)))]
    if case.references:
        faces = (host[f"face {name}"] for name in ("key", "value"))
        joined = [x.reshape(PICTURES, -1, HEADS, case.features) for x in faces]
        parts.append((*joined, np.repeat(of_photos, case.queries, -1)))
    if case.fusion == "concat":
        keys, values, biases = zip(*parts, strict=True)
        out, of_query = attend(
            np.concatenate(keys, 1), np.concatenate(values, 1), np.concatenate(biases, -1), slope_
        )
    else:
        key, value, of_keys = parts[0]
        out, of_query = attend(key, value, of_keys, slope_)
        strongest = of_photos.max(-1, keepdims=True)
        factor = np.exp(strongest)[..., None]
        key, value, of_keys = parts[1]
        more, more_of_query = attend(key, value, of_keys - strongest, factor * slope_)
        out, of_query = out + factor * more, of_query + more_of_query
    return compare(
        {
            "output": (output[:, some], out),
            "gradient of query": (gradients["query"][:, some], of_query),
        },
        "float32",
    )
