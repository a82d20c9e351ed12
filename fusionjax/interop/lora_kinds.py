"""What a LoRA's tensors do to one weight: the formulas of its kinds.

Each kind builds an update Δ [o i h w] of a weight W out of small tensors; r is its rank, α/r the
factor in front of it, and s the strength that the user asks for:

    LoRA (Hu et al. 2021, arXiv 2106.09685)         Δ = B A
    the same with a core M for h×w (Tucker)         Δ = Σ B[o r] M[r q h w] A[q i]
    LoHa (Hyeon-Woo et al. 2022, arXiv 2108.06098)  Δ = (B₁ A₁) ∘ (B₂ A₂)
    LoKr (Yeh et al. 2023, arXiv 2309.14859)        Δ = W₁ ⊗ W₂, each whole or a product itself
    full, norm, bias                                Δ as it is, without a factor
    DoRA (Liu et al. 2024, arXiv 2402.09353)        the direction of W + Δ, the length m

W' = W + s (α/r) Δ for all but DoRA, which has no one meaning for s ≠ 1: in LyCORIS's files
(`dora_scale`) W + Δ is made longer by a part of what it lacks, in peft's (`lora_magnitude_vector`)
s belongs to Δ. Each is merged as its own trainer does.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

Shapes = Mapping[str, tuple[int, ...]]

# Which tensors make a kind, and which of them may be missing. LoKr is put together from two halves.
_HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_W1 = (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
_W2 = (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"), ("lokr_t2", "lokr_w2_a", "lokr_w2_b"))
KINDS = frozenset(
    frozenset(roles)
    for roles in (
        ("up", "down"),
        ("up", "down", "mid"),
        _HADA,
        (*_HADA, "hada_t1", "hada_t2"),
        *((*first, *second) for first in _W1 for second in _W2),
        ("diff",),
    )
)
LENGTHS = ("dora_scale", "magnitude")
ROLES = frozenset().union(*KINDS) | set(LENGTHS)


class Lora(NamedTuple):
    """One parameter's update.

    Attributes:
        tensors: by role, of one of `KINDS`, perhaps with one of `LENGTHS`.
        factor: α/r.
        strength: s.
    """

    tensors: Mapping[str, np.ndarray]
    factor: float
    strength: float = 1.0

    def merge(self, weight: np.ndarray) -> np.ndarray:
        """The merged weight, float32, in PyTorch's layout."""
        tensors = {role: tensor.astype(np.float32) for role, tensor in self.tensors.items()}
        delta = np.float32(self.factor) * update(tensors).reshape(weight.shape)
        strength = np.float32(self.strength)
        if "dora_scale" in tensors:
            return _as_lycoris(weight + delta, tensors["dora_scale"], strength)
        if "magnitude" in tensors:
            moved = weight + strength * delta
            return moved * (_per_row(tensors["magnitude"], moved) / _lengths(moved, 0))
        return weight + strength * delta


def rank(shapes: Shapes) -> int | None:
    """The rank of an update, None where it has none and no factor.

    Args:
        shapes: of the tensors, by role.
    """
    for role in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
        if role in shapes:
            return shapes[role][0]
    return None


def matrix_shape(shapes: Shapes) -> tuple[int, int] | None:
    """The shape [o, i·h·w] of the update that tensors build, None if they do not fit each other.

    Args:
        shapes: of the tensors, by role; the roles are those of one of `KINDS`.
    """
    try:
        return _matrix_shape(shapes)
    except (ValueError, IndexError):  # too few axes
        return None


def _matrix_shape(shapes: Shapes) -> tuple[int, int] | None:
    if "diff" in shapes:
        first, *rest = shapes["diff"]
        return first, math.prod(rest)
    if "down" in shapes:
        return _product(shapes["up"], shapes["down"], shapes.get("mid"))
    if "hada_w1_a" in shapes:
        pairs = [_cored(shapes, f"hada_t{i}", f"hada_w{i}_a", f"hada_w{i}_b") for i in (1, 2)]
        return pairs[0] if pairs[0] == pairs[1] else None
    halves = []
    for i in (1, 2):
        whole = shapes.get(f"lokr_w{i}")
        if whole is not None:
            half: tuple[int, int] | None = (whole[0], math.prod(whole[1:]))
        else:
            half = _cored(shapes, f"lokr_t{i}", f"lokr_w{i}_a", f"lokr_w{i}_b")
        if half is None:
            return None
        halves.append(half)
    (a, b), (c, d) = halves
    return a * c, b * d


def _cored(shapes: Shapes, core: str, a: str, b: str) -> tuple[int, int] | None:
    """LyCORIS's Tucker form, whose first factor stands on its side."""
    if core not in shapes:
        return _product(shapes[a], shapes[b], None)
    side = shapes[a]
    return _product(side[::-1], shapes[b], shapes[core]) if len(side) == 2 else None


def _product(
    up: tuple[int, ...], down: tuple[int, ...], core: tuple[int, ...] | None
) -> tuple[int, int] | None:
    out, inner, *window = up
    ranks, *rest = down
    if math.prod(window) != 1 or ranks == 0:
        return None
    if core is None:
        return (out, math.prod(rest)) if inner == ranks else None
    left, right, *window = core
    if (left, right) != (inner, ranks) or math.prod(rest[1:]) != 1:
        return None
    return out, rest[0] * math.prod(window)


def update(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Δ without its factor, of as many numbers as the weight has.

    Args:
        tensors: by role, of one of `KINDS`; float32.

    Returns:
        [o, i·h·w], or `diff` as it is.
    """
    if "diff" in tensors:
        return tensors["diff"]
    if "down" in tensors:
        return _built(tensors["up"], tensors["down"], tensors.get("mid"))
    if "hada_w1_a" in tensors:
        first, second = (_half(tensors, "hada", i) for i in (1, 2))
        return first * second
    first, second = (_half(tensors, "lokr", i) for i in (1, 2))
    return np.kron(first, second)


def _half(tensors: Mapping[str, np.ndarray], kind: str, i: int) -> np.ndarray:
    whole = tensors.get(f"{kind}_w{i}")
    if whole is not None:
        return whole.reshape(len(whole), -1)
    a, b, core = tensors[f"{kind}_w{i}_a"], tensors[f"{kind}_w{i}_b"], tensors.get(f"{kind}_t{i}")
    return _built(a if core is None else a.T, b, core)


def _built(up: np.ndarray, down: np.ndarray, core: np.ndarray | None) -> np.ndarray:
    up, down = up.reshape(len(up), -1), down.reshape(len(down), -1)
    if core is None:
        return up @ down
    window = core.reshape(*core.shape[:2], -1)
    built = np.einsum("or,rqk,qi->oik", up, window, down, optimize=True)
    return built.reshape(len(up), -1)


def _as_lycoris(merged: np.ndarray, length: np.ndarray, strength: np.float32) -> np.ndarray:
    """W' = (W + Δ) (s (m / |W + Δ| - 1) + 1), by rows or, where m lies so, by columns."""
    if length.ndim > 1 and length.shape[0] == 1 != length.shape[1]:
        ratio = length.reshape(1, -1, *[1] * (merged.ndim - 2)) / _lengths(merged, 1)
    else:
        ratio = _per_row(length, merged) / _lengths(merged, 0)
    return merged * (strength * (ratio - 1) + 1)


def _per_row(length: np.ndarray, like: np.ndarray) -> np.ndarray:
    return length.reshape(-1, *[1] * (like.ndim - 1))


def _lengths(weight: np.ndarray, axis: int) -> np.ndarray:
    """|W| along all axes but one; of nothing, so little that nothing comes of it."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    length = np.sqrt(np.sum(np.square(weight), axis=others, keepdims=True))
    return np.maximum(length, np.finfo(np.float32).tiny)
