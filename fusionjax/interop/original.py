"""The original layout of Stable Diffusion: everything in one file, under the names of 2022's code.

    model.diffusion_model.…         the UNet
    first_stage_model.…             the VAE (some files have none)
    cond_stage_model.transformer.…  the CLIP text encoder, under transformers' own names

The maps go from diffusers' names to these, so that a file is read by asking for what the model
needs. The file holds no configuration; the sizes are read off the shapes.
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer."

# Not parameters of the three models: the schedule's tables, averages, losses, CLIP's other half.
IGNORED = re.compile(
    r"model_ema\.|first_stage_model\.loss\.|cond_stage_model\.(transformer\.)?logit_scale$|"
    r"cond_stage_model\.(transformer\.)?text_projection(\.weight)?$|"
    r"(betas|alphas_cumprod|alphas_cumprod_prev|sqrt_alphas_cumprod|"
    r"sqrt_one_minus_alphas_cumprod|log_one_minus_alphas_cumprod|sqrt_recip_alphas_cumprod|"
    r"sqrt_recipm1_alphas_cumprod|posterior_variance|posterior_log_variance_clipped|"
    r"posterior_mean_coef1|posterior_mean_coef2|scale_factor|logvar|lvlb_weights|v_pred|ztsnr)$"
)

# What tools have added that is no part of the three models: tables of noise levels, training's own.
HARMLESS = re.compile(
    r"(model_sampling|denoiser|edm|optimizer|lr_scheduler|loss|embedding_manager)\.|"
    r"(sigmas|log_sigmas|alphas|num_timesteps|global_step|epoch|edm_mean|edm_std|"
    r"cond_stage_model\.null_cond|__index_timestep_zero__)$"
)

_UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_PARTS = {
    r"mid_block\.resnets\.0": "mid.block_1",
    r"mid_block\.resnets\.1": "mid.block_2",
    r"mid_block\.attentions\.0\.group_norm": "mid.attn_1.norm",
    r"mid_block\.attentions\.0\.to_([qkv])": r"mid.attn_1.\1",
    r"mid_block\.attentions\.0\.to_out\.0": "mid.attn_1.proj_out",
    r"conv_norm_out": "norm_out",
    r"conv_shortcut": "nin_shortcut",
    r"down_blocks\.(\d+)\.resnets\.(\d+)": r"down.\1.block.\2",
    r"down_blocks\.(\d+)\.downsamplers\.0": r"down.\1.downsample",
    r"up_blocks\.(\d+)\.resnets\.(\d+)": r"up.\1.block.\2",
    r"up_blocks\.(\d+)\.upsamplers\.0": r"up.\1.upsample",
}


def unet_names(names: Iterable[str], layers_per_block: int) -> dict[str, str]:
    """The original names of a UNet's parameters.

    Args:
        names: diffusers' names.
        layers_per_block: the UNet's.

    Returns:
        diffusers' name → original name, without `UNET_PREFIX`.
    """
    names = list(names)
    modules = dict(_UNET_TOP)
    down, up = layers_per_block + 1, layers_per_block + 1
    for name in names:
        block = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)", name)
        if block is None:
            continue
        kind, i, part, j = block[1], int(block[2]), block[3], int(block[4])
        if kind == "down":
            first = 1 + i * down
            modules[block[0]] = {
                "resnets": f"input_blocks.{first + j}.0",
                "attentions": f"input_blocks.{first + j}.1",
                "downsamplers": f"input_blocks.{first + layers_per_block}.0",
            }[part]
        else:
            has_attention = any(n.startswith(f"up_blocks.{i}.attentions.") for n in names)
            modules[block[0]] = {
                "resnets": f"output_blocks.{i * up + j}.0",
                "attentions": f"output_blocks.{i * up + j}.1",
                "upsamplers": f"output_blocks.{i * up + up - 1}.{1 + has_attention}",
            }[part]

    def original(name: str) -> str:
        module = next(m for m in modules if name.startswith(m + "."))
        rest = name.removeprefix(module)
        if ".resnets." in module:
            part = rest.split(".")[1]
            rest = rest.replace(part, _UNET_RESNET[part], 1)
        elif ".downsamplers." in module:
            rest = rest.replace(".conv.", ".op.", 1)
        return modules[module] + rest

    return {name: original(name) for name in names}


def vae_names(names: Iterable[str], levels: int) -> dict[str, str]:
    """The original names of a VAE's parameters.

    Args:
        names: diffusers' names.
        levels: the number of its resolutions.

    Returns:
        diffusers' name → original name, without `VAE_PREFIX`.
    """

    def original(name: str) -> str:
        result = name
        for pattern, replacement in _VAE_PARTS.items():
            result = re.sub(rf"\b{pattern}\b", replacement, result)
        # The original counts the decoder's levels from the finest, diffusers in running order.
        return re.sub(r"\bup\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}", result)

    return {name: original(name) for name in names}


def unet_config(shapes: Shapes) -> dict[str, Any]:
    """Reads a UNet's configuration off the shapes of a file in the original layout.

    Args:
        shapes: names without `UNET_PREFIX`, shapes in PyTorch's layout.

    Returns:
        A config as in diffusers' `config.json`. The number of heads leaves no trace in the
        shapes; it is Stable Diffusion 1.x's, 8.

    Raises:
        KeyError: if the file lacks what the shapes are read from.
    """
    channels: list[int] = []
    resnets: list[int] = []
    attention: list[bool] = []
    level_is_done = True
    for i in itertools.count(1):
        conv = shapes.get(f"input_blocks.{i}.0.in_layers.2.weight")
        if conv is not None:
            if level_is_done:
                channels.append(conv[0])
                resnets.append(0)
                attention.append(False)
                level_is_done = False
            resnets[-1] += 1
            attention[-1] |= f"input_blocks.{i}.1.norm.weight" in shapes
        elif f"input_blocks.{i}.0.op.weight" in shapes:
            level_is_done = True
        else:
            break
    if not channels:
        raise KeyError("input_blocks.1.0.in_layers.2.weight")
    text = next(shape for name, shape in shapes.items() if name.endswith("attn2.to_k.weight"))
    projection = next(shape for name, shape in shapes.items() if name.endswith(".proj_in.weight"))
    return {
        "sample_size": 64,
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": resnets[0],
        "down_block_types": ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attention],
        "up_block_types": [
            "CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attention)
        ],
        "cross_attention_dim": text[1],
        "attention_head_dim": 8,
        "use_linear_projection": len(projection) == 2,
    }


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """Reads a VAE's configuration off the shapes of a file in the original layout.

    Args:
        shapes: names without `VAE_PREFIX`, shapes in PyTorch's layout.

    Returns:
        A config as in diffusers' `config.json`, with Stable Diffusion 1.x's scaling factor.

    Raises:
        KeyError: if the file lacks what the shapes are read from.
    """
    channels = []
    for i in itertools.count():
        conv = shapes.get(f"encoder.down.{i}.block.0.conv1.weight")
        if conv is None:
            break
        channels.append(conv[0])
    layers = sum(f"encoder.down.0.block.{j}.conv1.weight" in shapes for j in range(len(shapes)))
    return {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "block_out_channels": channels,
        "layers_per_block": layers,
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "norm_num_groups": 32,
        "sample_size": 512,
        "scaling_factor": 0.18215,
    }


def text_config(shapes: Shapes) -> dict[str, Any]:
    """Reads a CLIP text encoder's configuration off its shapes.

    Args:
        shapes: names from `text_model.` on, shapes in PyTorch's layout.

    Returns:
        A config as in transformers' `config.json`, with heads of 64 features and CLIP's tokens.

    Raises:
        KeyError: if the file lacks what the shapes are read from.
    """
    words, features = shapes["text_model.embeddings.token_embedding.weight"]
    layer = "text_model.encoder.layers.{}.mlp.fc1.weight"
    return {
        "model_type": "clip_text_model",
        "vocab_size": words,
        "hidden_size": features,
        "intermediate_size": shapes[layer.format(0)][0],
        "num_hidden_layers": sum(layer.format(i) in shapes for i in range(len(shapes))),
        "num_attention_heads": max(1, features // 64),
        "max_position_embeddings": shapes["text_model.embeddings.position_embedding.weight"][0],
        "hidden_act": "quick_gelu",
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "pad_token_id": words - 1,
    }
