"""Keywords of a call: options by their fields' names, diffusers' generators, what is not known."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusionjax.errors import UserError, told
from fusionjax.generation.each_prompt import numbers, people_of_each, read_texts
from fusionjax.generation.generate import OnStepEnd
from fusionjax.generation.model import Model
from fusionjax.generation.request import Request, check_settings, fit_image
from fusionjax.generation.starting_image import outpainted_size, starting_point
from fusionjax.options import (
    LARGEST_SEED,
    MOST_IMAGES,
    Description,
    Settings,
    current_name,
    unknown_name,
)
from fusionjax.photos import PhotoSource
from fusionjax.schema import typed, whole

# pipeline, row, its timestep, {"latents": …} → {"latents": …} or nothing, as in diffusers
CallbackOnStepEnd = Callable[..., Mapping[str, Any] | None]

_FIELDS = {
    kind: [field.name for field in dataclasses.fields(kind)] for kind in (Settings, Description)
}


def read_call(
    model: Model,
    prompt: str | Sequence[str] | None,
    negative_prompt: str | Sequence[str] | None,
    num_images_per_prompt: int,
    generator: Any,
    latents: Any,
    options: Mapping[str, Any],
    *,
    prompt_embeds: Any,
    negative_prompt_embeds: Any,
    identities: Any,
    face_strength: Any,
    masks: Any,
    image: PhotoSource | None,
    mask_image: PhotoSource | None,
    control_image: PhotoSource | None,
) -> tuple[list[Request], Settings]:
    """What a call of the pipeline asks for, see `FusionPipeline.__call__`.

    Returns:
        A request for each image, prompt by prompt, and what they share.

    Raises:
        UserError: if an argument is wrong.
    """
    texts = read_texts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
    name = "num_images_per_prompt"
    num_images_per_prompt = typed(num_images_per_prompt, whole(1, MOST_IMAGES), name)
    count = len(texts) * num_images_per_prompt
    options = {**options, **outpainted_size(image, options)}
    settings, description = read_keywords(options, model.photo_side)
    check_settings(settings, model)
    height, width = settings.size
    size = (width, height)
    people = people_of_each(identities, face_strength, masks, len(texts), size)
    if latents is not None:
        latents = numbers(latents, "latents")
        expected = (count, *model.grid(height, width), model.base.latent_channels)
        if latents.shape != expected:
            raise UserError(f"latents have shape {latents.shape}; they must be {expected}")
        if not np.isfinite(latents).all():
            raise UserError("latents hold numbers that are not finite; give unit noise")
    first = Request(
        **description
        | starting_point(
            image,
            mask_image,
            size,
            description.get("outpaint") or (),
            description.get("mask_blur") or 0,
        ),
        control_image=None if control_image is None else fit_image(control_image, size),
    )
    requests = [
        dataclasses.replace(
            first,
            **texts[i // num_images_per_prompt],
            **people[i // num_images_per_prompt],
            seed=seed,
            latents=None if latents is None else latents[i],
        )
        for i, seed in enumerate(seeds_of(generator, count))
    ]
    return requests, settings


def read_keywords(options: Mapping[str, Any], side: int) -> tuple[Settings, dict[str, Any]]:
    """Tells a call's options apart.

    Args:
        options: by name; old names are read too.
        side: of an image whose size is not given, in pixels.

    Returns:
        The settings, and the fields of a `Description`.

    Raises:
        UserError: for a name that is not known, with what serves in its place, or a value that is
            out of range.
    """
    options = {current_name(name): value for name, value in options.items()}
    for name in options:
        if not any(name in names for names in _FIELDS.values()):
            known = [name for names in _FIELDS.values() for name in names]
            raise UserError(unknown_name(name, known))
    settings, description = (
        {name: options[name] for name in names if name in options} for names in _FIELDS.values()
    )
    for name in ("height", "width"):
        if settings.get(name) is None:
            settings[name] = side
    return Settings(**settings), description


def show_options(function: Callable[..., Any]) -> None:
    """Writes the options into a function's signature, for `help` and completion."""
    signature = inspect.signature(function)
    shown = {
        name: each for name, each in signature.parameters.items() if each.kind != each.VAR_KEYWORD
    }
    for kind in _FIELDS:
        for field in dataclasses.fields(kind):
            default = {} if field.default is dataclasses.MISSING else field.default
            option = inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=field.type
            )
            shown.setdefault(field.name, option)
    function.__signature__ = signature.replace(parameters=list(shown.values()))  # type: ignore[attr-defined]


def seeds_of(generator: Any, count: int) -> list[int]:
    """A seed for each image: following numbers, or one of each generator."""
    if isinstance(generator, list | tuple):
        if len(generator) != count:
            raise UserError(
                f"seed or generator is a list of {len(generator)} for {count} images; give one for "
                "each, or a single one"
            )
        return [_seed(each) for each in generator]
    first = _seed(generator)
    if first + count - 1 > LARGEST_SEED:
        raise UserError(
            f"seed is {first}; with {count} images it must be in 0..{LARGEST_SEED - count + 1}"
        )
    return [first + i for i in range(count)]


def _seed(generator: Any) -> int:
    if isinstance(generator, int | np.integer) and not isinstance(generator, bool):
        return int(generator)
    if hasattr(generator, "initial_seed"):  # PyTorch's
        return int(generator.initial_seed()) & LARGEST_SEED
    if isinstance(generator, np.random.Generator):
        return int(generator.integers(LARGEST_SEED + 1))
    if isinstance(generator, jax.Array):
        key = generator
        if key.ndim == 0 and jnp.issubdtype(key.dtype, jnp.integer):
            return int(key)
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            key = jax.random.wrap_key_data(key)
        return int(jax.random.bits(key))
    raise UserError(
        f"generator is {type(generator).__name__}; it must be a whole number, or a NumPy, PyTorch "
        "or JAX generator or key"
    )


def step_end_of(pipe: Any, callback: CallbackOnStepEnd | None) -> OnStepEnd | None:
    """diffusers' callback as `generation.generate` calls its own."""
    if callback is None:
        return None
    heard = callback
    if not callable(heard):
        raise UserError(f"callback_on_step_end is {told(heard)}; it must be a function")

    def on_step_end(step: int, timestep: float, latents: jax.Array) -> Any:
        answer = heard(pipe, step, timestep, {"latents": latents})
        return latents if answer is None else answer.get("latents", latents)

    return on_step_end
