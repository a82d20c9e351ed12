"""Arithmetic of a program, counted from what it says rather than from what a compiler tells.

XLA's own count takes the body of a loop once, and on a GPU knows nothing of library calls.
"""

import math
from typing import Any

import jax.extend.core as jex


def matrix_flops(program: Any) -> int:
    """Operations of all matrix products and convolutions, a multiply-add counting as two.

    Args:
        program: a jaxpr, as from `jax.jit(f).trace(…).jaxpr`. Loops count as often as they run;
            of the branches of a condition the dearest counts.

    Returns:
        The count over all devices. Hand-written kernels are not looked into.
    """
    total = 0
    for equation in getattr(program, "jaxpr", program).eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            depth = math.prod(shape[axis] for axis in contracted)
            total += 2 * depth * equation.outvars[0].aval.size
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            out_axis = params["dimension_numbers"].rhs_spec[0]
            total += 2 * math.prod(kernel) // kernel[out_axis] * equation.outvars[0].aval.size
        elif name == "cond":
            total += max(map(matrix_flops, params["branches"]))
        else:
            times = params["length"] if name == "scan" else 1
            if name == "shard_map":
                times = params["mesh"].size
            total += times * sum(map(matrix_flops, jex.jaxprs_in_params(params)))
    return total
