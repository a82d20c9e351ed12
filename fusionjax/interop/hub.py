"""Models by their name on the Hugging Face hub, through huggingface_hub and its cache.

Nothing here needs Flax's or PyTorch's models.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from huggingface_hub import hf_hub_download, list_repo_files, snapshot_download

from fusionjax.errors import UserError
from fusionjax.files import has_ending
from fusionjax.safetensors_file import shards_of

ADAPTER = "adapter.safetensors"  # in a folder, also as it lies on the hub
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_FILE = re.compile(r"([\w.-]+/[\w.-]+)/(.+\.safetensors)")
_CONFIGS = (
    "model_index.json", "config.json", "adapter_config.json", "*/config.json", "scheduler/*.json",
    "tokenizer/*",
)  # fmt: skip


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
    if _FILE.fullmatch(source):
        return download_file(source)
    try:
        parts = [list(part) for part in weights]
        folder = Path(snapshot_download(source, allow_patterns=[*_CONFIGS, *(p[0] for p in parts)]))
        for part in parts:
            for name in part[1:]:
                if any((folder / tried).is_file() for tried in part):
                    break
                snapshot_download(source, allow_patterns=[name])
            index = next((n for n in part if n.endswith(".json") and (folder / n).is_file()), None)
            if index is not None and not (folder / part[0]).is_file():
                beside = PurePosixPath(index).parent
                shards = {str(beside / name) for name in shards_of(folder / index).values()}
                snapshot_download(source, allow_patterns=sorted(shards))
    except (OSError, ValueError) as error:  # every error of huggingface_hub and its transport
        raise _not_had(source, error) from None
    return folder


def download_file(source: str) -> Path:
    """Brings one file from the hub, or finds it in the cache.

    Args:
        source: `owner/name/file.safetensors`.

    Raises:
        UserError: as `download`.
    """
    file = _FILE.fullmatch(source)
    assert file is not None
    try:
        return Path(hf_hub_download(file[1], file[2]))
    except (OSError, ValueError) as error:  # every error of huggingface_hub and its transport
        raise _not_had(source, error) from None


def _not_had(source: str, error: Exception) -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return UserError(
        f"{source} is no file or folder here, and the hub did not give it ({reason}); check "
        "the name and the network, or download it elsewhere and give its folder"
    )


def download_one(source: str, name: str | None, preferred: Sequence[str]) -> Path:
    """Brings one weight file from the hub, or finds it in the cache.

    Args:
        source: `owner/name`, or `owner/name/file.safetensors`.
        name: the file; None is the first of `preferred` that is there, or the only one.
        preferred: names, and JSON files beside them.

    Returns:
        The file.

    Raises:
        UserError: as `download`, and if there are several.
    """
    if _FILE.fullmatch(source):
        return download(source, [])
    if name is not None:
        return download(f"{source}/{name}", [])
    folder = download(source, [preferred])
    for known in preferred:
        if (folder / known).is_file():
            return folder / known
    files = sorted(path for path in folder.iterdir() if has_ending(path, (".safetensors",)))
    if not files:
        try:
            names = [Path(n) for n in list_repo_files(source) if n.endswith(".safetensors")]
        except (OSError, ValueError) as error:
            raise _not_had(source, error) from None
        return download(f"{source}/{only_one(source, names)}", [])
    return only_one(source, files)


def only_one(source: str, files: Sequence[Path]) -> Path:
    """The one weight file of a source, or an error that names what there is."""
    if len(files) != 1:
        names = ", ".join(path.name for path in files[:5]) or "none"
        raise UserError(
            f"{source} holds {len(files)} .safetensors files ({names}); name one of them in full"
        )
    return files[0]


def adapter_file(source: str | os.PathLike[str]) -> Path:
    """Where an exported adapter lies.

    Args:
        source: its file, a folder that holds `adapter.safetensors`, or its name on the hub:
            `owner/name`, or `owner/name/file.safetensors`.

    Returns:
        The file; whether it is one is for its reader to say.

    Raises:
        UserError: if the folder holds none, or the hub gives none.
    """
    path, name = Path(source), os.fspath(source)
    if path.is_dir():
        if not (path / ADAPTER).is_file():
            raise UserError(
                f"{name!r} holds no {ADAPTER}; name an adapter's file, or make one with "
                f"`fusionjax export {name} adapter.safetensors`"
            )
        return path / ADAPTER
    if path.exists() or not looks_like_hub_id(name):
        return path
    if name.endswith(".safetensors"):
        return download_file(name) if _FILE.fullmatch(name) else path
    return download_file(f"{name}/{ADAPTER}")
