"""Part "right" of `accelerator.py`: does the device compute what float32 on a CPU computes?

Whole models add their own errors to those of one attention, so their bounds were set by what
correct programs give, with room: see the constant beside each check.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import accelerator_attention
from benchmarks.accelerator_models import normal, random_base, random_faces, sixteen_bits
from benchmarks.accelerator_report import Outcome, Row
from fusionjax.backend.sharding import make_mesh
from fusionjax.embedded import ASSETS
from fusionjax.pipeline import FusionPipeline
from fusionjax.unet import FusionUNet

FACE = ASSETS / "faces" / "cleo.png"
PROMPTS = ("a portrait of a woman in a garden", "a woman at the sea")


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """How a device computes the mini model, and how far it may be from float32 on the CPU.

    Attributes:
        name: in the report.
        dtype: of weights and computation.
        precision: of matrix products, see `jax.default_matmul_precision`.
        latents: bound on the relative root-mean-square difference of a picture's latents.
        levels: bound on the mean difference of its pixels, in grey levels of 256.
        loss: bound on the relative difference of a training loss, where training is checked.
    """

    name: str
    dtype: str
    precision: str
    latents: float
    levels: float
    loss: float


def arithmetics(device: jax.Device) -> tuple[Arithmetic, ...]:
    """Exact, as float32 runs there by default (TF32 on a GPU, bfloat16 on a TPU), and 16 bits.

    On a CPU the first two would be compared with themselves.
    """
    dtype = sixteen_bits(device)
    all_of_them = (
        Arithmetic("float32, highest precision", "float32", "highest", 2e-3, 0.25, 1e-3),
        Arithmetic("float32, default precision", "float32", "default", 0.15, 6.0, 0.02),
        Arithmetic(dtype, dtype, "default", 0.15, 6.0, 0.05),
    )
    return all_of_them[-1:] if device.platform == "cpu" else all_of_them


def rows(device: jax.Device, *, small: bool) -> list[Row]:
    """All checks, those of a whole person's picture between the two halves of attention's."""
    attention = accelerator_attention.rows(device, small=small)
    models = []
    check: Callable[..., Outcome]
    for arithmetic in arithmetics(device):
        for name, check in (("picture", check_picture), ("training", check_training)):
            if name == "training" and arithmetic.name.endswith("default precision"):
                continue  # who trains quickly trains in 16 bits
            measure = functools.partial(check, device, arithmetic, small=small)
            models.append(Row(f"mini model's {name}, {arithmetic.name}", name, measure))
    dtype = sixteen_bits(device)
    size = "small" if small else "full-size"
    for name, check in (("UNet step with a face", check_unet), ("VAE decode", check_decode)):
        measure = functools.partial(check, dtype, small=small)
        models.append(Row(f"{size} {name}, {dtype}", name, measure))
    first = len(attention) // 3
    return [*attention[:first], *models, *attention[first:]]


# --- the mini model ------------------------------------------------------------------------------


def check_picture(device: jax.Device, arithmetic: Arithmetic, *, small: bool) -> Outcome:
    """From photo and prompt to pixels, on the device and on the CPU."""
    steps = 2 if small else 10
    expected = _picture_on_cpu(steps)
    found = _picture(device, arithmetic.dtype, arithmetic.precision, steps, attention=None)
    latents = _relative(found.latents, expected.latents)
    pixels = [np.asarray(output.images[0], np.float32) for output in (found, expected)]
    difference = np.abs(pixels[0] - pixels[1])
    wrong = []
    if not latents <= arithmetic.latents:
        wrong.append(
            f"the latents differ from the CPU's by {latents:.3g} of their size (bound "
            f"{arithmetic.latents}), worst at {_worst(found.latents, expected.latents)}"
        )
    if not difference.mean() <= arithmetic.levels:
        wrong.append(
            f"the pixels differ from the CPU's by {difference.mean():.3g} grey levels on average "
            f"(bound {arithmetic.levels}), the most at row, column, colour "
            f"{np.unravel_index(difference.argmax(), difference.shape)}"
        )
    text = (
        f"latents differ by {latents:.2g}, pixels by {difference.mean():.2g} levels on average, "
        f"{difference.max():.0f} at most"
    )
    data = {"latents": latents, "mean_levels": float(difference.mean()), "steps": steps}
    return Outcome(text, data, wrong)


def _picture(device: jax.Device, dtype: str, precision: str, steps: int, attention: Any) -> Any:
    with jax.default_device(device), jax.default_matmul_precision(precision):
        pipe = FusionPipeline.from_pretrained(
            dtype=jnp.dtype(dtype), devices=[device], attention=attention
        )
        person = pipe.encode_identity(FACE, crop="none")
        return pipe(PROMPTS[0], [person], num_inference_steps=steps, guidance_scale=4.0, seed=0)


@functools.cache
def _picture_on_cpu(steps: int) -> Any:
    return _picture(jax.devices("cpu")[0], "float32", "highest", steps, attention="xla")


def check_training(device: jax.Device, arithmetic: Arithmetic, *, small: bool) -> Outcome:
    """Ten steps of the mini adapter on drawn batches, on the device and on the CPU."""
    steps = 2 if small else 10
    expected = _training_on_cpu(steps)
    found = _training(device, arithmetic.dtype, arithmetic.precision, steps, attention=None)
    difference = np.abs(found - expected) / np.abs(expected)
    wrong = []
    if not difference.max() <= arithmetic.loss:
        step = int(np.argmax(~(difference <= arithmetic.loss)))
        wrong.append(
            f"the loss of step {step} is {found[step]:.6g} and the CPU's {expected[step]:.6g}, "
            f"{difference[step]:.3g} apart (bound {arithmetic.loss})"
        )
    text = f"losses differ by {difference.max():.2g} at most; the last is {found[-1]:.4g}"
    return Outcome(text, {"losses": found.tolist(), "cpu_losses": expected.tolist()}, wrong)


def _training(
    device: jax.Device, dtype: Any, precision: str, steps: int, attention: Any
) -> np.ndarray:
    # Here: the checks above must go on where something that training needs is not installed.
    from train.config import AdapterRun, OptimizerConfig
    from train.objectives.adapter import AdapterObjective
    from train.step import init_state, make_optimizer, make_step, shard_step

    config = AdapterRun(
        steps=steps,
        batch_size=len(PROMPTS),
        precision=dtype,
        attention=attention,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=0, schedule="constant"),
    )
    with jax.default_device(device), jax.default_matmul_precision(precision):
        mesh = make_mesh(devices=[device])
        objective = AdapterObjective(config, mesh)
        rng = np.random.default_rng(0)
        batch = {
            name: rng.standard_normal(shape.shape, np.float32)
            for name, shape in objective.batch_shapes().items()
        }
        batch["present"] = np.ones_like(batch["present"])
        batch["weight"] = np.ones_like(batch["weight"])
        batch["text"] = objective.base.tokenize(PROMPTS)
        optimizer = make_optimizer(config.optimizer, steps)
        frozen = jax.device_put(objective.frozen, device)
        state = init_state(objective.init(jax.random.key(0), frozen), optimizer, config.precision)
        step = make_step(objective.loss, optimizer, config.optimizer, config.precision)
        compiled = shard_step(step, mesh, frozen)
        losses = []
        for _ in range(steps):
            state, metrics = compiled(state, frozen, batch, jax.random.key(0))
            losses.append(float(metrics["loss"]))
    return np.array(losses)


@functools.cache
def _training_on_cpu(steps: int) -> np.ndarray:
    return _training(jax.devices("cpu")[0], "float32", "highest", steps, attention="xla")


# --- Stable Diffusion 1.5's size ------------------------------------------------------------------

# Relative root-mean-square differences of an answer in 16 bits, which some hundred layers round.
_UNET_BOUND = {"bfloat16": 0.1, "float16": 0.02}
_DECODE_BOUND = {"bfloat16": 0.1, "float16": 0.02}


def check_unet(dtype: Any, *, small: bool) -> Outcome:
    """A guided step with a face: two answers, the second of which sees the face."""

    def answer(dtype: Any) -> Any:
        base = random_base(dtype, small=small, parts=("unet",))
        unet = FusionUNet(base.unet)
        side = base.unet.sample_size
        faces = random_faces(unet, base.params["unet"], photos=1, batch=1)
        latents = normal(3, (2, side, side, base.unet.in_channels))
        text = normal(4, (2, 77, base.unet.cross_attention_dim), dtype)
        times = jnp.full(2, 500)
        return jax.jit(unet)(base.params["unet"], latents, times, text, faces)

    return _compare_types(answer, dtype, _UNET_BOUND)


def check_decode(dtype: Any, *, small: bool) -> Outcome:
    """Latents to pixels."""

    def answer(dtype: Any) -> Any:
        base = random_base(dtype, small=small, parts=("vae",))
        side = base.unet.sample_size
        latents = normal(5, (1, side, side, base.unet.in_channels), dtype)
        return jax.jit(base.decode)(base.params, latents)

    return _compare_types(answer, dtype, _DECODE_BOUND)


def _compare_types(answer: Any, dtype: Any, bounds: dict[str, float]) -> Outcome:
    name = jnp.dtype(dtype).name
    found = np.asarray(answer(dtype), np.float32)
    with jax.default_matmul_precision("highest"):
        expected = np.asarray(answer(jnp.float32))
    wrong = []
    for type_, array in ((name, found), ("float32", expected)):
        if bad := int((~np.isfinite(array)).sum()):
            wrong.append(f"{bad} of {array.size} numbers of the {type_} answer are not finite")
    difference = _relative(found, expected)
    if not difference <= bounds[name]:
        wrong.append(
            f"{name} differs from float32 by {difference:.3g} of its size (bound {bounds[name]}), "
            f"worst at {_worst(found, expected)}"
        )
    return Outcome(f"differs from float32 by {difference:.2g}", {"relative": difference}, wrong)


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference, of that of what is expected."""
    difference = np.sqrt(np.square(found - expected).mean()) / np.sqrt(np.square(expected).mean())
    return float(difference)


def _worst(found: np.ndarray, expected: np.ndarray) -> str:
    error = np.abs(found - expected)
    error[~np.isfinite(error)] = np.inf
    where = np.unravel_index(int(error.argmax()), error.shape)
    place = tuple(int(i) for i in where)
    return f"{place} ({found[where]:.4g} for {expected[where]:.4g})"
