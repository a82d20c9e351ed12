"""The shapes of a module's parameters, without computing any."""

import functools
import json
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from fusionjax.backend.flax_apply import new_params

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
    config: Any = module.config  # type: ignore[attr-defined]
    kinds: tuple[Any, Any] = (type(module), type(config))
    return dict(_of_text_encoder(*kinds, config.to_json_string(use_diff=False)))


@functools.lru_cache(maxsize=32)  # a UNet's take a second, and are asked for by loading and fusing
def _of_diffusers(module: Any) -> dict[ParamPath, jax.ShapeDtypeStruct]:
    def init(key: Any, *args: Any) -> dict[str, Any]:
        return {"params": new_params(module, *args)}

    own = module.clone()
    object.__setattr__(own, "init", init)  # `init_weights` knows the arguments, and calls it
    return flatten_dict(dict(jax.eval_shape(own.init_weights, jax.random.key(0))))


@functools.lru_cache(maxsize=32)
def _of_text_encoder(kind: Any, config_kind: Any, config: str) -> dict[ParamPath, Any]:
    """By the config's text, since such a module is no key."""
    module = kind(config_kind.from_dict(json.loads(config)))
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    shapes = jax.eval_shape(functools.partial(new_params, module), ids, ids, ids)
    return flatten_dict(dict(shapes))
