"""The `config.json` files of a diffusers folder, and the Flax modules they describe.

PyTorch's classes know options that the Flax classes lack. Where a config sets one of them to
anything but what the Flax classes do, the model is refused: it would compute something else.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from diffusers import FlaxAutoencoderKL, FlaxUNet2DConditionModel
from transformers import CLIPTextConfig
from transformers.models.clip.modeling_flax_clip import FlaxCLIPTextModule

from fusionjax.errors import UserError

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
_FLAX_ONLY = {"parent", "name", "dtype", "use_memory_efficient_attention", "split_head_dim"}


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        path: the file.

    Returns:
        The object.

    Raises:
        UserError: if the file is missing, unreadable, or holds something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); copy it again from its source") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object; copy it again from its source")
    return content


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
    return _module(FlaxUNet2DConditionModel, _UNET_BUILT_IN, config, where, dtype)


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
    return _module(FlaxAutoencoderKL, _VAE_BUILT_IN, config, where, dtype)


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
            f"{where}: model_type is {kind!r}; the text encoder must be a CLIPTextModel"
        )
    try:
        return FlaxCLIPTextModule(CLIPTextConfig.from_dict(dict(config)), dtype=dtype)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} does not describe a CLIPTextModel: {error}") from None


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
                f"{where}: {name} is {config[name]!r}; only {' or '.join(map(repr, values))} "
                "is supported"
            )


def _module(
    cls: Any,
    built_in: Mapping[str, tuple[Any, ...]],
    config: Mapping[str, Any],
    where: str,
    dtype: Any,
) -> Any:
    check_built_in(config, built_in, where)
    for name in ("down_block_types", "up_block_types"):
        for block in config.get(name) or ():
            if block not in _BLOCKS:
                raise UserError(f"{where}: {name} has {block!r}; Stable Diffusion 1.x has no such")
    known = {field.name for field in dataclasses.fields(cls)} - _FLAX_ONLY
    fields = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in config.items()
        if name in known
    }
    return cls(**fields, dtype=dtype)
