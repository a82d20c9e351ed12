"""Fills a Flax module from a checkpoint, one tensor at a time, and leaves nothing over."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from fusionjax.errors import UserError
from fusionjax.interop import names
from fusionjax.interop.kinds import kind_of, some

Change = Callable[[np.ndarray], np.ndarray]


@runtime_checkable
class Tensors(Protocol):
    """A checkpoint: a mapping from PyTorch names to shapes in PyTorch's layout, and `read`.

    `path` names it, `paths` are all of its files.
    """

    path: Path

    @property
    def paths(self) -> tuple[Path, ...]: ...

    def __iter__(self) -> Iterator[str]: ...

    def __getitem__(self, name: str) -> tuple[int, ...]: ...

    def read(self, name: str) -> np.ndarray: ...


def candidates(name: str) -> Iterator[str]:
    """The names that a tensor has had over the years in diffusers' and transformers' files."""
    yield name
    if name.startswith("text_model."):
        yield name.removeprefix("text_model.")
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"),
                     ("to_out.0", "proj_attn")):  # fmt: skip
        if name.startswith(("encoder.mid_block", "decoder.mid_block")) and f".{new}." in name:
            yield name.replace(new, old)


def locate(
    wanted: Iterable[str], tensors: Iterable[str], rename: Callable[[str], Iterable[str]]
) -> dict[str, str]:
    """Finds the wanted tensors in a file.

    Args:
        wanted: PyTorch names of a module's parameters.
        tensors: the names in the file.
        rename: the names that a wanted one may have in the file.

    Returns:
        Wanted name → name in the file, where there is one.
    """
    present = set(tensors)
    found = {}
    for name in wanted:
        for candidate in rename(name):
            if candidate in present:
                found[name] = candidate
                break
    return found


def check_complete(
    tensors: Tensors, what: str, missing: Iterable[str], unused: Iterable[str]
) -> None:
    """Raises UserError, saying what the file seems to be, unless both are empty.

    Args:
        tensors: the file.
        what: what it should have been.
        missing: parameters that the file lacks.
        unused: tensors of the file that have no place in the model.
    """
    missing, unused = list(missing), list(unused)
    if not missing and not unused:
        return
    kind = kind_of({name: tensors[name] for name in tensors})
    seems = f" and seems to be {kind}" if kind else ""
    raise UserError(
        f"{tensors.path} is not {what}{seems}; parameters missing from it: {some(missing)}; "
        f"tensors without a place: {some(unused)}"
    )


def fill(
    wanted: Mapping[str, names.Parameter],
    tensors: Tensors,
    located: Mapping[str, str],
    dtype: Any,
    *,
    changes: Mapping[str, Change] | None = None,
    see: Callable[[str, np.ndarray], None] | None = None,
) -> dict[str, Any]:
    """Reads a module's parameters.

    Args:
        wanted: the module's parameters by PyTorch name.
        tensors: the file.
        located: the name in the file of every parameter, by PyTorch name.
        dtype: the parameters' type.
        changes: by PyTorch name, what to do to a float32 tensor in PyTorch's layout, such as
            adding a LoRA.
        see: is shown every parameter's PyTorch name and value (in PyTorch's layout) before it is
            rounded to `dtype`.

    Returns:
        The parameter tree.

    Raises:
        UserError: if a shape differs or a tensor holds no finite numbers.
    """
    filled: dict[names.ParamPath, jax.Array] = {}
    for name, (path, shape) in wanted.items():
        source = located[name]
        tensor = tensors.read(source)
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise UserError(f"{tensors.path}: {source} holds {tensor.dtype}, not real numbers")
        if changes is not None and name in changes:
            tensor = changes[name](tensor.astype(np.float32))
        array = names.to_flax_layout(path, tensor, len(shape))
        if array.shape != shape:
            raise UserError(
                f"{tensors.path}: {source} has shape {list(tensors[source])}, which does not fit "
                f"the model's {list(shape)} (in Flax's order of axes)"
            )
        if see is not None:
            see(name, names.to_torch_layout(path, array))
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(array, dtype)
        if not np.isfinite(array).all():
            raise UserError(_not_finite(tensors.path, source, tensor, dtype))
        filled[path] = jax.device_put(array)  # jnp.asarray compiles a program for each shape
    return unflatten_dict(filled)


def _not_finite(path: Path, name: str, tensor: np.ndarray, dtype: Any) -> str:
    if np.isfinite(tensor).all():
        return (
            f"{path}: {name} holds values up to {np.abs(tensor.astype(np.float32)).max():.3g}, "
            f"too large for {jnp.dtype(dtype).name}; load it as float32 or bfloat16"
        )
    return f"{path}: {name} holds values that are not finite; the file is damaged"
