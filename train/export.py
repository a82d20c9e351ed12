"""A module of a base model on disk: config.json and weights under PyTorch's names."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors.numpy import save_file

from fusionjax import schema
from fusionjax.errors import UserError
from fusionjax.interop import configs, names
from fusionjax.safetensors_file import SafetensorsFile

FILE = "diffusion_pytorch_model.safetensors"


def save_module(folder: Path, module: Any, params: Any, **changed: Any) -> None:
    """Writes a Flax module as diffusers does, weights in float32.

    Args:
        folder: made if it does not exist.
        module: gives config.json.
        params: its Flax parameters.
        **changed: entries of config.json that replace the module's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {**configs.to_config(module), **changed}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file(names.to_torch_state(params, np.float32), folder / FILE, metadata={"format": "pt"})


def load_vae(folder: Path) -> tuple[Any, Any]:
    """Reads an autoencoder that `save_module` wrote.

    Args:
        folder: holds config.json and the weights.

    Returns:
        The Flax module and its parameters, float32.

    Raises:
        UserError: if the folder holds none.
    """
    if not (folder / FILE).is_file():
        raise UserError(
            f"{str(folder)!r} holds no trained autoencoder; train one with "
            f"`python -m train mini_vae --output {folder.parent}`"
        )
    path = folder / "config.json"
    module: Any = configs.vae_from_config(schema.read_json(path), str(path), jnp.float32)
    filled = {}
    with SafetensorsFile(folder / FILE) as file:
        for name, (place, shape) in names.torch_names(module).items():
            filled[place] = jnp.asarray(names.to_flax_layout(place, file.read(name), len(shape)))
    return module, unflatten_dict(filled)
