"""Opens a base model where it lies: which file holds which part, under which names.

A part is the text encoder, the VAE or the UNet. What is opened here has been checked: each
parameter of the part has a tensor, and each tensor of the file a place.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fusionjax import schema
from fusionjax.diffusion.noise_schedule import NoiseSchedule, PredictionType
from fusionjax.errors import UserError, told
from fusionjax.interop import configs, hub, names, original
from fusionjax.interop.flax_file import FlaxFile
from fusionjax.interop.kinds import kind_of
from fusionjax.interop.load import Tensors, candidates, check_complete, locate
from fusionjax.safetensors_file import SafetensorsFile, pickle_message

WEIGHTS = {
    "text_encoder": "model",
    "vae": "diffusion_pytorch_model",
    "unet": "diffusion_pytorch_model",
}
_FLAX_WEIGHTS = {
    "text_encoder": "flax_model.msgpack",
    "vae": "diffusion_flax_model.msgpack",
    "unet": "diffusion_flax_model.msgpack",
}
_PICKLES = ("pytorch_model.bin", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.bin")
_BUILDERS: dict[str, Any] = {
    "text_encoder": configs.text_encoder_from_config,
    "vae": configs.vae_from_config,
    "unet": configs.unet_from_config,
}
_WHAT = {
    "text_encoder": "the CLIP text encoder that its config.json describes",
    "vae": "the VAE that its config.json describes",
    "unet": "the UNet that its config.json describes",
}
_POSITIONS = "embeddings.position_ids"  # a table of 0, 1, 2, … in older text encoders


class Part(NamedTuple):
    """One part of a base model, ready to be read.

    Attributes:
        module: its Flax module.
        wanted: its parameters by PyTorch name.
        tensors: the open file.
        located: the name in the file of every parameter, by PyTorch name.
        folder: the diffusers folder that it is in, if it is.
        schedule: the noise schedule that comes with it.
    """

    module: Any
    wanted: dict[str, names.Parameter]
    tensors: Tensors
    located: dict[str, str]
    folder: Path | None = None
    schedule: NoiseSchedule = NoiseSchedule()


class _Prefixed:
    """What a file in the original layout has under a prefix, without the prefix."""

    def __init__(self, tensors: Tensors, prefix: str):
        self.path = tensors.path
        self._tensors = tensors
        self._names = {
            name.removeprefix(prefix): name
            for name in tensors
            if name.startswith(prefix) and not original.IGNORED.match(name)
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __getitem__(self, name: str) -> tuple[int, ...]:
        return self._tensors[self._names[name]]

    def read(self, name: str) -> np.ndarray:
        return self._tensors.read(self._names[name])


def open_base(
    source: str | os.PathLike[str],
    dtype: Any,
    vae: str | os.PathLike[str] | None,
    files: contextlib.ExitStack,
) -> dict[str, Part]:
    """Opens the three parts of a base model.

    Args:
        source: a folder, a file, or a name on the hub.
        dtype: the type to compute in.
        vae: a folder, a file, or a name, in place of the source's own VAE.
        files: closes the files.

    Returns:
        "text_encoder", "vae", "unet".

    Raises:
        UserError: if something is missing, left over, damaged, or of another kind.
    """
    replaced = None if vae is None else _open_vae(vae, dtype, files)
    path = _find(source, [[f"{part}/{name}" for name in _weight_names(part)] for part in WEIGHTS])
    if path.is_dir():
        parts = _open_folder(path, dtype, replaced, files)
    else:
        parts = _open_single(path, dtype, replaced, files)
    unet, text = parts["unet"].module, parts["text_encoder"].module
    latents = parts["vae"].module.latent_channels
    if not unet.in_channels == unet.out_channels == latents:
        what = {9: "an inpainting model", 8: "an InstructPix2Pix model"}.get(
            unet.in_channels, "a model for something else" if vae is None else "for another VAE"
        )
        raise UserError(
            f"{source} seems to be {what}: its UNet takes {unet.in_channels} channels and gives "
            f"{unet.out_channels}, the VAE has {latents}; only text-to-image models load"
        )
    if unet.cross_attention_dim != text.config.hidden_size:
        raise UserError(
            f"{source}: the UNet reads text states of {unet.cross_attention_dim} features, the "
            f"text encoder gives {text.config.hidden_size}; they do not belong together"
        )
    return parts


def _find(source: str | os.PathLike[str], weights: Iterable[Iterable[str]]) -> Path:
    """The file or folder of that name here, or else from the hub."""
    path, text = Path(source).expanduser(), os.fspath(source)
    if path.exists():
        return path
    if hub.looks_like_hub_id(text) and not text.startswith((".", "/", "~")):
        return hub.download(text, weights)
    raise UserError(f"{text} does not exist; give a diffusers folder, a .safetensors file, or a "
                    "name on the hub such as owner/name")  # fmt: skip


def _weight_names(part: str) -> list[str]:
    """The weight files that a part may have, by preference."""
    name = WEIGHTS[part]
    return [f"{name}.safetensors", f"{name}.fp16.safetensors", _FLAX_WEIGHTS[part]]


# --- a diffusers folder ---------------------------------------------------------------------


def _open_folder(
    folder: Path, dtype: Any, vae: Part | None, files: contextlib.ExitStack
) -> dict[str, Part]:
    for part in ("text_encoder", "vae", "unet", "tokenizer", "scheduler"):
        if not (folder / part).is_dir() and not (part == "vae" and vae is not None):
            hint = "; it is an SDXL folder" if (folder / "text_encoder_2").is_dir() else ""
            raise UserError(
                f"{folder} has no subfolder {part!r}; a diffusers folder has text_encoder, vae, "
                f"unet, tokenizer and scheduler{hint}"
            )
    if (folder / "text_encoder_2").is_dir():
        raise UserError(f"{folder} is an SDXL model, which is not supported; only Stable "
                        "Diffusion 1.x and 2.x load")  # fmt: skip
    schedule = _read_schedule(folder / "scheduler" / "scheduler_config.json")
    parts = {
        part: _open_part(folder / part, part, dtype, files)._replace(
            folder=folder, schedule=schedule
        )
        for part in ("text_encoder", "unet")
    }
    parts["vae"] = vae or _open_part(folder / "vae", "vae", dtype, files)
    return {part: parts[part] for part in WEIGHTS}


def _read_schedule(path: Path) -> NoiseSchedule:
    config: dict[str, Any] = schema.read_json(path)
    try:
        schedule = NoiseSchedule.from_config(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if config.get("timestep_spacing") == "trailing":
        warnings.warn(
            f"{path} asks for timestep_spacing 'trailing', which is not followed: each scheduler "
            "visits the noise levels that it visits for Stable Diffusion 1.5; ddim_trailing has it",
            stacklevel=2,
        )
    return schedule


def _open_part(folder: Path, part: str, dtype: Any, files: contextlib.ExitStack) -> Part:
    config = folder / "config.json"
    module = _BUILDERS[part](schema.read_json(config), str(config), dtype)
    tensors = _open_weights(folder, part, files)
    return _match(module, tensors, _WHAT[part], candidates, config)


def _open_weights(folder: Path, part: str, files: contextlib.ExitStack) -> Tensors:
    for name in _weight_names(part):
        if (folder / name).is_file():
            kind: Any = FlaxFile if name.endswith(".msgpack") else SafetensorsFile
            return files.enter_context(kind(folder / name))
    for pickle in sorted(folder.glob("*.bin")):
        target = folder / f"{WEIGHTS[part]}.safetensors"
        raise UserError(pickle_message(pickle, target))
    raise UserError(
        f"{folder} has no weights; there should be one of {', '.join(_weight_names(part))}"
    )


def _match(
    module: Any, tensors: Tensors, what: str, rename: Any, config: Path | None = None
) -> Part:
    """Pairs a module's parameters with a file's tensors, all of both."""
    try:
        wanted = names.torch_names(module)
    except (TypeError, ValueError, ZeroDivisionError, AttributeError, IndexError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"{config or tensors.path} describes a model that cannot be built: {reason}"
        ) from None
    located = locate(wanted, tensors, rename)
    used = set(located.values())
    unused = [name for name in tensors if name not in used and not name.endswith(_POSITIONS)]
    check_complete(tensors, what, [name for name in wanted if name not in located], unused)
    return Part(module, wanted, tensors, located)


# --- a VAE of its own -----------------------------------------------------------------------


def _open_vae(source: str | os.PathLike[str], dtype: Any, files: contextlib.ExitStack) -> Part:
    weights = _weight_names("vae")
    path = _find(source, [[*weights, *(f"vae/{name}" for name in weights)]])
    if path.is_dir():
        folder = path / "vae" if (path / "vae").is_dir() else path
        return _open_part(folder, "vae", dtype, files)
    file = files.enter_context(SafetensorsFile(path))
    if any(name.startswith(original.VAE_PREFIX) for name in file):
        return _original_vae(_Prefixed(file, original.VAE_PREFIX), dtype)
    if any(name.startswith("encoder.down_blocks.") for name in file):
        config = path.parent / "config.json"
        module = configs.vae_from_config(schema.read_json(config), str(config), dtype)
        return _match(module, file, _WHAT["vae"], candidates, config)
    return _original_vae(_Prefixed(file, ""), dtype)


# --- one file in the original layout --------------------------------------------------------


def _open_single(
    path: Path, dtype: Any, vae: Part | None, files: contextlib.ExitStack
) -> dict[str, Part]:
    file = files.enter_context(SafetensorsFile(path))
    prefixes = (original.UNET_PREFIX, original.VAE_PREFIX, original.TEXT_PREFIX)
    if not any(name.startswith(original.UNET_PREFIX) for name in file):
        kind = kind_of(file)
        seems = f" and seems to be {kind}" if kind else ""
        raise UserError(
            f"{path} has no {original.UNET_PREFIX}*, which a Stable Diffusion checkpoint in one "
            f"file has{seems}; it holds {len(file)} tensors, first {next(iter(file), 'none')}"
        )
    unsupported = kind_of(file)
    if unsupported is not None and "original layout" not in unsupported:
        raise UserError(f"{path} seems to be {unsupported}")
    check_complete(
        file,
        "a Stable Diffusion 1.x checkpoint in the original layout",
        [],
        [n for n in file if not n.startswith(prefixes) and not original.IGNORED.match(n)],
    )
    unet, text = (_Prefixed(file, prefix) for prefix in (prefixes[0], prefixes[2]))
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
        vae = _original_vae(_Prefixed(file, original.VAE_PREFIX), dtype)
    return {
        "text_encoder": _original_text(text, dtype),
        "vae": vae,
        "unet": _original_unet(unet, dtype)._replace(schedule=_told_schedule(file)),
    }


def _told_schedule(file: SafetensorsFile) -> NoiseSchedule:
    """Stable Diffusion's noise levels, and what a file itself says that its UNet predicts.

    Some say it in the metadata (https://github.com/Stability-AI/ModelSpec), some by empty tensors
    of the names `v_pred` and `ztsnr`.
    """
    told_type = file.metadata.get("modelspec.prediction_type", "epsilon").lower()
    known: dict[str, PredictionType] = {
        "epsilon": "epsilon",
        "v": "v_prediction",
        "v_prediction": "v_prediction",
    }
    if "ztsnr" in file:
        raise UserError(
            f"{file.path} was trained with zero terminal SNR (it holds 'ztsnr'), which is not "
            "supported"
        )
    if told_type not in known:
        raise UserError(
            f"{file.path}: modelspec.prediction_type is {told(told_type)}; known are "
            f"{', '.join(known)}"
        )
    if "v_pred" in file:
        return NoiseSchedule(prediction_type="v_prediction")
    return NoiseSchedule(prediction_type=known[told_type])


def _original_unet(tensors: _Prefixed, dtype: Any) -> Part:
    what = "a Stable Diffusion 1.x checkpoint"
    config = _inferred(original.unet_config, _shapes(tensors), what, tensors.path)
    module = configs.unet_from_config(config, str(tensors.path), dtype)
    table = original.unet_names(names.torch_names(module), module.layers_per_block)
    return _match(module, tensors, what, lambda name: [table[name]])


def _original_vae(tensors: Tensors, dtype: Any) -> Part:
    what = "a checkpoint with a Stable Diffusion VAE"
    config = _inferred(original.vae_config, _shapes(tensors), what, tensors.path)
    module = configs.vae_from_config(config, str(tensors.path), dtype)
    table = original.vae_names(names.torch_names(module), len(module.block_out_channels))
    return _match(module, tensors, what, lambda name: [table[name]])


def _original_text(tensors: _Prefixed, dtype: Any) -> Part:
    what = "a checkpoint with a CLIP text encoder"
    shapes = {f"text_model.{name.removeprefix('text_model.')}": tensors[name] for name in tensors}
    config = _inferred(original.text_config, shapes, what, tensors.path)
    module = configs.text_encoder_from_config(config, str(tensors.path), dtype)
    return _match(module, tensors, what, candidates)


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
