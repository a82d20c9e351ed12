"""A batch from start to end: a scene, its conditions, the steps with their reports, pixels."""

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fusionjax.backend.compilation import full_memory_told
from fusionjax.diffusion import samplers
from fusionjax.errors import NotFiniteWarning
from fusionjax.generation import programs
from fusionjax.generation.model import Model
from fusionjax.generation.prompts import text_kind
from fusionjax.generation.renewed import renewed
from fusionjax.generation.request import FaceDetail, Output, Request
from fusionjax.generation.runner import Runner
from fusionjax.generation.scene import make_scene
from fusionjax.generation.starting_image import blurred
from fusionjax.options import Settings
from fusionjax.pixels import to_bytes

# stage ("compile", "steps", "decode"), how much is done, of how much, seconds it took
Progress = Callable[[str, int, int, float], None]
# row, its timestep, latents [b, h, w, c] → the latents to go on with
OnStepEnd = Callable[[int, float, jax.Array], Any]

OUTPUT_TYPES = ("pil", "np", "latent")
_REPORTS = 5  # a progress callback hears of the steps so often


class Generated(NamedTuple):
    """One image.

    Attributes:
        pixels: grey levels, or None where it is not finite (a warning tells).
        latents: before decoding.
        attention_share: [rows, columns, 1 + r] where it was asked for, else None.
        faces: what became of its people's faces, where they were to be painted again.
    """

    pixels: UInt8[np.ndarray, "H W 3"] | None
    latents: Float[np.ndarray, "h w c"]
    attention_share: np.ndarray | None
    faces: tuple[FaceDetail, ...] = ()


def generate_each(
    runner: Runner,
    requests: Sequence[Request],
    settings: Settings,
    *,
    batch_size: int,
    attention_share: bool = False,
    progress: Progress | None = None,
    on_step_end: OnStepEnd | None = None,
) -> Iterator[Generated]:
    """Generates batch by batch; texts of several lengths are several batches.

    Args:
        runner: of the model.
        requests: alike and checked, see `generation.request`.
        settings: what they share.
        batch_size: images at once. The last batch is filled up, so that nothing is compiled for it.
        attention_share: measure it.
        progress: hears of stages.
        on_step_end: is called after every row of the sampler.

    Yields:
        The images in the order of the requests.

    Raises:
        UserError: if the memory does not hold a batch.
    """
    requests = [_up_to_date(runner, request) for request in requests]
    batches = _batches(requests, batch_size, runner.model)
    waiting: dict[int, Generated] = {}
    following = 0
    height, width = settings.size
    too_much = (
        f"the memory does not hold {batch_size} image{'s' * (batch_size > 1)} of {width}×{height} "
        "at once; use a smaller batch size (--batch-size), a smaller size, or a 16-bit type "
        "(--dtype)"
    )
    for number, (chosen, size) in enumerate(batches):
        with full_memory_told(too_much):
            done = _generate_batch(
                runner,
                _filled([requests[i] for i in chosen], size),
                settings,
                wanted=len(chosen),
                attention_share=attention_share,
                progress=_of_many(progress, number, len(batches)),
                on_step_end=on_step_end,
            )
        waiting.update(zip(chosen, done, strict=True))
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def _up_to_date(runner: Runner, request: Request) -> Request:
    """A request whose people are as the base's present weights see them."""
    if not request.identities:
        return request
    people = [renewed(runner, person) for person in request.identities]
    return dataclasses.replace(request, identities=people)


def _batches(
    requests: Sequence[Request], batch_size: int, model: Model
) -> list[tuple[list[int], int]]:
    """The requests of each batch, and how many it is filled up to."""
    groups: dict[Any, list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault(text_kind(request, model), []).append(i)
    batches = []
    for group in groups.values():
        size = batch_size
        if len(groups) > 1:  # each is compiled for itself: no more than it needs
            size = min(batch_size, 1 << (len(group) - 1).bit_length())
        batches += [(group[at : at + size], size) for at in range(0, len(group), size)]
    return batches


def to_output(done: Sequence[Generated], requests: Sequence[Request], output_type: str) -> Output:
    """Puts images together.

    Args:
        done: the images.
        requests: what they were asked for by.
        output_type: one of `OUTPUT_TYPES`.
    """
    latents = np.stack([each.latents for each in done])
    shares = [each.attention_share for each in done if each.attention_share is not None]
    images: Any = latents
    if output_type == "pil":
        images = [None if e.pixels is None else Image.fromarray(e.pixels) for e in done]
    elif output_type == "np":
        good = next((e.pixels for e in done if e.pixels is not None), np.zeros((1, 1, 3), np.uint8))
        blank = np.full(good.shape, np.nan, np.float32)
        images = np.stack([blank if e.pixels is None else e.pixels / np.float32(255) for e in done])
    return Output(
        images,
        latents,
        [request.seed for request in requests],
        np.stack(shares) if shares else None,
        [each.faces for each in done],
    )


def _generate_batch(
    runner: Runner,
    requests: Sequence[Request],
    settings: Settings,
    *,
    wanted: int,
    attention_share: bool,
    progress: Progress | None,
    on_step_end: OnStepEnd | None,
) -> list[Generated]:
    model, clock = runner.model, _Clock(runner, progress)
    # As many devices as have work when each takes the same number of images.
    per_device = -(-len(requests) // len(runner.devices))
    devices = -(-len(requests) // per_device)
    plan = samplers.plan(
        model.base.schedule,
        settings.scheduler,
        settings.num_inference_steps,
        strength=None if requests[0].image is None else settings.strength,
    )
    scene = make_scene(_filled(requests, per_device * devices), settings, plan, model)
    grid = model.grid(*settings.size)
    conditions, carry = runner.run(
        programs.condition, devices, scene, grid=grid, clip_skip=settings.clip_skip
    )
    one_each = np.zeros((devices, *carry.latents.shape[1:]), carry.latents.dtype)
    runner.prepare(programs.decode, devices, one_each)  # that it fits is known before the steps

    rows = plan.table()
    done, shares = 0, []
    segment = 1 if on_step_end else -(-len(plan) // _REPORTS)
    if progress is None and not attention_share and not on_step_end:
        segment = len(plan)
    while done < len(plan):
        span = np.array([[done, min(done + segment, len(plan))]], np.int32)
        inputs = conditions, carry, rows, span
        if attention_share:
            shares.append(np.asarray(runner.run(programs.attention_share, devices, *inputs)))
        clock.start()
        carry = runner.run(
            programs.denoise, devices, *inputs, in_negative=settings.faces_in_negative
        )
        done = int(span[0, 1])
        clock.stop("steps", done, len(plan), carry)
        if on_step_end:
            timestep = float(plan.rows.timesteps[done - 1])
            carry = carry._replace(latents=on_step_end(done - 1, timestep, carry.latents))
    clock.start()
    latents = np.asarray(carry.latents)
    images = _decoded(runner, devices, latents, requests[:wanted])
    images = [
        image if image is None else _with_what_stays(image, request)
        for image, request in zip(images, requests, strict=False)
    ]
    clock.stop("decode", wanted, wanted, carry)
    share = np.mean(shares, 0) if shares else [None] * wanted
    return [Generated(images[i], latents[i], share[i]) for i in range(wanted)]


def _with_what_stays(painted: np.ndarray, request: Request) -> np.ndarray:
    """Puts the given image back where the mask is black; a decoder repeats no pixel exactly."""
    if request.image is None or request.mask_image is None:
        return painted
    share = blurred(request.mask_image, request.mask_blur)[..., None]
    return np.round(share * painted + (1 - share) * to_bytes(request.image)).astype(np.uint8)


def _decoded(
    runner: Runner, devices: int, latents: np.ndarray, requests: Sequence[Request]
) -> list[np.ndarray | None]:
    """The requests' pixels; None where an image is not finite, which is told."""
    wanted, dtype = len(requests), runner.model.base.vae.dtype

    def decoded(**how: Any) -> tuple[np.ndarray, np.ndarray]:
        # On each device one image after the other, so that one program serves every batch.
        parts = [
            runner.run(programs.decode, devices, latents[first : first + devices], **how)
            for first in range(0, wanted, devices)
        ]
        levels, good = (
            np.concatenate([np.asarray(x) for x in each]) for each in zip(*parts, strict=True)
        )
        return levels[:wanted], good[:wanted]

    images, finite = decoded()
    again = ~finite & np.isfinite(latents[:wanted]).all((1, 2, 3))
    if again.any() and dtype != jnp.float32:
        warnings.warn(
            f"{_told(requests, again)} not finite in {jnp.dtype(dtype).name}: decoded again in "
            "float32",
            NotFiniteWarning,
            stacklevel=6,
        )
        second = decoded(in_float32=True)
        images[again], finite[again] = (x[again] for x in second)
    if not finite.all():
        warnings.warn(
            f"{_told(requests, ~finite)} not finite, and left out; dtype float32, a "
            "smaller guidance scale or a smaller face strength may help",
            NotFiniteWarning,
            stacklevel=6,
        )
    return [image if good else None for image, good in zip(images, finite, strict=True)]


def _told(requests: Sequence[Request], these: np.ndarray) -> str:
    """ "the image of seed 2 is", "the images of seeds 1, 3 are"."""
    chosen = [str(request.seed) for request, chosen in zip(requests, these, strict=True) if chosen]
    s, are = ("", "is") if len(chosen) == 1 else ("s", "are")
    return f"the image{s} of seed{s} {', '.join(chosen)} {are}"


def _filled(requests: Sequence[Request], count: int) -> list[Request]:
    """So many requests: the last stands in for those that lack."""
    return [*requests, *[requests[-1]] * (count - len(requests))]


def _of_many(progress: Progress | None, batch: int, batches: int) -> Progress | None:
    """Progress in one of several batches, as progress in all of them."""
    if progress is None or batches == 1:
        return progress
    report = progress

    def told(stage: str, done: int, of: int, seconds: float) -> None:
        if stage == "compile":
            report(stage, done, of, seconds)
        else:
            report(stage, batch * of + done, batches * of, seconds)

    return told


class _Clock:
    """Reports stages and their seconds; compilation is taken out of them and told by itself."""

    def __init__(self, runner: Runner, progress: Progress | None) -> None:
        self._runner, self._progress = runner, progress
        self._compiled = runner.compile_seconds
        self._began = self._before = 0.0

    def start(self) -> None:
        self._began, self._before = time.perf_counter(), self._runner.compile_seconds

    def stop(self, stage: str, done: int, of: int, result: Any) -> None:
        if self._progress is None:
            return
        jax.block_until_ready(result)
        seconds = time.perf_counter() - self._began
        compiled = self._runner.compile_seconds
        if compiled > self._compiled:
            self._progress("compile", 1, 1, compiled - self._compiled)
            self._compiled = compiled
        self._progress(stage, done, of, seconds - (compiled - self._before))
