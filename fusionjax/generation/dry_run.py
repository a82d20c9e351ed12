"""What generating needs on some hardware, found by compiling its programs without weights."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fusionjax.diffusion import samplers
from fusionjax.generation import programs
from fusionjax.generation.request import check_settings
from fusionjax.generation.scene import People, Scene, padded_references
from fusionjax.models.abstract_base import abstract_base
from fusionjax.options import FusionOptions, Settings
from fusionjax.pipeline import FusionPipeline
from fusionjax.unet import FusionUNet


def abstract_pipeline(
    source: str,
    dtype: Any,
    devices: Sequence[Any],
    options: FusionOptions | None = None,
    attention: Any = None,
) -> FusionPipeline:
    """A pipeline whose weights are shapes: it compiles, and generates nothing.

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
    text_length: int | None = None,
) -> dict[str, Any]:
    """The programs of a guided picture of one person, traced from shapes.

    Args:
        pipe: as from `abstract_pipeline`.
        images: images generated at once, over all of the pipeline's devices.
        photos: of all people, filled up to a power of two as the pipeline does; 0 is nobody.
        height: in pixels.
        width: in pixels.
        steps: noise levels to visit.
        scheduler: the sampler.
        text_length: tokens of each prompt; None is one chunk of the text encoder.

    Returns:
        `encode a photo`, `text and faces`, `a step`, `decode`; each as `jax.jit(…).trace` returns
        it. `a step` is a loop over steps, of which XLA and `compile_for` count one; `decode` is
        one image on each device.
    """
    settings = Settings(height=height, width=width, num_inference_steps=steps, scheduler=scheduler)
    check_settings(settings, pipe.model)
    runner, devices = pipe.runner, len(pipe.runner.devices)
    grid = pipe.model.grid(height, width)
    tokens = pipe.base.text_encoder.config.max_position_embeddings
    plan = samplers.plan(pipe.base.schedule, scheduler, steps)

    def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    def ids(count: int, length: int = tokens) -> jax.ShapeDtypeStruct:
        return array(count, length, dtype=jnp.int32)

    scene = Scene(
        ids=ids(images, text_length or tokens),
        negative_ids=ids(images, text_length or tokens),
        empty_ids=ids(1),
        seeds=array(images, dtype=jnp.uint32),
        guidance=array(images, 2),
        levels=array(1, 2),
    )
    traced = {}
    if photos:
        photos = padded_references(photos)
        side = pipe.photo_side
        photo = array(1, side, side, 3), ids(1)
        traced["encode a photo"] = runner.traced(programs.encode_photo, 1, *photo)
        _, states = runner.shapes(programs.encode_photo, *photo)
        people = People(
            states={
                layer: array(1, photos, *h.shape[1:], dtype=h.dtype) for layer, h in states.items()
            },
            photos=None,
            owner=array(images, photos, dtype=jnp.int32),
            masks=None,
            strength=array(images, plan.room, photos),
            layer_strength={layer: array(images) for layer in states},
        )
        scene = scene._replace(people=people)
    traced["text and faces"] = runner.traced(programs.condition, devices, scene, grid=grid)
    conditions, carry = runner.shapes(programs.condition, scene, grid=grid)
    rows = plan.table()
    span = array(1, 2, dtype=jnp.int32)
    traced["a step"] = runner.traced(
        programs.denoise, devices, conditions, carry, rows, span, in_negative=False
    )
    traced["decode"] = runner.traced(
        programs.decode, devices, array(devices, *carry.latents.shape[1:])
    )
    return traced
