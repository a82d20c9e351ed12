"""What a visitor of the page asks for, as a `Job`.

It has the keys of a scene. The only files that it can name are the visitor's own uploads and the
saved people, both looked up by name in a table: no path that comes from outside is ever opened.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from PIL import Image

from fusionjax.data.picture import ENDINGS
from fusionjax.errors import UserError, shortened, told
from fusionjax.files import file_and_face, has_ending
from fusionjax.options import MODELS, current_name
from fusionjax.photos import read_photo
from sample.job import Job
from sample.links import is_link
from sample.trust import FILES, PERSONS_FILES

# What is decided where the page is started.
DECIDED_AT_START = {
    field.name
    for field in fields(Job)
    if field.metadata.get("group") == MODELS or field.metadata.get("path") == "source"
} | {"watermark"}
_MOST_PEOPLE, _MOST_FACES = 8, 16  # of a picture, of a person


def saved_people(folder: Path | None) -> dict[str, Path]:
    """The people of a folder: identity files and photos that lie in it, by name without ending.

    Args:
        folder: theirs; None has none. Links out of it, and what is hidden, are left out.
    """
    if folder is None:
        return {}
    inside, people = folder.resolve(), {}
    for path in sorted(folder.iterdir()):
        if not has_ending(path, (*ENDINGS, ".safetensors")):
            continue
        if path.is_file() and path.resolve().parent == inside and path.stem not in people:
            people[path.stem] = path.absolute()
    return people


def uploads(files: Any, folder: Path) -> dict[str, Path]:
    """The files of a request, by the names that the visitor knows them by.

    Args:
        files: a list of what gradio's upload answered.
        folder: that uploads lie in.

    Raises:
        UserError: for what was not uploaded here, and for two files of one name.
    """
    if not isinstance(files, list | tuple):
        raise UserError(f"files is {told(files)}; it must be a list of uploaded files")
    found: dict[str, Path] = {}
    for file in files:
        about = file if isinstance(file, Mapping) else {"path": file}
        path = uploaded(about.get("path"), folder)
        name = about.get("orig_name") or path.name
        if not isinstance(name, str) or found.get(name, path) != path:
            raise UserError(f"two files are called {told(name)}; give them names of their own")
        found[name] = path
    return found


def uploaded(path: Any, folder: Path) -> Path:
    """A path, if it is that of an upload.

    Raises:
        UserError: if it lies anywhere else.
    """
    try:
        there = Path(path).resolve()
        if there.is_relative_to(folder.resolve()) and there.is_file():
            return there
    except (TypeError, ValueError, OSError, RuntimeError):
        pass
    raise UserError(f"{told(path)} is no uploaded file; upload it first")


def job_of(values: Any, files: Mapping[str, Path], within: Job) -> Job:
    """Reads what is asked for.

    Args:
        values: the keys of a scene; files by their names in `files`.
        files: that may be read, by name.
        within: names the models.

    Raises:
        UserError: for a key that is unknown or decided elsewhere, a value that makes no sense, and
            a file that is not in `files`.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"a scene is {told(values)}; it must have keys such as prompt and people")
    read: dict[str, Any] = {}
    for key, value in values.items():
        name = current_name(str(key))
        if name in DECIDED_AT_START:
            flag = name.replace("_", "-")
            raise UserError(f"{name} is chosen where the page is started (fusionjax web --{flag})")
        read[str(key)] = _found(value, files) if name in (*FILES, *PERSONS_FILES) else value
    people = read.get("people")
    if isinstance(people, list | tuple):
        if len(people) > _MOST_PEOPLE:
            raise UserError(f"{len(people)} people are asked for; {_MOST_PEOPLE} are the most here")
        read["people"] = [_person(person, files) for person in people]
    return Job.from_mapping(read, within=within)


def _person(values: Any, files: Mapping[str, Path]) -> Any:
    if not isinstance(values, Mapping):
        return values  # which `Job` refuses
    names = (*PERSONS_FILES, "identity")
    return {key: _found(v, files) if key in names else v for key, v in values.items()}


def _found(value: Any, files: Mapping[str, Path]) -> Any:
    """The paths of files, for their names."""
    if isinstance(value, list | tuple):
        if len(value) > _MOST_FACES:
            raise UserError(f"{len(value)} files are given; {_MOST_FACES} are the most here")
        return [_found(each, files) for each in value]
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise UserError(f"{told(value)} is no file's name")
    if value in files:
        return str(files[value])
    if not is_link(value) and "/" not in value:
        file, which = file_and_face(value)
        if which and file in files:
            return str(files[file]) + value[len(file) :]
    known = ", ".join(name for name in files if "/" not in name) or "none"
    raise UserError(f"{told(value)} is no uploaded file and no saved person; there are {known}")


def check_pixels(path: Path, most: int) -> None:
    """Raises UserError for a picture with too many pixels, before it is decoded."""
    if path.suffix == ".safetensors":
        return
    try:
        with Image.open(path) as image:
            width, height = image.size
    except Exception:  # of every kind: `read_photo` says what is wrong
        read_photo(path)
        return
    if width * height > most:
        raise UserError(
            f"{path.name} has {width}×{height} pixels, and {most // 10**6} million are the most "
            "here; reduce it first"
        )


def bare(message: str, folders: Iterable[Path | None], files: Iterable[str] = ()) -> str:
    """A message without the folders of this machine: visitors know files by their names.

    Args:
        message: to be shown.
        folders: of uploads and of saved people.
        files: that it may name, maybe cut off as messages cut them.
    """
    for file in sorted(files, key=len, reverse=True):
        for text in (file, shortened(file, 120)):
            message = message.replace(text, Path(file).name)
    for folder in folders:
        if folder is not None:
            message = re.sub(rf"{re.escape(str(folder))}/(?:[0-9a-f]{{32,64}}/)?", "", message)
    return message
