"""A Flax module applied to its weights.

At every use of a weight Flax compares its shape with what its initialiser would give, and traces
the initialiser for that: a third of the time that tracing a UNet takes. The shape is what
initialisers are called with, so here it is read.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from flax.core.scope import Scope
from flax.errors import ScopeParamShapeError


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
        is_shape = bool(init_args) and isinstance(init_args[0], tuple)
        if not is_shape or not self.has_variable("params", name):
            return super().param(name, init_fn, *init_args, unbox=unbox, **init_kwargs)
        self.reserve(name, "params")
        value = self.get_variable("params", name)
        if np.shape(value) != init_args[0]:
            raise ScopeParamShapeError(name, self.path_text, np.shape(value), init_args[0])
        return value

    def push(self, name: str | None = None, prefix: str = "", reuse: bool = False) -> Scope:
        return _likewise(super().push(name, prefix, reuse))

    def rewound(self, rewind_rngs: bool = False) -> Scope:
        return _likewise(super().rewound(rewind_rngs))


def _likewise(scope: Scope) -> Scope:
    """Flax makes a `Scope`, whatever it comes from."""
    scope.__class__ = _Scope
    return scope


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
