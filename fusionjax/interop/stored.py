"""Checkpoints as they are stored: under a prefix, in several files, in eight bits with scales.

Each is a mapping from PyTorch names to shapes that `read`s one tensor (`load.Tensors`).
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fusionjax.errors import UserError, told
from fusionjax.interop.flax_file import FlaxFile
from fusionjax.interop.load import Tensors
from fusionjax.safetensors_file import SafetensorsFile, shards_of

# A weight in eight bits is to be multiplied with one number, or one for each row. ComfyUI writes
# both names; scales of a layer's input are for matrix units that compute in eight bits.
_SCALE = re.compile(r"(?P<module>.*)\.(scale_weight|weight_scale)$")
_OF_EIGHT_BITS = re.compile(
    r"(^|\.)(scale_weight|weight_scale|scale_input|input_scale|comfy_quant|scaled_fp8)$"
)


class Prefixed:
    """What a file in the original layout has under a prefix, without the prefix.

    Args:
        tensors: the file.
        prefix: what the names begin with.
        ignored: names, with the prefix, that are not shown.
    """

    def __init__(self, tensors: Tensors, prefix: str, ignored: re.Pattern[str]):
        self.path, self.paths = tensors.path, tensors.paths
        self._tensors = tensors
        self._names = {
            name.removeprefix(prefix): name
            for name in tensors
            if name.startswith(prefix) and not ignored.match(name)
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __getitem__(self, name: str) -> tuple[int, ...]:
        return self._tensors[self._names[name]]

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor."""
        return self._tensors.read(self._names[name])


class Sharded(Mapping[str, tuple[int, ...]]):
    """A checkpoint in several files, of which an index tells what lies where.

    Args:
        path: the index, JSON with a `weight_map`.
        files: closes the files.

    Raises:
        UserError: if the index is none, or a file is missing or damaged, or holds something else.
    """

    def __init__(self, path: Path, files: contextlib.ExitStack):
        self.path = path
        where = shards_of(path)
        opened = {}
        for name in sorted(set(where.values())):
            opened[name] = files.enter_context(SafetensorsFile(path.parent / name))
        self.paths = (path, *(path.parent / name for name in opened))
        self._file = {name: opened[shard] for name, shard in where.items()}
        for name, shard in self._file.items():
            if name not in shard:
                raise UserError(
                    f"{path} says that {told(name)} is in {shard.path.name}, and it is not; "
                    "download both again"
                )
        for shard in opened.values():
            for name in shard:
                if self._file.get(name) is not shard:
                    raise UserError(
                        f"{shard.path} holds {told(name)}, of which {path.name} knows nothing; "
                        "download both again"
                    )

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)

    def __getitem__(self, name: str) -> tuple[int, ...]:
        return self._file[name][name]

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor."""
        return self._file[name].read(name)


class Scaled(Mapping[str, tuple[int, ...]]):
    """A checkpoint in eight bits whose weights have scales: they are multiplied when read.

    Args:
        tensors: the checkpoint as it is stored.
    """

    def __init__(self, tensors: Tensors):
        self.path, self.paths = tensors.path, tensors.paths
        self._tensors = tensors
        self._scales = {
            f"{match['module']}.weight": name
            for name in tensors
            if (match := _SCALE.match(name)) is not None
        }
        self._names = [name for name in tensors if not _OF_EIGHT_BITS.search(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> tuple[int, ...]:
        return self._tensors[name]

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor; one with a scale is float32."""
        tensor = self._tensors.read(name)
        if name not in self._scales or not tensor.dtype.name.startswith(("float", "bfloat")):
            return tensor
        scale = self._tensors.read(self._scales[name]).astype(np.float32).reshape(-1)
        if scale.size not in (1, len(tensor)):
            raise UserError(
                f"{self.path}: {self._scales[name]} has {scale.size} numbers for "
                f"{list(tensor.shape)}; one for all or one for each row can be read"
            )
        return tensor.astype(np.float32) * scale.reshape(-1, *[1] * (tensor.ndim - 1))


def open_tensors(path: Path, files: contextlib.ExitStack) -> Tensors:
    """Opens a checkpoint.

    Args:
        path: a `.safetensors` file, the `.json` index of several, or Flax's `.msgpack`.
        files: closes what is opened.

    Returns:
        Its tensors.

    Raises:
        UserError: if it is missing or damaged.
    """
    tensors: Any
    if path.suffix == ".json":
        tensors = Sharded(path, files)
    else:
        kind: Any = FlaxFile if path.suffix == ".msgpack" else SafetensorsFile
        tensors = files.enter_context(kind(path))
    if any(_OF_EIGHT_BITS.search(name) for name in tensors):
        return Scaled(tensors)
    return tensors  # type: ignore[no-any-return]
