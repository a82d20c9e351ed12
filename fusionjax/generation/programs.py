"""The programs that a pipeline compiles, and how they run on one device or several.

A program goes from named arrays to named arrays; what one returns under a name is what another
reads under it (`_READS`). No program holds a weight or a prompt: what is not an array here, and so
part of the compiled program, is the models' structure and the few keyword arguments.

Legend: b pictures, m people sets (b, or 1 where all pictures show the same), g branches of the
guidance, s steps, r references, i identities, k tokens of a photo, t text tokens, h w latent grid,
c latent channels, H W pixels, n heads, D d features.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fusionjax import masks as masking
from fusionjax.diffusion import samplers as schedulers
from fusionjax.models.base import BaseModel
from fusionjax.unet import Faces, FusionUNet


class Programs:
    """What is computed, as pure functions of weights and named arrays.

    Args:
        base: the base model.
        fusion: its UNet, able to see faces.
        controlnet: a `fusionjax.models.controlnet.ControlNet` or None.
    """

    def __init__(self, base: BaseModel, fusion: FusionUNet, controlnet: Any = None) -> None:
        self.base = base
        self.fusion = fusion
        self.controlnet = controlnet

    def photo(self, params: Any, x: Any) -> dict[str, Any]:
        """A photo [1, H, W, 3] → its latents [1, h, w, c] and hf [1, k, D] of every layer."""
        latents: Any = self.base.encode_image(params["base"], x["image"])
        if self.fusion.options.reference != "clean":
            return {"latents": latents, "states": {}}
        empty: Any = self.base.encode_text(params["base"], x["empty_ids"])
        states = self.fusion.reference_states(params["base"]["unet"], latents[None], empty)
        return {
            "latents": latents,
            "states": {layer: h[0].astype(jnp.bfloat16) for layer, h in states.items()},
        }

    def image(self, params: Any, x: dict[str, Any]) -> dict[str, Any]:
        """Images [b, H, W, 3] → latents, one at a time."""

        def one(image: Array) -> Array:
            return self.base.encode_image(params["base"], image[None])[0]

        return {"known": jax.lax.map(one, x["images"])}

    def noise(self, params: Any, x: dict[str, Any], *, grid: tuple[int, int]) -> dict[str, Any]:
        """Unit starting noise [b, h, w, c], each picture's from its own seed."""
        shape = (*grid, self.base.unet.in_channels)
        return {"start_noise": jax.vmap(lambda seed: _normal(seed, 0, shape))(x["seeds"])}

    def look(self, params: Any, x: dict[str, Any], *, grid: tuple[int, int]) -> dict[str, Any]:
        """What the UNet attends to: Kc, Vc [b, t, n, d], Kf, Vf [m, r, k, n, d], the masks' M."""
        b = x["ids"].shape[0]
        ids = jnp.concatenate([x["negative_ids"], x["ids"]])
        text: Any = self.base.encode_text(params["base"], ids)
        tokens = self.fusion.text_tokens(params["base"]["unet"], text)
        look: dict[str, Any] = {
            "negative": jax.tree.map(lambda array: array[:b], tokens),
            "positive": jax.tree.map(lambda array: array[b:], tokens),
        }
        if self.controlnet is not None:  # it has keys and values of its own
            look |= {"negative_states": text[:b], "positive_states": text[b:]}
        if "states" not in x:
            return look
        if x["states"]:
            keys, values = self.fusion.face_tokens(params["fusion"], x["states"])
            look |= {"keys": keys, "values": values}
        else:
            look["empty"] = self.base.encode_text(params["base"], x["empty_ids"])
        if "masks" in x:
            ones = jnp.ones(x["owner"].shape, jnp.float32)
            look["bias"] = {
                name: masking.layer_bias(ones, layer.grid(*grid), x["masks"], x["owner"])
                for name, layer in self.fusion.layers.items()
            }
        return look

    def start(self, params: Any, x: dict[str, Any]) -> dict[str, Any]:
        """The latents before the first step: noise, or a given picture under noise."""
        latents = x["start_levels"][1] * x["start_noise"]
        if "known" in x:
            latents = latents + x["start_levels"][0] * x["known"]
        return {"carry": schedulers.Carry.start(latents)}

    def steps(
        self, params: Any, x: dict[str, Any], *, branches: int, in_negative: bool
    ) -> dict[str, Any]:
        """Some steps of the sampler: the rows from `x["span"][0]` until `x["span"][1]`."""
        b, *shape = x["carry"].latents.shape

        def of_branches(negative: Any, positive: Any) -> Any:
            parts = [*[negative] * (branches > 1), positive, *[positive] * (branches > 2)]
            return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)

        text = of_branches(x["negative"], x["positive"])

        def tiled(array: Array) -> Array:
            return jnp.tile(array, (branches, *[1] * (array.ndim - 1)))

        def step(index: Array, carry: schedulers.Carry) -> schedulers.Carry:
            now = jax.tree.map(lambda column: column[index], x["rows"])
            row = now["row"]
            latents = tiled(carry.latents * row.input_scale)
            timesteps = jnp.full(branches * b, row.timesteps)
            faces = None
            if "layer_log" in x:
                faces = self._faces(params, x, now)
                if in_negative:
                    faces = jax.tree.map(tiled, faces)
            residuals = {}
            if "control_image" in x:
                residuals = self.controlnet.residuals(
                    params["controlnet"],
                    latents,
                    timesteps,
                    of_branches(x["negative_states"], x["positive_states"]),
                    tiled(x["control_image"]),
                    tiled(x["control_strength"]),
                )
            answers = self.fusion(
                params["base"]["unet"], latents, timesteps, text, faces, **residuals
            )
            answer = jnp.einsum("gb,gbhwc->bhwc", x["mix"], answers.reshape(branches, b, *shape))
            noise = jax.vmap(lambda seed: _normal(seed, index + 1, shape))(x["seeds"])
            carry = schedulers.advance(row, carry, answer, noise)
            if "known" in x:
                level = row.next_clean * x["known"] + row.next_noise * x["start_noise"]
                kept = x["keep"] * level + (1 - x["keep"]) * carry.latents
                carry = carry._replace(latents=kept)
            return carry

        # The span is data: one program runs any number of rows.
        return {"carry": jax.lax.fori_loop(x["span"][0], x["span"][1], step, x["carry"])}

    def _faces(self, params: Any, x: dict[str, Any], now: dict[str, Any]) -> Faces:
        """The faces at one step, for b pictures: log λ is added to the masks' M."""
        strength = now["log_strength"] + self.fusion.options.face_logit_bias
        keys, values = (
            self._matched_tokens(params, x, now) if "photos" in x else (x["keys"], x["values"])
        )
        bias = {}
        for index, name in enumerate(self.fusion.layers):
            bias[name] = (strength + x["layer_log"][index][:, None])[:, None, :]
            if "bias" in x:
                bias[name] = bias[name] + x["bias"][name]

        def spread(array: Array) -> Array:
            return jnp.broadcast_to(array, (strength.shape[0], *array.shape[1:]))

        return Faces(jax.tree.map(spread, keys), jax.tree.map(spread, values), bias)

    def _matched_tokens(self, params: Any, x: dict[str, Any], now: dict[str, Any]) -> Any:
        """Kf, Vf of photos noised to this step's level (the reference option `matched`)."""
        photos = x["photos"]
        # The photos' noise depends on nothing but their place, so that pictures are repeatable.
        noise = jax.random.normal(jax.random.key(0), photos.shape[1:])
        noised = now["photo_levels"][0] * photos + now["photo_levels"][1] * noise[None]
        timesteps = jnp.full(photos.shape[0], now["row"].timesteps)
        states = self.fusion.reference_states(params["base"]["unet"], noised, x["empty"], timesteps)
        return self.fusion.face_tokens(params["fusion"], states)

    def share(self, params: Any, x: dict[str, Any]) -> dict[str, Any]:
        """How attention is shared at one step: mean of the layers, at the finest one's grid."""
        row, latents = x["now"]["row"], x["carry"].latents
        shares = self.fusion.attention_share(
            params["base"]["unet"],
            latents * row.input_scale,
            jnp.full(latents.shape[0], row.timesteps),
            x["positive"],
            self._faces(params, x, x["now"]),
        )
        finest = max(share.shape[1:3] for share in shares.values())
        resized = [
            jax.image.resize(share, (share.shape[0], *finest, share.shape[3]), "nearest")
            for share in shares.values()
        ]
        return {"share": jnp.mean(jnp.stack(resized), 0)}

    def decode(self, params: Any, x: dict[str, Any], *, in_float32: bool = False) -> dict[str, Any]:
        """Latents → grey levels, one picture at a time: a large VAE holds no batch at once.

        `finite` tells of each picture whether it can be shown; `in_float32` decodes again what a
        16-bit type could not hold.
        """
        base = self.base
        if in_float32:
            vae = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params["base"]["vae"])
            params = {"base": {"vae": vae}}
            base = dataclasses.replace(base, vae=base.vae.clone(dtype=jnp.float32))

        def one(latents: Array) -> tuple[Array, Array]:
            image = base.decode(params["base"], latents[None])[0]
            levels = jnp.round((jnp.clip(image, -1, 1) + 1) * 127.5).astype(jnp.uint8)
            return levels, jnp.isfinite(image).all()

        images, finite = jax.lax.map(one, x["carry"].latents)
        return {"images": images, "finite": finite}


def _normal(seed: Array, stream: Array | int, shape: Sequence[int]) -> Array:
    """Unit noise of one picture: stream 0 starts it, stream 1 + s is step s."""
    return jax.random.normal(jax.random.fold_in(jax.random.key(seed), stream), shape)
