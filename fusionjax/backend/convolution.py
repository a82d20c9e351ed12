"""The UNet's convolutions as fewer and larger matrix products, for CPUs in float32.

Winograd's F(2×2, 3×3) (Lavin and Gray, arXiv 1509.09308) computes tiles of 2×2 outputs from 4×4
inputs d and a 3×3 kernel g:

    y = Aᵀ [ (Bᵀ d B) ⊙ (G g Gᵀ) ] A

where ⊙, summed over channels, is 16 products of a quarter of the tokens in place of 9 of all of
them: 2.25 times fewer multiplications. In a picture doubled by nearest neighbours a tile's inputs
are x₋ x x x₊ along each axis; one row of Bᵀ d is zero, and 9 products remain: 4 times fewer. Both
round like the plain convolution: their constants are 1 and ½. Where tokens are few, transforming
the kernel costs more than it saves, and one product with every token's neighbourhood is fastest.

Axes: b batch, h w grid, c o channels in and out, i j a tile's rows and columns.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

# Below this many multiplications little is gained, and more would have to be compiled.
_WORTHWHILE = 2**28
# Below this many tokens, transforming a kernel costs more than 2.25 times fewer products save.
_WINOGRAD_TOKENS = 1024
# Elements of the picture up to which Winograd's products all exist at once.
_UNROLLED = 3 * 2**21

_Convolution = Callable[[Array, Array], Array]


class _Winograd(NamedTuple):
    """The matrices of one axis, and how far apart tiles begin."""

    inputs: Sequence[Sequence[float]]  # Bᵀ
    kernel: Sequence[Sequence[float]]  # G
    outputs: Sequence[Sequence[float]]  # Aᵀ
    stride: int


_PLAIN = _Winograd(
    inputs=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    kernel=((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
    outputs=((1, 1, 1, 0), (0, 1, -1, -1)),
    stride=2,
)
# On the picture before it is doubled: inputs are x₋ x x₊.
_DOUBLED = _Winograd(
    inputs=((1, -1, 0), (0, 1, 0), (0, 1, -1)),
    kernel=((1, 0, 0), (1, 1, 1), (0, 0, 1)),
    outputs=((1, 1, 0), (0, 1, -1)),
    stride=1,
)


def convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k c o"], *, doubled: bool = False
) -> Float[Array, "b H W o"]:
    """Convolves with a kernel of 1×1 or 3×3, the picture padded with zeros to keep its size.

    Args:
        x: Pictures.
        kernel: The kernel.
        doubled: Doubles height and width first, by nearest neighbours.

    Returns:
        The convolution, of the same size, or of double height and width.
    """
    if x.dtype != jnp.float32 or _tokens(x, doubled) * kernel.size < _WORTHWHILE:
        return _plain(x, kernel, doubled=doubled)
    return _convolve(x, kernel, doubled)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: Array, kernel: Array, doubled: bool) -> Array:
    plain = functools.partial(_plain, doubled=doubled)
    on_cpu = _on_cpu(x, kernel, doubled=doubled)
    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=plain)


def _convolve_forward(x: Array, kernel: Array, doubled: bool) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, doubled), (x, kernel)


def _convolve_backward(
    doubled: bool, saved: tuple[Array, Array], slope: Array
) -> tuple[Array, Array]:
    def transposed(function: _Convolution, x: Array, kernel: Array, slope: Array) -> Any:
        return jax.vjp(function, x, kernel)[1](slope)

    def on_cpu(x: Array, kernel: Array, slope: Array) -> tuple[Array, Array]:
        function = _on_cpu(x, kernel, doubled=doubled)
        of_x, of_kernel = transposed(function, x, kernel, slope)
        if function is _winograd:
            of_x = _winograd(slope, kernel[::-1, ::-1], transposed=True)
        return of_x, of_kernel

    default = functools.partial(transposed, functools.partial(_plain, doubled=doubled))
    return jax.lax.platform_dependent(*saved, slope, cpu=on_cpu, default=default)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _on_cpu(x: Array, kernel: Array, *, doubled: bool) -> _Convolution:
    """The fastest way on a CPU for arrays of these shapes."""
    if kernel.shape[0] == 1:
        return _pointwise
    if doubled:
        return _winograd_doubled
    if _tokens(x, doubled) < _WINOGRAD_TOKENS:
        return _neighbourhoods
    if x.shape[1] % 2 == x.shape[2] % 2 == 0:
        return _winograd
    return functools.partial(_plain, doubled=False)


def _tokens(x: Array, doubled: bool) -> int:
    """How many tokens the convolution has."""
    b, h, w, _ = x.shape
    return b * h * w * (4 if doubled else 1)


def _plain(x: Array, kernel: Array, *, doubled: bool) -> Array:
    if doubled:
        x = x.repeat(2, axis=1).repeat(2, axis=2)
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _pointwise(x: Array, kernel: Array) -> Array:
    return x @ kernel[0, 0]


def _neighbourhoods(x: Array, kernel: Array) -> Array:
    _, h, w, _ = x.shape
    x = _with_border(x)
    neighbours = [x[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    return jnp.concatenate(neighbours, axis=-1) @ rearrange(kernel, "i j c o -> (i j c) o")


def _winograd_doubled(x: Array, kernel: Array) -> Array:
    return _winograd(x, kernel, tile=_DOUBLED)


def _winograd(
    x: Array, kernel: Array, *, tile: _Winograd = _PLAIN, transposed: bool = False
) -> Array:
    """By Winograd's products; with the kernel's channels swapped if it is `transposed`."""
    rows = _tile_inputs(_with_border(x), 1, tile)

    def one_row(of_inputs: Array | Sequence[float], of_kernel: Array | Sequence[float]) -> Array:
        inputs = _tile_inputs(_sum(of_inputs, rows), 2, tile)
        taps = _sum(of_kernel, kernel)
        products = [
            _sum(d, inputs) @ (_sum(g, taps).T if transposed else _sum(g, taps))
            for d, g in zip(tile.inputs, tile.kernel, strict=True)
        ]
        return jnp.stack([_sum(a, products) for a in tile.outputs])

    def add_row(y: list[Array], row: tuple[Array, ...]) -> tuple[list[Array], None]:
        of_inputs, of_kernel, of_outputs = row
        products = one_row(of_inputs, of_kernel)
        return [y_i + a_i * products for y_i, a_i in zip(y, of_outputs, strict=True)], None

    # Unrolled is faster, but XLA begins every product at once, and transforms kernels long before
    # their turn. A loop keeps what is large to one row of the tile at a time; it begins with zeros
    # that depend on x, for XLA lays out constants of all layers before the first.
    if kernel.size <= x.size <= _UNROLLED:
        products = [one_row(*row) for row in zip(tile.inputs, tile.kernel, strict=True)]
        y = [_sum(a, products) for a in tile.outputs]
    else:
        out = kernel.shape[2 if transposed else 3]
        matrices = tile.inputs, tile.kernel, tuple(zip(*tile.outputs, strict=True))
        shape = (2, x.shape[0], *(size // tile.stride for size in x.shape[1:3]), out)
        zeros = jnp.broadcast_to(0 * jax.lax.stop_gradient(x[None, :, :1, :1, :1]), shape)
        y, _ = jax.lax.scan(add_row, [zeros, zeros], tuple(jnp.array(m, x.dtype) for m in matrices))
    return rearrange(jnp.stack(y), "i j b h w o -> b (h i) (w j) o")


def _with_border(x: Array) -> Array:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _tile_inputs(x: Array, axis: int, tile: _Winograd) -> list[Array]:
    """Along an axis of the padded picture, the first, second, … input of every tile."""
    count = len(tile.inputs)
    end = x.shape[axis] - count + 1
    return [jax.lax.slice_in_dim(x, n, n + end, tile.stride, axis) for n in range(count)]


def _sum(coefficients: Array | Sequence[float], arrays: Iterable[Array]) -> Array:
    terms = zip(coefficients, arrays, strict=True)
    return functools.reduce(jnp.add, [c * x for c, x in terms if isinstance(c, Array) or c != 0])
