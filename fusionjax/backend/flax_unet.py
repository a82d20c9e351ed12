"""All that knows the inside of diffusers 0.39's Flax classes, changed here from outside.

Their attention is handed to ours, their 3×3 and 1×1 convolutions to `convolve`. In two places the
Flax UNet differs from its PyTorch twin, both in the transformer blocks, and is mended: the
feed-forward's GELU is the tanh approximation (PyTorch: exact), and the GroupNorm before a
transformer has epsilon 1e-5 (PyTorch: 1e-6).

Axes: b batch, h w grid, d features.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.module import InterceptorContext
from flax.traverse_util import unflatten_dict
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from fusionjax.backend.attention_kernels import kernel_by_name
from fusionjax.backend.convolution import convolve
from fusionjax.backend.devices import default_implementation
from fusionjax.backend.flax_apply import applied, applied_once
from fusionjax.backend.flax_classes import (
    FlaxAttention,
    FlaxDownsample2D,
    FlaxGEGLU,
    FlaxResnetBlock2D,
    FlaxTransformer2DModel,
    FlaxUNet2DConditionModel,
    FlaxUpsample2D,
)
from fusionjax.backend.param_shapes import param_shapes
from fusionjax.errors import UserError

Params = Mapping[str, Any]
# name, module, image tokens → what the module returns
CrossAttention = Callable[[str, FlaxAttention, Array], Array]

BLOCK_OUTPUT = "unet_block_output"
_LEAVES = (nn.GroupNorm, nn.LayerNorm, nn.Dense)
_BLOCKS = (FlaxResnetBlock2D, FlaxTransformer2DModel, FlaxDownsample2D, FlaxUpsample2D)


def _interceptor(
    answer: Callable[[Any, tuple[Any, ...], Callable[[], Any]], Any],
) -> Callable[..., Any]:
    """A Flax interceptor from (module, arguments, the module's own call) → its answer."""

    def intercept(
        next_function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: InterceptorContext,
    ) -> Any:
        own = functools.partial(next_function, *args, **kwargs)
        return answer(context.module, args, own) if context.method_name == "__call__" else own()

    return intercept


def intercept_attention(
    cross_attention: CrossAttention, self_attention: Callable[[FlaxAttention, Array], Array]
) -> Callable[..., Any]:
    """The Flax interceptor that replaces what attention computes, and tags each block's output."""

    @_interceptor
    def intercept(module: Any, args: tuple[Any, ...], own: Callable[[], Any]) -> Any:
        if isinstance(module, FlaxAttention):
            if module.path[-1] == "attn2":
                return cross_attention(layer_name(module.path), module, args[0])
            return self_attention(module, args[0])
        out = _like_torch(module, args, own)
        return checkpoint_name(out, BLOCK_OUTPUT) if isinstance(module, _BLOCKS) else out

    return intercept


def split_heads(module: FlaxAttention, x: Array) -> Array:
    """[…, n d] → […, n, d]."""
    return x.reshape(*x.shape[:-1], module.heads, module.dim_head)


@dataclasses.dataclass(frozen=True)
class AttentionLayer:
    """One cross-attention of the UNet.

    Attributes:
        path: Its place in the Flax parameter tree, from the root.
        level: Its tokens are the latent grid halved this many times, rounded up each time.
        features: D, the width of its image tokens.
        heads: Number of heads.
        head_features: Width of a head.
    """

    path: tuple[str, ...]
    level: int
    features: int
    heads: int
    head_features: int

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Its rows and columns of tokens in a latent grid of height × width."""
        return halved(height, self.level), halved(width, self.level)


def halved(size: int, times: int) -> int:
    """Rows or columns after so many of the UNet's downsamplers: each halves, and rounds up."""
    return -(-size >> times)


@functools.lru_cache(maxsize=32)  # tracing takes a second
def find_layers(unet: FlaxUNet2DConditionModel) -> Mapping[str, AttentionLayer]:
    """Every cross-attention of a UNet, in the order in which an image meets them.

    Traces the model twice, without computing: its parameters, and a pass with the interception.

    Args:
        unet: The model.

    Raises:
        UserError: When it has no cross-attention.
        RuntimeError: When a cross-attention among the parameters is not met in the pass, or its
            tokens are not the latent grid halved as its block says: no fusion would happen there.
    """
    shapes = param_shapes(unet)
    in_params = {path[: path.index("attn2") + 1] for path in shapes if "attn2" in path}

    levels = len(unet.down_block_types)
    height, width = 2 ** (levels - 1), 2**levels  # not square: a mixed-up axis would show
    met: dict[str, AttentionLayer] = {}

    def meet(name: str, module: FlaxAttention, hidden: Array) -> Array:
        path = tuple(module.path)
        layer = AttentionLayer(
            path, _level(path, levels), hidden.shape[-1], module.heads, module.dim_head
        )
        rows, columns = layer.grid(height, width)
        if hidden.shape[1] != rows * columns:
            raise RuntimeError(
                f"{name} has {hidden.shape[1]} tokens, not {rows}×{columns}: this UNet's blocks "
                f"do not halve the picture one by one"
            )
        met[name] = layer
        return hidden

    def capture(params: Params, latents: Array, text: Array) -> None:
        with nn.intercept_methods(intercept_attention(meet, lambda module, hidden: hidden)):
            applied(unet, params, latents, jnp.zeros(1), text, return_dict=False)

    jax.eval_shape(
        capture,
        unflatten_dict(shapes),
        jax.ShapeDtypeStruct((1, unet.in_channels, height, width), jnp.float32),
        jax.ShapeDtypeStruct((1, 1, unet.cross_attention_dim), jnp.float32),
    )
    if not in_params:
        raise UserError("the UNet has no cross-attention (attn2), so there is nothing to fuse with")
    if missed := in_params - {layer.path for layer in met.values()}:
        raise RuntimeError(
            f"{len(missed)} of {len(in_params)} cross-attention layers were not intercepted, "
            f"first {'/'.join(sorted(missed)[0])}"
        )
    return MappingProxyType(met)  # shared by all who ask


def _level(path: tuple[str, ...], levels: int) -> int:
    block = path[0]
    if block.startswith("down_blocks_"):
        return int(block.rpartition("_")[2])
    if block.startswith("up_blocks_"):
        return levels - 1 - int(block.rpartition("_")[2])
    return levels - 1


def layer_name(path: tuple[str, ...]) -> str:
    """The PyTorch module path of a Flax module: `down_blocks_0` → `down_blocks.0`."""
    return ".".join(re.sub(r"_(\d+)$", r".\1", part) for part in path)


def intercept_convolutions(height: int, width: int, levels: int) -> Callable[..., Any]:
    """The Flax interceptor under which diffusers' UNet convolves by `convolve`.

    Where a downsampler has rounded an odd number of rows or columns up, the upsampler leaves the
    last one out: so PyTorch's twin resizes to what the skip connection brings, by nearest
    neighbours.

    Args:
        height: Of the latent grid.
        width: Likewise.
        levels: Of the UNet.
    """

    @_interceptor
    def intercept(module: Any, args: tuple[Any, ...], own: Callable[[], Any]) -> Any:
        if not module.is_initializing():
            if isinstance(module, FlaxUpsample2D):
                level = _level(module.path, levels) - 1
                return _upsample(module, args[0], halved(height, level), halved(width, level))
            if isinstance(module, nn.Conv) and _keeps_size(module):
                return _convolve(module, args[0])
        return own()

    return intercept


def _upsample(module: FlaxUpsample2D, x: Array, rows: int, columns: int) -> Array:
    if (rows, columns) == (2 * x.shape[1], 2 * x.shape[2]):
        return _convolve(module.conv, x, doubled=True)
    doubled = x.repeat(2, axis=1).repeat(2, axis=2)
    return _convolve(module.conv, doubled[:, :rows, :columns])


def _keeps_size(module: nn.Conv) -> bool:
    paddings: dict[Any, Any] = {(1, 1): ("VALID",), (3, 3): (((1, 1), (1, 1)),)}
    return module.padding in paddings.get(module.kernel_size, ()) and module.strides in (1, (1, 1))


def _convolve(module: nn.Conv, x: Array, *, doubled: bool = False) -> Array:
    parameters = module.variables["params"]
    return _biased(x, parameters["kernel"], parameters["bias"], module.dtype, doubled)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _biased(x: Array, kernel: Array, bias: Array, dtype: Any, doubled: bool) -> Array:
    kernel, bias = kernel.astype(dtype), bias.astype(dtype)
    return convolve(x.astype(dtype), kernel, doubled=doubled) + bias.reshape(1, 1, 1, -1)


def _like_torch(module: Any, args: tuple[Any, ...], own: Callable[[], Any]) -> Any:
    """What PyTorch's UNet computes in this place."""
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
    if isinstance(module, _LEAVES) and not module.is_initializing():
        return applied_once(module, args[0])
    return own()


@functools.partial(jax.jit, static_argnames=("epsilon", "groups"))
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


@_interceptor
def decoder_ends_in_float32(module: Any, args: tuple[Any, ...], own: Callable[[], Any]) -> Any:
    """A Flax interceptor under which a decoder's last norm and convolution are in float32.

    There 16 bits would show: bfloat16 has fewer steps between -1 and 1 than a picture has levels.
    """
    ends = (("decoder", "conv_norm_out"), ("decoder", "conv_out"))
    if module.path[-2:] not in ends or module.is_initializing():
        return own()
    in_float32 = module.clone(parent=None, dtype=jnp.float32)
    params = jax.tree.map(lambda x: x.astype(jnp.float32), module.variables["params"])
    return in_float32.apply({"params": params}, args[0].astype(jnp.float32))


def with_vectors(vectors: Array, own_words: int) -> Any:
    """A Flax interceptor under which a text encoder knows more words than its own.

    Args:
        vectors: embeddings of the ids from `own_words` on, [v, d].
        own_words: how many it has.
    """

    @_interceptor
    def embed(module: Any, args: tuple[Any, ...], own: Callable[[], Any]) -> Any:
        if not isinstance(module, nn.Embed) or module.name != "token_embedding":
            return own()
        # Their ids lie beyond the module's table, where what it finds is not looked at.
        ids, found = args[0], own()
        added = vectors.astype(found.dtype)[jnp.clip(ids - own_words, 0, len(vectors) - 1)]
        return jnp.where((ids >= own_words)[..., None], added, found)

    return embed


@_interceptor
def controlnet_like_torch(module: Any, args: tuple[Any, ...], own: Callable[[], Any]) -> Any:
    """A Flax interceptor under which a ControlNet computes PyTorch's, with our attention."""
    if not isinstance(module, FlaxAttention):
        return _like_torch(module, args, own)
    hidden, states = args[0], args[1] if len(args) > 1 else args[0]
    query = split_heads(module, module.query(hidden))
    key, value = (split_heads(module, project(states)) for project in (module.key, module.value))
    attend = kernel_by_name(default_implementation(query.dtype), None)
    out = attend(query, key, value, None, 0)
    return module.proj_attn(out.reshape(*out.shape[:2], -1))
