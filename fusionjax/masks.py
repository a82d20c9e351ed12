"""Equation 7 and the strengths: who may look at whom, as an additive bias for each reference.

    A = −∞  where k is a face key of identity i and the query lies in another identity's mask j ≠ i

A query in no mask sees every face, a query in two masks sees none, and text keys are never masked.
With soft masks m ∈ [0, 1] and strengths λ this is one formula, which equals equation 7 for hard
masks and λ = 1:

    M[q, r] = log λ[r] + Σ_{j ≠ owner(r)} log(1 − m_j[q])

Axes: b batch, r references, i identities, h w the picture or a layer's grid, q = h·w queries.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from jaxtyping import Array, Float, Int

from fusionjax.backend.blockwise import INVISIBLE
from fusionjax.errors import UserError
from fusionjax.options import LARGEST_STRENGTH


def layer_bias(
    strength: Float[Array, "b r"],
    grid: tuple[int, int],
    masks: Float[Array, "b i H W"] | None = None,
    owner: Int[Array, "b r"] | None = None,
    *,
    cell: tuple[int, int] | None = None,
) -> Float[Array, "b q r"]:
    """M of equation 4 for one layer.

    Args:
        strength: λ ≥ 0 of every reference; 0 hides it exactly.
        grid: Height and width of the layer's tokens. Both must divide the masks' size, if no
            cell is given.
        masks: The region of each identity, in [0, 1], at any resolution. None: no regions.
        owner: The identity that each reference shows, in [0, i). Needed with masks.
        cell: The masks' rows and columns that a token stands for, see `reduce_masks`.

    Returns:
        The bias, float32; its second axis has length 1 where it is the same for all queries.
    """
    bias = log_strength(strength)[:, None, :]
    if masks is None:
        return bias
    if owner is None:
        raise UserError("masks are given without owner: say which identity each reference shows")
    identities = masks.shape[1]
    # log(1 − m) of every identity, summed over those that do not own the reference.
    closed = log_strength(1 - reduce_masks(masks, grid, cell))
    is_other = owner[:, None, :] != jnp.arange(identities)[None, :, None]
    return bias + jnp.einsum(
        "biq,bir->bqr", closed, is_other.astype(jnp.float32), precision="highest"
    )


def reduce_masks(
    masks: Float[Array, "b i H W"], grid: tuple[int, int], cell: tuple[int, int] | None = None
) -> Float[Array, "b i q"]:
    """Reduces masks to a layer's grid by the largest value, so that a small face never vanishes.

    Args:
        masks: At the picture's size, or any multiple of the grid.
        grid: Height and width of the layer's tokens.
        cell: The masks' rows and columns that a token stands for; the last token's may reach
            beyond the masks, as where a UNet has halved an odd number of rows. None: the grid
            divides the masks.

    Raises:
        UserError: When the grid does not divide the masks' size, and no cell is given.
    """
    height, width = masks.shape[2:]
    if cell is not None:
        beyond = ((0, grid[0] * cell[0] - height), (0, grid[1] * cell[1] - width))
        masks = jnp.pad(masks, ((0, 0), (0, 0), *beyond))
    elif height % grid[0] or width % grid[1]:
        raise UserError(
            f"masks are {height}×{width}, which a layer of {grid[0]}×{grid[1]} tokens does not "
            f"divide; give them at the picture's size"
        )
    cells = reduce(masks, "b i (h y) (w x) -> b i h w", "max", h=grid[0], w=grid[1])
    return rearrange(cells, "b i h w -> b i (h w)")


def check_strength(strength: float | np.ndarray, name: str = "strength") -> None:
    """Raises UserError unless every λ is a number in [0, LARGEST_STRENGTH]."""
    values = np.asarray(strength, np.float64)
    bad = values[~((values >= 0) & (values <= LARGEST_STRENGTH))]
    if bad.size:
        raise UserError(
            f"{name} is {bad.flat[0]:g}; it must be a finite number ≥ 0, at most "
            f"{LARGEST_STRENGTH:g} (0 is the base model, 1 the trained strength)"
        )


def check_masks(
    masks: np.ndarray, *, identities: int, height: int, width: int, name: str = "masks"
) -> None:
    """Raises UserError unless `masks` is [identities, height, width] with values in [0, 1].

    Args:
        masks: One mask an identity.
        identities: Number of identities in the picture.
        height: Of the picture, in pixels.
        width: Of the picture, in pixels.
        name: What the message calls them.
    """
    if masks.ndim != 3:
        raise UserError(f"{name} has shape {masks.shape}; it must be [identities, height, width]")
    if masks.shape[0] != identities:
        raise UserError(
            f"{name} holds {masks.shape[0]} masks for {identities} identities; give one for each"
        )
    if masks.shape[1:] != (height, width):
        raise UserError(
            f"{name} are {masks.shape[1]}×{masks.shape[2]} (height × width) for a picture of "
            f"{height}×{width}; they must have the picture's size"
        )
    low, high = float(masks.min()), float(masks.max())
    if not (math.isfinite(low) and math.isfinite(high) and low >= 0 and high <= 1):
        raise UserError(f"{name} hold values from {low:g} to {high:g}; they must lie in [0, 1]")


def log_strength(strength: Any) -> Any:
    """log λ, float32, with log 0 = INVISIBLE: finite everywhere, and so are its gradients.

    NumPy's arrays stay NumPy's: nothing is compiled for them.
    """
    of: Any = np if isinstance(strength, np.ndarray) else jnp
    strength = strength.astype(np.float32)
    visible = strength > 0
    return of.where(visible, of.log(of.where(visible, strength, 1)), of.float32(INVISIBLE))
