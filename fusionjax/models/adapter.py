"""Adapters: load one, find its base, export it, import it."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import flax.struct
import jax

from fusionjax.embedded import MINI, MINI_BASE, MINI_FUSION, base_source, is_mini
from fusionjax.errors import UserError, told
from fusionjax.files import whole_folder, write_whole
from fusionjax.interop.adapter_file import METADATA, Adapter, load_adapter_file, save_adapter
from fusionjax.interop.hub import ADAPTER
from fusionjax.interop.one_file import one_file
from fusionjax.models import card
from fusionjax.models.checkpoint import Checkpoints, newest_ema, newest_step
from fusionjax.options import FusionOptions
from fusionjax.safetensors_file import SafetensorsFile
from fusionjax.schema import read_json, typed

IMPORTED = "imported"


def adapter_base(path: str | Path) -> str | None:
    """The base that an adapter was trained on, without reading the adapter's weights.

    Args:
        path: as for `load_adapter`.

    Returns:
        Its source, or None where none is told; what is wrong with the path is for `load_adapter`
        to say.
    """
    path = Path(path)
    try:
        if _is_exported(path):
            path = path / ADAPTER
        if path.is_file():
            with SafetensorsFile(path) as file:
                base = json.loads(file.metadata[METADATA]).get("base")
        else:
            base = read_json(_run_of(path) / "config.json").get("base")
    except (UserError, OSError, ValueError, KeyError, AttributeError):
        return None
    return base_source(base) if isinstance(base, str) else None


def _run_of(path: Path) -> Path:
    """The run's folder, given it or one step's folder in its `checkpoints/`."""
    return path.parent.parent if path.parent.name == "checkpoints" else path


def load_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Loads a trained adapter, its averaged weights.

    Args:
        path: a run's folder (its newest checkpoint), one step's folder in `checkpoints/`, an
            exported `.safetensors`, or a folder that was exported.

    Returns:
        The adapter, with numpy arrays and with a base that can be loaded from anywhere.

    Raises:
        UserError: if there is none, or the run trained something else.
    """
    path = Path(path)
    if _is_exported(path):
        path = path / ADAPTER
    if path.is_file():
        adapter = load_adapter_file(path)
        return adapter._replace(base=adapter.base and base_source(adapter.base))
    run = _run_of(path)
    if not (run / "config.json").is_file():
        raise UserError(
            f"{str(path)!r} is no adapter; name a run's folder, a folder in its checkpoints/, "
            "or an exported .safetensors"
        )
    config: dict[str, Any] = read_json(run / "config.json")
    if "base_fingerprint" not in config:
        kind = told(config.get("kind"))
        raise UserError(f"{str(run)!r} is a run of kind {kind}; it has no adapter")
    if run is path:
        params = newest_ema(run)
    elif not path.is_dir() or not path.name.isdecimal():
        raise UserError(f"{str(path)!r} is no checkpoint; name one of those beside it, or the run")
    else:
        checkpoints = Checkpoints(run / "checkpoints", read_only=True)
        params = checkpoints.restore_ema(int(path.name))
        checkpoints.close()
    about = typed(config, _RunAbout, f"{run / 'config.json'}")
    return Adapter(
        params, FusionOptions.from_json(about.fusion), base_source(about.base),
        about.base_fingerprint,
    )  # fmt: skip


@dataclasses.dataclass
class _RunAbout:
    """What a run's `config.json` says of its adapter."""

    fusion: dict[str, Any]
    base: str
    base_fingerprint: str


def find_models(
    base: str | os.PathLike[str] | None, fusion: str | os.PathLike[str] | None
) -> tuple[str, Adapter | None]:
    """The base and the adapter that go together where one of them is not named.

    Args:
        base: its source; None is the adapter's own, and without an adapter the embedded model.
        fusion: as for `load_adapter`; None is none, except for the embedded model, which has one.

    Returns:
        The base's source, and the adapter.

    Raises:
        UserError: if there is no such adapter, or it does not say what its base is.
    """
    for name, source in (("base", base), ("fusion", fusion)):
        if not isinstance(source, str | os.PathLike | None):
            raise UserError(f"{name} is {told(source)}; it must be a path or a name")
    if base is None and fusion is None:
        base = MINI_BASE
    if base is not None:
        base = base_source(os.fspath(base))
        if fusion is None and is_mini(base):
            fusion = MINI_FUSION
    adapter = None if fusion is None else load_adapter(fusion)
    if base is None:
        if adapter is None or not adapter.base:
            raise UserError(f"{fusion} does not say which base it was trained on; pass base")
        base = adapter.base
    return base, adapter


def export_adapter(fusion: str | os.PathLike[str], output: str | os.PathLike[str]) -> list[str]:
    """Writes a trained adapter, its averaged weights: as one file, or as a folder to be shared.

    Args:
        fusion: a run's folder, one step's folder in its `checkpoints/`, or an exported file.
        output: the `.safetensors` file to write; or a folder, for `adapter.safetensors`, a page
            that tells of it (`README.md`), the run's newest picture, and a file with which
            PyTorch diffusers uses it without this package.

    Returns:
        What the page leaves for its author to fill in; of a file nothing.

    Raises:
        UserError: if there is no adapter, or the output exists or cannot be written.
    """
    target, path = Path(output), Path(fusion)
    name = None if target.suffix == ".safetensors" else card.page_name(target)
    _refuse_existing(target)
    adapter = load_adapter(path)
    if name is None:
        _save(target, adapter)
        return []
    training = None
    if not (path.is_file() or _is_exported(path)):
        run = _run_of(path)
        step = newest_step(run) if run is path else int(path.name)
        if read_json(run / "config.json").get("kind") != IMPORTED:
            training = card.Training.of(run, step)
    page, missing = card.write_card(adapter, name, training)
    with whole_folder(target) as beside:
        _save(beside / ADAPTER, adapter)
        write_whole(beside / "README.md", page)
        write_whole(beside / card.CODE, one_file())
        if training is not None and training.picture is not None:
            shutil.copyfile(training.picture, beside / card.PICTURE)
    return missing


def _save(target: Path, adapter: Adapter) -> None:
    # The embedded model lies elsewhere on another machine; its name holds everywhere.
    base = MINI if adapter.base == base_source(MINI) else adapter.base
    save_adapter(
        target,
        adapter.params,
        adapter.options,
        base=base,
        base_fingerprint=adapter.base_fingerprint,
    )


def _is_exported(path: Path) -> bool:
    """Whether a folder is one that `export_adapter` wrote, and no run's."""
    return (path / ADAPTER).is_file() and not (path / "config.json").is_file()


@flax.struct.dataclass
class _Imported:
    """The state of a run of which only the averaged weights are known."""

    ema: Any


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
        "kind": IMPORTED,
        "base": loaded.base,
        "base_fingerprint": loaded.base_fingerprint,
        "fusion": loaded.options.to_json(),
    }
    with whole_folder(folder) as beside:
        write_whole(beside / "config.json", json.dumps(config, indent=2) + "\n")
        checkpoints = Checkpoints(beside / "checkpoints")
        checkpoints.save(0, _Imported(jax.device_put(loaded.params)), {})
        checkpoints.close()


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise UserError(f"{path} exists already; remove it or name another")
