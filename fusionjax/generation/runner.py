"""Compiles programs, places their inputs, runs them."""

import functools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fusionjax.backend.compilation import check_memory, compiler_options
from fusionjax.backend.devices import weight_format
from fusionjax.backend.sharding import place
from fusionjax.generation.model import Model

MOST_PROGRAMS = 32  # some 10 MB each; an image of one size and one count of people takes five


class Runner:
    """Compiles each program once for the shapes that it meets, and runs it; from any thread.

    The `MOST_PROGRAMS` that were used last are kept.

    Args:
        model: the programs' first argument, part of what is compiled.
        params: all weights, their second.
        devices: where to run; images are spread over as many as are asked for.

    Attributes:
        model: as given.
        params: as given.
        devices: as given.
        compilations: how many programs were compiled so far, and
        compile_seconds: how long that took (loading from the compilation cache counts).
        before_compiling: called with a program's name before it is compiled.
    """

    def __init__(self, model: Model, params: Any, devices: Sequence[jax.Device]) -> None:
        self.model = model
        self.params = params
        self.devices = list(devices)
        self.compilations = 0
        self.compile_seconds = 0.0
        self.before_compiling: Callable[[str], None] | None = None
        self._placed: dict[int, Any] = {}
        self._compiled: OrderedDict[Any, Future[Callable[..., Any]]] = OrderedDict()
        self._lock = threading.Lock()
        self._placing = threading.Lock()

    def run(self, program: Callable[..., Any], devices: int, *inputs: Any, **static: Any) -> Any:
        """Runs a program, compiled once for the shapes of its inputs and for `static`.

        Args:
            program: of `programs`.
            devices: how many; on several each has its own images, without a word to the others.
            *inputs: its arguments after the weights. An array's first axis is split over the
                devices unless its length is 1.
            **static: its keyword arguments, part of what is compiled.

        Returns:
            What the program returns.

        Raises:
            MemoryError: if a device has less free than it needs.
        """
        placed = self._place(inputs, devices)
        return self._program(program, devices, placed, static)(self._params(devices), *placed)

    def prepare(
        self, program: Callable[..., Any], devices: int, *inputs: Any, **static: Any
    ) -> None:
        """Compiles a program that is to run later.

        Args:
            program: of `programs`.
            devices: as for `run`.
            *inputs: likewise, or others of the same shapes.
            **static: likewise.

        Raises:
            MemoryError: if a device has less free than it needs.
        """
        self._program(program, devices, self._place(inputs, devices), static)

    def go_on_with(self, model: Model, params: Any) -> None:
        """Takes other weights of the same shapes; what is compiled stays.

        Args:
            model: of the same structure.
            params: in place of those so far.
        """
        with self._placing:
            self.model, self.params = model, params
            self._placed.clear()

    def _place(self, inputs: Any, devices: int) -> Any:
        return jax.tree.map(jax.device_put, inputs, self._shardings(inputs, devices))

    def _program(
        self, program: Callable[..., Any], devices: int, placed: Any, static: Any
    ) -> Callable[..., Any]:
        params = self._params(devices)
        leaves, structure = jax.tree.flatten(placed)
        shapes = tuple((leaf.shape, leaf.dtype.name) for leaf in leaves)
        key = (program, devices, structure, shapes, tuple(static.items()))
        with self._lock:
            compiled = self._compiled.get(key)
            if is_new := compiled is None:
                compiled = self._compiled[key] = Future()
                if len(self._compiled) > MOST_PROGRAMS:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(key)
        if is_new:  # other threads wait for this one
            try:
                compiled.set_result(self._compile(program, devices, params, placed, static))
            except BaseException as error:
                compiled.set_exception(error)
                with self._lock:
                    self._compiled.pop(key, None)
        return compiled.result()

    def _compile(
        self, program: Callable[..., Any], devices: int, params: Any, placed: Any, static: Any
    ) -> Callable[..., Any]:
        if self.before_compiling is not None:
            self.before_compiling(program.__name__)
        began = time.perf_counter()
        traced = self._traced(program, devices, params, placed, static)
        compiled = traced.lower().compile(compiler_options=compiler_options(self.devices[0]))
        with self._lock:
            self.compile_seconds += time.perf_counter() - began
            self.compilations += 1
        check_memory(compiled, program.__name__, self.devices[0])
        return compiled

    def shapes(self, program: Callable[..., Any], *inputs: Any, **static: Any) -> Any:
        """The shapes of what a program returns, found without computing."""
        bound = functools.partial(program, self.model, **static)
        return jax.eval_shape(bound, self.params, *inputs)

    def traced(self, program: Callable[..., Any], devices: int, *inputs: Any, **static: Any) -> Any:
        """A program that is not compiled yet, for inputs of which only shapes are known.

        Args:
            program: of `programs`.
            devices: how many of the runner's devices it is for.
            *inputs: `jax.ShapeDtypeStruct`s, or arrays.
            **static: as for `run`.

        Returns:
            What `jax.jit(…).trace` returns.
        """

        def placed(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        inputs = jax.tree.map(placed, inputs, self._shardings(inputs, devices))
        params = jax.tree.map(placed, self.params, self._params_formats(devices))
        return self._traced(program, devices, params, inputs, static)

    def _traced(
        self, program: Callable[..., Any], devices: int, params: Any, inputs: Any, static: Any
    ) -> Any:
        bound = functools.partial(program, self.model, **static)
        if devices > 1:
            results = jax.eval_shape(bound, params, *inputs)
            bound = jax.shard_map(
                bound,
                mesh=self._mesh(devices),
                in_specs=(PartitionSpec(), *_specs(inputs, devices)),
                out_specs=_specs(results, devices),
                check_vma=False,
            )
        return jax.jit(bound).trace(params, *inputs)

    def _shardings(self, tree: Any, devices: int) -> Any:
        mesh = self._mesh(devices)
        return jax.tree.map(lambda spec: NamedSharding(mesh, spec), _specs(tree, devices))

    def _mesh(self, devices: int) -> Mesh:
        chosen = self.devices[:devices]
        return jax.make_mesh((devices,), ("data",), (AxisType.Auto,), devices=chosen)

    def _params(self, devices: int) -> Any:
        """All weights, on each of the devices."""
        with self._placing:
            if devices not in self._placed:
                self._placed[devices] = place(self.params, self._params_formats(devices))
            return self._placed[devices]

    def _params_formats(self, devices: int) -> Any:
        everywhere = NamedSharding(self._mesh(devices), PartitionSpec())
        return jax.tree.map(
            lambda leaf: weight_format(leaf, everywhere, self.devices[0]), self.params
        )


def _specs(tree: Any, devices: int) -> Any:
    """The one rule of how arrays lie on devices: the first axis is split unless its length is 1."""

    def spec(leaf: Any) -> PartitionSpec:
        return PartitionSpec("data") if devices > 1 and leaf.shape[0] > 1 else PartitionSpec()

    return jax.tree.map(spec, tree)
