"""What painting needs on some hardware, found by compiling its programs without weights."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fusionjax.diffusion import samplers as schedulers
from fusionjax.generation.request import Settings
from fusionjax.generation.scene import padded_photos
from fusionjax.models.abstract_base import abstract_base
from fusionjax.options import FusionOptions
from fusionjax.pipeline import FusionPipeline
from fusionjax.unet import FusionUNet


def abstract_pipeline(
    source: str,
    dtype: Any,
    devices: Sequence[Any],
    options: FusionOptions | None = None,
    attention: Any = None,
) -> FusionPipeline:
    """A pipeline whose weights are shapes: it compiles, and paints nothing.

    Args:
        source: a diffusers folder; anything else stands for Stable Diffusion 1.5.
        dtype: of weights and computation.
        devices: to compile for.
        options: of the adapter.
        attention: implementation for all layers, None for the devices' fastest.
    """
    base = abstract_base(source, jnp.dtype(dtype))
    key = jax.eval_shape(lambda: jax.random.key(0))
    fusion = jax.eval_shape(FusionUNet(base.unet, options).init, key, base.params["unet"])
    return FusionPipeline(base, fusion, options, devices=devices, attention=attention)


def picture_programs(
    pipe: FusionPipeline,
    *,
    images: int,
    photos: int,
    height: int,
    width: int,
    steps: int = 30,
    scheduler: str = "dpmpp_2m",
) -> dict[str, Any]:
    """The programs of a guided picture of one person, traced from shapes.

    Args:
        pipe: as from `abstract_pipeline`.
        images: pictures painted at once, over all of the pipeline's devices.
        photos: of all people, filled up to a power of two as the pipeline does; 0 is nobody.
        height: in pixels.
        width: in pixels.
        steps: noise levels to visit.
        scheduler: the sampler.

    Returns:
        `encode a photo`, `text and faces`, `a step`, `decode`; each as `jax.jit(…).trace` returns
        it. `a step` is a loop over steps, of which XLA and `compile_for` count one.
    """
    pipe.check_settings(Settings(height, width, steps, scheduler))
    runner, devices = pipe.runner, len(pipe.runner.devices)
    factor, channels = pipe.base.vae_scale_factor, pipe.base.unet.in_channels
    grid = (height // factor, width // factor)
    tokens = pipe.base.text_encoder.config.max_position_embeddings
    plan = schedulers.plan(pipe.base.schedule, scheduler, steps)

    def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    ids = array(images, tokens, dtype=jnp.int32)
    x: dict[str, Any] = {"ids": ids, "negative_ids": ids, "rows": {"row": plan.rows}}
    programs = {}
    if photos:
        photos = padded_photos(photos)
        side = pipe.photo_side
        photo = {
            "image": array(1, side, side, 3),
            "empty_ids": array(1, tokens, dtype=jnp.int32),
        }
        programs["encode a photo"] = runner.traced("photo", 1, photo)
        states = jax.eval_shape(runner.programs.photo, runner.params, photo)["states"]
        x["states"] = {
            layer: array(1, photos, *h.shape[1:], dtype=h.dtype) for layer, h in states.items()
        }
        x["owner"] = array(images, photos, dtype=jnp.int32)
        x["rows"]["log_strength"] = array(len(plan), images, photos)
        x["layer_log"] = array(len(pipe.fusion.layers), images)
    programs["text and faces"] = runner.traced("look", devices, x, grid=grid)
    x |= jax.eval_shape(lambda p, x: runner.programs.look(p, x, grid=grid), runner.params, x)
    latents = array(images, *grid, channels)
    x |= {
        "mix": array(2, images),
        "seeds": array(images, dtype=jnp.uint32),
        "start_noise": latents,
        "carry": jax.eval_shape(schedulers.Carry.start, latents),
        "span": array(2, dtype=jnp.int32),
    }
    programs["a step"] = runner.traced("steps", devices, x, branches=2, in_negative=False)
    programs["decode"] = runner.traced("decode", devices, x)
    return programs
