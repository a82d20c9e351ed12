"""What a program costs on some hardware: arithmetic, memory, traffic, seconds to expect."""

import dataclasses
import math
import time
from typing import Any

import jax
import jax.extend.core as jex

from fusionjax.backend.compilation import full_memory_told
from fusionjax.backend.hlo import collectives, work
from fusionjax.backend.targets import Chip
from fusionjax.errors import UserError

# Of a chip's rate and bandwidth, what such programs reach; an assumption, which
# `benchmarks/accelerator.py` can confirm or correct.
EFFICIENCY = 0.6
# Of a device's memory, what JAX gives to programs unless told otherwise.
_SHARE = {"cuda": 0.75, "tpu": 1.0}


@dataclasses.dataclass(frozen=True)
class Needs:
    """What one device needs to run a program once; a loop over data counts as one pass.

    Attributes:
        arguments_bytes: weights and other inputs.
        temporary_bytes: what exists in between.
        peak_bytes: most at any time, with the program itself; None where the compiler does not
            tell.
        flops: the matrix arithmetic, a multiply-add counting as two.
        moved_bytes: read from and written to memory, see `hlo.Work`.
        operations: how many operations it starts.
        attention: how many calls of which flash kernel; the rest is plain XLA.
        collective_bytes: what each kind of collective operation leaves on the device.
        compile_seconds: how long the compiler took here.
    """

    arguments_bytes: int
    temporary_bytes: int
    peak_bytes: int | None
    flops: float
    moved_bytes: int
    operations: int
    attention: dict[str, int]
    collective_bytes: dict[str, int]
    compile_seconds: float

    def seconds(self, chip: Chip, *, in_16_bits: bool) -> float:
        """How long to expect it to take: arithmetic and traffic by the chip's figures, one after
        the other, at `EFFICIENCY` of both (a roofline without overlap)."""
        rate = chip.rate_16 if in_16_bits else chip.rate_32
        return (self.flops / rate + self.moved_bytes / chip.bandwidth) / EFFICIENCY


def compile_for(
    traced: Any,
    devices: int,
    device: Any,
    what: str,
    remedy: str,
    options: dict[str, Any] | None = None,
) -> tuple[Any, Needs]:
    """Compiles a program and reads off what it needs.

    Args:
        traced: as from `jax.jit(…).trace(…)`.
        devices: how many it runs on.
        device: one of them.
        what: how to name it in an error.
        remedy: what makes it smaller.
        options: for XLA.

    Returns:
        The compiled program and its needs.

    Raises:
        UserError: if the compiler finds that it does not fit a device's memory.
    """
    began = time.perf_counter()
    too_much = f"{what} does not fit {devices} × {device.device_kind}; {remedy}"
    with full_memory_told(too_much, with_reason=True):
        compiled = _compiled(traced.lower(), options or {})
    memory, text = compiled.memory_analysis(), compiled.as_text()
    done, spoken = work(text), dict[str, int]()
    for collective in collectives(text):
        spoken[collective.kind] = spoken.get(collective.kind, 0) + collective.size_bytes
    return compiled, Needs(
        arguments_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        peak_bytes=memory.peak_memory_in_bytes or None,
        flops=matrix_flops(traced.jaxpr) / devices,
        moved_bytes=done.moved_bytes,
        operations=done.operations,
        attention=done.attention,
        collective_bytes=spoken,
        compile_seconds=time.perf_counter() - began,
    )


def _compiled(lowered: Any, options: dict[str, Any]) -> Any:
    """Compiles; without a GPU to try tiles of matrix products on, XLA may choose some that it then
    cannot do (seen for an A100), and leaves all products to cuBLAS instead."""
    try:
        return lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "output tile sizes" not in str(error):
            raise
        return lowered.compile(compiler_options=options | {"xla_gpu_enable_triton_gemm": False})


def check_fits(
    needs: Needs, chip: Chip, what: str, remedy: str, *, images: int, resident: int = 0
) -> None:
    """Raises UserError if a program needs more memory than a device has.

    Args:
        needs: as from `compile_for`; GPUs' compilers plan beyond a device's memory.
        chip: the device.
        what: how to name the program.
        remedy: what makes it smaller.
        images: pictures that a device works through at once.
        resident: bytes that stay on the device, where there are others than its arguments.
    """
    resident = max(resident, needs.arguments_bytes)
    most = max(needs.peak_bytes or 0, resident + needs.temporary_bytes)
    share = _SHARE[chip.platform]
    usable = share * chip.memory_bytes
    if most > usable:
        # What is needed in between grows with the pictures.
        fitting = int((usable - resident) * images / max(needs.temporary_bytes, 1))
        raise UserError(
            f"{what} needs {most / 1e9:.2f} GB of a device, which has {usable / 1e9:.2f} GB for it"
            + (f" ({share:.0%} of all: XLA_PYTHON_CLIENT_MEM_FRACTION)" if share < 1 else "")
            + (f"; of the {images} pictures at once {fitting} should fit" if fitting > 0 else "")
            + f"; {remedy}"
        )


def matrix_flops(program: Any) -> int:
    """Operations of all matrix products and convolutions, a multiply-add counting as two.

    XLA's own count knows nothing of library calls on a GPU.

    Args:
        program: a jaxpr, as from `jax.jit(f).trace(…).jaxpr`. Loops count as often as they run, or
            once where that depends on data; of the branches of a condition the dearest counts.

    Returns:
        The count over all devices.
    """
    total = 0
    for equation in getattr(program, "jaxpr", program).eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            depth = math.prod(shape[axis] for axis in contracted)
            total += 2 * depth * equation.outvars[0].aval.size
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            out_axis = params["dimension_numbers"].rhs_spec[0]
            total += 2 * math.prod(kernel) // kernel[out_axis] * equation.outvars[0].aval.size
        elif name == "cond":
            total += max(map(matrix_flops, params["branches"]))
        elif name.startswith("dot_product_attention"):  # cuDNN's; its operands begin with Q, K, V
            total += _attention_flops(name, *(x.aval.shape for x in equation.invars[:2]))
        elif name == "pallas_call":  # the TPU's flash attention, heads before tokens
            q, k = (x.aval.shape for x in equation.invars[:2])
            products = {"dkv": 4, "dq": 3}
            kernel = str(params.get("name") or params.get("name_and_src_info"))
            count = next((n for part, n in products.items() if part in kernel), 2)
            total += 2 * count * math.prod(q) * k[2]
        else:
            times = params["length"] if name == "scan" else 1
            if name == "shard_map":
                times = params["mesh"].size
            total += times * sum(map(matrix_flops, jex.jaxprs_in_params(params)))
    return total


def _attention_flops(name: str, query: tuple[int, ...], key: tuple[int, ...]) -> int:
    """Two products forward; backward five, of which one is the scores' again."""
    b, queries, heads, features = query
    product = 2 * b * heads * queries * key[1] * features
    return (5 if "bwd" in name else 2) * product
