"""Convolutions by few matrix products against PyTorch's in float64."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers import FlaxUNet2DConditionModel
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fusionjax.backend import convolution
from fusionjax.backend.convolution import convolve
from fusionjax.backend.flax_unet import intercept_convolutions

# name: kernel, doubled, height, width, channels in and out, is it for many tokens?
WAYS = {
    "pointwise": (1, False, 3, 5, 4, 6, True),
    "neighbourhoods": (3, False, 3, 5, 4, 6, False),
    "Winograd, the picture larger than the kernel": (3, False, 8, 12, 4, 6, True),
    "Winograd, the kernel larger": (3, False, 4, 6, 32, 33, True),
    "doubled, the picture larger than the kernel": (3, True, 7, 5, 4, 6, True),
    "doubled, the kernel larger": (3, True, 3, 4, 32, 33, True),
    "odd size": (3, False, 8, 5, 4, 6, True),
}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    kernel, doubled, height, width, channels, out, many = WAYS[request.param]
    monkeypatch.setattr(convolution, "_WORTHWHILE", 0)
    monkeypatch.setattr(convolution, "_WINOGRAD_TOKENS", 0 if many else 2**20)
    rng = np.random.default_rng(0)
    return (
        functools.partial(convolve, doubled=doubled),
        rng.standard_normal((8, height, width, channels), np.float32),
        rng.standard_normal((kernel, kernel, channels, out), np.float32),
    )


def in_float64(x, kernel, *, doubled):
    """PyTorch's convolution, and its gradients for the sum of squared outputs."""
    torch = pytest.importorskip("torch")
    x, kernel = (torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (x, kernel))
    picture = x.permute(0, 3, 1, 2)
    if doubled:
        picture = torch.nn.functional.interpolate(picture, scale_factor=2, mode="nearest")
    y = torch.nn.functional.conv2d(picture, kernel.permute(3, 2, 0, 1), padding="same")
    y = y.permute(0, 2, 3, 1)
    (y**2).sum().backward()
    return y.detach().numpy(), x.grad.numpy(), kernel.grad.numpy()


def test_equals_the_convolution_and_its_gradients(way):
    function, *arrays = way

    def loss(*arrays):
        y = function(*arrays)
        return (y**2).sum(), y

    (_, y), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(*arrays)
    wanted = in_float64(*arrays, **function.keywords)
    for ours, theirs in zip((y, *gradients), wanted, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * np.abs(theirs).max())


@pytest.mark.parametrize("through", ["checkpoint", "scan", "vmap"])
def test_its_gradients_pass_through_transformations(way, through):
    function, x, kernel = way

    def loss(x, kernel, function=function):
        if through == "checkpoint":
            y = jax.checkpoint(function)(x, kernel)
        elif through == "scan":
            _, y = jax.lax.scan(lambda _, each: (None, function(each[None], kernel)), None, x)
        else:
            y = jax.vmap(lambda each: function(each[None], kernel))(x)
        return (y**2).sum()

    ours = jax.jit(jax.grad(loss, (0, 1)))(x, kernel)
    _, *wanted = in_float64(x, kernel, **function.keywords)
    for our, their in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(our, their, rtol=0, atol=2e-6 * np.abs(their).max())


@pytest.mark.parametrize("doubled", [False, True])
def test_the_gradient_of_a_picture_costs_a_convolution(doubled):
    """No gradient of a kernel that nobody asks for, and none by XLA's transposition of Winograd."""
    x, kernel = jnp.zeros((1, 32, 32, 64)), jnp.zeros((3, 3, 64, 64))
    function = functools.partial(convolve, doubled=doubled)

    def slope(x, kernel, y):
        return jax.vjp(lambda x: function(x, kernel), x)[1](y)

    def flops(function, *arrays):
        return jax.jit(function).lower(*arrays).compile().cost_analysis()["flops"]

    forward = flops(function, x, kernel)
    assert flops(slope, x, kernel, function(x, kernel)) < 1.4 * forward


@pytest.mark.parametrize("doubled", [False, True])
def test_gradients_in_bfloat16_are_those_of_the_plain_convolution(doubled, monkeypatch):
    monkeypatch.setattr(convolution, "_WORTHWHILE", 0)
    rng = np.random.default_rng(0)
    arrays = [_normal(rng, 1, 8, 8, 4), _normal(rng, 3, 3, 4, 6)]
    arrays = [x.astype(jnp.bfloat16) for x in arrays]

    def plain(x, kernel):
        x = x.repeat(2, 1).repeat(2, 2) if doubled else x
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def gradients(function):
        return jax.grad(lambda *arrays: (function(*arrays) ** 2).sum(), (0, 1))(*arrays)

    ours, theirs = gradients(functools.partial(convolve, doubled=doubled)), gradients(plain)
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.asarray(our, np.float32), np.asarray(their, np.float32))


def test_the_backward_pass_keeps_only_what_a_convolution_keeps(way):
    function, *arrays = way
    _, vjp = jax.vjp(function, *map(jnp.asarray, arrays))
    kept = sum(leaf.size for leaf in jax.tree.leaves(vjp))
    assert kept < sum(array.size for array in arrays) + 50, "no transformed kernel or picture"


def test_a_sharded_batch_stays_where_it_is(way):
    function, *arrays = way
    mesh = Mesh(np.array(jax.devices()), ("data",))
    batch, replicated = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))

    def forward_and_back(x, kernel):
        y, vjp = jax.vjp(lambda x: function(x, kernel), x)
        return y, *vjp(y)

    compiled = jax.jit(forward_and_back, in_shardings=(batch, replicated), out_shardings=batch)
    text = compiled.lower(*arrays).compile().as_text()
    for communication in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert communication not in text


def test_other_types_and_small_convolutions_are_left_alone():
    def convolutions(x, kernel):
        return jax.jit(convolve).lower(x, kernel).as_text().count("stablehlo.convolution")

    x, kernel = jnp.zeros((2, 32, 32, 640)), jnp.zeros((3, 3, 640, 640))
    assert convolutions(x, kernel) == 0
    assert convolutions(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)) == 1
    assert convolutions(x[..., :4], kernel[..., :4, :]) == 1


def test_a_unet_under_it_computes_the_same_with_few_convolutions(monkeypatch):
    monkeypatch.setattr(convolution, "_WORTHWHILE", 0)
    unet = FlaxUNet2DConditionModel(
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        mid_block_type=None,
        cross_attention_dim=8,
    )
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(unet.init_weights, jax.eval_shape(lambda: jax.random.key(0)))
    params = jax.tree.map(lambda s: 0.1 * rng.standard_normal(s.shape, np.float32), shapes)

    def apply(params, latents, text):
        return unet.apply({"params": params}, latents, jnp.ones(1), text, return_dict=False)[0]

    def under_it(*arguments):
        with nn.intercept_methods(intercept_convolutions(8, 12, 2)):
            return apply(*arguments)

    arguments = params, _normal(rng, 1, 4, 8, 12), _normal(rng, 1, 3, 8)
    plain, ours = (jax.jit(f).lower(*arguments) for f in (apply, under_it))
    theirs = plain.compile()(*arguments)
    difference = np.abs(ours.compile()(*arguments) - theirs).max()
    assert difference < 1e-5 * np.abs(theirs).max()
    counts = [lowered.as_text().count("stablehlo.convolution") for lowered in (plain, ours)]
    assert counts[1] == 1, "only the one of stride 2"
    assert counts[0] > 10


def _normal(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape, np.float32))
