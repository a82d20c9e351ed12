"""A module applied to its weights is what Flax makes of it, without its initialisers."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.errors import ScopeParamNotFoundError, ScopeParamShapeError

from fusionjax.backend.flax_apply import applied, applied_once, new_params

called = []


def initial(key, shape, dtype):
    called.append(shape)
    return jax.random.normal(key, shape, dtype)


class Net(nn.Module):
    """Modules within modules, and a method that is not `__call__`."""

    def setup(self):
        self.layers = [nn.Dense(4, kernel_init=initial), nn.Sequential([nn.LayerNorm()])]

    def __call__(self, x, *, times=1):
        for layer in self.layers * times:
            x = layer(x)
        return x

    def first(self, x):
        return self.layers[0](x)


X = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture(scope="module")
def params():
    return Net().init(jax.random.key(0), X)["params"]


def test_it_is_what_flax_returns_and_no_initialiser_is_called(params):
    called.clear()
    ours = applied(Net(), params, X, times=2), applied(Net(), params, X, method=Net.first)
    assert not called
    theirs = (
        Net().apply({"params": params}, X, times=2),
        Net().apply({"params": params}, X, method=Net.first),
    )
    assert called
    for mine, flaxs in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, flaxs)


def test_weights_that_do_not_fit_are_flaxs_errors(params):
    with pytest.raises(ScopeParamShapeError):
        applied(Net(), params, X[:, :3])
    lacking = {**params, "layers_0": {"bias": params["layers_0"]["bias"]}}
    with pytest.raises(ScopeParamNotFoundError):
        applied(Net(), lacking, X)


def test_new_params_are_those_that_an_initialisation_draws():
    """Also of layers that ask for a list of sides, as GroupNorm does."""
    net = nn.Sequential([Net(), nn.Conv(32, (3,), dtype=np.float16), nn.GroupNorm(8)])
    called.clear()
    ours = jax.eval_shape(functools.partial(new_params, net), X)
    assert not called
    theirs = jax.eval_shape(net.init, jax.random.key(0), X)["params"]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), ours) == jax.tree.map(
        lambda x: (x.shape, x.dtype), theirs
    )


def test_layers_that_are_alike_are_traced_once_and_without_interceptors(params):
    """What an interceptor of one program does is not in another's."""
    seen = []

    def intercept(call, args, kwargs, context):
        if isinstance(context.module, nn.Dense):
            seen.append(context.module.path)
            return applied_once(context.module, args[0] + 1)
        return call(*args, **kwargs)

    def net(params, x):
        return applied(Net(), params, x)

    plain = jax.jit(net)(params, X)
    with nn.intercept_methods(intercept):
        changed = [jax.jit(lambda *args: net(*args))(params, X) for _ in range(2)]
    assert seen == [("layers_0",)] * 2
    np.testing.assert_array_equal(changed[0], changed[1])
    np.testing.assert_allclose(changed[0], net(params, X + 1), rtol=1e-5)
    np.testing.assert_allclose(plain, net(params, X), rtol=1e-5)
