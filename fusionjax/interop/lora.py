"""LoRAs, merged into the base model's weights while they are read.

W' = W + scale · (alpha / rank) · up · down, for linear layers and convolutions
(Hu et al. 2021, arXiv 2106.09685). Known are the names of kohya's trainer, with diffusers' or the
original module names, and those of diffusers, old and new:

    lora_unet_down_blocks_0_attentions_0_…_attn1_to_q.lora_down.weight, .lora_up.weight, .alpha
    unet.down_blocks.0.attentions.0.….attn1.to_q.lora_A.weight, .lora_B.weight
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fusionjax.errors import UserError, told
from fusionjax.interop import original
from fusionjax.interop.kinds import kind_of, some
from fusionjax.safetensors_file import SafetensorsFile
from fusionjax.schema import real, typed

# (pattern of a tensor's name, the module that it names, its role)
_ROLES = {"down": "down", "up": "up", "A": "down", "B": "up"}
_PATTERNS = [
    re.compile(r"(?P<module>.+)\.lora_(?P<role>down|up|A|B)(\.default)?\.weight"),
    re.compile(r"(?P<module>.+)\.lora(_linear_layer)?\.(?P<role>down|up)\.weight"),
    re.compile(r"(?P<module>.+)\.to_(?P<short>q|k|v|out)_lora\.(?P<role>down|up)\.weight"),
]
_ALPHA = re.compile(r"(?P<module>.+)\.alpha")
_OTHER_KINDS = re.compile(r"\.(hada_|lokr_|lora_mid|dora_scale|lora_magnitude)")
_IDENTITY = "fusionjax"  # the metadata of this project's own files
_METADATA = "lora_adapter_metadata"  # diffusers': ranks and alphas as JSON


class Lora(NamedTuple):
    """One layer's update: `factor · up · down` is added to its weight."""

    up: np.ndarray
    down: np.ndarray
    factor: float

    def merge(self, weight: np.ndarray) -> np.ndarray:
        """The merged weight, float32, in PyTorch's layout."""
        up, down = self.up.astype(np.float32), self.down.astype(np.float32)
        rank = down.shape[0]
        delta = up.reshape(-1, rank) @ down.reshape(rank, -1)
        return weight + np.float32(self.factor) * delta.reshape(weight.shape)


def parse(lora: str | os.PathLike[str]) -> tuple[Path, float]:
    """Splits `FILE[:scale]`.

    Args:
        lora: a path, with or without a scale after its last colon.

    Returns:
        The path and the scale, 1 if there is none.

    Raises:
        UserError: if what follows the colon is no finite number.
    """
    text = os.fspath(lora)
    if Path(text).exists() or ":" not in text:
        return Path(text), 1.0
    name, _, scale = text.rpartition(":")
    try:
        value = float(scale)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise UserError(f"lora {text!r}: {scale!r} is no scale; write FILE or FILE:0.8")
    return Path(name), value


def read_lora(
    path: Path, scale: float, shapes: Mapping[str, Mapping[str, tuple[int, ...]]], levels: int
) -> dict[str, dict[str, Lora]]:
    """Reads a LoRA for a base model.

    Args:
        path: the safetensors file.
        scale: of the whole update.
        shapes: for "unet" and "text_encoder", the PyTorch names and shapes of the parameters.
        levels: `layers_per_block` of the UNet, for files with the original module names.

    Returns:
        For "unet" and "text_encoder": PyTorch name of the parameter → its update.

    Raises:
        UserError: if the file is no LoRA for this base model, or of a kind that is not known.
    """
    modules = _modules(shapes, levels)
    matrices: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    alphas: dict[tuple[str, str], float] = {}
    unknown = []
    with SafetensorsFile(path) as file:
        if _IDENTITY in file.metadata:
            raise UserError(f"{path} is no LoRA but an identity or an adapter (--face, --fusion)")
        for name in file:
            is_alpha = _ALPHA.fullmatch(name)
            match = next((m for p in _PATTERNS if (m := p.fullmatch(name))), None)
            target = _target(match or is_alpha, modules)
            if target is None:
                unknown.append(name)
            elif match is not None:
                matrices[target][_ROLES[match["role"]]] = name
            else:
                alphas[target] = _alpha(file, name)
        lone = [pair[role] for pair in matrices.values() if len(pair) == 1 for role in pair]
        if odd := [name for name in unknown if _OTHER_KINDS.search(name)]:
            raise UserError(
                f"{path} is a LoHa, LoKr, DoRA or Tucker LoRA ({odd[0]}); only plain LoRAs can be "
                "merged here: merge it into the base with its own tools first"
            )
        if unknown or lone or not matrices:
            kind = kind_of(file)
            raise UserError(
                f"{path} is not a LoRA for this base model"
                f"{f' and seems to be {kind}' if kind else ''}; tensors without a place: "
                f"{some(unknown)}; without a partner: {some(lone)}"
            )
        alphas_of_metadata = _metadata_alphas(file, modules)
        updates: dict[str, dict[str, Lora]] = {part: {} for part in shapes}
        for (part, parameter), pair in matrices.items():
            up, down = file.read(pair["up"]), file.read(pair["down"])
            _check(path, pair, up, down, parameter, shapes[part][parameter])
            rank = down.shape[0]
            target = (part, parameter)
            alpha = alphas.get(target, alphas_of_metadata.get(target, float(rank)))
            updates[part][parameter] = Lora(up, down, scale * alpha / rank)
    return updates


def _alpha(file: SafetensorsFile, name: str) -> float:
    values = file.read(name).astype(np.float64).reshape(-1)
    if values.size != 1 or not np.isfinite(values[0]):
        raise UserError(f"{file.path}: {name} is {told(values.tolist())}; it must be a number")
    return float(values[0])


def _modules(
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]], levels: int
) -> dict[str, tuple[str, str]]:
    """Every name that a LoRA may give to a layer → (part, parameter)."""
    result = {}

    def add(part: str, parameter: str, module: str, kohya: Iterable[str]) -> None:
        result[f"{part}.{module}"] = (part, parameter)
        for prefix in kohya:
            result[f"{prefix}_{module.replace('.', '_')}"] = (part, parameter)

    unet = [name for name in shapes["unet"] if name.endswith(".weight")]
    for name in unet:
        add("unet", name, name.removesuffix(".weight"), ["lora_unet"])
    for name, old in original.unet_names(unet, levels).items():
        add("unet", name, old.removesuffix(".weight"), ["lora_unet"])
    for name in shapes["text_encoder"]:
        if name.endswith(".weight"):
            add("text_encoder", name, name.removesuffix(".weight"), ["lora_te", "lora_te1"])
    return result


def _target(
    match: re.Match[str] | None, modules: Mapping[str, tuple[str, str]]
) -> tuple[str, str] | None:
    if match is None:
        return None
    module = match["module"].removesuffix(".processor")
    short = match.groupdict().get("short")
    names = [module]
    if short is not None:
        names = [f"{module}.{'to_out.0' if short == 'out' else f'to_{short}'}",
                 f"{module}.{short}_proj"]  # fmt: skip
    for name in names:
        for prefix in ("", "unet."):
            if prefix + name in modules:
                return modules[prefix + name]
    return None


def _metadata_alphas(
    file: SafetensorsFile, modules: Mapping[str, tuple[str, str]]
) -> dict[tuple[str, str], float]:
    """Alphas from the metadata that newer diffusers write, by (part, parameter)."""
    try:
        settings = json.loads(file.metadata.get(_METADATA, "{}"))
        for part in ("unet", "text_encoder"):
            for option in ("use_dora", "use_rslora"):
                if settings.get(f"{part}.{option}"):
                    raise UserError(f"{file.path} was made with {option}, which is not supported")
        result = {}
        for name, target in modules.items():
            part, _, module = name.partition(".")
            if f"{part}.lora_alpha" in settings:
                pattern = settings.get(f"{part}.alpha_pattern") or {}
                alpha = pattern.get(module, settings[f"{part}.lora_alpha"])
                result[target] = typed(alpha, real(-1e6, 1e6), f"{file.path}: lora_alpha")
        return result
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{file.path}: its {_METADATA} make no sense; download it again") from None


def _check(
    path: Path,
    pair: Mapping[str, str],
    up: np.ndarray,
    down: np.ndarray,
    parameter: str,
    shape: tuple[int, ...],
) -> None:
    """Checks that up · down has the shape of the weight."""
    fits = (
        up.ndim in (2, 4)
        and down.ndim in (2, 4)
        and up.shape[1] == down.shape[0] > 0
        and up.shape[2:] in ((), (1, 1))
        and up.shape[0] == shape[0]
        and int(np.prod(down.shape[1:])) == int(np.prod(shape[1:]))
    )
    if not fits:
        raise UserError(
            f"{path} was made for another base model: {pair['up']} {list(up.shape)} and "
            f"{pair['down']} {list(down.shape)} do not fit {parameter} {list(shape)}"
        )
    for role, tensor in (("up", up), ("down", down)):
        if not np.issubdtype(tensor.dtype, np.floating) and tensor.dtype.name != "bfloat16":
            raise UserError(f"{path}: {pair[role]} holds {tensor.dtype}, not real numbers")
        if not np.isfinite(tensor).all():
            raise UserError(f"{path}: {pair[role]} holds values that are not finite")
