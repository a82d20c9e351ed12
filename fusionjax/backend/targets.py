"""Hardware that a program can be compiled for without having it: `--dry-run --target h100:8`.

The compilers are the real ones: libtpu brings the TPU's, JAX's CUDA plugin the GPU's. Both work
from a description of the devices and need no device.
"""

import contextlib
import dataclasses
import difflib
import os
from typing import Any

import jax
from jax.experimental import topologies

from fusionjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device, by its maker's figures.

    Attributes:
        platform: "cuda" or "tpu".
        memory_bytes: of its main memory.
        bandwidth: of that memory, in bytes a second.
        rate_16: multiplications and additions a second of matrix products in its 16-bit type.
        rate_32: likewise in float32 as JAX computes it by default (on Ampere and newer with
            inputs rounded to 19 bits, on a TPU to bfloat16).
        description: of a GPU, XLA's own (`GpuDeviceInfoProto`); of a TPU, the topology's name.
        name: of a GPU.
    """

    platform: str
    memory_bytes: int
    bandwidth: float
    rate_16: float
    rate_32: float
    description: Any
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices that exist on paper.

    Attributes:
        name: as asked for.
        devices: to compile for; nothing can run on them.
        chip: what each of them is.
    """

    name: str
    devices: list[jax.Device]
    chip: Chip


def _gpu(capability: str, memory_gib: int, **fields: Any) -> dict[str, Any]:
    """A GPU as XLA's compiler sees it, by the table of technical specifications of the CUDA
    programming guide, which is the same from compute capability 7.0 on where nothing is said."""
    major, minor = capability.split(".")
    return {
        "cuda_compute_capability": {"major": int(major), "minor": int(minor)},
        "fpus_per_core": 64,
        "threads_per_warp": 32,
        "threads_per_block_limit": 1024,
        "threads_per_core_limit": 2048,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "registers_per_core_limit": 2**16,
        "registers_per_block_limit": 2**16,
        "shared_memory_per_block": 48 * 2**10,
        "device_memory_size": memory_gib * 2**30,
        **fields,
    }


# By the makers' datasheets: V100 SXM2 32 GB, A100 SXM4 40 GB, H100 SXM5 80 GB (dense, not sparse).
_GPUS = {
    "v100": Chip("cuda", 32 * 2**30, 900e9, 125e12, 15.7e12, _gpu(
        "7.0", 32, core_count=80, clock_rate_ghz=1.53, l2_cache_size=6 * 2**20,
        shared_memory_per_core=96 * 2**10, shared_memory_per_block_optin=96 * 2**10,
        memory_bandwidth=900 * 10**9,
    ), "Tesla V100-SXM2-32GB"),
    "a100": Chip("cuda", 40 * 2**30, 1555e9, 312e12, 156e12, _gpu(
        "8.0", 40, core_count=108, clock_rate_ghz=1.41, l2_cache_size=40 * 2**20,
        shared_memory_per_core=164 * 2**10, shared_memory_per_block_optin=163 * 2**10,
        memory_bandwidth=1555 * 10**9,
    ), "NVIDIA A100-SXM4-40GB"),
    "h100": Chip("cuda", 80 * 2**30, 3350e9, 989e12, 495e12, _gpu(
        "9.0", 80, core_count=132, clock_rate_ghz=1.98, l2_cache_size=50 * 2**20,
        fpus_per_core=128,
        shared_memory_per_core=228 * 2**10, shared_memory_per_block_optin=227 * 2**10,
        memory_bandwidth=3350 * 10**9,
    ), "NVIDIA H100 80GB HBM3"),
}  # fmt: skip
# Google Cloud's tables of TPU versions, a chip each (a v5p chip is one device).
_TPUS = {
    "v5e": Chip("tpu", 16 * 2**30, 819e9, 197e12, 197e12, "v5litepod"),
    "v5p": Chip("tpu", 95 * 2**30, 2765e9, 459e12, 459e12, "v5p"),
    "v6e": Chip("tpu", 32 * 2**30, 1640e9, 918e12, 918e12, "v6e"),
}
# The slices of each; one chip is compiled for as the first of the smallest slice.
_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_LAYOUTS = {"v5e": _FLAT, "v5p": ("2x2x1", "2x2x2", "2x4x4", "4x4x4"), "v6e": _FLAT}
_CUDNN = {"major": 9, "minor": 10, "patch": 2}  # the newest that supports a V100


def target(name: str) -> Target:
    """The devices that a name stands for.

    Args:
        name: `v100`, `a100`, `h100`, `v5e`, `v5p` or `v6e` for one device, with `:COUNT` for
            several (`h100:8`), and for TPUs also `:LAYOUT` with the grid of a slice (`v5e:2x4`
            has 8 chips).

    Returns:
        The devices.

    Raises:
        UserError: if there is no such target, or its compiler is not installed.
    """
    kind, _, size = name.lower().partition(":")
    count = int(size or 1) if not size or (size.isdecimal() and len(size) < 5) else 0
    if kind in _GPUS and count:
        return Target(name, _gpus(name, _GPUS[kind], count), _GPUS[kind])
    for layout in _LAYOUTS.get(kind, ()):
        if size == layout or count == _chips(layout):
            return Target(name, _tpus(name, kind, layout), _TPUS[kind])
    if kind in _TPUS and count == 1:
        return Target(name, _tpus(name, kind, _LAYOUTS[kind][0])[:1], _TPUS[kind])
    raise UserError(_unknown(name, kind))


def _unknown(name: str, kind: str) -> str:
    known = [f"{gpu}{count}" for gpu in _GPUS for count in ("", ":1", ":2", ":4", ":8")]
    for tpu, layouts in _LAYOUTS.items():
        known += [tpu, *(f"{tpu}:{x}" for layout in layouts for x in (layout, _chips(layout)))]
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    sizes = f" with a layout of {', '.join(_LAYOUTS[kind])}" if kind in _LAYOUTS else ""
    return (
        f"--target is {name[:40]!r}; {hint}there are {', '.join(_GPUS)} with :COUNT, and "
        f"{', '.join(_TPUS)} with :COUNT or :LAYOUT{sizes}"
    )


def _chips(layout: str) -> int:
    product = 1
    for side in layout.split("x"):
        product *= int(side)
    return product


def _tpus(name: str, kind: str, layout: str) -> list[jax.Device]:
    # libtpu asks the cloud's metadata server about the slice, unless it is told; and it locks the
    # TPU for one process, though a compiler uses none.
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TPU_ACCELERATOR_TYPE": f"{_TPUS[kind].description}-{_chips(layout)}",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(variable, value)
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=f"{kind}:{layout}")
    except RuntimeError as error:
        if "not installed" in str(error):
            raise UserError(
                f"--target {name} needs the TPU's compiler; pip install -e '.[tpu]'"
            ) from None
        raise UserError(
            f"--target {name}: the TPU's compiler does not start "
            f"({str(error).splitlines()[0][:200]})"
        ) from None
    return list(described.devices)


def _gpus(name: str, chip: Chip, count: int) -> list[jax.Device]:
    layout = f"1x1x{count}"
    text = _proto(
        {
            "gpu_device_info": chip.description,
            "platform_name": "CUDA",
            "dnn_version_info": _CUDNN,
            "device_description_str": chip.name,
        }
    )
    with contextlib.suppress(NotImplementedError):
        described = topologies.get_topology_desc(
            platform="cuda", topology_name=layout, topology=layout, target_config=text
        )
        return list(described.devices)
    extra = "cuda12-v100" if chip is _GPUS["v100"] else "cuda12"
    raise UserError(f"--target {name} needs CUDA 12's compiler; pip install -e '.[{extra}]'")


def _proto(fields: dict[str, Any]) -> str:
    """XLA's GpuTargetConfigProto in protobuf's text format."""
    words = []
    for name, value in fields.items():
        if isinstance(value, dict):
            words.append(f"{name} {{ {_proto(value)} }}")
        else:
            words.append(f'{name}: "{value}"' if isinstance(value, str) else f"{name}: {value}")
    return " ".join(words)
