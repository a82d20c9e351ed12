"""What somebody else's picture, scene or adapter may have read and loaded.

A picture's text and a scene name files and models. Who repeats a stranger's would read whatever
private file they name, and paint a copy of it, or download what they like. So a picture's files
are taken only with their digest, without `--trust` never from a folder elsewhere that the picture
names (`sample.inputs`), and a model must be here, or be named on the command line.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusionjax.embedded import ASSETS, is_mini
from fusionjax.errors import UserError, told
from fusionjax.interop.lora_source import is_here
from fusionjax.models.adapter import adapter_base
from sample.job import Job, Person


def _naming(kind: Any, what: str) -> tuple[str, ...]:
    """The fields that name files ("file"), or models ("source"): the option itself says so."""
    return tuple(f.name for f in dataclasses.fields(kind) if f.metadata.get("path") == what)


FILES, PERSONS_FILES = _naming(Job, "file"), _naming(Person, "file")
MODELS = _naming(Job, "source")


def check_models(where: Path, job: Job, given: Mapping[str, Any]) -> None:
    """Checks the models that a picture or a scene names.

    Args:
        where: the file.
        job: as it was read.
        given: what the command line names, which is not checked.

    Raises:
        UserError: for a model that is not here.
    """
    for name in MODELS:
        value = () if name in given else getattr(job, name) or ()
        for source in (value,) if isinstance(value, str) else value:
            found = is_here(source) if name == "lora" else Path(source).exists()
            if not found and not is_mini(source):
                raise UserError(
                    f"{where} names the {name} {told(source)}, which is not here and would be "
                    f"downloaded; name it yourself (--{name}), or add --trust"
                )


def check_base_of(job: Job) -> None:
    """Raises UserError if only an adapter's file names the base, and it would be downloaded."""
    fusion = job.fusion
    if fusion is None or job.base is not None:
        return
    base = adapter_base(fusion) if Path(fusion).is_file() else None
    if base is not None and not is_mini(base) and not Path(base).exists():
        raise UserError(
            f"{fusion} was trained on {told(base)}, which is not here and would be downloaded; "
            f"name the base yourself (--base {base}), or add --trust"
        )


def is_near(name: str) -> bool:
    """Whether a file lies under the current folder, or in the package."""
    try:
        path = Path(name).resolve()
    except (OSError, RuntimeError, ValueError):
        return False
    return any(path.is_relative_to(root.resolve()) for root in (Path.cwd(), ASSETS))
