"""The files that an image was painted from: how its text names them, and where they are found.

A text tells no folder: a photo is its file's name and a digest of its content. It is found beside
the image, in the current folder, or where this user had it when it was painted, which a list in
the cache remembers. Whatever is found there is taken only if it has the digest.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fusionjax.embedded import ASSETS
from fusionjax.errors import UserError, shortened, told
from fusionjax.files import file_and_face, file_and_word
from fusionjax.options import current_name
from sample.job import Job
from sample.trust import FILES, MODELS, PERSONS_FILES, is_near

_PLACES = (".", str(ASSETS / "faces"))


class Remembered:
    """Where files were, by digest, on this machine and for this user.

    Args:
        cache: `--cache`: the folder that the list lies in; None is the usual one, "" is none.
    """

    def __init__(self, cache: str | None = None) -> None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fusionjax"
        self._path = None if cache == "" else (Path(cache) if cache else home) / "inputs.jsonl"
        self._places: dict[str, str] | None = None

    def place(self, digest: str) -> str | None:
        """Where the file with a digest was last."""
        return self._read().get(digest)

    def add(self, sums: Mapping[str, str]) -> None:
        """Remembers files.

        Args:
            sums: their digests, by path.
        """
        places = self._read()
        new = {digest: file_of(path) for path, digest in sums.items()}
        new = {digest: path for digest, path in new.items() if places.get(digest) != path}
        if self._path is None or not new:
            return
        places.update(new)
        with contextlib.suppress(OSError):  # a convenience: what cannot be kept is asked for
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lines = "".join(json.dumps({"digest": d, "path": p}) + "\n" for d, p in new.items())
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(handle, "a", encoding="utf-8") as file:
                file.write(lines)

    def _read(self) -> dict[str, str]:
        if self._places is None:
            self._places = {}
            lines: list[str] = []
            if self._path is not None:
                with contextlib.suppress(OSError):
                    lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
            for line in lines:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    about = json.loads(line)
                    self._places[str(about["digest"])] = str(about["path"])
        return self._places


def checksums(job: Job) -> dict[str, str]:
    """Checksums of the photos, pictures and learnt words that a job names, by path."""
    return {path: checksum(path) for path in (*pictures_of(job), *job.textual_inversion)}


def pictures_of(job: Job) -> list[str]:
    """The photos, with the face that is meant, and the pictures that a job names."""
    files = [path for person in job.people for path in (*person.faces, person.mask) if path]
    return files + [path for path in (job.image, job.mask_image, job.control_image) if path]


def checksum(path: str | os.PathLike[str]) -> str:
    """A checksum of a file's bytes, 16 hex digits; of a photo whichever face is chosen."""
    with open(file_of(os.fspath(path)), "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def named(job: Job, sums: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """A job without the folders of its files, and their digests by name.

    Args:
        job: for one image.
        sums: `checksums(job)`.

    Returns:
        The job as JSON. Of several files with one name the second is called `2/name`. Models
        keep their places, with ~ for the user's home.
        The digests.
    """
    names: dict[str, str] = {}

    def name(path: str) -> str:
        own = Path(file_of(path)).name
        free = (own, *(f"{number}/{own}" for number in range(2, len(sums) + 2)))
        face = _face_of(path)
        key = next(key + face for key in free if names.get(key + face) in (None, sums[path]))
        names[key] = sums[path]
        return key

    return renamed(job, name), names


def renamed(job: Job, name: Callable[[str], str]) -> dict[str, Any]:
    """A job as JSON, with other names for its files, and ~ for the user's home in its models'.

    Args:
        job: for one image.
        name: of a file, from how the job names it.
    """
    values = _changed(job.to_json(full=True), FILES, PERSONS_FILES, name)
    return _changed(values, MODELS, (), _from_home)


def find(
    where: Path,
    job: Mapping[str, Any],
    sums: Mapping[str, Any],
    *,
    by_path: bool,
    trust: bool,
    remembered: Remembered,
) -> dict[str, Any]:
    """A job with the places of its files.

    Args:
        where: the image that carries it.
        job: as it was read; any JSON.
        sums: the digests of its files, by name.
        by_path: an older text, which names files with their folders; they are looked up there too.
        trust: in any folder; see `sample.trust`.
        remembered: where files were.

    Raises:
        UserError: if one is not found, or has no digest.
    """

    def place(name: str) -> str:
        if name not in sums:
            if by_path and trust:
                return name
            raise UserError(
                f"{where} names the file {told(name)} without its digest, so it was not painted "
                + ("like that here; --trust reads it all the same" if by_path else "here")
            )
        may_look = by_path and (trust or is_near(name))
        return _place(where, name, sums[name], remembered, by_path=by_path, may_look=may_look)

    return _changed(job, FILES, PERSONS_FILES, place)


def _place(
    where: Path, name: str, digest: Any, remembered: Remembered, *, by_path: bool, may_look: bool
) -> str:
    file, face = file_of(name), _face_of(name)
    bare = file.replace("\\", "/").rpartition("/")[2]
    at_last = remembered.place(digest) if isinstance(digest, str) else None
    places = [file] * may_look + [
        str(folder / bare) for folder in (where.parent, *map(Path, _PLACES))
    ]
    changed = False
    for place in [*places, *([at_last] if at_last else [])]:
        try:
            if bare and Path(place).is_file():
                if checksum(place) == digest:
                    return str(Path(place).absolute()) + face
                changed = changed or not Path(place).is_relative_to(ASSETS)
        except (OSError, ValueError):  # a name that no file can have, or may not be read
            continue
    shown = shortened(name, 160)
    if changed:
        raise UserError(f"{where} was painted from {shown}, which has changed since")
    if by_path and not may_look:
        raise UserError(
            f"{where} would read {told(name)}, outside the current folder; if that is meant, "
            "add --trust"
        )
    if by_path or at_last:
        raise UserError(
            f"{where} was painted from {shown}, which does not exist any more; put it beside the "
            "image, or name another (--face and so on)"
        )
    raise UserError(
        f"{where} was painted from {shown}, which is neither beside it nor in the current folder; "
        "put it there, or name another (--face and so on)"
    )


def file_of(path: str) -> str:
    """The file that is meant by `photo.jpg#2` or `learnt.safetensors=word`."""
    file = file_and_face(path)[0]
    return file if os.path.isfile(file) else file_and_word(file)[0]


def _face_of(path: str) -> str:
    """The `#2` of a photo of several people, the `=word` of learnt ones."""
    return path[len(file_of(path)) :]


def _from_home(source: str) -> str:
    try:
        home = str(Path.home())
    except RuntimeError:  # nobody's
        return source
    return f"~{source[len(home) :]}" if source.startswith(home + os.sep) else source


def _changed(
    job: Mapping[str, Any],
    names: tuple[str, ...],
    persons: tuple[str, ...],
    change: Callable[[str], str],
) -> dict[str, Any]:
    """A job's JSON with some of its texts changed, as far as it makes sense.

    Args:
        job: any JSON object.
        names: its own fields whose texts are changed.
        persons: those of its people.
        change: of one text.
    """

    def each(value: Any) -> Any:
        if isinstance(value, list):
            return [each(part) for part in value]
        return change(value) if isinstance(value, str) and value else value

    def of(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
        return {
            name: each(value) if current_name(name) in names else value
            for name, value in values.items()
        }

    values = of(job, (*names, *persons))
    if isinstance(people := values.get("people"), list):
        values["people"] = [
            of(person, persons) if isinstance(person, Mapping) else person for person in people
        ]
    return values
