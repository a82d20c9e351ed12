"""What a device can do, and what is fastest on it: number types, attention, where weights lie.

Every rule is a function of device objects, so that a test (and a dry run for hardware that is not
here) can ask it about devices that do not exist.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Format, Layout
from jax.sharding import Sharding

from fusionjax.errors import UserError, told
from fusionjax.options import DTYPES, IMPLEMENTATIONS, Implementation, not_one_of

_VOLTA = 7.0  # compute capability from which there are tensor cores
_AMPERE = 8.0  # compute capability from which there are bfloat16 and cuDNN's flash attention


def compute_capability(device: Any) -> float | None:
    """NVIDIA's compute capability of a device; None for every other maker's.

    Args:
        device: a `jax.Device`, or anything with its attributes.
    """
    if device.platform not in ("gpu", "cuda"):
        return None
    try:
        return float(device.compute_capability)
    except (AttributeError, TypeError, ValueError):  # AMD's are names such as gfx90a
        return None


def default_dtype(devices: Sequence[Any] | None = None) -> str:
    """The type of weights and computation that sampling is fastest in, at no visible loss.

    Args:
        devices: what it will run on; None is this process's devices.

    Returns:
        `bfloat16` on TPUs, on AMD's GPUs and on NVIDIA's from Ampere on; `float16` on older ones,
        which have no other 16-bit type; `float32` on a CPU and on what is not known.
    """
    device = (jax.local_devices() if devices is None else devices)[0]
    if device.platform not in ("gpu", "cuda", "rocm", "tpu"):
        return "float32"
    capability = compute_capability(device)
    return "float16" if capability is not None and capability < _AMPERE else "bfloat16"


def check_dtype(dtype: Any, devices: Sequence[Any] | None = None) -> None:
    """Checks that the devices can compute in a type.

    Args:
        dtype: the type or its name.
        devices: what it will run on; None is this process's devices.

    Raises:
        UserError: if they cannot; it names a type that they can.
    """
    device = (jax.local_devices() if devices is None else devices)[0]
    try:
        name, capability = jnp.dtype(dtype).name, compute_capability(device)
    except TypeError:
        name, capability = told(dtype), None
    if name not in DTYPES:
        raise UserError(f"dtype is {name}; choose one of {', '.join(DTYPES)}")
    reason = None
    if name == "bfloat16" and capability is not None and capability < _AMPERE:
        reason = f"it has compute capability {capability}, and bfloat16 begins with {_AMPERE}"
    if name == "float16" and device.platform == "tpu":
        reason = "its 16-bit type is bfloat16"
    if reason is not None:
        other = "float16" if name == "bfloat16" else "bfloat16"
        raise UserError(
            f"dtype is {name}, which a {device.device_kind} cannot do: {reason}; "
            f"use {other} or float32"
        )


def weight_format(weight: Any, sharding: Sharding, device: Any) -> Format | Sharding:
    """How a weight lies in a device's memory, so that no program transposes it at every call.

    Args:
        weight: an array or its shape.
        sharding: which devices hold it.
        device: one of them.

    Returns:
        For the convolutions that cuDNN computes in 16 bits on tensor cores, kernels [kh, kw, c, o]
        as it wants them: the output's channel first. The usual order for everything else.
    """
    is_kernel = len(weight.shape) == 4 and jnp.dtype(weight.dtype).itemsize == 2
    if is_kernel and (compute_capability(device) or 0) >= _VOLTA:
        return Format(Layout(major_to_minor=(3, 0, 1, 2)), sharding)
    return sharding


def free_bytes(device: Any) -> int | None:
    """What a device can still allocate; of a CPU, what the system has available. None: unknown."""
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        if "bytes_limit" not in stats:
            return None
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    try:
        told = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:  # not Linux
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", told, re.MULTILINE)
    return 1024 * int(found[1]) if found else None


def default_implementation(
    dtype: jax.typing.DTypeLike, devices: Sequence[Any] | None = None
) -> Implementation:
    """The fastest attention for inputs of `dtype`.

    Args:
        dtype: of queries, keys and values.
        devices: what it will run on; None is this process's devices.

    Returns:
        `cudnn` for 16-bit inputs on NVIDIA's GPUs from Ampere on, `tpu` on TPUs, however many
        there are, and `xla` on everything else.
    """
    device = (jax.devices() if devices is None else devices)[0]
    capability = compute_capability(device)
    if capability is not None and capability >= _AMPERE and jnp.dtype(dtype).itemsize == 2:
        return "cudnn"
    return "tpu" if device.platform == "tpu" else "xla"


def check_implementation(
    implementation: str | None, dtype: Any, devices: Sequence[Any] | None = None
) -> None:
    """Checks that an attention implementation that was asked for by name can run.

    Args:
        implementation: its name; None is whatever `default_implementation` says.
        dtype: of the computation.
        devices: what it will run on; None is this process's devices.

    Raises:
        UserError: for an unknown name, or where the devices or the type do not allow it.
    """
    if implementation is None:
        return
    if implementation not in IMPLEMENTATIONS:
        raise UserError(not_one_of("attention", implementation, IMPLEMENTATIONS))
    device = (jax.devices() if devices is None else devices)[0]
    fits = {
        "xla": True,
        "cudnn": default_implementation("float16", [device]) == "cudnn",
        "tpu": device.platform == "tpu",
    }
    if not fits[implementation]:
        needs = {
            "cudnn": "an NVIDIA GPU of compute capability 8.0 or more (Ampere and newer)",
            "tpu": "a TPU",
        }[implementation]
        raise UserError(
            f"attention is {implementation}, which needs {needs}, and this is a "
            f"{device.device_kind}; use {default_implementation(dtype, [device])}, or leave it out"
        )
    if implementation == "cudnn" and jnp.dtype(dtype).itemsize != 2:
        raise UserError(
            f"attention is cudnn, which needs 16-bit inputs, and the type is "
            f"{jnp.dtype(dtype).name}; use bfloat16 or float16, or attention xla"
        )
