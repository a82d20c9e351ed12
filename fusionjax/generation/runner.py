"""Compiles programs, places their inputs, runs them."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fusionjax.backend.compilation import compiler_options
from fusionjax.backend.devices import weight_format
from fusionjax.generation.programs import Programs

Named = dict[str, Any]


class Runner:
    """Compiles each program once for the shapes that it meets, and runs it.

    Args:
        programs: the programs.
        params: all weights, as the programs' first argument.
        devices: where to run; pictures are spread over as many as are asked for.

    Attributes:
        params: as given.
        compilations: how many programs were compiled so far, and
        compile_seconds: how long that took (loading from the compilation cache counts).
        before_compiling: called with a program's name before it is compiled.
    """

    def __init__(self, programs: Programs, params: Any, devices: Sequence[jax.Device]) -> None:
        self.programs = programs
        self.devices = list(devices)
        self.compilations = 0
        self.compile_seconds = 0.0
        self.before_compiling: Callable[[str], None] | None = None
        self.params = params
        self._placed: dict[int, Any] = {}
        self._compiled: dict[Any, Callable[..., Named]] = {}

    def run(self, name: str, devices: int, x: dict[str, Any], **static: Any) -> dict[str, Any]:
        """Runs a program, compiled once for the shapes of its inputs and for `static`.

        On several devices each paints its own pictures, without a word to the others.
        """
        shardings = self._shardings(name, devices, x)
        placed = jax.tree.map(jax.device_put, {key: x[key] for key in shardings}, shardings)
        params = self._params(devices)
        leaves, structure = jax.tree.flatten(placed)
        shapes = tuple((leaf.shape, leaf.dtype.name) for leaf in leaves)
        key = (name, devices, structure, shapes, tuple(static.items()))
        if key not in self._compiled:
            if self.before_compiling is not None:
                self.before_compiling(name)
            began = time.perf_counter()
            traced = self._traced(name, devices, params, placed, shardings, static)
            options = compiler_options(self.devices[0])
            self._compiled[key] = traced.lower().compile(compiler_options=options)
            self.compile_seconds += time.perf_counter() - began
            self.compilations += 1
        return self._compiled[key](params, placed)

    def traced(self, name: str, devices: int, x: dict[str, Any], **static: Any) -> Any:
        """A program that is not compiled yet, for inputs of which only shapes are known.

        Args:
            name: the program.
            devices: how many of the runner's devices it is for.
            x: `jax.ShapeDtypeStruct`s, or arrays, by name.
            **static: as for `run`.

        Returns:
            What `jax.jit(…).trace` returns.
        """
        shardings = self._shardings(name, devices, x)
        placed = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            {key: x[key] for key in shardings},
            shardings,
        )
        shapes = jax.tree.map(
            lambda leaf, how: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=how),
            self.params,
            self._params_formats(devices),
        )
        return self._traced(name, devices, shapes, placed, shardings, static)

    def _traced(
        self, name: str, devices: int, params: Any, x: Any, shardings: Any, static: dict[str, Any]
    ) -> Any:
        program = functools.partial(getattr(self.programs, name), **static)
        if devices > 1:
            program = jax.shard_map(
                program,
                mesh=self._mesh(devices),
                in_specs=(PartitionSpec(), jax.tree.map(lambda how: how.spec, shardings)),
                out_specs=_specs(jax.eval_shape(program, params, x), devices),
                check_vma=False,
            )
        return jax.jit(program).trace(params, x)

    def _shardings(self, name: str, devices: int, x: dict[str, Any]) -> dict[str, Any]:
        """How each array that the program reads lies on the devices."""
        mesh = self._mesh(devices)
        read = {key: value for key, value in x.items() if key in _READS[name]}
        return jax.tree.map(lambda spec: NamedSharding(mesh, spec), _specs(read, devices))

    def _mesh(self, devices: int) -> Mesh:
        chosen = self.devices[:devices]
        return jax.make_mesh((devices,), ("data",), (AxisType.Auto,), devices=chosen)

    def _params(self, devices: int) -> Any:
        """All weights, on each of the devices."""
        if devices not in self._placed:
            formats = self._params_formats(devices)
            self._placed[devices] = jax.tree.map(jax.device_put, self.params, formats)
        return self._placed[devices]

    def _params_formats(self, devices: int) -> Any:
        everywhere = NamedSharding(self._mesh(devices), PartitionSpec())
        return jax.tree.map(
            lambda leaf: weight_format(leaf, everywhere, self.devices[0]), self.params
        )


# Which of the named arrays each program reads.
_READS: dict[str, frozenset[str]] = {
    name: frozenset(names.split())
    for name, names in {
        "photo": "image empty_ids",
        "image": "images",
        "noise": "seeds",
        "look": "ids negative_ids states owner masks empty_ids",
        "start": "start_levels start_noise known",
        "steps": "carry rows span mix seeds start_noise negative positive negative_states"
        " positive_states empty keys values bias layer_log photos known keep control_image"
        " control_strength",
        "share": "carry now positive keys values bias layer_log",
        "decode": "carry",
    }.items()
}

# The axis of the picture in each named array, along which it is split over devices. Of what all
# pictures share there is one, and what is not named here is the same for all: both lie everywhere.
_FIRST = (
    "ids negative_ids states owner masks photos images seeds start_noise known keep carry "
    "control_image control_strength negative positive negative_states positive_states keys values "
    "bias share finite"
)

_PICTURE_AXIS = {
    "mix": 1,
    "log_strength": 1,
    "layer_log": 1,
    **dict.fromkeys(_FIRST.split(), 0),
}


def _specs(tree: dict[str, Any], devices: int) -> Any:
    """How each named array lies on the devices."""

    def one(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        axis = next((_PICTURE_AXIS[name] for name in names if name in _PICTURE_AXIS), None)
        if devices == 1 or axis is None:
            return PartitionSpec()
        if names[0] == "now":  # one row of what "rows" holds
            axis -= 1
        if leaf.shape[axis] == 1:
            return PartitionSpec()
        return PartitionSpec(*[None] * axis, "data")

    return jax.tree_util.tree_map_with_path(one, tree)
