"""Scenes, requests and painted pictures, as files.

A scene is a job in YAML; paths are relative to the file:

    prompt: two people at the beach
    height: 512
    width: 768
    people:
      - {faces: [ann1.jpg, ann2.jpg], box: [0, 0, 0.5, 1]}     # left, top, right, bottom
      - {identity: ben.safetensors, mask: ben_mask.png, strength: 0.9}

A person may also be a mixture of several, or somebody new, the same for the same number:

      - {faces: [ann1.jpg, ben1.jpg], weights: [0.3, 0.7]}
      - {fresh: 7, looks: an old man with a red beard}

A request is the same in one line of JSON, `faces` for a single person, and an `id` if you like:

    {"id": "ann-reads", "prompt": "a person reading", "faces": ["ann1.jpg"], "seed": 3}

A painted picture carries its job as JSON in the PNG text chunk `fusionjax`: every option, a
checksum of every file that it was painted from, and the fingerprints of UNet and adapter, so that
`--from` repeats it exactly or says what has changed.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from fusionjax.errors import UserError, shortened, told
from fusionjax.files import file_and_face, open_regular, read_whole, whole_file
from fusionjax.schema import parse_json
from sample.job import Job
from sample.trust import check_files

_CHUNK = "fusionjax"
_VERSION = 2
_READABLE = (1, 2)  # 1 has some names of old
_PARTS = ("job", "files", "models")
_LONGEST_NAME = 200
_MOST_BYTES = 1_000_000  # of a scene, and of a row
_MOST_PIXELS = 8192**2


def read_scene(path: Path) -> Job:
    """Reads a scene: a job in YAML. Paths in it are relative to the file.

    Args:
        path: the file.

    Returns:
        The job.

    Raises:
        UserError: if it is not YAML or not a job.
    """
    import yaml

    text = read_whole(path, _MOST_BYTES)
    try:
        values = yaml.safe_load(text)
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be read") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: dates and numbers that are none
        reason = shortened(" ".join(str(error).split()), 160)
        raise UserError(f"{path} is not YAML: {reason}") from None
    except Exception as error:  # its constructors raise what they meet: `!!int ''`
        raise UserError(f"{path} is not YAML: {type(error).__name__} in a value") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no scene; it must have keys such as prompt and people")
    try:
        return Job.from_mapping(values, folder=path.parent)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


class Row(NamedTuple):
    """One row of a requests file.

    Attributes:
        number: the line's number, from 1.
        name: the row's `id`, or its number: the stem of its pictures' names.
        digest: of the row and of the command line; another digest is another request.
        job: what to paint, or
        error: why not.
    """

    number: int
    name: str
    digest: str
    job: Job | None
    error: str | None = None


def read_requests(path: Path, within: Job) -> Iterator[Row]:
    """Reads a requests file: one job in JSON a line.

    Args:
        path: the file. Paths in it are relative to it; a key `id` names the row's pictures.
        within: the command line's job; what a row does not say is taken from it.

    Yields:
        A request for every line that is not empty, those that cannot be read with their error.
    """
    shared = json.dumps(within.to_json(), sort_keys=True)
    names: set[str] = set()
    given = set(_given_ids(path))
    with open_regular(path) as file:
        for number, line in enumerate(_lines(file), 1):
            if not line.strip():
                continue
            name = f"row{number:04d}"
            while name in given:  # another row has this as its id
                name += "_"
            digest = hashlib.blake2b((shared + line.strip()).encode(), digest_size=8).hexdigest()
            try:
                values = _row_of(line)
                if "id" in values:
                    own = _id_of(values.pop("id"))
                    if own in names:
                        raise UserError(f"id {own!r} is used by an earlier row")
                    name = own
                names.add(name)
                for key in ("base", "fusion", "vae", "lora", "controlnet", "dtype"):
                    if key in values:
                        raise UserError(f"{key} is the same for all rows; give it as --{key}")
                job = Job.from_mapping(values, folder=path.parent, within=within)
                yield Row(number, name, digest, job)
            except UserError as error:
                yield Row(number, name, digest, None, str(error))


def _lines(file: BinaryIO) -> Iterator[str]:
    """The lines of a file of requests; of one that is too long, as much as shows that."""
    while line := file.readline(_MOST_BYTES):
        yield line.decode("utf-8", errors="replace")


def _row_of(line: str) -> dict[str, Any]:
    if len(line) >= _MOST_BYTES:
        raise UserError(f"the line has more than {_MOST_BYTES:,} bytes")
    values = parse_json(line, "the line")
    if not isinstance(values, dict):
        raise UserError("the line is not a JSON object")
    return values


def _id_of(value: Any) -> str:
    """An id, if files can be called so."""
    own = str(value) if type(value) in (str, int) else ""
    usable = own == os.path.basename(own) and not own.startswith(".") and own.isprintable()
    if not own or not usable or len(own.encode()) > _LONGEST_NAME:
        raise UserError(f"id is {told(value)}; it must be usable as a file's name")
    return own


def _given_ids(path: Path) -> Iterator[str]:
    """The ids that rows give themselves, as far as they can be read."""
    with open_regular(path) as file:
        for line in _lines(file):
            with contextlib.suppress(UserError):
                yield _id_of(_row_of(line)["id"] if '"id"' in line else None)


def read_picture(path: Path, *, trust: bool = True) -> Job:
    """Reads the job that a picture carries.

    Args:
        path: a PNG painted by this program.
        trust: it may name files anywhere; see `sample.trust`.

    Returns:
        The job, for this one picture.

    Raises:
        UserError: if it carries none, or a file that it was painted from is gone or has changed.
    """
    about = _read_about(path)
    if not trust:
        check_files(path, about["job"], about["files"])
    for name, digest in about["files"].items():
        if not Path(file_and_face(name)[0]).is_file():
            raise UserError(f"{path} was painted from {name}, which does not exist any more")
        if checksum(name) != digest:
            raise UserError(f"{path} was painted from {name}, which has changed since")
    try:
        return Job.from_mapping(about["job"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def check_models(path: Path, models: dict[str, str]) -> None:
    """Raises UserError unless a picture was painted with these models.

    Args:
        path: the picture.
        models: the fingerprint of each part's weights; a part that the picture does not tell of
            is not compared.
    """
    for part, then in _read_about(path)["models"].items():
        if models.get(part, then) != then:
            raise UserError(
                f"{path} was painted with the {part} {then}, and now it is {models[part]}; name "
                "models (--base, --fusion) to paint with others"
            )


def _read_about(path: Path) -> dict[str, dict[str, Any]]:
    from PIL import Image

    try:
        # The text may come after the pixels, so all is read; no other format carries one.
        with open_regular(path) as file, Image.open(file, formats=["PNG"]) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise UserError(
                    f"{path} has {image.width}×{image.height} pixels; none made here has"
                )
            image.load()
            text = image.info.get(_CHUNK)
    except UserError:
        raise
    except Exception:  # of every kind: Pillow's decoders raise what they meet
        raise UserError(f"{path} is not a picture that can be read") from None
    try:
        about = parse_json(text or "", "its text")
        version, parts = about["version"], {key: dict(about[key]) for key in _PARTS}
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} does not say how it was painted; it was not painted here"
        ) from None
    if version not in _READABLE:
        raise UserError(
            f"{path} tells how it was painted in version {version} of its text, and only versions "
            f"up to {_VERSION} are known here; use the program that painted it"
        )
    return parts


def write_picture(
    path: Path,
    pixels: Any,
    job: Job,
    sums: dict[str, str],
    models: dict[str, str],
    *,
    replace: bool = True,
) -> None:
    """Writes a picture with its story, all or nothing.

    Args:
        path: the PNG to write.
        pixels: grey levels, [H, W, 3].
        job: for this one picture.
        sums: `checksums(job)`.
        models: the fingerprint of each part's weights.
        replace: a file of that name may be there already.

    Raises:
        UserError: if it cannot be written.
        FileExistsError: without `replace`, if the name is taken.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    about = {"version": _VERSION, "job": job.to_json(full=True), "files": sums, "models": models}
    text.add_itxt(_CHUNK, json.dumps(about, ensure_ascii=False))
    if job.prompt:
        text.add_itxt("Description", job.prompt)
    try:
        with whole_file(path, replace=replace) as beside:
            Image.fromarray(pixels).save(beside, "PNG", pnginfo=text)
    except FileExistsError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


def is_another(path: Path, job: Job) -> bool:
    """Whether a file is there that is not a picture of this job."""
    if not path.exists():
        return False
    try:
        return bool(_read_about(path)["job"] != json.loads(json.dumps(job.to_json(full=True))))
    except UserError:
        return True


def checksums(job: Job) -> dict[str, str]:
    """Checksums of the photos and pictures that a job names, by path."""
    files = [path for person in job.people for path in (*person.faces, person.mask) if path]
    files += [path for path in (job.image, job.mask_image, job.control_image) if path]
    return {path: checksum(path) for path in files}


def checksum(path: str | os.PathLike[str]) -> str:
    """A checksum of a file's bytes, 16 hex digits; of a photo whichever face is chosen."""
    with open(file_and_face(os.fspath(path))[0], "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def next_number(folder: Path) -> int:
    """The first number from which no picture `0001_…` is in a folder."""
    taken = [path.name.partition("_")[0] for path in folder.glob("[0-9]*_*.png")]
    return max((int(name) for name in taken if name.isdecimal()), default=0) + 1
