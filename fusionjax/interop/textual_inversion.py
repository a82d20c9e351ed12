"""Files of textual inversions: a word and its learnt embedding (arXiv 2208.01618).

Known are

    diffusers             {"<token>": [d] or [n, d]}                      .safetensors, .bin
    AUTOMATIC1111, kohya  {"emb_params": [n, d]}; the word is the file's name    .safetensors
    AUTOMATIC1111         {"string_to_param": {"*": [n, d]}, "name": "<token>", …}         .pt

A pickle can run any code when it is opened, so one is read by PyTorch's `weights_only`, which
builds nothing but tensors and plain values, or not at all.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from fusionjax.errors import UserError, told
from fusionjax.files import open_regular
from fusionjax.safetensors_file import SafetensorsFile

_PICKLES = (".pt", ".bin", ".pth", ".ckpt")
_MOST_BYTES = 100_000_000  # some hundred times the largest that are passed around
_MOST_VECTORS = 1000


class Embedding(NamedTuple):
    """A word that was learnt.

    Attributes:
        token: the word.
        vectors: its embeddings, [n, d]; it counts as n tokens.
        source: where it comes from, for messages.
    """

    token: str
    vectors: Float[np.ndarray, "n d"]
    source: str


def read_embedding(path: str | os.PathLike[str], token: str | None = None) -> Embedding:
    """Reads a file.

    Args:
        path: see above.
        token: the word in place of the file's own.

    Returns:
        The word and its vectors, float32.

    Raises:
        UserError: if it is no textual inversion, or a pickle that cannot be read without PyTorch.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"{told(path)} is no path of a textual inversion")
    path = Path(path)
    if path.suffix.lower() in _PICKLES:
        own, values = _word_of(_unpickled(path), path)
    else:
        with SafetensorsFile(path) as file:
            own, name = _word_of({name: name for name in file}, path)
            values = file.read(name)
    return _checked(own if token is None else token, values, str(path))


def _word_of(content: Mapping[Any, Any], path: Path) -> tuple[Any, Any]:
    """The word that a file is about, and what the file has under it."""
    if {"clip_l", "clip_g"} & content.keys():
        raise UserError(
            f"{path} is a textual inversion for SDXL (clip_l, clip_g); this base has one text "
            "encoder, of Stable Diffusion 1.x"
        )
    if "string_to_param" in content:
        parameters = content["string_to_param"]
        if not isinstance(parameters, Mapping) or len(parameters) != 1:
            raise UserError(f"{path} holds no single vector under string_to_param; save it again")
        return content.get("name") or path.stem, next(iter(parameters.values()))
    if "emb_params" in content:
        return path.stem, content["emb_params"]
    if len(content) != 1:
        raise UserError(
            f"{path} is no textual inversion: it holds {told(list(content)[:3])} and not one "
            "word's vectors (emb_params, string_to_param or <token>)"
        )
    return next(iter(content.items()))


def as_embeddings(content: Mapping[str, Any], token: str | None = None) -> list[Embedding]:
    """Words that are in memory: {token: vectors}.

    Args:
        content: arrays or tensors, [d] or [n, d].
        token: the word in its place, if it is one.

    Raises:
        UserError: if something is no vector.
    """
    if token is not None and len(content) != 1:
        raise UserError(
            f"token is {told(token)} for {len(content)} words; name them in the mapping"
        )
    return [_checked(token or own, values, str(own)) for own, values in content.items()]


def _checked(token: Any, values: Any, source: str) -> Embedding:
    if not isinstance(token, str):
        raise UserError(f"{source}: its token is {told(token)}; name it (FILE=token, or token=)")
    try:
        if hasattr(values, "detach"):  # PyTorch's; NumPy does not know bfloat16
            values = values.detach().cpu().float().numpy()
        vectors = np.asarray(values).astype(np.float32)
    except (ValueError, TypeError, RuntimeError):
        raise UserError(f"{source} holds no vectors for {told(token)}; download it again") from None
    vectors = vectors[None] if vectors.ndim == 1 else vectors
    if vectors.ndim != 2 or not 1 <= len(vectors) <= _MOST_VECTORS or not vectors.shape[1]:
        raise UserError(
            f"{source} holds an array of shape {vectors.shape} for {told(token)}; a textual "
            "inversion is [n, d]"
        )
    if not np.isfinite(vectors).all():
        raise UserError(f"{source} holds values that are not finite; download it again")
    return Embedding(token, vectors, source)


def _unpickled(path: Path) -> dict[str, Any]:
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > _MOST_BYTES:
            raise UserError(f"{path} is too large for a textual inversion; is it a checkpoint?")
        try:
            import torch
        except ImportError:
            raise UserError(
                f"{path} is a pickle, which is read by PyTorch alone (weights_only, so that no "
                "code is run); `pip install fusionjax[torch]`, or bring a .safetensors"
            ) from None
        if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):  # CVE-2025-32434
            raise UserError(
                f"{path} is a pickle, and PyTorch {torch.__version__} does not read one safely; "
                "`pip install -U fusionjax[torch]`, or bring a .safetensors"
            )
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # of every kind: what it refuses, and what damaged files raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
            raise UserError(
                f"{path} is a pickle that holds more than tensors, or is damaged, and is not read "
                f"({reason}); bring a .safetensors"
            ) from None
    if isinstance(content, torch.Tensor):  # a bare tensor is named like its file
        return {path.stem: content}
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {told(type(content).__name__)}; it is no textual inversion")
    return content
