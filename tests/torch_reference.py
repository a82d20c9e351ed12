"""Stable Diffusion models made by PyTorch diffusers and transformers, with random weights."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.models.clip.tokenization_clip import bytes_to_unicode

from fusionjax.interop import original

UNET_SMALL = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 8,
    "cross_attention_dim": 64,
}
UNET_SD15 = {"sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768}
_VAE_BLOCKS = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
VAE_SMALL = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "latent_channels": 4,
    "sample_size": 32,
    **{name: blocks * 2 for name, blocks in _VAE_BLOCKS.items()},
}
VAE_SD15 = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    **{name: blocks * 4 for name, blocks in _VAE_BLOCKS.items()},
}
TEXT_SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
}
TEXT_SD15 = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}


def randomise(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Gives every parameter a random value that keeps the activations alive.

    Fresh models have biases of zero and norms of one, which would hide a swapped pair.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(0.1 * noise + (1.0 if "norm" in name and "weight" in name else 0))
            elif "embedding" in name:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
    return model.eval().requires_grad_(False)


def tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer of bytes and a few merges; 519 tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = list(bytes_to_unicode().values())
    merges = ["a n", "an d</w>", "t h", "th e</w>", "f a"]
    words = [*letters, *(letter + "</w>" for letter in letters)]
    words += ["".join(merge.split()) for merge in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"),
                         model_max_length=77)  # fmt: skip


def pipeline(folder: Path, *, full_size: bool = False, seed: int = 0) -> StableDiffusionPipeline:
    """A PyTorch Stable Diffusion 1.5 pipeline with random weights.

    Args:
        folder: for the tokenizer's files.
        full_size: Stable Diffusion 1.5's own sizes rather than small ones.
        seed: of the weights.

    Returns:
        The pipeline, in float32.
    """
    words = tokenizer(folder)
    text = TEXT_SD15 if full_size else {**TEXT_SMALL, "vocab_size": len(words)}
    config = CLIPTextConfig(**text, hidden_act="quick_gelu", max_position_embeddings=77,
                            bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
                            pad_token_id=len(words) - 1)  # fmt: skip
    return StableDiffusionPipeline(
        vae=randomise(AutoencoderKL(**(VAE_SD15 if full_size else VAE_SMALL)), seed),
        text_encoder=randomise(CLIPTextModel(config), seed + 1),
        tokenizer=words,
        unet=randomise(UNet2DConditionModel(**(UNET_SD15 if full_size else UNET_SMALL)), seed + 2),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def original_state(pipe: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    """The pipeline's weights in the original layout.

    The names come from this project's map; `test_original_names_are_those_that_diffusers_converts`
    holds that map against diffusers' own converter.
    """
    unet, vae = pipe.unet.state_dict(), pipe.vae.state_dict()
    tables = {
        original.UNET_PREFIX: (unet, original.unet_names(unet, pipe.unet.config.layers_per_block)),
        original.VAE_PREFIX: (
            vae,
            original.vae_names(vae, len(pipe.vae.config.block_out_channels)),
        ),
    }
    state = {}
    for prefix, (tensors, names) in tables.items():
        for name, tensor in tensors.items():
            old = prefix + names[name]
            if ".mid.attn_1." in old and tensor.ndim == 2:  # a 1×1 convolution in the original
                tensor = tensor[:, :, None, None]
            state[old] = tensor.contiguous()
    for name, tensor in pipe.text_encoder.state_dict().items():
        state[original.TEXT_PREFIX + name] = tensor.contiguous()
    state[original.TEXT_PREFIX + "text_model.embeddings.position_ids"] = torch.arange(77)[None]
    state["alphas_cumprod"] = pipe.scheduler.alphas_cumprod
    return state
