"""ControlNet: a second encoder that tells the UNet where things are, from a depth map or the like.

Any ControlNet for Stable Diffusion 1.x loads: diffusers' folder layout, or one `.safetensors` file
in diffusers' or the original layout.

Legend: b batch, h w latent grid, c latent channels, H W pixels, t d tokens and features of text.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fusionjax import schema
from fusionjax.backend.flax_apply import applied
from fusionjax.backend.flax_classes import FlaxControlNetModel, FlaxUNet2DConditionModel
from fusionjax.backend.flax_unet import controlnet_like_torch
from fusionjax.errors import UserError, told
from fusionjax.interop import configs, hub, names, original
from fusionjax.interop.load import candidates, check_complete, fill, locate
from fusionjax.safetensors_file import SafetensorsFile

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_PREFIX = "control_model."
_SD15 = {
    "block_out_channels": [320, 640, 1280, 1280],
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "in_channels": 4,
}
# What the Flax class has built in, by PyTorch's name for it.
_BUILT_IN: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None,),
    "class_embed_type": (None,),
    "conditioning_channels": (3,),
    "downsample_padding": (1,),
    "encoder_hid_dim": (None,),
    "global_pool_conditions": (False,),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "norm_eps": (1e-5,),
    "norm_num_groups": (32,),
    "num_class_embeds": (None,),
    "resnet_time_scale_shift": ("default",),
    "transformer_layers_per_block": (1,),
    "upcast_attention": (False, None),
}


class _Types(configs.UnetTypes, total=False):
    """The types of a ControlNet's `config.json`: a UNet's encoder, and what reads the image."""

    controlnet_conditioning_channel_order: Literal["rgb", "bgr"]
    conditioning_embedding_out_channels: configs.CHANNELS


class ControlNet:
    """A ControlNet and its weights.

    Attributes:
        module: diffusers' Flax module.
        params: its parameters.
    """

    def __init__(self, module: FlaxControlNetModel, params: Any) -> None:
        """Puts one together.

        Args:
            module: the module.
            params: its parameters.
        """
        self.module = module
        self.params = params

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike[str], *, dtype: Any = jnp.float32
    ) -> "ControlNet":
        """Loads a ControlNet.

        Args:
            source: a diffusers folder, one `.safetensors` file (in diffusers' layout with its
                `config.json` beside it, or in the original layout), or a name on the hub.
            dtype: the type of the parameters and of the computation.

        Returns:
            The ControlNet.

        Raises:
            UserError: if it is missing, damaged, or of another kind.
        """
        path = Path(source)
        if not path.exists() and hub.looks_like_hub_id(os.fspath(source)):
            path = hub.download(os.fspath(source), [[_WEIGHTS]])
        if not path.exists():
            raise UserError(f"{source} is no file or folder; name a ControlNet")
        file = path / _WEIGHTS if path.is_dir() else path
        with SafetensorsFile(file) as tensors:
            if any(name.startswith(_PREFIX) for name in tensors):
                module = module_from_config(_SD15, os.fspath(file), dtype)
                wanted = torch_names(module)
                original_of = original_names(wanted, module.layers_per_block)

                def rename(name: str) -> Iterable[str]:
                    return [original_of[name]]
            else:
                config = file.parent / "config.json"
                module = module_from_config(schema.read_json(config), str(config), dtype)
                wanted, rename = torch_names(module), candidates  # type: ignore[assignment]
            located = locate(wanted, tensors, rename)
            check_complete(
                tensors,
                "a ControlNet for Stable Diffusion 1.x",
                wanted.keys() - located.keys(),
                set(tensors) - set(located.values()),
            )
            return cls(module, fill(wanted, tensors, located, dtype))

    def check_fits(self, unet: FlaxUNet2DConditionModel, scale: int) -> None:
        """Raises UserError unless what the ControlNet answers can be added to a UNet's skips.

        Args:
            unet: the base model's.
            scale: image pixels per latent along one side.
        """
        own_scale = 2 ** (len(self.module.conditioning_embedding_out_channels) - 1)
        pairs = {
            "pixels per latent": (own_scale, scale),
            "in_channels": (self.module.in_channels, unet.out_channels),  # of the latents alone
        }
        for name in (
            "block_out_channels",
            "layers_per_block",
            "cross_attention_dim",
        ):
            pairs[name] = (getattr(self.module, name), getattr(unet, name))
        for name, (own, other) in pairs.items():
            if np.any(np.asarray(own) != np.asarray(other)):
                raise UserError(
                    f"the ControlNet was trained for another base model: its {name} is {own}, the "
                    f"base's {other}"
                )

    def residuals(
        self,
        params: Any,
        latents: Float[Array, "b h w c"],
        timesteps: Float[Array, " b"],
        text: Float[Array, "b t d"],
        image: Float[Array, "b H W 3"],
        strength: Float[Array, " b"],
    ) -> dict[str, Any]:
        """What is added to the UNet's skip connections.

        Args:
            params: `self.params` or a tree like it.
            latents: noisy latents, as the UNet sees them.
            timesteps: one for each picture.
            text: text states.
            image: the control image in [0, 1].
            strength: a factor for each picture.

        Returns:
            `down_residuals` and `mid_residual`, as `FusionUNet.__call__` takes them.
        """
        dtype = self.module.dtype
        with nn.intercept_methods(controlnet_like_torch):
            answer: Any = applied(
                self.module,
                params,
                jnp.moveaxis(latents, -1, 1).astype(dtype),
                timesteps,
                text.astype(dtype),
                jnp.moveaxis(image, -1, 1).astype(dtype),
                return_dict=False,
            )
        down, mid = answer
        factor = strength.astype(dtype)[:, None, None, None]
        return {"down_residuals": tuple(x * factor for x in down), "mid_residual": mid * factor}


def module_from_config(
    config: Mapping[str, Any], where: str, dtype: Any = jnp.float32
) -> FlaxControlNetModel:
    """Builds the Flax ControlNet that a PyTorch `ControlNetModel` config describes.

    Args:
        config: the parsed `config.json`.
        where: how to name it in errors.
        dtype: the type to compute in.

    Returns:
        The module, without parameters.

    Raises:
        UserError: if the Flax class cannot do what the config asks for.
    """
    kind = config.get("_class_name", "ControlNetModel")
    if kind not in ("ControlNetModel", "FlaxControlNetModel"):
        raise UserError(f"{where} describes a {told(kind)}; a ControlNetModel is needed")
    module = configs.module_of(FlaxControlNetModel, _Types, _BUILT_IN, config, where, dtype)
    if (count := len(module.conditioning_embedding_out_channels)) != 4:
        raise UserError(
            f"{where} has {count} conditioning_embedding_out_channels; diffusers' Flax class reads "
            "a control image in 4 steps, from 8 pixels for each latent"
        )
    return module


def torch_names(module: FlaxControlNetModel) -> dict[str, names.Parameter]:
    """All parameters of a ControlNet by their names in diffusers' PyTorch class."""
    return {
        re.sub(r"^(controlnet_cond_embedding\.blocks)_(\d+)", r"\1.\2", name): parameter
        for name, parameter in names.torch_names(module).items()
    }


def original_names(wanted: Iterable[str], layers_per_block: int) -> dict[str, str]:
    """The names of a ControlNet's parameters in the original layout.

    Args:
        wanted: diffusers' names.
        layers_per_block: the ControlNet's.

    Returns:
        diffusers' name → original name.
    """
    wanted = list(wanted)
    own = [name for name in wanted if name.startswith("controlnet_")]
    encoder = [name for name in wanted if not name.startswith("controlnet_")]
    result = {
        name: _PREFIX + old for name, old in original.unet_names(encoder, layers_per_block).items()
    }
    hints = [name for name in own if name.startswith("controlnet_cond_embedding.blocks.")]
    last = 2 + 2 * len({name.split(".")[2] for name in hints})
    for name in own:
        module, _, leaf = name.rpartition(".")
        parts = module.split(".")
        if parts[0] == "controlnet_down_blocks":
            old = f"zero_convs.{parts[1]}.0"
        elif parts[0] == "controlnet_mid_block":
            old = "middle_block_out.0"
        elif parts[1] == "conv_in":
            old = "input_hint_block.0"
        elif parts[1] == "conv_out":
            old = f"input_hint_block.{last}"
        else:
            old = f"input_hint_block.{2 + 2 * int(parts[2])}"
        result[name] = f"{_PREFIX}{old}.{leaf}"
    return result
