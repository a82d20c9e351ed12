"""Equation 7 by hand, on grids small enough to read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusionjax.backend.blockwise import INVISIBLE
from fusionjax.errors import UserError
from fusionjax.masks import check_masks, check_strength, layer_bias, log_strength, reduce_masks

HIDDEN = INVISIBLE / 2  # anything below is invisible


def test_reduction_keeps_a_single_pixel():
    mask = jnp.zeros((1, 1, 8, 16)).at[0, 0, 3, 9].set(1)
    reduced = reduce_masks(mask, (2, 4)).reshape(2, 4)
    np.testing.assert_array_equal(reduced, [[0, 0, 1, 0], [0, 0, 0, 0]])


def test_equation_7_by_hand():
    # Four queries in a row: in mask 0 only, in both, in mask 1 only, in none.
    masks = jnp.array([[[[1.0, 1, 0, 0]], [[0, 1, 1, 0]]]])
    owner = jnp.array([[0, 0, 1]])
    bias = layer_bias(jnp.array([[1.0, 0.5, 1.0]]), (1, 4), masks, owner)
    visible = bias[0] > HIDDEN
    np.testing.assert_array_equal(
        visible,
        [
            [True, True, False],  # own person only
            [False, False, False],  # two masks: nobody
            [False, False, True],
            [True, True, True],  # no mask: everybody
        ],
    )
    np.testing.assert_allclose(bias[0, 3], np.log([1, 0.5, 1]), rtol=1e-6)


def test_soft_masks_multiply_lambda():
    masks = jnp.array([[[[0.25]], [[0.75]]]])
    bias = layer_bias(jnp.array([[2.0, 1.0]]), (1, 1), masks, jnp.array([[0, 1]]))
    np.testing.assert_allclose(jnp.exp(bias[0, 0]), [2 * 0.25, 1 * 0.75], rtol=1e-6)


def test_one_person_with_a_mask_is_not_hidden_by_it():
    masks = jnp.ones((1, 1, 2, 2))
    bias = layer_bias(jnp.ones((1, 2)), (2, 2), masks, jnp.zeros((1, 2), jnp.int32))
    np.testing.assert_array_equal(bias, 0)


def test_no_masks_is_one_row_for_all_queries():
    bias = layer_bias(jnp.array([[1.0, 0.0]]), (64, 96))
    assert bias.shape == (1, 1, 2)
    assert bias[0, 0, 1] < HIDDEN


def test_lambda_zero_has_finite_gradients():
    gradient = jax.grad(lambda s: log_strength(s).sum())(jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(gradient, [0, 2])


def test_errors_name_the_thing():
    with pytest.raises(UserError, match="masks are 8×9, which a layer of 2×4 tokens does not"):
        reduce_masks(jnp.zeros((1, 1, 8, 9)), (2, 4))
    with pytest.raises(UserError, match="masks are given without owner"):
        layer_bias(jnp.ones((1, 1)), (2, 2), jnp.ones((1, 1, 2, 2)))
    for bad in (-0.5, float("nan"), float("inf")):
        with pytest.raises(UserError, match=rf"face_strength is {bad:g}; it must be .* ≥ 0"):
            check_strength(bad, "face_strength")
    check_strength(0.0)

    def check(masks):
        check_masks(masks, identities=2, height=8, width=8)

    with pytest.raises(UserError, match=r"masks has shape \(8, 8\)"):
        check(np.zeros((8, 8)))
    with pytest.raises(UserError, match="masks holds 3 masks for 2 identities"):
        check(np.zeros((3, 8, 8)))
    with pytest.raises(UserError, match=r"masks are 8×4 .* picture of 8×8"):
        check(np.zeros((2, 8, 4)))
    with pytest.raises(UserError, match="masks hold values from 0 to 255"):
        check(np.full((2, 8, 8), 255) * np.eye(8, dtype=int))
    check(np.zeros((2, 8, 8)))
