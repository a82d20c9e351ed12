"""What a user may write for a LoRA, and the file that it means.

    detail.safetensors   detail   folder/   owner/name   owner/name/detail.safetensors

each with a strength behind `:` or `=`. Nothing here needs Flax's or PyTorch's models.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusionjax.errors import UserError, told
from fusionjax.files import has_ending

# By preference, where a folder holds several files: diffusers' name, peft's.
_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
_SUFFIX = ".safetensors"
_MOST = 1e6


def parse(lora: Any) -> tuple[str, float]:
    """Splits `FILE:strength`, `FILE=strength`, or (file, strength).

    Args:
        lora: a path or a name, with or without a strength behind its last colon or equals sign.

    Returns:
        The path or the name, and the strength, 1 if there is none.

    Raises:
        UserError: if the strength is no finite number.
    """
    if isinstance(lora, list | tuple) and len(lora) == 2:
        name, strength = lora
        return _text(name), _strength(strength, name)
    text = _text(lora)
    name, mark, strength = _split(text)
    if not mark or _is_here(text):
        return text, 1.0
    return _text(name), _strength(strength, text)


def parse_all(loras: Any) -> list[tuple[str, float]]:
    """Reads what may stand for several LoRAs.

    Args:
        loras: one as for `parse`, a list of them, or strengths by file; None and () are none.

    Returns:
        The path or the name of each, and its strength.

    Raises:
        UserError: as `parse`.
    """
    if loras is None:
        return []
    if isinstance(loras, str | os.PathLike) or _is_pair(loras):
        return [parse(loras)]
    if isinstance(loras, Mapping):
        loras = list(loras.items())
    if not isinstance(loras, list | tuple):
        raise UserError(f"lora is {told(loras)}; give a file, a list of files, or FILE:0.8")
    return [parse(lora) for lora in loras]


def find_lora(name: str, weight_name: str | None = None) -> Path:
    """The file of a LoRA, here or on the hub.

    Args:
        name: a file, with or without `.safetensors`; a folder with one LoRA; or a name on the hub.
        weight_name: the file in the folder or on the hub.

    Returns:
        The file.

    Raises:
        UserError: if there is none, or a folder holds several.
    """
    if (here := _here(name)) is not None:
        return _in_folder(here, weight_name) if here.is_dir() else here
    from fusionjax.interop import hub  # here: a command line is read without it

    if hub.looks_like_hub_id(name) and not name.startswith((".", "/", "~")):
        return hub.download_one(name, weight_name, _NAMES)
    raise UserError(f"{name} does not exist")


def is_here(lora: str) -> bool:
    """Whether a LoRA, with or without a strength, is on this machine."""
    return _is_here(lora) or _is_here(_split(lora)[0])


def located(lora: str, folder: Path) -> str:
    """A LoRA that lies in a folder by its full path; any other as it was written."""
    name, mark, strength = _split(lora)
    for text, rest in ((lora, ""), (name, mark + strength)):
        if text and (found := _here(text, folder)) is not None:
            return f"{found.absolute()}{rest}"
    return lora


def _split(text: str) -> tuple[str, str, str]:
    place = max(text.rfind(":"), text.rfind("="))
    return (text, "", "") if place < 0 else (text[:place], text[place], text[place + 1 :])


def _text(name: Any) -> str:
    if not isinstance(name, str | os.PathLike) or not os.fspath(name):
        raise UserError(f"lora {told(name)} is no path; write FILE or FILE:0.8")
    return os.fspath(name)  # type: ignore[return-value]


def _strength(value: Any, name: Any) -> float:
    try:
        strength = float(value)
    except (TypeError, ValueError):
        strength = float("nan")
    if not math.isfinite(strength) or abs(strength) > _MOST:
        raise UserError(
            f"lora {told(os.fspath(name))}: {told(value)} is no strength; write FILE or FILE:0.8"
        )
    return strength


def _is_pair(loras: Any) -> bool:
    return (
        isinstance(loras, tuple)
        and len(loras) == 2
        and not isinstance(loras[1], str | os.PathLike | tuple | list)
    )


def _here(name: str, folder: Path | None = None) -> Path | None:
    try:
        path = (folder or Path()) / Path(name).expanduser()
        if path.exists():
            return path
        path = path.with_name(path.name + _SUFFIX)
        return path if path.is_file() else None
    except (OSError, RuntimeError, ValueError):  # too long, nobody's home, a zero byte, no name
        return None


def _is_here(name: str) -> bool:
    return _here(name) is not None


def _in_folder(folder: Path, weight_name: str | None) -> Path:
    if weight_name is not None:
        if not (folder / weight_name).is_file():
            raise UserError(f"{folder} has no {told(weight_name)}")
        return folder / weight_name
    files = sorted(path for path in folder.iterdir() if has_ending(path, (_SUFFIX,)))
    if any(path.name in _NAMES for path in files):
        return next(folder / name for name in _NAMES if (folder / name) in files)
    from fusionjax.interop import hub

    return hub.only_one(str(folder), files)
