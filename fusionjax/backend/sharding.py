"""The device mesh and how arrays lie on it.

Two axes: `data` splits the batch, `fsdp` splits the batch and also the frozen weights. What is
trained (kf, vf: 99 MB in float32 for SD 1.5) is replicated, so a step needs one family of
gradient all-reduces and no all-gather of activations.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental.layout import Format
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fusionjax.backend.devices import weight_format
from fusionjax.errors import UserError

_LONGEST_TEXT = 4096


def make_mesh(data: int = -1, fsdp: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes `data` and `fsdp` over all devices.

    Args:
        data: number of batch shards; -1 takes what `fsdp` leaves.
        fsdp: number of shards of the frozen weights.
        devices: the devices to use; None is every device of every process.

    Returns:
        The mesh.

    Raises:
        UserError: if the two numbers do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if fsdp < 1 or (data < 1 and data != -1):
        raise UserError(f"mesh data={data} fsdp={fsdp}: both must be ≥ 1, or data -1 for the rest")
    rows = len(devices) // fsdp if data == -1 else data
    if rows * fsdp != len(devices):
        raise UserError(
            f"mesh data={data} fsdp={fsdp} does not fit {len(devices)} devices; "
            "their product must be that number (data=-1 takes the rest)"
        )
    return jax.make_mesh(
        (rows, fsdp), ("data", "fsdp"), (AxisType.Auto, AxisType.Auto), devices=devices
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis is split over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def frozen_sharding(mesh: Mesh, tree: Any, *, smallest: int = 2**16) -> Any:
    """Frozen weights: each split over `fsdp` along its longest divisible axis, else replicated.

    Args:
        mesh: the mesh.
        tree: arrays or `jax.ShapeDtypeStruct`s.
        smallest: arrays of fewer elements stay replicated.

    Returns:
        A tree of the same structure: shardings, and where a device wants a weight in an order of
        its own (`backend.devices.weight_format`) formats.
    """
    shards, device = mesh.shape["fsdp"], mesh.devices.flat[0]

    def spread(x: Any) -> NamedSharding:
        if shards > 1 and x.size >= smallest:
            for axis in sorted(range(x.ndim), key=lambda i: -x.shape[i]):
                if x.shape[axis] % shards == 0:
                    names: list[str | None] = [None] * x.ndim
                    names[axis] = "fsdp"
                    return NamedSharding(mesh, PartitionSpec(*names))
        return replicated(mesh)

    return jax.tree.map(lambda x: weight_format(x, spread(x), device), tree)


def place(tree: Any, formats: Any) -> Any:
    """Arrays where they belong: what lies in another order there is moved by one program.

    (`jax.device_put` alone compiles a program for each shape.)

    Args:
        tree: arrays, of the host or of devices.
        formats: a sharding or a format for each, as of `frozen_sharding`.

    Returns:
        The tree on the devices. The given arrays stay as they are.
    """
    leaves, structure = jax.tree.flatten(tree)
    wanted = jax.tree.leaves(formats)
    shardings = [x.sharding if isinstance(x, Format) else x for x in wanted]
    placed = jax.device_put(leaves, shardings)
    moved = {
        i: x
        for i, x in enumerate(wanted)
        if isinstance(x, Format) and _order(x) != _order(placed[i].format)
    }
    if moved:
        reorder = jax.jit(lambda *arrays: arrays, out_shardings=tuple(moved.values()))
        for i, array in zip(moved, reorder(*(placed[i] for i in moved)), strict=True):
            placed[i] = array
    return jax.tree.unflatten(structure, placed)


def _order(format_: Format) -> Any:
    return getattr(format_.layout, "major_to_minor", None)


def keep_batch_split(mesh: Mesh) -> Callable[..., Any]:
    """An interceptor for Flax modules: what a layer with frozen weights reads stays split by batch.

    Where a kernel is split over `fsdp`, the compiler could as well split what the layer reads, or
    its gradient, by channels, and gather activations of the whole batch for that. (jax 0.12 does.)

    Args:
        mesh: the mesh.

    Returns:
        For `flax.linen.intercept_methods`.
    """
    sharding = batch_sharding(mesh)

    def intercept(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, nn.Conv | nn.Dense) and context.method_name == "__call__":
            x, *rest = args
            if x.shape[0] % mesh.size == 0:  # not so the one empty prompt
                x = jax.lax.with_sharding_constraint(x, sharding)
            return call(x, *rest, **kwargs)
        return call(*args, **kwargs)

    return intercept


def of_all_processes(text: str) -> list[str]:
    """What each process of the run says, in every process and in their order.

    Args:
        text: what this process says; without zero bytes.

    Returns:
        One text for each process.

    Raises:
        ValueError: if the text has more than 4,096 bytes.
    """
    if jax.process_count() == 1:
        return [text]
    from jax.experimental import multihost_utils

    encoded = np.frombuffer(text.encode(), np.uint8)
    if len(encoded) > _LONGEST_TEXT:
        raise ValueError(f"the text has {len(encoded)} bytes, more than {_LONGEST_TEXT}")
    padded = np.pad(encoded, (0, _LONGEST_TEXT - len(encoded)))
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [bytes(row[row != 0]).decode() for row in rows]


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Places this process's share of a batch on the mesh, split along the first axis.

    Args:
        mesh: the mesh.
        batch: arrays [b / processes, ...] of this process.

    Returns:
        Global arrays [b, ...].
    """
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }
