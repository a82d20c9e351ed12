"""The `config.json` files of a diffusers folder, and the Flax modules they describe.

PyTorch's classes know options that the Flax classes lack. Where a config sets one of them to
anything but what the Flax classes do, the model is refused: it would compute something else.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, TypedDict

import jax.numpy as jnp
from msgspec import Meta

from fusionjax import schema
from fusionjax.backend.flax_classes import (
    ACT2FN,
    CLIPTextConfig,
    FlaxAutoencoderKL,
    FlaxCLIPTextModule,
    FlaxUNet2DConditionModel,
)
from fusionjax.errors import UserError, told
from fusionjax.options import not_one_of

# What the Flax classes have built in, by PyTorch's name for it.
_UNET_BUILT_IN: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None,),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim_type": (None,),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "norm_eps": (1e-5,),
    "norm_num_groups": (32,),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "resnet_out_scale_factor": (1,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
_VAE_BUILT_IN: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "latents_mean": (None,),
    "latents_std": (None,),
    "mid_block_add_attention": (True,),
    "shift_factor": (None, 0),
    "use_post_quant_conv": (True,),
    "use_quant_conv": (True,),
}
_BLOCKS = {"CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D",
           "DownEncoderBlock2D", "UpDecoderBlock2D"}  # fmt: skip
_GROUPS = 32  # where a config says nothing
_FLAX_ONLY = {"parent", "name", "dtype", "use_memory_efficient_attention", "split_head_dim"}


CHANNELS: Any = Annotated[
    list[schema.whole(1, 8192)],  # type: ignore[misc]
    Meta(min_length=1, max_length=8),
]
_LAYERS = schema.whole(1, 64)
_HEADS = schema.whole(1, 1024)


class UnetTypes(TypedDict, total=False):
    """The types of a UNet's `config.json`, as far as the Flax class knows it."""

    sample_size: schema.whole(1, 1024) | None
    in_channels: schema.whole(1, 64)
    out_channels: schema.whole(1, 64)
    down_block_types: list[str]
    up_block_types: list[str]
    mid_block_type: str | None
    only_cross_attention: bool | list[bool]
    block_out_channels: CHANNELS
    layers_per_block: _LAYERS
    attention_head_dim: _HEADS | list[_HEADS]
    num_attention_heads: _HEADS | list[_HEADS] | None
    cross_attention_dim: schema.whole(1, 16384)
    dropout: schema.real(0, 1)
    use_linear_projection: bool
    flip_sin_to_cos: bool
    freq_shift: schema.real(-1e3, 1e3)
    transformer_layers_per_block: _LAYERS | list[_LAYERS]
    addition_time_embed_dim: schema.whole(1, 8192) | None
    projection_class_embeddings_input_dim: schema.whole(1, 8192) | None


class VaeTypes(TypedDict, total=False):
    """The types of an autoencoder's `config.json`."""

    in_channels: schema.whole(1, 64)
    out_channels: schema.whole(1, 64)
    down_block_types: list[str]
    up_block_types: list[str]
    block_out_channels: CHANNELS
    layers_per_block: _LAYERS
    latent_channels: schema.whole(1, 256)
    norm_num_groups: schema.whole(1, 1024)
    sample_size: schema.whole(1, 65536)
    scaling_factor: schema.real(0, 1e3, above=True)


class TextTypes(TypedDict, total=False):
    """The types of a CLIP text encoder's `config.json`."""

    vocab_size: schema.whole(1, 1_000_000)
    hidden_size: schema.whole(1, 8192)
    intermediate_size: schema.whole(1, 65536)
    projection_dim: schema.whole(1, 8192)
    num_hidden_layers: schema.whole(1, 128)
    num_attention_heads: schema.whole(1, 128)
    max_position_embeddings: schema.whole(3, 4096)
    hidden_act: str
    layer_norm_eps: schema.real(0, 1, above=True)
    dropout: schema.real(0, 1)
    attention_dropout: schema.real(0, 1)
    initializer_range: schema.real(0, 1e3)
    initializer_factor: schema.real(0, 1e3)
    pad_token_id: schema.whole(-1, 1_000_000) | None
    bos_token_id: schema.whole(-1, 1_000_000) | None
    eos_token_id: schema.whole(-1, 1_000_000) | list[int] | None


def unet_from_config(config: Mapping[str, Any], where: str, dtype: Any = jnp.float32) -> Any:
    """Builds the Flax UNet that a PyTorch `UNet2DConditionModel` config describes.

    Args:
        config: the parsed `config.json`.
        where: how to name it in errors.
        dtype: the type to compute in.

    Returns:
        The Flax module, without parameters.

    Raises:
        UserError: if the Flax class cannot do what the config asks for.
    """
    if config.get("addition_embed_type") == "text_time":
        raise UserError(f"{where} describes an SDXL UNet; only Stable Diffusion 1.x and 2.x load")
    return module_of(FlaxUNet2DConditionModel, UnetTypes, _UNET_BUILT_IN, config, where, dtype)


def vae_from_config(config: Mapping[str, Any], where: str, dtype: Any = jnp.float32) -> Any:
    """Builds the Flax VAE that a PyTorch `AutoencoderKL` config describes.

    Args:
        config: the parsed `config.json`.
        where: how to name it in errors.
        dtype: the type to compute in.

    Returns:
        The Flax module, without parameters.

    Raises:
        UserError: if the Flax class cannot do what the config asks for.
    """
    return module_of(FlaxAutoencoderKL, VaeTypes, _VAE_BUILT_IN, config, where, dtype)


def text_encoder_from_config(
    config: Mapping[str, Any], where: str, dtype: Any = jnp.float32
) -> Any:
    """Builds the Flax text encoder that a `CLIPTextModel` config describes.

    Args:
        config: the parsed `config.json`.
        where: how to name it in errors.
        dtype: the type to compute in.

    Returns:
        The Flax module, without parameters.

    Raises:
        UserError: if it is not a CLIP text encoder.
    """
    kind = config.get("model_type", "clip_text_model")
    if kind != "clip_text_model":
        raise UserError(
            f"{where}: model_type is {told(kind)}; the text encoder must be a CLIPTextModel"
        )
    known: Any = schema.typed(config, TextTypes, where)
    if (activation := known.get("hidden_act", "quick_gelu")) not in ACT2FN:
        raise UserError(not_one_of(f"{where}: hidden_act", activation, list(ACT2FN)))
    width, heads = known.get("hidden_size", 512), known.get("num_attention_heads", 8)
    if width % heads:
        raise UserError(
            f"{where}: hidden_size is {width}; it must be a multiple of num_attention_heads {heads}"
        )
    return FlaxCLIPTextModule(CLIPTextConfig(**known), dtype=dtype)


def to_config(module: Any) -> dict[str, Any]:
    """The PyTorch `config.json` of a module made by one of the functions above.

    Args:
        module: a Flax UNet, VAE or CLIP text encoder.

    Returns:
        The contents of the file.
    """
    if isinstance(module, FlaxCLIPTextModule):
        config = module.config.to_dict()
        config.pop("transformers_version", None)
        return {**config, "architectures": ["CLIPTextModel"], "dtype": None, "torch_dtype": None}
    names = {"FlaxUNet2DConditionModel": "UNet2DConditionModel",
             "FlaxAutoencoderKL": "AutoencoderKL"}  # fmt: skip
    fields = {field.name: getattr(module, field.name) for field in dataclasses.fields(module)}
    return {
        "_class_name": names[type(module).__name__],
        **{name: value for name, value in fields.items() if name not in _FLAX_ONLY},
    }


def check_built_in(
    config: Mapping[str, Any], built_in: Mapping[str, tuple[Any, ...]], where: str
) -> None:
    """Raises UserError if a config asks for anything but what a Flax class has built in."""
    for name, values in built_in.items():
        if name in config and config[name] not in values:
            raise UserError(
                f"{where}: {name} is {told(config[name])}; only {' or '.join(map(repr, values))} "
                "is supported"
            )


def module_of(
    cls: Any,
    kind: Any,
    built_in: Mapping[str, tuple[Any, ...]],
    config: Mapping[str, Any],
    where: str,
    dtype: Any,
) -> Any:
    """Builds a Flax module from a config.

    Args:
        cls: diffusers' Flax class.
        kind: the types of its fields.
        built_in: what it has built in, by PyTorch's name for it.
        config: the parsed `config.json`; what the class does not know is left out.
        where: how to name it in errors.
        dtype: the type to compute in.

    Returns:
        The module, without parameters.

    Raises:
        UserError: if a value has another type or is out of bounds, or the class cannot do it.
    """
    check_built_in(config, built_in, where)
    known: Any = schema.typed(config, kind, where)
    for name in ("down_block_types", "up_block_types"):
        for block in known.get(name, ()):
            if block not in _BLOCKS:
                raise UserError(f"{where}: {name} has {told(block)}, which Stable Diffusion 1.x "
                                "has not")  # fmt: skip
    has = {field.name for field in dataclasses.fields(cls)}
    fields = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in known.items()
        if name in has
    }
    module = cls(**fields, dtype=dtype)
    levels = len(module.block_out_channels)
    for name in ("down_block_types", "up_block_types"):
        count = len(getattr(module, name, module.block_out_channels))
        if count != levels:
            raise UserError(
                f"{where}: {name} has {count} names, and block_out_channels {levels} numbers; "
                "there must be as many"
            )
    groups = getattr(module, "norm_num_groups", _GROUPS)
    for count in module.block_out_channels:
        if count % groups:
            raise UserError(
                f"{where}: block_out_channels has {count}; it must be a multiple of {groups}, the "
                "groups of the norms"
            )
    return module
