"""Models by their name on the Hugging Face hub, through huggingface_hub and its cache.

Nothing here needs Flax's or PyTorch's models.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download

from fusionjax.errors import UserError

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_FILE = re.compile(r"([\w.-]+/[\w.-]+)/(.+\.safetensors)")
_CONFIGS = ("model_index.json", "config.json", "*/config.json", "scheduler/*.json", "tokenizer/*")


def looks_like_hub_id(source: str) -> bool:
    """Whether a text that names no file could name something on the hub."""
    return bool(_REPOSITORY.fullmatch(source) or _FILE.fullmatch(source))


def download(source: str, weights: Iterable[Iterable[str]]) -> Path:
    """Brings a model from the hub, or finds it in the cache.

    Args:
        source: `owner/name`, or `owner/name/file.safetensors` for one file.
        weights: for each part of the model, its weight files by preference, as paths inside the
            repository; only the first that exists is brought.

    Returns:
        The folder, or the file.

    Raises:
        UserError: if it is neither on the hub nor in the cache, or may not be had.
    """
    file = _FILE.fullmatch(source)
    try:
        if file is not None:
            return Path(hf_hub_download(file[1], file[2]))
        parts = [list(part) for part in weights]
        folder = Path(snapshot_download(source, allow_patterns=[*_CONFIGS, *(p[0] for p in parts)]))
        for part in parts:
            for name in part[1:]:
                if any((folder / tried).is_file() for tried in part):
                    break
                snapshot_download(source, allow_patterns=[name])
    except (OSError, ValueError) as error:  # every error of huggingface_hub and its transport
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"{source} is no file or folder here, and the hub did not give it ({reason}); check "
            "the name and the network, or download it elsewhere and give its folder"
        ) from None
    return folder
