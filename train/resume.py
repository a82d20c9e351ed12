"""Where a run lies, whether it is continued, and what a fresh one starts from."""

import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusionjax.embedded import MINI, base_source
from fusionjax.errors import UserError, told
from fusionjax.models.checkpoint import newest_ema
from fusionjax.schema import read_json, typed
from train.config import AdapterRun, AutoencoderRun, BaseRun, RunConfig
from train.objectives import Objective
from train.processes import broadcast_text

# What a run writes; somebody else's would be replaced.
_OF_A_RUN = ("checkpoints", "metrics.jsonl", "adapter.safetensors", "base", "vae", "measured.json")


def run_folder(config: RunConfig) -> Path:
    """The run's folder: as asked for, else runs/<name>-<time>."""
    if config.output is not None:
        return Path(config.output)
    return Path("runs") / broadcast_text(f"{config.name}-{datetime.datetime.now():%Y%m%d-%H%M%S}")


def is_continued(config: RunConfig, folder: Path) -> bool:
    """Whether a run lies in the folder; checks that it is one that this one can continue."""
    if not (folder / "config.json").is_file():
        for name in _OF_A_RUN:
            if (folder / name).exists():
                raise UserError(
                    f"{str(folder)!r} holds {name} and is no run (it has no config.json), so this "
                    "one would replace it; name another --output"
                )
        return False
    if not config.resume:
        raise UserError(f"{str(folder)!r} already holds a run; name another --output")
    before: dict[str, Any] = read_json(folder / "config.json")
    for name, now in {"kind": type(config).__name__, **_fixed(config)}.items():
        was: Any = before
        for part in name.split("."):
            was = was.get(part) if isinstance(was, dict) else None
        now = json.loads(json.dumps(now))
        if name == "steps" and config.optimizer.schedule == "constant" and _is_more(now, was):
            continue  # nothing before depends on how many come after
        if _settled(name, was) != _settled(name, now):
            raise UserError(
                f"{str(folder)!r} was begun with {name} {was!r} and is to be "
                f"continued with {now!r}; name another --output or leave {name} as it was"
            )
    return True


def _is_more(now: Any, before: Any) -> bool:
    return isinstance(before, int) and now >= before


def own_config(folder: Path) -> RunConfig:
    """The configuration of the run that lies in a folder.

    Raises:
        UserError: if it cannot be read.
    """
    path = folder / "config.json"
    values: dict[str, Any] = read_json(path)
    kinds = {kind.__name__: kind for kind in (AdapterRun, BaseRun, AutoencoderRun)}
    if values.get("kind") not in kinds:
        raise UserError(
            f"{path} is of a run of kind {told(values.get('kind'))}, which cannot go on"
        )
    return typed(values, kinds[values["kind"]], str(path))


def _settled(name: str, value: Any) -> Any:
    """A setting so that it can be compared: what is in the package, wherever that lies, is named
    from there, and another base in full.
    """
    if name not in ("base", "tokenizer") or not isinstance(value, str):
        return value
    _, packaged, rest = value.rpartition("fusionjax/assets/")
    if packaged or value == MINI:
        return rest
    return base_source(value)


def _fixed(config: Any, prefix: str = "") -> dict[str, Any]:
    """The settings that stay when a run goes on, by the command line's names."""
    fixed: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        if field.metadata.get("may_change"):
            continue
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            fixed |= _fixed(value, f"{prefix}{field.name}.")
        else:
            fixed[prefix + field.name] = value
    return fixed


def check_same_base(folder: Path, now: dict[str, Any]) -> None:
    """The same name may have come to stand for other weights since the run was begun."""
    about: dict[str, Any] = read_json(folder / "config.json")
    before = about.get("base_fingerprint")
    if before != now.get("base_fingerprint"):
        raise UserError(
            f"{str(folder)!r} was begun on a base of fingerprint {before!r}, and "
            f"{now.get('base')!r} now has {now.get('base_fingerprint')!r}: other weights. Put the "
            "base back as it was, or name another --output"
        )


def initial_params(source: str | None, objective: Objective, key: jax.Array) -> Any:
    """Fresh weights, another run's averaged ones, or those of a model that was written out."""
    fresh = objective.init(key, objective.frozen)
    if source is None:
        return fresh
    if (Path(source) / "checkpoints").is_dir():
        given = newest_ema(source)
    else:
        given = objective.read(source)
    if jax.tree.map(np.shape, given) != jax.tree.map(np.shape, fresh):
        raise UserError(f"init_from is {source!r}; its weights have other shapes")
    return jax.tree.map(jnp.array, given)
