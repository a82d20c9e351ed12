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

A painted picture carries its job as JSON (`sample.images` says where): every option, the name and
a checksum of every file that it was painted from, and the fingerprints of UNet and adapter, so
that `--from` repeats it exactly or says what has changed.
"""

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

from fusionjax.errors import UserError, shortened, told
from fusionjax.files import open_regular, read_whole
from fusionjax.options import current_name
from fusionjax.schema import parse_json
from sample.images import save, text_of
from sample.inputs import Remembered, find, named
from sample.job import ONE_PERSON, Job
from sample.trust import FILES

_VERSION = 3
_READABLE = (1, 2, 3)  # 1 has some names of old; 1 and 2 tell the folders of files
_PARTS = ("job", "files", "models")
_LONGEST_NAME = 200
_MOST_BYTES = 1_000_000  # of a scene, and of a row

# What requests share: the models.
_SAME_FOR_ALL = (
    "base", "fusion", "vae", "lora", "textual_inversion", "prediction_type", "controlnet", "dtype"
)  # fmt: skip


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
                for key in _SAME_FOR_ALL:
                    if key in values:
                        flag = key.replace("_", "-")
                        raise UserError(f"{key} is the same for all rows; give it as --{flag}")
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


def read_picture(
    path: Path,
    *,
    trust: bool = True,
    given: Mapping[str, Any] = MappingProxyType({}),
    remembered: Remembered | None = None,
) -> Job:
    """Reads the job that a picture carries.

    Args:
        path: an image painted by this program.
        trust: it may name files anywhere; see `sample.trust`.
        given: what is named anew, by field; the files in its place need not be there any more.
        remembered: where files were; None is nowhere.

    Returns:
        The job, for this one picture.

    Raises:
        UserError: if it carries none, or a file that it was painted from is gone or has changed.
    """
    about = _read_about(path)
    anew = set(FILES) & given.keys()
    if {"people", "faces", "fresh"} & given.keys():
        anew |= {"people", *ONE_PERSON}
    values = {name: v for name, v in about["job"].items() if current_name(name) not in anew}
    try:
        found = find(
            path, values, about["files"], by_path=about["version"] < 3, trust=trust,
            remembered=remembered or Remembered(""),
        )  # fmt: skip
        found |= {name: given[name] for name in FILES if name in given}
        return Job.from_mapping(found)
    except UserError as error:
        if str(error).startswith(str(path)):
            raise
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


def _read_about(path: Path) -> dict[str, Any]:
    text = text_of(path)
    try:
        about = parse_json(text, "its text")
        version, parts = about["version"], {key: dict(about[key]) for key in _PARTS}
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} does not say how it was painted; it was not painted here, or with "
            "--no-metadata"
        ) from None
    if version not in _READABLE:
        raise UserError(
            f"{path} tells how it was painted in version {version} of its text, and only versions "
            f"up to {_VERSION} are known here; use the program that painted it"
        )
    return {"version": version, **parts}


def write_picture(
    path: Path,
    pixels: Any,
    job: Job,
    sums: dict[str, str],
    models: dict[str, str],
    *,
    replace: bool = True,
    metadata: bool = True,
    quality: int | None = None,
) -> None:
    """Writes a picture with its story, all or nothing.

    Args:
        path: to write to; its ending is the format.
        pixels: grey levels, [H, W, 3].
        job: for this one picture.
        sums: `checksums(job)`.
        models: the fingerprint of each part's weights.
        replace: a file of that name may be there already.
        metadata: with its story; else without any text.
        quality: of JPEG and WebP.

    Raises:
        UserError: if it cannot be written.
        FileExistsError: without `replace`, if the name is taken.
    """
    from PIL import Image

    from fusionjax.watermark import embed, read

    values, files = named(job, sums)
    about = {"version": _VERSION, "job": values, "files": files, "models": models}
    if job.watermark:
        pixels = embed(pixels, job.watermark)
        if read(pixels) != job.watermark:
            warnings.warn(
                f"{path} is too small for a watermark ({pixels.shape[1]}×{pixels.shape[0]}): it "
                "cannot be read back", stacklevel=2,
            )  # fmt: skip
    save(
        Image.fromarray(pixels),
        path,
        quality=quality,
        text=json.dumps(about) if metadata else None,
        description=job.prompt if metadata else None,
        replace=replace,
    )


def is_another(path: Path, job: Job, sums: dict[str, str]) -> bool:
    """Whether a file is there that is not a picture of this job, with its `checksums`."""
    if not path.exists():
        return False
    try:
        about = _read_about(path)
    except UserError:
        return True
    values, files = named(job, sums)
    if about["version"] < 3:
        values, files = job.to_json(full=True), sums
    return bool((about["job"], about["files"]) != (json.loads(json.dumps(values)), files))
