"""Reads a base model's weights, with LoRAs merged in, and changes the LoRAs later.

A merged weight is rounded, so a LoRA cannot be subtracted again. What it changed is read again
from the base's files instead: the result is what a fresh load gives, and nothing is kept twice.
"""

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from fusionjax.errors import UserError
from fusionjax.interop import names, sources
from fusionjax.interop.fingerprint import Fingerprint
from fusionjax.interop.load import Change, fill
from fusionjax.interop.lora import read_lora
from fusionjax.interop.lora_kinds import Lora
from fusionjax.interop.tokenizer import load_tokenizer, tokenizer_for_file

Loras = Sequence[tuple[Path, float]]
_PARTS = ("unet", "text_encoder")  # what LoRAs change


class Origin(NamedTuple):
    """Where a base model's weights come from.

    Attributes:
        path: the base's folder or file.
        vae: the VAE in place of its own, as the user named it.
        dtype: what the weights were rounded to.
        stamps: size and time of change of each file.
        loras: what is merged, files and strengths.
        merged: the parameters that they changed, by part.
        fingerprint: of the UNet, tensor by tensor.
        text_digest: a short name for what they made of the text encoder, None if nothing.
        known: `identity_fingerprint`s of this base with the LoRAs that it had before.
    """

    path: Path
    vae: Any
    dtype: Any
    stamps: Mapping[Path, tuple[int, int]]
    loras: tuple[tuple[Path, float], ...]
    merged: Mapping[str, frozenset[str]]
    fingerprint: Fingerprint
    text_digest: str | None = None
    known: frozenset[str] = frozenset()


def load(
    source: str | os.PathLike[str],
    dtype: Any,
    vae: str | os.PathLike[str] | None,
    loras: Loras,
    tokenizer: str | os.PathLike[str] | None,
    prediction_type: str | None = None,
) -> dict[str, Any]:
    """Loads a base model, one tensor at a time.

    Args:
        source: as for `BaseModel.from_pretrained`, and so are the others.
        dtype: see there.
        vae: see there.
        loras: files and strengths.
        tokenizer: see there.
        prediction_type: see there.

    Returns:
        The fields of a `BaseModel`.

    Raises:
        UserError: if something is missing, left over, damaged, or of another kind.
    """
    fingerprint, text = Fingerprint(), Fingerprint()
    with contextlib.ExitStack() as files:
        parts = sources.open_base(source, dtype, vae, files, prediction_type)
        tokens = _tokenizer(parts, tokenizer, source)
        changes = _merges(parts, loras)
        params = {}
        for name, part in parts.items():
            see = _seen_by(name, changes, fingerprint, text)
            params[name] = fill(
                part.wanted,
                part.tensors,
                part.located,
                dtype,
                changes=changes.get(name),
                see=see,
            )
        origin = Origin(
            path=parts["unet"].folder or parts["unet"].tensors.path,
            vae=vae,
            dtype=dtype,
            stamps=_stamps(parts),
            loras=tuple(loras),
            merged={part: frozenset(changes[part]) for part in _PARTS},
            fingerprint=fingerprint,
            text_digest=_short(text, changes),
        )
    return {
        "tokenizer": tokens,
        "text_encoder": parts["text_encoder"].module,
        "vae": parts["vae"].module,
        "unet": parts["unet"].module,
        "params": params,
        "schedule": parts["unet"].schedule,
        "source": os.fspath(source),
        "recorded_fingerprint": fingerprint.hexdigest(),
        "origin": origin,
    }


def with_loras(
    params: Mapping[str, Any], origin: Origin, loras: Loras
) -> tuple[dict[str, Any], Origin]:
    """Other LoRAs in place of those that are merged.

    Args:
        params: the base's, as `load` gave them or this function did.
        origin: likewise.
        loras: files and strengths.

    Returns:
        The parameters, of which those that no LoRA touches are shared, and where they come from.

    Raises:
        UserError: if a LoRA does not fit, or the base's files have changed.
    """
    fingerprint, text = origin.fingerprint.copy(), Fingerprint()
    result = dict(params)
    with contextlib.ExitStack() as files:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # told when the base was loaded
            parts = sources.open_base(origin.path, origin.dtype, origin.vae, files)
        if _stamps(parts) != origin.stamps:
            raise UserError(
                f"the files of {origin.path} have changed since they were loaded; load the base "
                "again"
            )
        changes = _merges(parts, loras)
        for name in _PARTS:
            part = parts[name]
            again = changes[name].keys() | origin.merged[name]
            wanted = {parameter: part.wanted[parameter] for parameter in part.wanted
                      if parameter in again}  # fmt: skip
            filled = fill(
                wanted,
                part.tensors,
                part.located,
                origin.dtype,
                changes=changes[name],
                see=_seen_by(name, changes, fingerprint, text),
            )
            leaves = {**flatten_dict(dict(params[name])), **flatten_dict(filled)}
            result[name] = unflatten_dict(leaves)
    now = origin.fingerprint.hexdigest()
    was = now if origin.text_digest is None else f"{now}+{origin.text_digest}"
    return result, origin._replace(
        loras=tuple(loras),
        merged={part: frozenset(changes[part]) for part in _PARTS},
        fingerprint=fingerprint,
        text_digest=_short(text, changes),
        known=origin.known | {was},
    )


def _tokenizer(parts: Mapping[str, sources.Part], given: Any, source: Any) -> Any:
    words = parts["text_encoder"].module.config.vocab_size
    if given is not None:
        tokens = load_tokenizer(given)
    elif parts["unet"].folder is not None:
        tokens = load_tokenizer(parts["unet"].folder / "tokenizer")
    else:
        tokens = tokenizer_for_file(parts["unet"].tensors.path, words)
    if len(tokens) > words:
        raise UserError(
            f"{source}: the tokenizer has {len(tokens)} tokens and the text encoder knows "
            f"{words}; they do not belong together"
        )
    return tokens


def _seen_by(
    part: str, changes: Mapping[str, Mapping[str, Change]], unet: Fingerprint, text: Fingerprint
) -> Callable[[str, np.ndarray], None] | None:
    """Who is shown a part's weights: the UNet's fingerprint, and one of the text that changed."""
    if part == "unet":
        return unet.add
    if part == "text_encoder" and changes[part]:
        return lambda name, value: text.add(name, value) if name in changes[part] else None
    return None


def _short(text: Fingerprint, changes: Mapping[str, Mapping[str, Change]]) -> str | None:
    return text.hexdigest()[:8] if changes["text_encoder"] else None


def _stamps(parts: Mapping[str, sources.Part]) -> dict[Path, tuple[int, int]]:
    stamps = {}
    for part in _PARTS:
        for path in parts[part].tensors.paths:
            found = path.stat()
            stamps[path] = (found.st_size, found.st_mtime_ns)
    return stamps


def _merges(parts: Mapping[str, sources.Part], loras: Loras) -> dict[str, dict[str, Change]]:
    """For each part and parameter, the function that merges all LoRAs into it."""
    shapes = {
        name: {
            parameter: names.to_torch_shape(path, shape)
            for parameter, (path, shape) in parts[name].wanted.items()
        }
        for name in _PARTS
    }
    found: dict[str, dict[str, list[Lora]]] = {name: {} for name in shapes}
    for path, strength in loras:
        layers = parts["unet"].module.layers_per_block
        for name, updates in read_lora(path, strength, shapes, layers).items():
            for parameter, update in updates.items():
                found[name].setdefault(parameter, []).append(update)

    def merge_all(updates: list[Lora]) -> Change:
        return lambda weight: functools.reduce(lambda w, update: update.merge(w), updates, weight)

    return {
        name: {parameter: merge_all(updates) for parameter, updates in layers.items()}
        for name, layers in found.items()
    }
