"""Opens a base model where it lies: which file holds which part, under which names.

A part is the text encoder, the VAE or the UNet. What is opened here has been checked: each
parameter of the part has a tensor, and each tensor of the file a place.
"""

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from fusionjax import schema
from fusionjax.diffusion.noise_schedule import NoiseSchedule, PredictionType
from fusionjax.errors import UserError
from fusionjax.interop import configs, hub, original
from fusionjax.interop.load import Tensors, candidates
from fusionjax.interop.parts import Part, match
from fusionjax.interop.single_file import open_single, original_vae
from fusionjax.interop.stored import Prefixed, open_tensors
from fusionjax.options import not_one_of
from fusionjax.safetensors_file import pickle_message

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
# The last step of a training rather than the average over many, which is what is painted with.
_NOT_AVERAGED = {"text_encoder": [], "vae": [],
                 "unet": ["diffusion_pytorch_model.non_ema.safetensors"]}  # fmt: skip
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


def open_base(
    source: str | os.PathLike[str],
    dtype: Any,
    vae: str | os.PathLike[str] | None,
    files: contextlib.ExitStack,
    prediction_type: str | None = None,
) -> dict[str, Part]:
    """Opens the three parts of a base model.

    Args:
        source: a folder, a file, or a name on the hub.
        dtype: the type to compute in.
        vae: a folder, a file, or a name, in place of the source's own VAE.
        files: closes the files.
        prediction_type: what the UNet predicts, in place of what the source tells.

    Returns:
        "text_encoder", "vae", "unet".

    Raises:
        UserError: if something is missing, left over, damaged, or of another kind.
    """
    known = get_args(PredictionType)
    if prediction_type is not None and prediction_type not in known:
        raise UserError(not_one_of("prediction_type", prediction_type, known))
    replaced = None if vae is None else _open_vae(vae, dtype, files)
    path = _find(source, [[f"{part}/{name}" for name in _weight_names(part)] for part in WEIGHTS])
    if path.is_dir():
        parts = _open_folder(path, dtype, replaced, files)
    else:
        parts = open_single(path, dtype, replaced, files)
    unet, text = parts["unet"].module, parts["text_encoder"].module
    latents = parts["vae"].module.latent_channels
    inpainting = 2 * latents + 1  # where to paint, and the latents of what is known
    if unet.in_channels not in (latents, inpainting) or unet.out_channels != latents:
        what = {8: "an InstructPix2Pix model"}.get(
            unet.in_channels, "a model for something else" if vae is None else "for another VAE"
        )
        raise UserError(
            f"{source} seems to be {what}: its UNet takes {unet.in_channels} channels and gives "
            f"{unet.out_channels}, the VAE has {latents}; only text-to-image and inpainting models "
            "load"
        )
    if unet.cross_attention_dim != text.config.hidden_size:
        raise UserError(
            f"{source}: the UNet reads text states of {unet.cross_attention_dim} features, the "
            f"text encoder gives {text.config.hidden_size}; they do not belong together"
        )
    if prediction_type is not None:
        predicted: Any = prediction_type
        schedule = dataclasses.replace(parts["unet"].schedule, prediction_type=predicted)
        parts["unet"] = parts["unet"]._replace(schedule=schedule)
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
    """The weight files that a part may have, by preference; an index stands for several files."""
    name = WEIGHTS[part]
    return [
        f"{name}.safetensors",
        f"{name}.safetensors.index.json",
        f"{name}.fp16.safetensors",
        f"{name}.safetensors.index.fp16.json",
        _FLAX_WEIGHTS[part],
        *_NOT_AVERAGED[part],
    ]


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
    return match(module, tensors, _WHAT[part], candidates, config)


def _open_weights(folder: Path, part: str, files: contextlib.ExitStack) -> Tensors:
    for name in _weight_names(part):
        if (folder / name).is_file():
            if name in _NOT_AVERAGED[part]:
                warnings.warn(
                    f"{folder / name} is all that there is of the {part}: the weights of a "
                    "training's last step, not their average",
                    stacklevel=2,
                )
            return open_tensors(folder / name, files)
    for pickle in sorted(folder.glob("*.bin")):
        target = folder / f"{WEIGHTS[part]}.safetensors"
        raise UserError(pickle_message(pickle, target))
    raise UserError(
        f"{folder} has no weights; there should be one of {', '.join(_weight_names(part))}"
    )


# --- a VAE of its own -----------------------------------------------------------------------


def _open_vae(source: str | os.PathLike[str], dtype: Any, files: contextlib.ExitStack) -> Part:
    weights = _weight_names("vae")
    path = _find(source, [[*weights, *(f"vae/{name}" for name in weights)]])
    if path.is_dir():
        folder = path / "vae" if (path / "vae").is_dir() else path
        return _open_part(folder, "vae", dtype, files)
    file = open_tensors(path, files)
    if any(name.startswith(original.VAE_PREFIX) for name in file):
        return original_vae(Prefixed(file, original.VAE_PREFIX, original.IGNORED), dtype)
    if any(name.startswith("encoder.down_blocks.") for name in file):
        config = path.parent / "config.json"
        module = configs.vae_from_config(schema.read_json(config), str(config), dtype)
        return match(module, file, _WHAT["vae"], candidates, config)
    return original_vae(Prefixed(file, "", original.IGNORED), dtype)
