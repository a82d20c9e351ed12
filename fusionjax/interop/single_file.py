"""A base model in one file, in the original layout: what it holds, and what it tells of itself."""

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fusionjax.diffusion.noise_schedule import NoiseSchedule, PredictionType
from fusionjax.errors import UserError, told
from fusionjax.files import read_whole
from fusionjax.interop import configs, names, original
from fusionjax.interop.kinds import kind_of, some
from fusionjax.interop.load import Tensors, candidates, check_complete
from fusionjax.interop.parts import Part, match
from fusionjax.interop.stored import Prefixed, open_tensors
from fusionjax.safetensors_file import SafetensorsFile

_MOST_BYTES = 1_000_000
# What files say of what a UNet predicts, in Stability's metadata and in a configuration beside.
_PREDICTIONS: dict[str, PredictionType] = {
    "epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction",
}  # fmt: skip


def open_single(
    path: Path, dtype: Any, vae: Part | None, files: contextlib.ExitStack
) -> dict[str, Part]:
    """Opens the three parts of a base model in one file.

    Args:
        path: the file.
        dtype: the type to compute in.
        vae: in place of its own.
        files: closes the file.

    Returns:
        "text_encoder", "vae", "unet".

    Raises:
        UserError: as `sources.open_base`.

    Warns:
        UserWarning: if the file holds more than the three, which is left out.
    """
    file = open_tensors(path, files)
    prefixes = (original.UNET_PREFIX, original.VAE_PREFIX, original.TEXT_PREFIX)
    if not any(name.startswith(original.UNET_PREFIX) for name in file):
        kind = kind_of(_shapes(file))
        seems = f" and seems to be {kind}" if kind else ""
        raise UserError(
            f"{path} has no {original.UNET_PREFIX}*, which a Stable Diffusion checkpoint in one "
            f"file has{seems}; it holds {len([*file])} tensors, first {next(iter(file), 'none')}"
        )
    unsupported = kind_of(_shapes(file))
    if unsupported is not None and "original layout" not in unsupported:
        raise UserError(f"{path} seems to be {unsupported}")
    outside = [n for n in file if not n.startswith(prefixes) and not original.IGNORED.match(n)]
    harmless = [name for name in outside if original.HARMLESS.match(name)]
    check_complete(
        file,
        "a Stable Diffusion 1.x checkpoint in the original layout",
        [],
        [name for name in outside if name not in harmless],
    )
    if harmless:
        warnings.warn(
            f"{path} holds tensors that are no part of the model and are left out: "
            f"{some(harmless)}",
            stacklevel=2,
        )
    unet, text = (Prefixed(file, prefix, original.IGNORED) for prefix in (prefixes[0], prefixes[2]))
    if next(iter(text), None) is None:
        raise UserError(
            f"{path} has no text encoder ({original.TEXT_PREFIX}*); use a file that has one"
        )
    if vae is None:
        if not any(name.startswith(original.VAE_PREFIX) for name in file):
            raise UserError(
                f"{path} has no VAE ({original.VAE_PREFIX}*); name one with vae, for example "
                "vae=stabilityai/sd-vae-ft-mse"
            )
        vae = original_vae(Prefixed(file, original.VAE_PREFIX, original.IGNORED), dtype)
    return {
        "text_encoder": _original_text(text, dtype),
        "vae": vae,
        "unet": _original_unet(unet, dtype)._replace(schedule=_told_schedule(file)),
    }


def _told_schedule(file: Tensors) -> NoiseSchedule:
    """Stable Diffusion's noise levels, and what is said of what the UNet predicts.

    A configuration beside the file says it (`parameterization`), empty tensors of the names
    `v_pred` and `ztsnr`, or the metadata (https://github.com/Stability-AI/ModelSpec).
    """
    name = "modelspec.prediction_type"
    with SafetensorsFile(file.path) as opened:
        said, where = opened.metadata.get(name, "epsilon"), f"{file.path}: {name}"
    if "v_pred" in file:
        said = "v"
    for suffix in (".yaml", ".yml"):
        beside = file.path.with_suffix(suffix)
        if (own := _parameterization(beside)) is not None:
            said, where = own, f"{beside}: parameterization"
    if said.lower() not in _PREDICTIONS:
        raise UserError(f"{where} is {told(said)}; known are {', '.join(_PREDICTIONS)}")
    return NoiseSchedule(
        prediction_type=_PREDICTIONS[said.lower()], rescale_betas_zero_snr="ztsnr" in file
    )


def _parameterization(path: Path) -> str | None:
    """What the original code's configuration says, if there is one."""
    if not path.is_file():
        return None
    import yaml

    try:
        content: Any = yaml.safe_load(read_whole(path, _MOST_BYTES).decode())
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"{path} is not YAML; copy it again, or move it elsewhere") from None
    for key in ("model", "params", "parameterization"):
        content = content.get(key) if isinstance(content, dict) else None
    return None if content is None else str(content)


def _original_unet(tensors: Prefixed, dtype: Any) -> Part:
    what = "a Stable Diffusion 1.x checkpoint"
    config = _inferred(original.unet_config, _shapes(tensors), what, tensors.path)
    module = configs.unet_from_config(config, str(tensors.path), dtype)
    table = original.unet_names(names.torch_names(module), module.layers_per_block)
    return match(module, tensors, what, lambda name: [table[name]])


def original_vae(tensors: Tensors, dtype: Any) -> Part:
    """A VAE under its original names.

    Args:
        tensors: the file, names without a prefix.
        dtype: the type to compute in.

    Returns:
        The part.

    Raises:
        UserError: if it is none.
    """
    what = "a checkpoint with a Stable Diffusion VAE"
    config = _inferred(original.vae_config, _shapes(tensors), what, tensors.path)
    module = configs.vae_from_config(config, str(tensors.path), dtype)
    table = original.vae_names(names.torch_names(module), len(module.block_out_channels))
    return match(module, tensors, what, lambda name: [table[name]])


def _original_text(tensors: Prefixed, dtype: Any) -> Part:
    what = "a checkpoint with a CLIP text encoder"
    shapes = {f"text_model.{name.removeprefix('text_model.')}": tensors[name] for name in tensors}
    config = _inferred(original.text_config, shapes, what, tensors.path)
    module = configs.text_encoder_from_config(config, str(tensors.path), dtype)
    return match(module, tensors, what, candidates)


def _shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tensors[name] for name in tensors}


def _inferred(
    infer: Callable[[original.Shapes], dict[str, Any]],
    shapes: original.Shapes,
    what: str,
    path: Path,
) -> dict[str, Any]:
    """A config read off the shapes, or an error that says what the file is instead."""
    try:
        return infer(shapes)
    except (KeyError, IndexError, ValueError, StopIteration) as error:
        kind = kind_of(shapes)
        seems = f" and seems to be {kind}" if kind else ""
        raise UserError(
            f"{path} is not {what}{seems}; it lacks {error} or has it in another shape"
        ) from None
