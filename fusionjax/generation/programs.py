"""What is computed: pure functions of a model's structure, its weights, and arrays.

A photo becomes reference states (`encode_photo`). A scene becomes what the UNet attends to and the
latents to begin with (`condition`), goes through the sampler's steps (`denoise`), and becomes
pixels (`decode`). `attention_share` looks on. Every array has the image as its first axis, of
length 1 where all images share it; no program holds a weight or a prompt.

Legend: as in `scene.py`; n heads.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8, UInt32

from fusionjax.diffusion.guidance import for_branches, guided, of_branches
from fusionjax.diffusion.samplers import Carry, Rows, sample
from fusionjax.faces import Faces, ReferenceStates, TextTokens
from fusionjax.generation.model import Model
from fusionjax.generation.scene import Leaf, Scene
from fusionjax.generation.text_states import text_states

Params = Any  # {"base": …, "fusion": …, "controlnet": …}


class Conditions(NamedTuple):
    """What every step reads.

    Attributes:
        negative: Kc and Vc of the negative prompts, [b, t, n, e] by layer.
        positive: of the prompts.
        seeds: of the samplers' noise, [b].
        guidance: the branches' weights, [b, g].
        rescale: of the guidance, [b], or None.
        noise: unit starting noise, [b, h, w, c].
        faces: the faces at λ = 1 with their masks, or None.
        photos: in place of their keys and values, photos' latents, [m, r, h, w, c] (`matched`).
        strength: log λ by step, [b, s, r].
        layer_strength: log of the factor of each layer, [b] by layer.
        known: latents of the images to start from, [b, h, w, c], and
        keep: where they stay, [b, h, w, 1].
        beside: what a base that was trained to inpaint reads beside the latents: 1 where it shall
            paint, and the latents of what is known elsewhere, [b, h, w, e], e = 1 + c.
        empty: text states of the empty prompt, [1, t, d] (`matched`).
        control_text: text states of both prompts, which a ControlNet reads itself.
        control_image: its input, [b, H, W, 3], and
        control_scale: the factor on its answer, [b].
    """

    negative: TextTokens
    positive: TextTokens
    seeds: UInt32[Leaf, " b"]
    guidance: Float[Leaf, "b g"]
    noise: Float[Leaf, "b h w c"]
    faces: Faces | None = None
    photos: Float[Leaf, "m r h w c"] | None = None
    strength: Float[Leaf, "b s r"] | None = None
    layer_strength: dict[str, Leaf] | None = None
    known: Float[Leaf, "b h w c"] | None = None
    keep: Float[Leaf, "b h w 1"] | None = None
    beside: Float[Leaf, "b h w e"] | None = None
    empty: Float[Leaf, "1 t d"] | None = None
    rescale: Float[Leaf, " b"] | None = None
    control_text: tuple[Leaf, Leaf] | None = None
    control_image: Float[Leaf, "b H W 3"] | None = None
    control_scale: Float[Leaf, " b"] | None = None


def encode_photo(
    model: Model, params: Params, image: Float[Array, "1 H W 3"], empty_ids: Int[Array, "1 t"]
) -> tuple[Float[Array, "1 h w c"], ReferenceStates]:
    """A photo in [-1, 1] → its latents, and hf [1, k, D] of every layer (none for `matched`)."""
    latents: Any = model.base.encode_image(params["base"], image)
    return latents, encode_latents(model, params, latents, empty_ids)


def encode_latents(
    model: Model, params: Params, latents: Float[Array, "1 h w c"], empty_ids: Int[Array, "1 t"]
) -> ReferenceStates:
    """A photo's latents → hf [1, k, D] of every layer (none for `matched`)."""
    if model.fusion.options.reference != "clean":
        return {}
    empty: Any = model.base.encode_text(params["base"], empty_ids)
    seen = _seen(model, latents, latents)
    states = model.fusion.reference_states(params["base"]["unet"], seen[None], empty)
    return {layer: h[0].astype(jnp.bfloat16) for layer, h in states.items()}


def condition(
    model: Model,
    params: Params,
    scene: Scene,
    *,
    grid: tuple[int, int],
    clip_skip: int | None = None,
) -> tuple[Conditions, Carry]:
    """What the UNet attends to, and the latents before the first step.

    Args:
        model: structure.
        params: weights.
        scene: the batch.
        grid: rows and columns of the latents.
        clip_skip: how many of the text encoder's last layers are left out.
    """
    base, b = model.base, scene.ids.shape[0]
    text = text_states(base, params["base"], scene, clip_skip=clip_skip)
    tokens = model.fusion.text_tokens(params["base"]["unet"], text)
    noise = jax.vmap(lambda seed: _normal(seed, 0, (*grid, base.latent_channels)))(scene.seeds)
    if scene.latents is not None and scene.is_given is not None:
        noise = jnp.where(scene.is_given[:, None, None, None], scene.latents, noise)
    latents = scene.levels[0, 1] * noise
    conditions = Conditions(
        negative=jax.tree.map(lambda array: array[:b], tokens),
        positive=jax.tree.map(lambda array: array[b:], tokens),
        seeds=scene.seeds,
        guidance=scene.guidance,
        rescale=scene.rescale,
        noise=noise,
        keep=scene.keep,
        control_image=scene.control_image,
        control_scale=scene.control_scale,
    )

    def encode(image: Array) -> Array:
        return base.encode_image(params["base"], image[None])[0]

    if base.is_inpainting:
        conditions = conditions._replace(beside=_beside(model, scene, grid, encode))
    if scene.image is not None:
        known = jax.lax.map(encode, scene.image)  # one at a time, as they are decoded
        latents = latents + scene.levels[0, 0] * known
        conditions = conditions._replace(known=known)
    if model.controlnet is not None:  # it has keys and values of its own
        conditions = conditions._replace(control_text=(text[:b], text[b:]))
    if scene.people is not None:
        conditions = _with_people(model, params, scene, conditions, grid)
    return conditions, Carry.start(latents)


def denoise(
    model: Model,
    params: Params,
    conditions: Conditions,
    carry: Carry,
    rows: Rows,
    span: Int[Array, "1 2"],
    *,
    in_negative: bool,
) -> Carry:
    """Some steps of the sampler.

    Args:
        model: structure.
        params: weights.
        conditions: from `condition`.
        carry: the state before the steps.
        rows: the sampler's table, with a first axis of length 1.
        span: the rows from which and until which; being data, one program runs any number.
        in_negative: show the faces to the negative branch too.
    """
    g = conditions.guidance.shape[1]
    text = of_branches(conditions.negative, conditions.positive, g)

    def predict(latents: Array, timesteps: Array, index: Array) -> Array:
        faces = _faces(model, params, conditions, index, timesteps)
        if in_negative and faces is not None:
            faces = jax.tree.map(lambda array: for_branches(array, g), faces)

        def answers(latents: Array, timesteps: Array) -> Array:
            residuals = _residuals(model, params, conditions, latents, timesteps)
            latents = _with_beside(latents, conditions, g)
            return model.fusion(
                params["base"]["unet"], latents, timesteps, text, faces, **residuals
            )

        return guided(answers, conditions.guidance, conditions.rescale)(latents, timesteps)

    def noise(index: Array) -> Array:
        shape = carry.latents.shape[1:]
        return jax.vmap(lambda seed: _normal(seed, index + 1, shape))(conditions.seeds)

    def keep(row: Rows, carry: Carry) -> Carry:
        assert conditions.keep is not None
        assert conditions.known is not None
        level = row.next_clean * conditions.known + row.next_noise * conditions.noise
        kept = conditions.keep * level + (1 - conditions.keep) * carry.latents
        return carry._replace(latents=kept)

    return sample(
        predict,
        carry,
        jax.tree.map(lambda column: column[0], rows),
        span=(span[0, 0], span[0, 1]),
        noise=noise,
        # One that was trained to inpaint keeps what it shall by itself.
        settle=None if conditions.known is None or conditions.beside is not None else keep,
    )


def attention_share(
    model: Model,
    params: Params,
    conditions: Conditions,
    carry: Carry,
    rows: Rows,
    span: Int[Array, "1 2"],
) -> Float[Array, "b y x shares"]:
    """How attention is shared at the row `span[0]`: mean of the layers, at the finest one's grid.

    Returns:
        The text's share and each photo's, [b, rows, columns, 1 + r].
    """
    index = span[0, 0]
    row = jax.tree.map(lambda column: column[0, index], rows)
    timesteps = jnp.full(carry.latents.shape[0], row.timesteps)
    faces = _faces(model, params, conditions, index, timesteps)
    assert faces is not None
    shares = model.fusion.attention_share(
        params["base"]["unet"],
        _with_beside(carry.latents * row.input_scale, conditions, 1),
        timesteps,
        conditions.positive,
        faces,
    )
    finest = max(share.shape[1:3] for share in shares.values())
    resized = [
        jax.image.resize(share, (share.shape[0], *finest, share.shape[3]), "nearest")
        for share in shares.values()
    ]
    return jnp.mean(jnp.stack(resized), 0)


def decode(
    model: Model, params: Params, latents: Float[Array, "b h w c"], *, in_float32: bool = False
) -> tuple[UInt8[Array, "b H W 3"], Bool[Array, " b"]]:
    """Latents → grey levels, one image at a time: a large VAE holds no batch at once.

    Whoever paints calls it with one image for each device, so that it is compiled once for a size.

    Args:
        model: structure.
        params: weights.
        latents: clean.
        in_float32: decode so what a 16-bit type could not hold.

    Returns:
        The images, and of each whether it is finite.
    """
    base, weights = model.base, params["base"]["vae"]
    if in_float32:
        weights = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), weights)
        base = dataclasses.replace(base, vae=base.vae.clone(dtype=jnp.float32))

    def one(latents: Array) -> tuple[Array, Array]:
        image = base.decode({"vae": weights}, latents[None])[0]
        levels = jnp.round((jnp.clip(image, -1, 1) + 1) * 127.5).astype(jnp.uint8)
        return levels, jnp.isfinite(image).all()

    return jax.lax.map(one, latents)


def _beside(
    model: Model, scene: Scene, grid: tuple[int, int], encode: Callable[[Array], Array]
) -> Float[Array, "b h w e"]:
    """The mask, and what is known: as diffusers' `StableDiffusionInpaintPipeline` gives both."""
    b, factor = scene.ids.shape[0], model.base.vae_scale_factor
    if scene.masked_image is None or scene.keep is None:  # all is to be painted
        nothing = encode(jnp.zeros((grid[0] * factor, grid[1] * factor, 3)))
        mask = jnp.ones((*grid, 1), nothing.dtype)
        beside = jnp.concatenate([mask, nothing], -1)
        return jnp.broadcast_to(beside, (b, *beside.shape))
    known = jax.lax.map(encode, scene.masked_image)
    mask = (scene.keep <= 0.5).astype(known.dtype)
    return jnp.concatenate([mask, known], -1)


def _with_beside(
    latents: Float[Array, "gb h w c"], conditions: Conditions, branches: int
) -> Float[Array, "gb h w d"]:
    """What the UNet reads, for all branches: the latents, and beside them what there is."""
    if conditions.beside is None:
        return latents
    return jnp.concatenate([latents, for_branches(conditions.beside, branches)], -1)


def _seen(
    model: Model, latents: Float[Array, "*r h w c"], clean: Float[Array, "*r h w c"]
) -> Float[Array, "*r h w d"]:
    """What the UNet reads of photos: to one that inpaints a photo is an image that is all known."""
    if not model.base.is_inpainting:
        return latents
    nowhere = jnp.zeros((*latents.shape[:-1], 1), latents.dtype)
    return jnp.concatenate([latents, nowhere, clean], -1)


def _with_people(
    model: Model, params: Params, scene: Scene, conditions: Conditions, grid: tuple[int, int]
) -> Conditions:
    people = scene.people
    assert people is not None
    height, width = grid
    conditions = conditions._replace(
        strength=people.strength,
        layer_strength=people.layer_strength,
        photos=people.photos,
    )
    visible = jnp.ones(people.owner.shape, jnp.float32)
    where: dict[str, Any] = {
        "height": height, "width": width, "masks": people.masks, "owner": people.owner
    }  # fmt: skip
    if people.photos is None:
        faces = model.fusion.faces(params["fusion"], people.states, visible, **where)
        return conditions._replace(faces=faces)
    empty = model.base.encode_text(params["base"], scene.empty_ids)
    bias = model.fusion.face_bias(visible, **where)
    return conditions._replace(empty=empty, faces=Faces({}, {}, bias))


def _faces(
    model: Model, params: Params, conditions: Conditions, index: Array, timesteps: Array
) -> Faces | None:
    """The faces at one step, for b images."""
    faces = conditions.faces
    if faces is None:
        return None
    assert conditions.strength is not None
    if conditions.photos is not None:
        keys, values = _matched_tokens(model, params, conditions, timesteps)
        faces = faces._replace(keys=keys, values=values)

    def spread(array: Array) -> Array:
        return jnp.broadcast_to(array, (timesteps.shape[0], *array.shape[1:]))

    faces = faces._replace(
        keys=jax.tree.map(spread, faces.keys), values=jax.tree.map(spread, faces.values)
    )
    return faces.with_strength(conditions.strength[:, index], conditions.layer_strength)


def _matched_tokens(
    model: Model, params: Params, conditions: Conditions, timesteps: Array
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Kf, Vf of photos noised to this step's level (the reference option `matched`)."""
    photos, schedule = conditions.photos, model.base.schedule
    assert photos is not None
    assert conditions.empty is not None
    a = jnp.interp(
        timesteps[0],
        jnp.arange(schedule.num_train_timesteps, dtype=jnp.float32),
        jnp.asarray(schedule.alphas_cumprod),
    )
    # The photos' noise depends on nothing but their place, so that images are repeatable.
    noise = jax.random.normal(jax.random.key(0), photos.shape[1:])
    noised = jnp.sqrt(a) * photos + jnp.sqrt(1 - a) * noise[None]
    states = model.fusion.reference_states(
        params["base"]["unet"],
        _seen(model, noised, photos),
        conditions.empty,
        timesteps[: len(photos)],
    )
    return model.fusion.face_tokens(params["fusion"], states)


def _residuals(
    model: Model, params: Params, conditions: Conditions, latents: Array, timesteps: Array
) -> dict[str, Any]:
    """The ControlNet's part, for all branches."""
    if conditions.control_image is None:
        return {}
    assert conditions.control_text is not None
    assert conditions.control_scale is not None
    g = conditions.guidance.shape[1]
    return model.controlnet.residuals(
        params["controlnet"],
        latents,
        timesteps,
        of_branches(*conditions.control_text, g),
        for_branches(conditions.control_image, g),
        for_branches(conditions.control_scale, g),
    )


def _normal(seed: Array, stream: Array | int, shape: Sequence[int]) -> Array:
    """Unit noise of one image: stream 0 starts it, stream 1 + s is step s."""
    return jax.random.normal(jax.random.fold_in(jax.random.key(seed), stream), shape)
