"""Changes from outside what diffusers 0.39's Flax classes compute.

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


def decoder_ends_in_float32(
    next_function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: InterceptorContext,
) -> Any:
    """A Flax interceptor under which a decoder's last norm and convolution are in float32.

    There 16 bits would show: bfloat16 has fewer steps between -1 and 1 than a picture has levels.
    """
    module = context.module
    ends = (("decoder", "conv_norm_out"), ("decoder", "conv_out"))
    if context.method_name != "__call__" or module.path[-2:] not in ends:
        return next_function(*args, **kwargs)
    if module.is_initializing():
        return next_function(*args, **kwargs)
    in_float32 = module.clone(parent=None, dtype=jnp.float32)
    params = jax.tree.map(lambda x: x.astype(jnp.float32), module.variables["params"])
    return in_float32.apply({"params": params}, args[0].astype(jnp.float32))


def _group_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *, epsilon: float, groups: int = 32
) -> jax.Array:
    """GroupNorm over [b, h, w, d], statistics in float32."""
    grouped = x.astype(jnp.float32).reshape(*x.shape[:3], groups, -1)
    # Both sums in one pass, as Flax's own norms take them.
    mean = grouped.mean((1, 2, 4), keepdims=True)
    variance = jnp.square(grouped).mean((1, 2, 4), keepdims=True) - jnp.square(mean)
    scaled = jax.lax.rsqrt(jnp.maximum(variance, 0) + epsilon)
    normalised = ((grouped - mean) * scaled).reshape(x.shape)
    per_channel = (1, 1, 1, -1)
    return (normalised * scale.reshape(per_channel) + bias.reshape(per_channel)).astype(x.dtype)
