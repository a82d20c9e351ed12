"""Reads Flax's own `*.msgpack` weight files tensor by tensor, under PyTorch's names.

Such a file is one nested msgpack map; each array is an extension object of type 1 that packs
[shape, dtype, bytes] (`flax.serialization`). A first pass notes where each array lies.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import msgpack
import numpy as np

from fusionjax.errors import UserError
from fusionjax.interop import names
from fusionjax.safetensors_file import TensorFile

_ARRAY = 1  # flax.serialization's extension type
_HEAD_BYTES = 256  # enough for an array's shape and type


class _Entry(NamedTuple):
    path: names.ParamPath
    shape: tuple[int, ...]  # in PyTorch's layout
    start: int
    end: int


class FlaxFile(TensorFile):
    """An open file: a mapping from PyTorch names to shapes; `read` fetches one tensor.

    Args:
        path: the file.

    Raises:
        UserError: if it cannot be read or is not an intact Flax weight file.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        try:
            self._file = open(self.path, "rb")  # noqa: SIM115 (closed by __exit__)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
        try:
            self._entries = self._index()
        except UserError:
            self._file.close()
            raise
        except Exception:  # msgpack raises many kinds for damaged data
            self._file.close()
            raise self._damaged() from None

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor in PyTorch's layout and the type that it has in the file.

        Args:
            name: one of the PyTorch names.

        Returns:
            The tensor.

        Raises:
            UserError: if its bytes are damaged.
        """
        entry = self._entries[name]
        self._file.seek(entry.start)
        try:
            packed = msgpack.unpackb(self._file.read(entry.end - entry.start))
            shape, dtype, data = msgpack.unpackb(packed.data)
            array = np.frombuffer(data, jnp.dtype(dtype)).reshape(shape)
        except Exception:
            raise self._damaged() from None
        return names.to_torch_layout(entry.path, array)

    def _damaged(self) -> UserError:
        return UserError(f"{self.path} is not an intact Flax weight file; download it again")

    def _index(self) -> dict[str, _Entry]:
        size = os.fstat(self._file.fileno()).st_size
        unpacker = msgpack.Unpacker(self._file, max_buffer_size=0, raw=False)
        entries: dict[str, _Entry] = {}
        with open(self.path, "rb") as probe:

            def walk(path: names.ParamPath) -> None:
                for _ in range(unpacker.read_map_header()):
                    key = unpacker.unpack()
                    if not isinstance(key, str):
                        raise self._damaged()
                    start = unpacker.tell()
                    probe.seek(start)
                    head = probe.read(_HEAD_BYTES)
                    if 0x80 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF):
                        walk((*path, key))
                    else:
                        unpacker.skip()
                        shape = self._shape(head)
                        leaf = (*path, key)
                        named = names.torch_name(leaf)
                        entries[named] = _Entry(
                            leaf, names.to_torch_shape(leaf, shape), start, unpacker.tell()
                        )

            walk(())
        if unpacker.tell() != size:
            raise self._damaged()
        return entries

    def _shape(self, head: bytes) -> tuple[int, ...]:
        """The shape of the array whose extension object starts with these bytes."""
        header_bytes = {0xC7: 3, 0xC8: 4, 0xC9: 6, **{0xD4 + i: 2 for i in range(5)}}[head[0]]
        if head[header_bytes - 1] != _ARRAY:
            raise self._damaged()
        content = msgpack.Unpacker(raw=False)
        content.feed(head[header_bytes:])
        content.read_array_header()
        shape: Any = content.unpack()
        return tuple(int(side) for side in shape)
