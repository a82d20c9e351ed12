"""LoRAs, merged into the base model's weights while they are read: which tensor changes what.

The kinds and their formulas are in `lora_kinds.py`. Known are the names of kohya's trainer and of
LyCORIS, with diffusers' or the original module names, those of diffusers, old and new, and peft's:

    lora_unet_down_blocks_0_attentions_0_…_attn1_to_q.lora_down.weight, .lora_up.weight, .alpha
    unet.down_blocks.0.attentions.0.….attn1.to_q.lora_A.weight, .lora_B.weight
    base_model.model.down_blocks.0.….attn1.to_q.lora_A.default_0.weight
"""

import json
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fusionjax import schema
from fusionjax.errors import UserError, told
from fusionjax.interop import original
from fusionjax.interop.kinds import kind_of, some
from fusionjax.interop.lora_kinds import KINDS, LENGTHS, ROLES, Lora, matrix_shape, rank
from fusionjax.safetensors_file import SafetensorsFile
from fusionjax.schema import real, typed

_OWN_NAMES = sorted(ROLES - {"down", "up", "mid", "magnitude"}, key=len, reverse=True)
_PATTERNS = [  # of a tensor's name: the module that it names, its role, perhaps an adapter's name
    re.compile(r"(?P<module>.+)\.lora_(?P<role>down|up|mid|A|B)(\.[\w-]+)?\.weight"),
    re.compile(r"(?P<module>.+)\.lora(_linear_layer)?\.(?P<role>down|up|mid)\.weight"),
    re.compile(r"(?P<module>.+)\.to_(?P<short>q|k|v|out)_lora\.(?P<role>down|up)\.weight"),
    re.compile(r"(?P<module>.+)\.lora_(?P<role>magnitude)_vector(\.[\w-]+){0,2}"),
    re.compile(
        rf"(?P<module>.+)\.(?P<role>alpha|diff_b|[wb]_norm|{'|'.join(_OWN_NAMES)})(\.[\w-]+)?"
    ),
]
# Roles that have another name, and those of a bias.
_SAME_ROLE = {"A": "down", "B": "up", "diff_b": "diff", "w_norm": "diff", "b_norm": "diff"}
_OF_BIAS = ("diff_b", "b_norm")
_WRAPPERS = re.compile(r"\b(base_model\.model\.|model\.diffusion_model\.|diffusion_model\.)")
_OTHER_KINDS = re.compile(r"\.(oft_|boft_|hra_|vera_|on_input|[ab][12]\.weight|lora_[AB]\.bias)")
_EMBEDDING = re.compile(r"bundle_emb\.(?P<name>[^.]+)\..+")
_IDENTITY = "fusionjax"  # the metadata of this project's own files
_METADATA = "lora_adapter_metadata"  # diffusers': ranks and alphas as JSON
_PEFT_FILES = ("adapter_model.safetensors", "adapter_config.json")

Target = tuple[str, str]  # a part and a parameter of it


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

    Warns:
        UserWarning: if the file holds textual inversion embeddings, which are left out.
    """
    modules = _modules(shapes, levels)
    found: dict[Target, dict[str, str]] = defaultdict(dict)
    alphas: dict[Target, float] = {}
    unknown, embeddings = [], set()
    with SafetensorsFile(path) as file:
        if _IDENTITY in file.metadata:
            raise UserError(f"{path} is no LoRA but an identity or an adapter (--face, --fusion)")
        for name in file:
            match = next((m for p in _PATTERNS if (m := p.fullmatch(name))), None)
            target = None if match is None else _target(match, modules)
            if embedding := _EMBEDDING.fullmatch(name):
                embeddings.add(embedding["name"])
            elif match is None or target is None or target[1] not in shapes[target[0]]:
                unknown.append(name)
            elif match["role"] == "alpha":
                alphas[target] = _alpha(file, name)
            else:
                role = _SAME_ROLE.get(match["role"], match["role"])
                if role in found[target]:
                    raise UserError(
                        f"{path} has {found[target][role]} and {name} for the same place: it "
                        "holds several LoRAs; save each as a file of its own"
                    )
                found[target][role] = name
        _check_complete(file, found, unknown)
        settings = _settings(file)
        updates: dict[str, dict[str, Lora]] = {part: {} for part in shapes}
        for target, names in found.items():
            part, parameter = target
            _check_shapes(file, names, parameter, shapes[part][parameter])
            factor = _factor(file, names, alphas.get(target), settings.get(part, {}), parameter)
            tensors = {role: _read(file, name) for role, name in names.items()}
            updates[part][parameter] = Lora(tensors, factor, scale)
    if embeddings:
        warnings.warn(
            f"{path} holds textual inversion embeddings ({', '.join(sorted(embeddings)[:5])}), "
            "which are left out; the rest is merged",
            stacklevel=2,
        )
    return updates


def _modules(
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]], levels: int
) -> dict[str, tuple[str, str]]:
    """Every name that a LoRA may give to a layer → (part, module)."""
    result = {}

    def add(part: str, module: str, names: Iterable[str], kohya: Iterable[str]) -> None:
        for name in names:
            result[f"{part}.{name}"] = (part, module)
            for prefix in kohya:
                result[f"{prefix}_{name.replace('.', '_')}"] = (part, module)

    unet = [name for name in shapes["unet"] if name.endswith(".weight")]
    for name, old in original.unet_names(unet, levels).items():
        both = [text.removesuffix(".weight") for text in (name, old)]
        add("unet", both[0], both, ["lora_unet", "lycoris"])
    for name in shapes["text_encoder"]:
        if name.endswith(".weight"):
            module = name.removesuffix(".weight")
            add("text_encoder", module, [module], ["lora_te", "lora_te1", "lycoris"])
    return result


def _target(match: re.Match[str], modules: Mapping[str, tuple[str, str]]) -> Target | None:
    module = _WRAPPERS.sub("", match["module"]).removesuffix(".processor")
    short = match.groupdict().get("short")
    names = [module]
    if short is not None:
        names = [f"{module}.{'to_out.0' if short == 'out' else f'to_{short}'}",
                 f"{module}.{short}_proj"]  # fmt: skip
    for name in names:
        for prefix in ("", "unet.", "text_encoder."):
            if prefix + name in modules:
                part, found = modules[prefix + name]
                return part, f"{found}.{'bias' if match['role'] in _OF_BIAS else 'weight'}"
    return None


def _check_complete(
    file: SafetensorsFile, found: Mapping[Target, Mapping[str, str]], unknown: list[str]
) -> None:
    """Each tensor has a place, and each place all tensors of a kind."""
    if odd := [name for name in unknown if _OTHER_KINDS.search(name)]:
        raise UserError(
            f"{file.path} is of a kind that cannot be merged here ({odd[0]}); LoRA, LoHa, LoKr, "
            "DoRA, full and norm can: merge it into the base with its own tools first"
        )
    lone = [
        name
        for names in found.values()
        if names.keys() - set(LENGTHS) not in KINDS or names.keys() >= set(LENGTHS)
        for name in names.values()
    ]
    if unknown or lone or not found:
        kind = kind_of(file)
        raise UserError(
            f"{file.path} is not a LoRA for this base model"
            f"{f' and seems to be {kind}' if kind else ''}; tensors without a place: "
            f"{some(unknown)}; without a partner: {some(lone)}"
        )


def _check_shapes(
    file: SafetensorsFile, names: Mapping[str, str], parameter: str, shape: tuple[int, ...]
) -> None:
    """Checks that the tensors build an update of the weight's shape."""
    shapes = {role: file[name] for role, name in names.items()}
    built = matrix_shape(shapes)
    fits = built == (shape[0], int(np.prod(shape[1:])))
    length = next((shapes[role] for role in LENGTHS if role in shapes), None)
    if fits and length is not None:
        # For each row, [o], [o 1 1 1], peft's [1 o 1 1]; LyCORIS has had [1 i 1 1], by columns.
        by_columns = "dora_scale" in shapes and len(length) > 1 and length[0] == 1 != length[1]
        fits = len(shape) > 1 and int(np.prod(length)) == shape[1 if by_columns else 0]
    if not fits:
        tensors = " and ".join(f"{name} {list(file[name])}" for name in [*names.values()][:3])
        raise UserError(
            f"{file.path} was made for another base model: {tensors} do not fit {parameter} "
            f"{list(shape)}"
        )


def _read(file: SafetensorsFile, name: str) -> np.ndarray:
    tensor = file.read(name)
    if not tensor.dtype.name.startswith(("float", "bfloat")):
        raise UserError(f"{file.path}: {name} holds {tensor.dtype}, not real numbers")
    if not np.isfinite(tensor).all():
        raise UserError(f"{file.path}: {name} holds values that are not finite")
    return tensor


# --- α ----------------------------------------------------------------------------------------


def _alpha(file: SafetensorsFile, name: str) -> float:
    values = file.read(name).astype(np.float64).reshape(-1)
    if values.size != 1 or not np.isfinite(values[0]):
        raise UserError(f"{file.path}: {name} is {told(values.tolist())}; it must be a number")
    return float(values[0])


def _factor(
    file: SafetensorsFile,
    names: Mapping[str, str],
    alpha: float | None,
    settings: Mapping[str, Any],
    parameter: str,
) -> float:
    """α/r, or α/√r where rank-stabilised (Kalajdzievski 2023); 1 where nothing tells α."""
    r = rank({role: file[name] for role, name in names.items()})
    if r is None:
        return 1.0
    if alpha is not None:
        return alpha / r
    if "lora_alpha" not in settings and "alpha" not in settings:  # peft's names: LoRA's, LyCORIS's
        return 1.0
    alpha = settings.get("lora_alpha", settings.get("alpha"))
    module = parameter.rpartition(".")[0]
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if module == pattern or module.endswith(f".{pattern}"):
            alpha = value
    number: float = typed(alpha, real(-1e6, 1e6), f"{file.path}: lora_alpha")
    return number / (r**0.5 if settings.get("use_rslora") else r)


def _settings(file: SafetensorsFile) -> dict[str, dict[str, Any]]:
    """What was set for each part: in diffusers' metadata, or in peft's file beside."""
    beside = file.path.parent / _PEFT_FILES[1]
    try:
        if file.path.name == _PEFT_FILES[0] and beside.is_file():
            own: dict[str, Any] = schema.read_json(beside)
            result = {"unet": own, "text_encoder": own}
        else:
            result = {"unet": {}, "text_encoder": {}}
            for name, value in json.loads(file.metadata.get(_METADATA, "{}")).items():
                part, _, option = name.partition(".")
                result.setdefault(part, {})[option] = value
        for settings in result.values():
            (settings.get("alpha_pattern") or {}).items()
        return result
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{file.path}: its alphas ({_METADATA}) make no sense; download it again"
        ) from None
