"""How programs are compiled, and where compiled ones are kept."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from fusionjax.backend.devices import compute_capability, free_bytes
from fusionjax.errors import UserError


@contextlib.contextmanager
def full_memory_told(message: str, *, with_reason: bool = False) -> Iterator[None]:
    """Raises UserError where a device's memory does not suffice for what is compiled or run inside.

    Args:
        message: what does not fit, and what would help.
        with_reason: add what XLA says.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = f" ({str(error).splitlines()[0][:200]})" if with_reason else ""
        raise UserError(message + reason) from None
    except MemoryError as error:  # NumPy's, and that of `check_memory`
        raise UserError(f"{message} ({str(error)[:200] or 'the host has no more'})") from None


def check_memory(compiled: Any, name: str, device: Any) -> None:
    """Raises MemoryError if a compiled program needs more than a device has free.

    A device says so itself, but a CPU's process would be killed without a word.

    Args:
        compiled: the program.
        name: how to name it.
        device: where it is to run, its arguments already there.
    """
    needs, free = compiled.memory_analysis(), free_bytes(device)
    if needs is None or free is None:
        return
    more = needs.temp_size_in_bytes + needs.output_size_in_bytes - needs.alias_size_in_bytes
    if more > free:
        raise MemoryError(f"{name} needs {more / 1e9:.1f} GB more, {free / 1e9:.1f} GB are free")


def compiler_options(device: Any) -> dict[str, Any]:
    """What XLA is asked for when it compiles for a device.

    Args:
        device: a `jax.Device`, or anything with its attributes.

    Returns:
        Options for `compile` and `jax.jit`. On NVIDIA's GPUs products with the same left side
        stay apart: joined, they join their weights at every call and cut the results up again,
        3 % of a denoising step's traffic.
    """
    is_nvidia = compute_capability(device) is not None
    return {"xla_gpu_dot_merger_threshold_mb": 0} if is_nvidia else {}


def use_compilation_cache(folder: str | os.PathLike[str] | None = None) -> Path:
    """Keeps compiled programs on disk, so that the next process starts at once.

    Args:
        folder: where; None is `$JAX_COMPILATION_CACHE_DIR` or `~/.cache/fusionjax/xla`.

    Returns:
        The folder.
    """
    chosen = Path(
        folder
        or os.environ.get("JAX_COMPILATION_CACHE_DIR")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fusionjax" / "xla"
    )
    jax.config.update("jax_compilation_cache_dir", str(chosen))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    return chosen
