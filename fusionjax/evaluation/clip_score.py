"""How well a picture shows its prompt: CLIP's cosine, from a folder that is at hand."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from fusionjax.errors import UserError, shortened

_NEEDED = ("config.json", "flax_model.msgpack", "preprocessor_config.json", "vocab.json")


def clip_score(folder: str | Path) -> Callable[[Image.Image, str], float]:
    """Opens a CLIP.

    Args:
        folder: as `openai/clip-vit-large-patch14` is published, with its Flax weights.

    Returns:
        From picture and prompt to 100 × cosine.

    Raises:
        UserError: if files are missing; nothing is downloaded.
    """
    folder = Path(folder)
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"clip {shortened(str(folder), 150)!r} lacks {', '.join(missing)}; copy the files of "
            "openai/clip-vit-large-patch14 (or -base-patch32) there"
        )
    from fusionjax.backend.flax_classes import CLIPTokenizer  # first: it keeps PyTorch out
    from transformers import CLIPImageProcessor, FlaxCLIPModel  # isort: skip

    from fusionjax.quiet import quiet_diffusers

    quiet_diffusers()
    model = FlaxCLIPModel.from_pretrained(folder, local_files_only=True)
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)

    @functools.cache
    def of_text(prompt: str) -> np.ndarray:
        ids = tokenizer([prompt], padding="max_length", truncation=True, return_tensors="np")
        return _unit(model.get_text_features(**ids))

    def score(image: Image.Image, prompt: str) -> float:
        pixels = processor([image], return_tensors="np")["pixel_values"]
        return 100 * float(_unit(model.get_image_features(pixels)) @ of_text(prompt))

    return score


def _unit(features: object) -> np.ndarray:
    vector = np.asarray(features, np.float64)[0]
    return vector / np.linalg.norm(vector)  # type: ignore[no-any-return]
