"""A batch as arrays: from requests to what the programs read.

Everything is a pytree whose every leaf has the image as its first axis; its length is 1 for what
all images share. So one rule says how a batch lies on several devices: the first axis is split
unless its length is 1.

Legend: b images, m people sets (b, or 1 where all images show the same), g branches of the
guidance, s steps, r references (photos), i identities, k tokens of a photo, D features of a layer,
t text tokens (77 for each chunk of a text), v words added to the text encoder's, h w latent grid, c
latent channels, H W pixels.
"""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt32

from fusionjax.diffusion.guidance import branch_weights
from fusionjax.diffusion.samplers import Plan
from fusionjax.generation.model import Model
from fusionjax.generation.prompts import text_arrays, text_kind
from fusionjax.generation.request import Request, Settings
from fusionjax.masks import log_strength

Leaf = Any  # an array of NumPy's or JAX's, or what stands for one while a program is traced


class People(NamedTuple):
    """The people of a batch, padded to a number of references that few programs share.

    Attributes:
        states: hf by layer, [m, r, k, D]; empty for the reference option `matched`.
        photos: photos' latents [m, r, h, w, c] for `matched`, else None.
        owner: the identity that each reference shows, [b, r].
        masks: where each identity is, [b, i, H, W], or None.
        strength: log λ of each reference by step, [b, s, r].
        layer_strength: log of the factor of each layer, [b] by layer.
    """

    states: dict[str, Leaf]
    photos: Float[Leaf, "m r h w c"] | None
    owner: Int[Leaf, "b r"]
    masks: Float[Leaf, "b i H W"] | None
    strength: Float[Leaf, "b s r"]
    layer_strength: dict[str, Leaf]


class Scene(NamedTuple):
    """What is read once, before the first step.

    Attributes:
        ids: tokens of the prompts, [b, t].
        negative_ids: of the negative prompts, [b, t].
        empty_ids: of the empty prompt, [1, t].
        seeds: of all noise, [b].
        guidance: the branches' weights, [b, g].
        rescale: of the guidance, [b], or None: 0.
        levels: the share of given images and of noise before the first step, [1, 2].
        people: or None.
        latents: unit starting noise in place of the seeds', [b, h, w, c], and
        is_given: whose, [b]; or None both.
        image: images to start from, [b, H, W, 3] in [-1, 1], or None.
        keep: with them: 1 where the image stays, [b, h, w, 1].
        masked_image: of a base that was trained to inpaint, them without what is to be painted,
            [b, H, W, 3]; None without an image.
        control_image: the ControlNet's input, [b, H, W, 3] in [0, 1], or None.
        control_scale: a factor on its answer, [b], or None.
        weights: of the prompts' tokens, [b, t], and
        negative_weights: of the negative prompts'; or None both: 1 everywhere.
        vectors: embeddings of the tokens that follow the text encoder's own, [1, v, d], or None.
        embeds: text states in place of the prompts', [b, t, d], or None, and
        negative_embeds: of the negative prompts'.
    """

    ids: Int[Leaf, "b t"]
    negative_ids: Int[Leaf, "b t"]
    empty_ids: Int[Leaf, "1 t"]
    seeds: UInt32[Leaf, " b"]
    guidance: Float[Leaf, "b g"]
    levels: Float[Leaf, "1 2"]
    rescale: Float[Leaf, " b"] | None = None
    people: People | None = None
    latents: Float[Leaf, "b h w c"] | None = None
    is_given: Leaf | None = None
    image: Float[Leaf, "b H W 3"] | None = None
    keep: Float[Leaf, "b h w 1"] | None = None
    masked_image: Float[Leaf, "b H W 3"] | None = None
    control_image: Float[Leaf, "b H W 3"] | None = None
    control_scale: Float[Leaf, " b"] | None = None
    weights: Float[Leaf, "b t"] | None = None
    negative_weights: Float[Leaf, "b t"] | None = None
    vectors: Float[Leaf, "1 v d"] | None = None
    embeds: Float[Leaf, "b t d"] | None = None
    negative_embeds: Float[Leaf, "b t d"] | None = None


def make_scene(requests: Sequence[Request], settings: Settings, plan: Plan, model: Model) -> Scene:
    """Puts requests together.

    Args:
        requests: of one `batch_key`, checked.
        settings: what they share.
        plan: the sampler's.
        model: what will read it.

    Returns:
        The scene, in the host's memory.
    """
    base, grid = model.base, model.grid(*settings.size)
    people = _people(requests, settings, plan, model)
    text = np.array([request.guidance_scale for request in requests])
    faces = None
    if people is not None and any(r.face_guidance_scale is not None for r in requests):
        faces = np.array(
            [
                r.guidance_scale if r.face_guidance_scale is None else r.face_guidance_scale
                for r in requests
            ]
        )
    scene = Scene(
        **text_arrays(requests, model),
        empty_ids=base.tokenize([""]),
        seeds=np.array([request.seed for request in requests], np.uint32),
        guidance=branch_weights(text, faces),
        levels=np.array([[plan.start_clean, plan.start_noise]], np.float32),
        people=people,
    )
    if any(request.guidance_rescale for request in requests):
        rescale = np.array([request.guidance_rescale for request in requests], np.float32)
        scene = scene._replace(rescale=rescale)
    if any(request.latents is not None for request in requests):
        shape = (*grid, base.latent_channels)
        given = [
            np.zeros(shape) if request.latents is None else request.latents for request in requests
        ]
        scene = scene._replace(
            latents=np.stack(given).astype(np.float32),
            is_given=np.array([request.latents is not None for request in requests]),
        )
    if images := [r.image for r in requests if r.image is not None]:
        scene = scene._replace(
            image=np.stack(images).astype(np.float32),
            keep=np.stack([_kept(request.mask_image, grid) for request in requests]),
        )
        if base.is_inpainting:
            scene = scene._replace(masked_image=np.stack([_masked(r) for r in requests]))
    if images := [r.control_image for r in requests if r.control_image is not None]:
        scales = [request.controlnet_conditioning_scale for request in requests]
        scene = scene._replace(
            control_image=np.stack(images).astype(np.float32),
            control_scale=np.array(scales, np.float32),
        )
    return scene


def batch_key(request: Request, settings: Settings, model: Model) -> Hashable:
    """Requests of one key may share a batch, and what is compiled for it."""
    references = sum(len(person) for person in request.identities)
    return (
        settings,
        text_kind(request, model),
        padded_references(references),
        request.masks is not None and padded_references(len(request.masks)),
        request.image is not None,
        request.control_image is not None,
        request.guidance_rescale > 0,
        3
        if references and request.face_guidance_scale is not None
        else 1 + (request.guidance_scale != 1),
    )


def padded_references(count: int) -> int:
    """The next power of two: people come and go within it without compiling."""
    return 1 << (count - 1).bit_length() if count else 0


def _people(
    requests: Sequence[Request], settings: Settings, plan: Plan, model: Model
) -> People | None:
    longest = max(sum(len(person) for person in request.identities) for request in requests)
    if longest == 0:
        return None
    references = padded_references(longest)
    shared = all(_same_people(request, requests[0]) for request in requests)
    sets = [request.identities for request in (requests[:1] if shared else requests)]
    example = next(person for people in sets for person in people)

    def stacked(arrays: list[list[np.ndarray]], like: np.ndarray) -> np.ndarray:
        out = np.zeros((len(sets), references, *like.shape[1:]), like.dtype)
        for row, own in zip(out, arrays, strict=True):
            if own:
                joined = np.concatenate(own)
                row[: len(joined)] = joined
        return out

    states, photos = {}, None
    if model.fusion.options.reference == "clean":
        for layer in model.fusion.layers:
            arrays = [[person.states[layer] for person in people] for people in sets]
            states[layer] = stacked(arrays, example.states[layer])
    else:
        photos = stacked(
            [[person.latents for person in people] for people in sets], example.latents
        )

    strength = np.zeros((len(requests), plan.room, references), np.float32)
    owner = np.zeros((len(requests), references), np.int32)
    fractions = np.arange(len(plan)) / len(plan)
    for j, request in enumerate(requests):
        first, until = request.face_steps
        active = (fractions >= first) & (fractions < until)
        factors = np.broadcast_to(request.face_strength, len(request.identities))
        at = 0
        for i, (person, factor) in enumerate(zip(request.identities, factors, strict=True)):
            these = slice(at, at + len(person))
            strength[j, : len(plan), these] = active[:, None] * factor * np.array(person.weights)
            owner[j, these] = i
            at += len(person)

    masks = None
    if requests[0].masks is not None:
        identities = padded_references(max(len(request.identities) for request in requests))
        masks = np.zeros((len(requests), identities, *settings.size), np.float32)
        for row, request in zip(masks, requests, strict=True):
            assert request.masks is not None  # of one `batch_key`
            row[: len(request.masks)] = request.masks
    layer_strength = {
        layer: log_strength(np.array([r.layer_strength.get(layer, 1.0) for r in requests]))
        for layer in model.fusion.layers
    }
    return People(states, photos, owner, masks, log_strength(strength), layer_strength)


def _same_people(one: Request, other: Request) -> bool:
    return len(one.identities) == len(other.identities) and all(
        a.states is b.states and a.latents is b.latents
        for a, b in zip(one.identities, other.identities, strict=True)
    )


def _masked(request: Request) -> Float[np.ndarray, "H W 3"]:
    """The image in [-1, 1], grey wherever half or more of it is to be painted."""
    assert request.image is not None
    stays = 0.0 if request.mask_image is None else request.mask_image[..., None] < 0.5
    return (request.image * stays).astype(np.float32)


def _kept(mask: np.ndarray | None, grid: tuple[int, int]) -> Float[np.ndarray, "h w 1"]:
    """1 where a given image stays: a latent is painted if any of its pixels is."""
    if mask is None:
        return np.zeros((*grid, 1), np.float32)
    cells = mask.reshape(grid[0], mask.shape[0] // grid[0], grid[1], -1)
    return (1 - cells.max((1, 3))[..., None]).astype(np.float32)
