"""A Flax module applied to its weights, or to none yet.

At every use of a weight Flax compares its shape with what its initialiser would give, and traces
the initialiser for that: a third of the time that tracing a UNet takes. The shape is what
initialisers are called with, so here it is read.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core.scope import Scope
from flax.errors import ScopeParamShapeError
from flax.linen.module import _global_interceptor_stack


class _Scope(Scope):
    """Weights by name, none of which is traced to be looked up."""

    def param(
        self,
        name: str,
        init_fn: Callable[..., Any],
        *init_args: Any,
        unbox: bool = True,
        **init_kwargs: Any,
    ) -> Any:
        if not _begin_with_shape(init_args) or not self.has_variable("params", name):
            return super().param(name, init_fn, *init_args, unbox=unbox, **init_kwargs)
        self.reserve(name, "params")
        value = self.get_variable("params", name)
        if np.shape(value) != (shape := tuple(init_args[0])):
            raise ScopeParamShapeError(name, self.path_text, np.shape(value), shape)
        return value

    def _own_kind(self, scope: Scope) -> Scope:
        scope.__class__ = type(self)  # Flax makes a `Scope`, whatever it comes from
        return scope

    def push(self, name: str | None = None, prefix: str = "", reuse: bool = False) -> Scope:
        return self._own_kind(super().push(name, prefix, reuse))

    def rewound(self, rewind_rngs: bool = False) -> Scope:
        return self._own_kind(super().rewound(rewind_rngs))


class _NewScope(_Scope):
    """Weights that come to be as zeros where they are asked for."""

    def param(self, name: str, init_fn: Callable[..., Any], *init_args: Any, **words: Any) -> Any:
        if _begin_with_shape(init_args) and not self.has_variable("params", name):
            self.put_variable("params", name, jnp.zeros(*init_args))
        return super().param(name, init_fn, *init_args, **words)


def _begin_with_shape(arguments: tuple[Any, ...]) -> bool:
    """Whether an initialiser is asked for a shape, as Flax's own layers do."""
    return bool(arguments) and isinstance(arguments[0], tuple | list)


def applied(
    module: nn.Module,
    params: Mapping[str, Any],
    *args: Any,
    method: Callable[..., Any] | None = None,
    **kwargs: Any,
) -> Any:
    """What `module.apply({"params": params}, …)` returns, found with less tracing.

    Args:
        module: any whose weights are its only variables.
        params: its weights.
        *args: of the method.
        method: of the module's class; None is `__call__`.
        **kwargs: of the method.

    Returns:
        What the method returns.

    Raises:
        flax.errors.ScopeParamShapeError: if a weight has another shape than the module says.
    """
    with _Scope({"params": dict(params)}).temporary() as root:
        bound = module.clone(parent=root, _deep_clone=True)
        return (method or type(module).__call__)(bound, *args, **kwargs)


def applied_once(module: nn.Module, x: jax.Array) -> Any:
    """What a bound layer returns; layers that are alike are traced once, in whatever programs.

    Interceptors do not see it.

    Args:
        module: without modules of its own, and of fields that can be hashed.
        x: its input.
    """
    alone = module.clone(parent=None, name=None)
    return _alone(alone, module.variables["params"], x)


@functools.partial(jax.jit, static_argnums=0)
def _alone(module: nn.Module, params: Any, x: jax.Array) -> Any:
    with _no_interceptors():  # the trace is kept longer than they are there
        return applied(module, params, x)


@contextlib.contextmanager
def _no_interceptors() -> Iterator[None]:
    stack = _global_interceptor_stack
    kept, stack._storage = stack._storage, []
    try:
        yield
    finally:
        stack._storage = kept


def new_params(module: nn.Module, *args: Any) -> Any:
    """Zeros in place of what `module.init(key, *args)["params"]` draws; for `jax.eval_shape`.

    Args:
        module: as for `applied`.
        *args: of its `__call__`.

    Returns:
        A tree of arrays.
    """
    scope = _NewScope({"params": {}}, mutable="params", flags={"initializing": True})
    with scope.temporary() as root:
        type(module).__call__(module.clone(parent=root, _deep_clone=True), *args)
        return root.variables()["params"]
