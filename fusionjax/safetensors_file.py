"""Reads a safetensors file tensor by tensor.

The format is eight bytes of header length, a JSON header of names, types, shapes and offsets, and
the tensors' bytes (https://github.com/huggingface/safetensors). Reading it here rather than through
a memory map keeps one tensor in memory at a time, and a damaged file ends in one readable error.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import ml_dtypes
import numpy as np

from fusionjax import schema
from fusionjax.errors import UserError, told
from fusionjax.files import open_regular

_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_LONGEST_HEADER_BYTES = 25_000_000  # Stable Diffusion's have less than 1; the format allows 100
_LARGEST = 2**62  # bytes
_SEAL = "digest"
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_PICKLE_SUFFIXES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")


class _Entry(NamedTuple):
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    end: int


_Self = TypeVar("_Self")  # beartype refuses typing.Self here


class TensorFile(Mapping[str, tuple[int, ...]]):
    """An open file of tensors: a mapping from their names to their shapes."""

    path: Path
    _file: BinaryIO
    _entries: Mapping[str, Any]  # each has a `shape`

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that hold it: this one."""
        return (self.path,)

    def __getitem__(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


class SafetensorsFile(TensorFile):
    """An open file: a mapping from tensor names to shapes; `read` fetches one tensor.

    Args:
        path: the file.

    Raises:
        UserError: if it does not exist, is a pickle, or is not an intact safetensors file.
    """

    def __init__(self, path: str | os.PathLike[str]):
        if not isinstance(path, str | os.PathLike):
            raise UserError(f"{told(path)} is no path")
        self.path = Path(path)
        self._file = _open(self.path)
        try:
            self.metadata, self._entries, self._data_start = _read_header(self.path, self._file)
        except BaseException:
            self._file.close()
            raise

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor in the type that it has in the file.

        Args:
            name: one of the file's names.

        Returns:
            The tensor.

        Raises:
            UserError: if the file has become shorter meanwhile.
        """
        entry = self._entries[name]
        self._file.seek(self._data_start + entry.start)
        data = np.fromfile(self._file, np.uint8, entry.end - entry.start)
        if data.nbytes != entry.end - entry.start:
            raise UserError(f"{self.path} ends inside {told(name)}; download or copy it again")
        return data.view(entry.dtype).reshape(entry.shape)


def _open(path: Path) -> BinaryIO:
    if path.suffix.lower() in _PICKLE_SUFFIXES and path.is_file():
        raise UserError(pickle_message(path))
    return open_regular(path)


def pickle_message(
    path: str | os.PathLike[str], target: str | os.PathLike[str] | None = None
) -> str:
    """What to tell someone who brings a pickled checkpoint: why not, and the command that mends it.

    Args:
        path: the pickled file.
        target: where the converted file should go; beside it by default.

    Returns:
        One line.
    """
    target = target or Path(path).with_suffix(".safetensors")
    program = (  # short: a message has 500 characters
        "import sys,torch,safetensors.torch as s;"
        "d=torch.load(sys.argv[1],'cpu',weights_only=True);d=d.get('state_dict',d);"
        "s.save_file({k:v.clone().contiguous() for k,v in d.items() if torch.is_tensor(v)},"
        "sys.argv[2],{'format':'pt'})"
    )
    return (
        f"{path} is a pickle, which can run any code when opened, and is not read; convert it "
        f'once, in its folder: python -c "{program}" "{Path(path).name}" "{Path(target).name}"'
    )


def _read_header(path: Path, file: BinaryIO) -> tuple[dict[str, str], dict[str, _Entry], int]:
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    if start.startswith(_PICKLE_STARTS):
        raise UserError(pickle_message(path))

    def damaged(why: str) -> UserError:
        return UserError(f"{path} is not an intact safetensors file ({why}); download it again")

    if len(start) < 8:
        raise damaged(f"it has {size} bytes")
    length = int.from_bytes(start, "little")
    if size >= 8 + length > _LONGEST_HEADER_BYTES:
        raise damaged(f"its header has {length:,} bytes, more than {_LONGEST_HEADER_BYTES:,}")
    if length > min(_LONGEST_HEADER_BYTES, size - 8):
        raise damaged(f"its header should have {length} bytes, the file has {size}")
    try:
        text = file.read(length)
        if len(text) != length:
            raise damaged("it ends inside its header")
        header = json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError):
        raise damaged("its header is not JSON") from None
    if not isinstance(header, dict):
        raise damaged("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise damaged("its metadata are not texts")
    entries = {}
    for name, description in header.items():
        entry = _entry(description)
        if entry is None:
            raise damaged(f"the entry {told(name)} makes no sense")
        entries[name] = entry
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.start != end:
            raise damaged(f"the bytes of {told(name)} are not where the others end")
        end = entry.end
    if end != size - 8 - length:
        raise damaged(f"it should have {8 + length + end} bytes and has {size}")
    return metadata, entries, 8 + length


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _entry(description: Any) -> _Entry | None:
    """One tensor's header entry, or None if it is malformed."""

    def naturals(value: Any) -> bool:
        return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)

    if not isinstance(description, dict):
        return None
    dtype = _DTYPES.get(str(description.get("dtype")))
    shape: Any = description.get("shape")
    offsets: Any = description.get("data_offsets")
    if dtype is None or not naturals(shape) or not naturals(offsets):
        return None
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        return None
    # NumPy's limits, which an empty tensor may exceed in the other axes.
    if len(shape) > 32 or math.prod(max(axis, 1) for axis in shape) * dtype.itemsize > _LARGEST:
        return None
    return _Entry(dtype, tuple(shape), *offsets)


def shards_of(path: Path) -> dict[str, str]:
    """The names of a sharded checkpoint's tensors, and the file of each.

    Args:
        path: the index.

    Raises:
        UserError: if it is no index, or names a file outside its folder.
    """
    index: dict[str, Any] = schema.read_json(path)
    where: dict[str, str] = schema.typed(
        index.get("weight_map"), dict[str, str], f"{path}: weight_map"
    )
    for name in where.values():
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(
                f"{path} names the file {told(name)}; it must be a .safetensors beside it"
            )
    return where


def sealed(tensors: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> dict[str, Any]:
    """A file's metadata with a digest of them and of its tensors, for `check_seal`.

    Args:
        tensors: by name.
        about: the metadata, JSON values.

    Returns:
        `about` and its `digest`.
    """
    return {**about, _SEAL: _digest(tensors, about)}


def check_seal(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], about: dict[str, Any]
) -> None:
    """Takes the digest out of a file's metadata, and checks it.

    Args:
        path: the file, to be named.
        tensors: as they were read.
        about: the metadata, as they were read; one without a digest is not checked.

    Raises:
        UserError: if they are not what was written.
    """
    digest = about.pop(_SEAL, None)
    if digest is not None and digest != _digest(tensors, about):
        raise UserError(
            f"{path} is damaged: it holds other numbers than were written; copy it again"
        )


def _digest(tensors: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> str:
    return digest_of(sorted(tensors.items()), json.dumps(about, sort_keys=True).encode())


def digest_of(named: Iterable[tuple[str, Any]], first: bytes = b"") -> str:
    """32 hex digits of all numbers of some arrays, with their names, types and shapes.

    Args:
        named: names and arrays, in an order that holds.
        first: what else the digest is of.
    """
    digest = hashlib.blake2b(first, digest_size=16)
    for name, leaf in named:
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
