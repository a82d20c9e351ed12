"""What somebody else's picture, scene or adapter may have read and loaded.

A picture's text and a scene name files and models. Who repeats a stranger's would read whatever
private file they name, and paint a copy of it, or download what they like. So without `--trust`
a picture's files must lie under the current folder and carry their digest, and a model must be
here, or be named on the command line.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fusionjax.embedded import ASSETS, is_mini
from fusionjax.errors import UserError, told
from fusionjax.models.adapter import adapter_base
from fusionjax.options import current_name
from sample.job import Job, Person


def _naming(kind: Any, what: str) -> tuple[str, ...]:
    """The fields that name files ("file"), or models ("source"): the option itself says so."""
    return tuple(f.name for f in dataclasses.fields(kind) if f.metadata.get("path") == what)


_FILES, _PERSONS_FILES = _naming(Job, "file"), _naming(Person, "file")
_MODELS = _naming(Job, "source")


def check_files(where: Path, job: Mapping[str, Any], files: Mapping[str, Any]) -> None:
    """Checks a picture's inputs, before it is told whether they exist.

    Args:
        where: the picture.
        job: the job that it tells of, as it was read.
        files: the digests of its inputs, by path.

    Raises:
        UserError: if one has no digest, or lies outside the current folder and the package.
    """
    for name in _named(job):
        if not isinstance(name, str) or name not in files:
            raise UserError(
                f"{where} names the file {told(name)} without its digest, so it was not painted "
                "like that here; --trust reads it all the same"
            )
    for name in files:
        if not _is_near(name):
            raise UserError(
                f"{where} would read {told(name)}, outside the current folder; if that is meant, "
                "add --trust"
            )


def check_models(where: Path, job: Job, given: Mapping[str, Any]) -> None:
    """Checks the models that a picture or a scene names.

    Args:
        where: the file.
        job: as it was read.
        given: what the command line names, which is not checked.

    Raises:
        UserError: for a model that is not here.
    """
    for name in _MODELS:
        value = () if name in given else getattr(job, name) or ()
        for source in (value,) if isinstance(value, str) else value:
            if not is_mini(source) and not Path(source.partition(":")[0]).exists():
                raise UserError(
                    f"{where} names the {name} {told(source)}, which is not here and would be "
                    f"downloaded; name it yourself (--{name}), or add --trust"
                )


def check_base_of(fusion: str) -> None:
    """Raises UserError for an adapter's file whose base would be downloaded."""
    base = adapter_base(fusion) if Path(fusion).is_file() else None
    if base is not None and not is_mini(base) and not Path(base).exists():
        raise UserError(
            f"{fusion} was trained on {told(base)}, which is not here and would be downloaded; "
            f"name the base yourself (--base {base}), or add --trust"
        )


def _named(job: Mapping[str, Any]) -> Iterator[Any]:
    """The files that a job names, as far as it makes sense."""
    people = job.get("people")
    parts = [(job, _FILES)]
    parts += [(person, _PERSONS_FILES) for person in (people if isinstance(people, list) else ())]
    for values, names in parts:
        for name, value in values.items() if isinstance(values, Mapping) else ():
            if current_name(name) in names and value:
                yield from value if isinstance(value, list) else [value]


def _is_near(name: str) -> bool:
    try:
        path = Path(name).resolve()
    except (OSError, RuntimeError, ValueError):
        return False
    return any(path.is_relative_to(root.resolve()) for root in (Path.cwd(), ASSETS))
