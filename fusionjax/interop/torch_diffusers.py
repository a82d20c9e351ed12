"""An exported adapter in PyTorch diffusers.

    pipe = StableDiffusionPipeline.from_pretrained(base)
    fusion = load_fusion(pipe, "adapter.safetensors")
    anna = fusion.encode_identity(["anna1.jpg", "anna2.jpg"])
    fusion.show(anna)
    pipe("a photo of a woman in a garden").images[0].save("anna.png")
    fusion.unload()

The cross-attentions get a processor of their own (`torch_attention.py`), which attends to the text
and, in the same softmax, to the faces (equations 1 to 7); the rest of the pipeline does not change,
so everything else that it can do keeps working. A person is the same `fusionjax.identity.Identity`
as in JAX, and files of one serve the other. Needs PyTorch and diffusers, of any release whose UNet
has attention processors; JAX and Flax's models are not used. `torch_alone.py` is the same without
this package.
"""

import os
from typing import Any

import ml_dtypes
import numpy as np
import torch

from fusionjax.identity import Identity
from fusionjax.interop.adapter_file import read_adapter
from fusionjax.interop.hub import adapter_file
from fusionjax.interop.torch_attention import FaceProcessor
from fusionjax.interop.torch_fusion import Fusion, install, unet_fingerprint, unload

__all__ = ["FaceProcessor", "TorchFusion", "load_fusion", "unet_fingerprint", "unload"]


class TorchFusion(Fusion):
    """An adapter in a PyTorch pipeline, whose people are `Identity`s."""

    def _person(
        self, states: dict[str, torch.Tensor], latents: torch.Tensor, thumbnails: np.ndarray
    ) -> Identity:
        numbers = {name: x.view(torch.int16).numpy() for name, x in states.items()}
        return Identity(
            states={name: x.view(ml_dtypes.bfloat16) for name, x in numbers.items()},
            latents=latents.numpy(),
            thumbnails=thumbnails,
            weights=(1.0,) * len(latents),
            base_fingerprint=self.fingerprint(),
        )


def load_fusion(pipe: Any, path: str | os.PathLike[str]) -> TorchFusion:
    """Installs an adapter in a PyTorch pipeline. Until people are shown, pictures do not change.

    Args:
        pipe: a `StableDiffusionPipeline` or a relative of it, with `unet`, `vae`, `text_encoder`
            and `tokenizer`.
        path: an exported adapter, a folder with an `adapter.safetensors`, or its name on the hub,
            `owner/name`.

    Returns:
        The handle: `encode_identity`, `show`, `hide`, `unload`.

    Raises:
        UserError: if there is no adapter, it was trained for another base or with
            `reference="matched"`, or the pipeline has an adapter already.

    Warns:
        UserWarning: if the base's weights are not those that the adapter was trained on.
    """
    file = adapter_file(path)
    adapter = read_adapter(file)
    base = adapter.base, adapter.base_fingerprint
    return install(TorchFusion, pipe, adapter.weights, adapter.options, base, os.fspath(file))
