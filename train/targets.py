"""Hardware that a run can be compiled for without having it: `--dry-run --target v100:2`.

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
class Target:
    """Devices that exist on paper."""

    name: str
    devices: list[jax.Device]
    memory_bytes: int
    """Memory of one device."""


# Chips of a v5e slice, by the layout of its grid. Smaller ones are not compiled for alone.
_V5E = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_V5E_BYTES = 16 * 2**30

# NVIDIA V100 SXM2, 32 GB (datasheet, and the CUDA programming guide's table for 7.0).
_V100_BYTES = 32 * 2**30
_V100: dict[str, Any] = {
    "cuda_compute_capability": {"major": 7, "minor": 0},
    "core_count": 80,
    "fpus_per_core": 64,
    "clock_rate_ghz": 1.53,
    "threads_per_warp": 32,
    "threads_per_block_limit": 1024,
    "threads_per_core_limit": 2048,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
    "registers_per_core_limit": 2**16,
    "registers_per_block_limit": 2**16,
    "shared_memory_per_core": 96 * 2**10,
    "shared_memory_per_block": 48 * 2**10,
    "shared_memory_per_block_optin": 96 * 2**10,
    "l2_cache_size": 6 * 2**20,
    "memory_bandwidth": 900 * 10**9,
    "device_memory_size": _V100_BYTES,
}
_CUDNN = {"major": 9, "minor": 10, "patch": 2}  # the newest that supports a V100


def target(name: str) -> Target:
    """The devices that a name stands for.

    Args:
        name: `v100:COUNT`, or `v5e:LAYOUT` with the grid of a TPU slice (`v5e:2x4` has 8 chips).

    Returns:
        Devices to compile for; nothing can run on them.

    Raises:
        UserError: if there is no such target, or its compiler is not installed.
    """
    kind, _, size = name.partition(":")
    if kind == "v100" and size.isdecimal() and int(size) > 0:
        return Target(name, _v100(int(size)), _V100_BYTES)
    if kind == "v5e" and size in _V5E:
        return Target(name, _v5e(size), _V5E_BYTES)
    known = ["v100:1", "v100:2", "v100:8", *(f"v5e:{layout}" for layout in _V5E)]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(
        f"--target is {name!r}; {hint}there are v100:COUNT and v5e:LAYOUT with a layout of "
        f"{', '.join(_V5E)}"
    )


def _v5e(layout: str) -> list[jax.Device]:
    rows, columns = map(int, layout.split("x"))
    # libtpu asks the cloud's metadata server about the slice, unless it is told.
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TPU_ACCELERATOR_TYPE": f"v5litepod-{rows * columns}",
    }.items():
        os.environ.setdefault(variable, value)
    try:
        return list(
            topologies.get_topology_desc(platform="tpu", topology_name=f"v5e:{layout}").devices
        )
    except RuntimeError as error:
        if "not installed" not in str(error):
            raise
        raise UserError(
            f"--target v5e:{layout} needs the TPU's compiler; pip install -e '.[tpu]'"
        ) from None


def _v100(count: int) -> list[jax.Device]:
    layout = f"1x1x{count}"
    text = _proto(
        {
            "gpu_device_info": _V100,
            "platform_name": "CUDA",
            "dnn_version_info": _CUDNN,
            "device_description_str": "Tesla V100-SXM2-32GB",
        }
    )
    with contextlib.suppress(NotImplementedError):
        described = topologies.get_topology_desc(
            platform="cuda", topology_name=layout, topology=layout, target_config=text
        )
        return list(described.devices)
    raise UserError(
        f"--target v100:{count} needs CUDA 12's compiler; pip install -e '.[cuda12-v100]'"
    )


def _proto(fields: dict[str, Any]) -> str:
    """XLA's GpuTargetConfigProto in protobuf's text format."""
    words = []
    for name, value in fields.items():
        if isinstance(value, dict):
            words.append(f"{name} {{ {_proto(value)} }}")
        else:
            words.append(f'{name}: "{value}"' if isinstance(value, str) else f"{name}: {value}")
    return " ".join(words)
