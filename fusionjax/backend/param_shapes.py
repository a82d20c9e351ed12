"""The shapes of a module's parameters, without computing any."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

ParamPath = tuple[str, ...]


def param_shapes(module: nn.Module) -> dict[ParamPath, jax.ShapeDtypeStruct]:
    """The shapes of a module's parameters.

    Args:
        module: a Flax UNet, VAE or ControlNet of diffusers, or a `FlaxCLIPTextModule`.

    Returns:
        Flattened paths and shapes.
    """
    if hasattr(module, "init_weights"):
        return dict(_of_diffusers(module))
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    tree = jax.eval_shape(module.init, jax.random.key(0), ids, ids, ids)["params"]
    return flatten_dict(dict(tree))


@functools.lru_cache(maxsize=32)  # a UNet's take a second, and are asked for by loading and fusing
def _of_diffusers(module: Any) -> dict[ParamPath, jax.ShapeDtypeStruct]:
    return flatten_dict(dict(jax.eval_shape(module.init_weights, jax.random.key(0))))
