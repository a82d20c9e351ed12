"""Makes diffusers 0.39's Flax UNet compute what PyTorch's does, from outside.

Diffusers' Flax UNet differs from its PyTorch twin in two places, both in the transformer blocks:
the feed-forward's GELU is the tanh approximation (PyTorch: exact), and the GroupNorm before a
transformer has epsilon 1e-5 (PyTorch: 1e-6). `unet_call_like_torch` mends both.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from diffusers.models.attention_flax import FlaxGEGLU, FlaxTransformer2DModel
from flax.linen.module import InterceptorContext


def unet_call_like_torch(
    next_function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: InterceptorContext,
) -> Any:
    """A Flax interceptor under which diffusers' Flax UNet computes what PyTorch's does."""
    module = context.module
    if context.method_name != "__call__":
        return next_function(*args, **kwargs)
    if isinstance(module, FlaxGEGLU):
        linear, gate = jnp.split(module.proj(args[0]), 2, axis=-1)
        return linear * nn.gelu(gate, approximate=False)
    if (
        isinstance(module, nn.GroupNorm)
        and isinstance(module.parent, FlaxTransformer2DModel)
        and not module.is_initializing()
    ):
        parameters = module.variables["params"]
        return _group_norm(args[0], parameters["scale"], parameters["bias"], epsilon=1e-6)
    return next_function(*args, **kwargs)


def _group_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *, epsilon: float, groups: int = 32
) -> jax.Array:
    """GroupNorm over [b, h, w, d], statistics in float32."""
    grouped = x.astype(jnp.float32).reshape(*x.shape[:3], groups, -1)
    mean = grouped.mean((1, 2, 4), keepdims=True)
    variance = jnp.square(grouped - mean).mean((1, 2, 4), keepdims=True)
    normalised = ((grouped - mean) * jax.lax.rsqrt(variance + epsilon)).reshape(x.shape)
    per_channel = (1, 1, 1, -1)
    return (normalised * scale.reshape(per_channel) + bias.reshape(per_channel)).astype(x.dtype)
