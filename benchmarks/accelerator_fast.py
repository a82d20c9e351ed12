"""Part "fast" of `accelerator.py`: what Stable Diffusion 1.5 costs on this device.

Random weights, 512², the type that is the device's default for sampling; with `--small` a small
model. Weights lie and programs are compiled as the pipeline does it. Every time is the
median of several calls after a warm-up, each waited for.
"""

import dataclasses
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from benchmarks.accelerator_models import (
    normal,
    random_base,
    random_faces,
    random_like,
    source,
)
from benchmarks.accelerator_report import MEASURED, Outcome, Row, Skip
from fusionjax.backend.compilation import compiler_options
from fusionjax.backend.devices import default_dtype, weight_format
from fusionjax.backend.sharding import make_mesh, place
from fusionjax.models.base import BaseModel
from fusionjax.unet import FusionUNet

STEPS = 10  # of a denoising program, which is a scan over them, as in the pipeline
GUIDANCE = 7.5
TORCH_ROWS = ("eager, no person", "compiled, channels last, no person", "eager, 1 photo")
_TORCH_SECONDS = 240


class Bench:
    """The device, the size, and the weights that several rows share.

    Args:
        device: what is measured.
        small: a small model in place of Stable Diffusion 1.5's size.
    """

    def __init__(self, device: jax.Device, *, small: bool) -> None:
        self.device, self.small = device, small
        self.dtype_name: Any = default_dtype([device])
        self.dtype = jnp.dtype(self.dtype_name)
        self.repeat_seconds = 0.2 if small else 5.0

    @functools.cached_property
    def base(self) -> BaseModel:
        """All three models, their weights as the pipeline places them."""
        base = random_base(self.dtype, small=self.small, parts=("unet", "vae", "text_encoder"))
        here = SingleDeviceSharding(self.device)
        formats = jax.tree.map(lambda leaf: weight_format(leaf, here, self.device), base.params)
        return dataclasses.replace(base, params=place(base.params, formats))

    @functools.cached_property
    def frozen_unet(self) -> Any:
        """The UNet's weights as training places them."""
        return random_base(self.dtype, small=self.small, parts=("unet",)).params["unet"]

    @functools.cached_property
    def unet(self) -> FusionUNet:
        """The base's UNet, with the device's fastest attention."""
        return FusionUNet(self.base.unet)

    def median_seconds(self, call: Callable[[], Any]) -> float:
        """Of at least three calls after a warm-up, and more while they are quick."""
        jax.block_until_ready(call())
        times: list[float] = []
        while len(times) < 3 or (sum(times) < self.repeat_seconds and len(times) < 20):
            began = time.perf_counter()
            jax.block_until_ready(call())
            times.append(time.perf_counter() - began)
            if sum(times) > 4 * self.repeat_seconds:
                break
        return statistics.median(times)

    def memory(self, compiled: Any) -> dict[str, Any]:
        """What the compiler plans for a program, and the most the device has held so far."""
        planned = compiled.memory_analysis()
        stats = self.device.memory_stats() or {}
        return {
            "arguments_bytes": getattr(planned, "argument_size_in_bytes", None),
            "temporary_bytes": getattr(planned, "temp_size_in_bytes", None),
            "peak_bytes_so_far": stats.get("peak_bytes_in_use"),
        }


def rows(device: jax.Device, *, small: bool) -> list[Row]:
    """All rows, the most telling first."""
    bench = Bench(device, small=small)

    def denoising(batch: int, photos: int) -> Row:
        name = f"guided steps, batch {batch}, {photos} photo{'s' * (photos != 1)}"
        return Row(name, "denoising", functools.partial(denoise, bench, batch, photos))

    def training(batch: int, *, remat: bool) -> Row:
        name = f"training, batch {batch}{', remat' * remat}"
        return Row(name, "training", functools.partial(train, bench, batch, remat=remat))

    torch = _Torch(bench)
    batches = (1,) if small else (8, 4, 16, 2, 1)
    first = batches[0]
    return [
        denoising(1, 1),
        denoising(1, 0),
        Row("decode", "decode", functools.partial(decode, bench)),
        Row("encode a person", "encode", functools.partial(encode, bench)),
        training(first, remat=False),
        *(Row(f"PyTorch UNet, {name}", "torch", functools.partial(torch.row, name))
          for name in TORCH_ROWS),
        denoising(4, 1),
        Row("compile, cold and cached", "denoising", functools.partial(compile_twice, bench)),
        Row("input pipeline", "input", functools.partial(read_batches, bench)),
        training(first, remat=True),
        denoising(4, 0),
        denoising(1, 4),
        denoising(4, 4),
        *(training(batch, remat=remat) for batch in batches if batch != first
          for remat in (False, True)),
    ]  # fmt: skip


# --- painting ------------------------------------------------------------------------------------


def denoising_program(bench: Bench, batch: int, photos: int) -> tuple[Any, tuple[Any, ...]]:
    """A scan of guided steps: the picture has faces, its unconditional twin has none."""
    unet, params = bench.unet, bench.base.params["unet"]
    side, channels = unet.unet.sample_size, unet.unet.in_channels
    faces = random_faces(unet, params, photos, batch) if photos else None
    latents = normal(0, (batch, side, side, channels))
    text = normal(1, (2 * batch, 77, unet.unet.cross_attention_dim), bench.dtype)

    def steps(params: Any, latents: Any, text: Any, faces: Any, times: Any) -> Any:
        tokens = unet.text_tokens(params, text)

        def step(latents: Any, t: Any) -> tuple[Any, None]:
            answers = unet(params, jnp.tile(latents, (2, 1, 1, 1)), t, tokens, faces)
            without, with_all = jnp.split(answers, 2)
            return latents - (without + GUIDANCE * (with_all - without)) / STEPS, None

        return jax.lax.scan(step, latents, times)[0]

    times = jnp.tile(jnp.linspace(900, 0, STEPS).astype(jnp.int32)[:, None], (1, 2 * batch))
    return jax.jit(steps), (params, latents, text, faces, times)


def denoise(bench: Bench, batch: int, photos: int) -> Outcome:
    """Guided denoising steps a second."""
    program, arguments = denoising_program(bench, batch, photos)
    compiled, compile_seconds = _compile(program, arguments, compiler_options(bench.device))
    seconds = bench.median_seconds(lambda: compiled(*arguments)) / STEPS
    data: dict[str, Any] = {
        "steps_per_second": 1 / seconds,
        "pictures_steps_per_second": batch / seconds,
        "compile_seconds": compile_seconds,
        **bench.memory(compiled),
    }
    text = (
        f"{1 / seconds:.1f} steps/s ({1000 * seconds:.1f} ms) in {bench.dtype_name}, compiled in "
        f"{compile_seconds:.0f} s, {_gigabytes(data['temporary_bytes'])} of temporaries"
    )
    return Outcome(text, data)


def decode(bench: Bench) -> Outcome:
    """Seconds from latents to one picture."""
    base = bench.base
    side = base.unet.sample_size
    arguments = base.params, normal(2, (1, side, side, base.unet.in_channels), bench.dtype)
    return _one_program(bench, base.decode, arguments)


def encode(bench: Bench) -> Outcome:
    """Seconds from a photo to a person: VAE, empty prompt, reference pass."""
    base = bench.base
    side = base.unet.sample_size * base.vae_scale_factor
    ids = jnp.zeros((1, base.text_encoder.config.max_position_embeddings), jnp.int32)

    def person(params: Any, photo: Any, ids: Any) -> Any:
        latents = jnp.asarray(base.encode_image(params, photo))
        text = jnp.asarray(base.encode_text(params, ids))
        return bench.unet.reference_states(params["unet"], latents[None], text)

    photo = jnp.clip(normal(3, (1, side, side, 3), bench.dtype), -1, 1)
    return _one_program(bench, person, (base.params, photo, ids))


def _one_program(bench: Bench, function: Callable[..., Any], arguments: Any) -> Outcome:
    options = compiler_options(bench.device)
    compiled, compile_seconds = _compile(jax.jit(function), arguments, options)
    seconds = bench.median_seconds(lambda: compiled(*arguments))
    data: dict[str, Any] = {"median_seconds": seconds, "compile_seconds": compile_seconds}
    data |= bench.memory(compiled)
    text = (
        f"{seconds:.4f} s, compiled in {compile_seconds:.0f} s, "
        f"{_gigabytes(data['temporary_bytes'])} of temporaries"
    )
    return Outcome(text, data)


def _compile(
    program: Any, arguments: tuple[Any, ...], options: dict[str, Any] | None = None
) -> tuple[Any, float]:
    began = time.perf_counter()
    compiled = program.lower(*arguments).compile(compiler_options=options or None)
    return compiled, time.perf_counter() - began


def compile_twice(bench: Bench) -> Outcome:
    """Seconds to compile the denoising of a person: anew, and from the compilation cache."""
    from jax.experimental.compilation_cache import compilation_cache

    options = {
        "jax_compilation_cache_dir": None,
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    program, arguments = denoising_program(bench, 1, 1)
    with tempfile.TemporaryDirectory(prefix="fusionjax-cache-") as folder:
        try:
            for name, value in options.items():
                jax.config.update(name, folder if value is None else value)
            seconds = []
            for _ in range(2):
                jax.clear_caches()
                compilation_cache.reset_cache()
                seconds.append(_compile(program, arguments, compiler_options(bench.device))[1])
            files = [path for path in Path(folder).rglob("*") if path.is_file()]
            size = sum(path.stat().st_size for path in files)
        finally:
            for name, old in before.items():
                jax.config.update(name, old)
            compilation_cache.reset_cache()
    if not files:
        raise RuntimeError("the compilation cache holds no file, so nothing was read from it")
    cold, cached = seconds
    return Outcome(
        f"{cold:.1f} s anew, {cached:.1f} s from the cache ({size / 1e6:.1f} MB)",
        {"cold_seconds": cold, "cached_seconds": cached, "cache_bytes": size},
    )


# --- training ------------------------------------------------------------------------------------


def _objective(bench: Bench, batch: int, *, remat: bool = False) -> Any:
    from train.config import AdapterRun
    from train.objectives.adapter import AdapterObjective

    config = AdapterRun(
        base=source(small=bench.small),
        batch_size=batch,
        precision=bench.dtype_name,
        text_states=True,
        remat=remat,
    )
    return AdapterObjective(config, make_mesh(devices=[bench.device]), abstract=True)


def train(bench: Bench, batch: int, *, remat: bool) -> Outcome:
    """Pictures a second of the adapter's step: latents and text states cached, AdamW."""
    from train.step import init_state, make_optimizer, make_step, shard_step

    objective = _objective(bench, batch, remat=remat)
    config = objective.config
    frozen = {"unet": bench.frozen_unet}
    inputs = {
        name: normal(number, shape.shape, shape.dtype)
        for number, (name, shape) in enumerate(objective.batch_shapes().items())
    }
    inputs |= {name: jnp.ones_like(inputs[name]) for name in ("present", "weight")}
    optimizer = make_optimizer(config.optimizer, config.steps)
    shapes = jax.eval_shape(objective.init, jax.random.key(0), frozen)
    state = init_state(random_like(shapes), optimizer, config.precision)
    step = make_step(objective.loss, optimizer, config.optimizer, config.precision)
    jitted = shard_step(step, make_mesh(devices=[bench.device]), frozen)
    key = jax.random.key(0)
    compiled, compile_seconds = _compile(jitted, (state, frozen, inputs, key))

    def call() -> Any:
        nonlocal state
        state, metrics = compiled(state, frozen, inputs, key)
        return metrics

    seconds = bench.median_seconds(call)
    metrics = call()
    if not np.isfinite(float(metrics["loss"])):
        raise RuntimeError(f"the loss is {float(metrics['loss'])}")
    data: dict[str, Any] = {
        "pictures_per_second": batch / seconds,
        "step_seconds": seconds,
        "compile_seconds": compile_seconds,
        "skipped_steps": int(metrics["skipped"]),
        **bench.memory(compiled),
    }
    text = (
        f"{batch / seconds:.2f} pictures/s ({seconds:.3f} s a step) in {bench.dtype_name}, "
        f"compiled in {compile_seconds:.0f} s, {_gigabytes(data['temporary_bytes'])} of temporaries"
    )
    return Outcome(text, data)


def read_batches(bench: Bench) -> Outcome:
    """Examples a second that the input pipeline makes of cached latents in memory."""
    try:
        import grain  # noqa: F401
    except ImportError as error:
        raise Skip(f"grain cannot be imported: {error}") from None
    from fusionjax.data.batches import Batches

    batch, count = 16, 8 if bench.small else 64
    objective = _objective(bench, batch)
    shapes = objective.batch_shapes()
    rng = np.random.default_rng(0)
    photos = rng.standard_normal((4, *shapes["latents"].shape[1:]), np.float32)
    examples = [
        {
            "latents": photos[number % 4],
            "references": photos,
            "owners": np.zeros(4, np.int32),
            "text_states": np.zeros(shapes["text"].shape[1:], np.float16),
            "face_boxes": np.array([[0.2, 0.3, 0.5, 0.6]], np.float32),
        }
        for number in range(64)
    ]
    batches: Iterator[Any] = Batches(examples, objective.make, batch_size=batch, seed=0)
    next(batches)  # starts the threads
    began = time.perf_counter()
    for _ in range(count):
        next(batches)
    rate = count * batch / (time.perf_counter() - began)
    batches.close()  # type: ignore[attr-defined]
    return Outcome(f"{rate:.0f} examples/s by two threads", {"examples_per_second": rate})


# --- PyTorch --------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Torch:
    """PyTorch's rows, all measured by one process of its own when the first is asked for."""

    bench: Bench
    _found: dict[str, dict[str, Any]] | None = None

    def row(self, name: str) -> Outcome:
        if self._found is None:
            self._found = self._measure()
        found = self._found.get(name, self._found.get("all", {"error": "it was not reached"}))
        if "skip" in found:
            raise Skip(found["skip"])
        if "error" in found:
            raise RuntimeError(found["error"])
        rate = found["steps_per_second"]
        return Outcome(f"{rate:.1f} steps/s ({1000 / rate:.1f} ms)", found, status=MEASURED)

    def _measure(self) -> dict[str, dict[str, Any]]:
        script = Path(__file__).with_name("accelerator_torch.py")
        command = [sys.executable, str(script), "--dtype", self.bench.dtype_name]
        command += ["--small"] * self.bench.small
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_TORCH_SECONDS
            )
            output, end = done.stdout, done.stderr.strip().splitlines()[-1:]
            why = f"its process ended with status {done.returncode}: {' '.join(end)}"
        except subprocess.TimeoutExpired as stopped:
            output = (stopped.stdout or b"").decode()
            why = f"its process was stopped after {_TORCH_SECONDS} s"
        found = {}
        for line in output.splitlines():
            if line.startswith("{"):
                row = json.loads(line)
                found[row.pop("name")] = row
        return {"all": {"error": why}} | found


def _gigabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:.2f} GB"
