"""The classes of diffusers and transformers that models are made of, imported in this place alone.

Both packages import PyTorch where it is installed, though nothing here needs it: on two cores 11 s
instead of 4. In a command's own process it is kept out while they are imported; whoever imports it
later gets it. In any other program, which may want their PyTorch classes too, nothing is kept out,
nor where PyTorch is there already.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

_OURS = ("fusionjax", "sample", "train")


def _is_command() -> bool:
    """Whether this process is one of our commands, as `python -m` or as the installed one."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return spec.name.partition(".")[0] in _OURS
    return Path(getattr(main, "__file__", None) or "").name in _OURS


@contextlib.contextmanager
def _torch_kept_out() -> Iterator[None]:
    """Lets what is imported meanwhile find no PyTorch, if that is ours to decide."""
    if "torch" in sys.modules or not _is_command():
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # the import system's "there is none"
    try:
        yield
    finally:
        del sys.modules["torch"]


with _torch_kept_out():
    from diffusers.models.attention_flax import (
        FlaxAttention,
        FlaxGEGLU,
        FlaxTransformer2DModel,
    )
    from diffusers.models.controlnets.controlnet_flax import FlaxControlNetModel
    from diffusers.models.resnet_flax import FlaxDownsample2D, FlaxResnetBlock2D, FlaxUpsample2D
    from diffusers.models.unets.unet_2d_condition_flax import FlaxUNet2DConditionModel
    from diffusers.models.vae_flax import FlaxAutoencoderKL
    from transformers import CLIPTextConfig, CLIPTokenizer
    from transformers.modeling_flax_utils import ACT2FN
    from transformers.models.clip.modeling_flax_clip import FlaxCLIPTextModule
    from transformers.models.clip.tokenization_clip import bytes_to_unicode

__all__ = [
    "ACT2FN",
    "CLIPTextConfig",
    "CLIPTokenizer",
    "FlaxAttention",
    "FlaxAutoencoderKL",
    "FlaxCLIPTextModule",
    "FlaxControlNetModel",
    "FlaxDownsample2D",
    "FlaxGEGLU",
    "FlaxResnetBlock2D",
    "FlaxTransformer2DModel",
    "FlaxUNet2DConditionModel",
    "FlaxUpsample2D",
    "bytes_to_unicode",
]
