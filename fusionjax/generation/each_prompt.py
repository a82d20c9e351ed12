"""What a call of the pipeline gives for each prompt: texts or their states, people, strengths."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from fusionjax.errors import UserError, told
from fusionjax.options import check_texts
from fusionjax.regions import of_other_kinds, read_regions, region_at
from fusionjax.schema import typed


def read_texts(
    prompt: Any, negative_prompt: Any, prompt_embeds: Any, negative_prompt_embeds: Any
) -> list[dict[str, Any]]:
    """The prompts of each image, see `FusionPipeline.__call__`.

    Returns:
        The fields of a `Prompts`, prompt by prompt.

    Raises:
        UserError: if there is no prompt, or two of one, or a negative one too many or too few.
    """
    found = []
    for name, text, states in (
        ("prompt", prompt, prompt_embeds),
        ("negative_prompt", negative_prompt, negative_prompt_embeds),
    ):
        if states is None:
            found.append([{name: each} for each in _texts(text, name)])
        elif text:
            raise UserError(f"{name} and {name}_embeds are both given; give one of them")
        else:
            states = numbers(states, f"{name}_embeds")
            if states.ndim != 3:
                raise UserError(
                    f"{name}_embeds have shape {states.shape}; they must be [prompts, tokens, "
                    "features]"
                )
            found.append([{f"{name}_embeds": each} for each in states])
    prompts, negatives = found
    if not prompts:
        raise UserError("no prompt is given")
    if len(negatives) not in (1, len(prompts)):
        raise UserError(
            f"{len(negatives)} negative prompts for {len(prompts)} prompts; give one for all, "
            "or one for each"
        )
    negatives = negatives * (len(prompts) // len(negatives))
    return [own | other for own, other in zip(prompts, negatives, strict=True)]


def people_of_each(
    identities: Any, face_strength: Any, masks: Any, prompts: int, size: tuple[int, int]
) -> list[dict[str, Any]]:
    """The people of each prompt's images, see `FusionPipeline.__call__`.

    Args:
        identities: one person, several, or a list of people for each prompt.
        face_strength: a number, one for each person, or with people for each prompt such a list
            for each.
        masks: numbers [i, H, W], Pillow images or boxes, or with people for each prompt such a list
            for each, or None.
        prompts: how many there are.
        size: width and height of the images.

    Returns:
        The fields of a `Request`, prompt by prompt.

    Raises:
        UserError: if lists are not one for each prompt.
    """
    people = identities if isinstance(identities, list | tuple) else (identities,)
    nested = any(isinstance(each, list | tuple) for each in people)
    if not nested:
        shared = None if masks is None else _masks(masks, size)
        one = {"identities": people, "face_strength": face_strength, "masks": shared}
        return [one] * prompts
    people = _one_for_each(people, "identities", prompts, of="people")
    strengths = [face_strength] * prompts
    if isinstance(face_strength, list | tuple) and any(
        isinstance(each, list | tuple | np.ndarray) for each in face_strength
    ):
        strengths = _one_for_each(face_strength, "face_strength", prompts, of="numbers")
    given: list[Any] = [masks] * prompts
    if hasattr(masks, "__len__") and len(masks) and _are_several(masks[0]):
        given = _one_for_each(masks, "masks", prompts, of="masks")
    return [
        {
            "identities": own,
            "face_strength": strength,
            "masks": None if mask is None else _masks(mask, size),
        }
        for own, strength, mask in zip(people, strengths, given, strict=True)
    ]


def _are_several(masks: Any) -> bool:
    """Whether these are the masks of several people, and not one of them."""
    if isinstance(masks, Image.Image):
        return False
    if isinstance(masks, list | tuple) and any(isinstance(m, Image.Image) for m in masks):
        return True
    shape = np.shape(masks)
    return len(shape) == 3 or (len(shape) == 2 and shape[1] == 4)  # boxes


def _masks(masks: Any, size: tuple[int, int]) -> np.ndarray:
    """Masks of any kind as numbers [i, H, W]."""
    if not of_other_kinds(masks):
        return numbers(masks, "masks")
    width, height = size
    each = [region_at(region, height, width) for region in read_regions(masks)]
    if len({mask.shape for mask in each}) > 1:
        raise UserError(
            f"masks have the shapes {[mask.shape for mask in each]}; they must have the picture's "
            f"size, {height}×{width} (height × width)"
        )
    return np.stack(each)


def numbers(value: Any, name: str) -> np.ndarray:
    """An array of numbers.

    Raises:
        UserError: if it is none.
    """
    try:
        if hasattr(value, "detach"):  # PyTorch's; NumPy does not know bfloat16
            value = value.detach().cpu().float()
        return np.asarray(value, np.float32)
    except (ValueError, TypeError, OverflowError, RuntimeError):
        raise UserError(f"{name} is {told(value)}; it must hold numbers") from None


def _one_for_each(value: Sequence[Any], name: str, prompts: int, *, of: str) -> list[Any]:
    lists = [each for each in value if isinstance(each, list | tuple | np.ndarray)]
    if len(lists) != len(value) or len(value) != prompts:
        raise UserError(
            f"{name} holds {len(lists)} lists of {of} in {len(value)} entries for {prompts} "
            "prompts; give one list for all, or a list for each prompt"
        )
    return list(value)


def _texts(value: Any, name: str) -> list[str]:
    """One text or several as a list."""
    if value is None:
        value = [] if name == "prompt" else ""
    texts = list(value) if isinstance(value, list | tuple) else [typed(value, str, name)]
    texts = typed(texts, list[str], name)
    check_texts(name, tuple(texts))
    return texts
