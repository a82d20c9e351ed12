"""`export` and `import`: an adapter from a run's folder to one file, and back."""

import json
import os
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from fusionjax.checkpoint import MINI, Checkpoints, base_source, load_adapter
from fusionjax.errors import UserError
from fusionjax.interop.adapter_file import load_adapter_file, save_adapter


@flax.struct.dataclass
class _Imported:
    """The state of a run of which only the averaged weights are known."""

    ema: Any


def export_adapter(fusion: str | os.PathLike[str], output: str | os.PathLike[str]) -> None:
    """Writes a trained adapter, its averaged weights, as one file.

    Args:
        fusion: a run's folder, or one step's folder in its `checkpoints/`.
        output: the `.safetensors` file to write.

    Raises:
        UserError: if there is no adapter, or the file exists or cannot be written.
    """
    target = Path(output)
    if target.suffix != ".safetensors":
        raise UserError(f"{output} must end in .safetensors")
    _refuse_existing(target)
    adapter = load_adapter(Path(fusion))
    # The embedded model lies elsewhere on another machine; its name holds everywhere.
    base = MINI if adapter.base == base_source(MINI) else adapter.base
    save_adapter(
        target,
        adapter.params,
        adapter.options,
        base=base,
        base_fingerprint=adapter.base_fingerprint,
    )


def import_adapter(adapter: str | os.PathLike[str], output: str | os.PathLike[str]) -> None:
    """Makes a run's folder with one checkpoint, step 0, from an exported adapter.

    Args:
        adapter: the `.safetensors` file.
        output: the folder to make; it serves wherever a run's folder does, except that there is no
            optimizer state to continue with.

    Raises:
        UserError: if the file is no adapter, or the folder exists or cannot be made.
    """
    folder = Path(output)
    _refuse_existing(folder)
    loaded = load_adapter_file(adapter)
    config = {
        "kind": "imported",
        "base": loaded.base,
        "base_fingerprint": loaded.base_fingerprint,
        "fusion": loaded.options.to_json(),
    }
    try:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror or error}") from None
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(0, _Imported(jax.tree.map(jnp.asarray, loaded.params)), {})
    checkpoints.close()


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise UserError(f"{path} exists already; remove it or name another")
