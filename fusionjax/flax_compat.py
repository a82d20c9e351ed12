"""What is needed to use the Flax classes of diffusers 0.39 without noise and without rounding away.

Diffusers' Flax UNet differs from its PyTorch twin in two places, both in the transformer blocks:
the feed-forward's GELU is the tanh approximation (PyTorch: exact), and the GroupNorm before a
transformer has epsilon 1e-5 (PyTorch: 1e-6). `unet_call_like_torch` mends both from outside.
"""

import logging
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from diffusers.models.attention_flax import FlaxGEGLU, FlaxTransformer2DModel
from flax.linen.module import InterceptorContext

_DEPRECATION = "Flax classes are deprecated and will be removed in Diffusers"
_DIFFUSERS_MODULES = (
    "attention_flax",
    "controlnets.controlnet_flax",
    "embeddings_flax",
    "modeling_flax_utils",
    "resnet_flax",
    "unets.unet_2d_blocks_flax",
    "unets.unet_2d_condition_flax",
    "vae_flax",
)


def _not_the_deprecation(record: logging.LogRecord) -> bool:
    return _DEPRECATION not in record.getMessage()


def quiet_diffusers() -> None:
    """Silences diffusers' "Flax classes are deprecated" message, and no other.

    The message is logged once per submodule per trace, and pyproject.toml pins the release.
    Calling it again changes nothing.
    """
    for name in _DIFFUSERS_MODULES:
        logging.getLogger(f"diffusers.models.{name}").addFilter(_not_the_deprecation)


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
