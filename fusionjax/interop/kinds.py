"""What a checkpoint seems to be, judged by its tensors' names: for errors that say it.

Nothing here needs Flax's or PyTorch's models.
"""

import re
from collections.abc import Iterable, Mapping

Shapes = Mapping[str, tuple[int, ...]]

# (name pattern, what a file with such a name seems to be); the first that is found counts.
_KINDS = [
    (r"\.processor\.[kv]f\.weight$", "a face adapter that fusionjax exported (give it as fusion)"),
    (r"\blora_te[12]_|\blora_unet_(input_blocks_[78]_|down_blocks_2_attentions_1_transformer_"
     r"blocks_[1-9])|^text_encoder_2\..*lora", "an SDXL LoRA"),
    (r"lora_(down|up|A|B|mid)\b|lora\.(down|up)\b|_lora\.(down|up)|lora_linear_layer|\.hada_w|"
     r"\.lokr_w|\.dora_scale$|lora_magnitude_vector|\.diff(_b)?$|\.[wb]_norm$",
     "a LoRA (give it as lora, on top of a base model)"),
    (r"^(ip_adapter|image_proj)\.", "an IP-Adapter, which works by other means"),
    (r"^conditioner\.|^model\.diffusion_model\.label_emb\.|^add_embedding\.|text_encoder_2",
     "an SDXL checkpoint, and SDXL is not supported"),
    (r"joint_blocks\.|double_blocks\.|single_transformer_blocks\.",
     "a Stable Diffusion 3 or Flux checkpoint, which is not supported"),
    (r"^cond_stage_model\.model\.", "a Stable Diffusion 2 checkpoint in one file (load it as a "
     "diffusers folder)"),
    (r"^(control_model|input_hint_block|controlnet_cond_embedding)\.|^zero_convs?\.",
     "a ControlNet, not a base model"),
    (r"^(emb_params|string_to_param|clip_[lg])$", "a textual inversion embedding"),
]  # fmt: skip
_PLAIN_KINDS = [
    (r"^model\.diffusion_model\.", "a Stable Diffusion checkpoint in the original layout"),
    (r"^(down_blocks|up_blocks|mid_block)\.", "the UNet alone of a diffusers folder (give the "
     "folder)"),
    (r"^(encoder|decoder|quant_conv|first_stage_model)\.", "a VAE alone (give it as vae)"),
    (r"^(text_model|vision_model)\.", "a CLIP model alone"),
]  # fmt: skip
_CONV_IN = ("conv_in.weight", "model.diffusion_model.input_blocks.0.0.weight")
_CROSS = re.compile(r"attn2\.to_k\.weight$")


def kind_of(tensors: Shapes) -> str | None:
    """Guesses what a checkpoint is.

    Args:
        tensors: names and shapes, in PyTorch's layout.

    Returns:
        A phrase to follow "it seems to be", or None.
    """
    for pattern, kind in _KINDS:
        if any(re.search(pattern, name) for name in tensors):
            return kind
    conv_in = next((tensors[name] for name in _CONV_IN if name in tensors), None)
    if conv_in is not None and len(conv_in) == 4 and conv_in[1] == 8 and conv_in[0] >= 320:
        return "an InstructPix2Pix checkpoint (8 input channels), which is not supported"
    if any(_CROSS.search(name) and shape[-1] == 1024 for name, shape in tensors.items() if shape):
        return "a Stable Diffusion 2 checkpoint (its text states have 1024 features)"
    for pattern, kind in _PLAIN_KINDS:
        if any(re.search(pattern, name) for name in tensors):
            return kind
    return None


def some(names: Iterable[str], count: int = 3) -> str:
    """The first few of some names, and how many there are."""
    listed = list(names)
    if not listed:
        return "none"
    return f"{len(listed)} ({', '.join(listed[:count])}{', …' if len(listed) > count else ''})"
