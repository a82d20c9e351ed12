"""Equations 1, 2 and 6: the frozen UNet, seeing faces.

    Q  = Linear_q(h)     Kc = Linear_k(c)     Vc = Linear_v(c)        (1)   frozen
    Kf = Linear_kf(hf)   Vf = Linear_vf(hf)                           (2)   trained
    K' = [Kc; Kf1; …; Kfr],  V' likewise                              (3, 6)

`hf` is what the same UNet, given a photo of the person, feeds to the same cross-attention: a
first run of the UNet captures it (`reference_states`), `kf` and `vf` project it
(`face_tokens`), and the denoising run concatenates it to the text (`__call__`). Both runs are
diffusers' own `FlaxUNet2DConditionModel`, untouched: `flax.linen.intercept_methods` replaces
what its attention computes, and how its convolutions are computed (`convolution.py`).

Layers are named as PyTorch's UNet names their cross-attention, for example
`down_blocks.0.attentions.0.transformer_blocks.0.attn2`. Latents are channels-last.

Axes: b batch, h w latent grid, c latent channels, t d tokens and features of the text, r
references, k tokens of one reference, D features of a layer, n heads, e features of a head.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from diffusers.models.attention_flax import FlaxAttention
from diffusers.models.unets.unet_2d_condition_flax import FlaxUNet2DConditionModel
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from fusionjax import attention as fused
from fusionjax import masks as masking
from fusionjax.backend.flax_unet import (
    BLOCK_OUTPUT,
    CrossAttention,
    Params,
    find_layers,
    intercept_attention,
    intercept_convolutions,
    split_heads,
)
from fusionjax.errors import UserError
from fusionjax.options import FusionOptions, Implementation

FusionParams = dict[str, dict[str, Array]]
ReferenceStates = dict[str, Array]


class TextTokens(NamedTuple):
    """Equation 1 for a prompt: it does not depend on the picture, so once is enough for all steps.

    Attributes:
        keys: Kc of each layer, [b, t, n, e].
        values: Vc of each layer, [b, t, n, e].
    """

    keys: dict[str, Array]
    values: dict[str, Array]


@flax.struct.dataclass
class Faces:
    """The people of a batch, as one denoising pass needs them. All of it is data: none recompiles.

    Attributes:
        keys: Kf of each layer, [b, r, k, n, e].
        values: Vf of each layer, [b, r, k, n, e].
        bias: M of each layer, [b, q or 1, r]: log λ, masks, and INVISIBLE for padding.
    """

    keys: dict[str, Array]
    values: dict[str, Array]
    bias: dict[str, Array]

    def with_strength(self, factor: Float[Array, ""] | Float[Array, " b"]) -> "Faces":
        """Multiplies every λ by `factor` ≥ 0, one number or one for each picture."""
        log = masking.log_strength(jnp.reshape(factor, (-1, 1, 1)))
        return dataclasses.replace(
            self, bias={layer: bias + log for layer, bias in self.bias.items()}
        )


@jax.custom_vjp
def _project(hidden: Array, kernel: Array) -> Array:
    """Equation 2 in the type of `hidden`; the gradient of `kernel` is worked out in float32.

    It is summed over the batch, on several devices by an all-reduce, and 16 bits would lose what
    the sum is for.
    """
    return jnp.einsum("brkD,De->brke", hidden, kernel.astype(hidden.dtype))


def _project_forward(hidden: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _project(hidden, kernel), (hidden, kernel)


def _project_backward(saved: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
    hidden, kernel = saved
    of_hidden = jnp.einsum("brke,De->brkD", slope, kernel.astype(slope.dtype))
    of_kernel = jnp.einsum("brkD,brke->De", hidden, slope, preferred_element_type=jnp.float32)
    return of_hidden, of_kernel.astype(kernel.dtype)


_project.defvjp(_project_forward, _project_backward)


class FusionUNet:
    """The frozen UNet and the faces.

    Holds no weights: `unet_params` and `fusion_params` are arguments of every method, so that a
    compiled program contains none.

    Attributes:
        unet: The model, unchanged.
        options: How faces are seen.
        layers: Every cross-attention by name, in the order in which an image meets them.
    """

    def __init__(
        self,
        unet: FlaxUNet2DConditionModel,
        options: FusionOptions | None = None,
        *,
        attention: Implementation | str | None = None,
        remat: bool = False,
        mesh: Mesh | None = None,
    ) -> None:
        """Finds the layers and checks that every one of them can be intercepted.

        Args:
            unet: Any `FlaxUNet2DConditionModel` with cross-attention; its `dtype` is what the
                model computes in.
            options: As the adapter was trained; None for the defaults.
            attention: Implementation for all layers, None for the platform's fastest.
            remat: Keep only each block's output for the backward pass and compute the rest again:
                less memory, about a third more time a training step.
            mesh: With several devices, see `attention.attention`.

        Raises:
            UserError: When the UNet has no cross-attention, or nothing else.
            RuntimeError: When a cross-attention in the parameters is not met by the interception.
        """
        if np.any(unet.only_cross_attention):
            raise UserError(
                "the UNet attends to the text alone (only_cross_attention); one whose attn1 is "
                "self-attention, as in Stable Diffusion 1.5, is needed"
            )
        self.unet = unet
        self.options = options or FusionOptions()
        self.layers = find_layers(unet)
        self._attention = attention
        self._remat = remat
        self._mesh = mesh

    def init(self, key: Array, unet_params: Params) -> FusionParams:
        """Starts kf and vf as `options.init` says.

        Args:
            key: For `random`.
            unet_params: The frozen weights, whose attention is copied.

        Returns:
            `{layer: {"kf": [D, n·e], "vf": [D, n·e]}}`, float32.
        """
        params: FusionParams = {}
        for index, (name, layer) in enumerate(self.layers.items()):
            block: Any = unet_params
            for part in layer.path[:-1]:
                block = block[part]
            kf = jnp.asarray(block["attn1"]["to_k"]["kernel"], jnp.float32)
            vf = jnp.asarray(block["attn1"]["to_v"]["kernel"], jnp.float32)
            if self.options.init == "query":
                kf = jnp.asarray(block["attn2"]["to_q"]["kernel"], jnp.float32)
            if self.options.init in ("zeros", "query"):
                vf = jnp.zeros_like(vf)
            elif self.options.init == "random":
                keys = jax.random.split(jax.random.fold_in(key, index))
                kf, vf = (
                    jax.random.normal(k, x.shape) * x.shape[0] ** -0.5
                    for k, x in zip(keys, (kf, vf), strict=True)
                )
            params[name] = {"kf": kf, "vf": vf}
        return params

    def reference_states(
        self,
        unet_params: Params,
        latents: Float[Array, "b r h w c"],
        text: Float[Array, "#b t d"],
        timesteps: Int[Array, " b"] | Float[Array, " b"] | None = None,
    ) -> ReferenceStates:
        """Runs photos through the frozen UNet and keeps hf, the input of every cross-attention.

        No gradient flows into or through this pass.

        Args:
            unet_params: The frozen weights.
            latents: The photos' latents, scaled as the UNet expects; clean for `clean`, noised to
                `timesteps` for `matched`.
            text: Text states of the photos: those of the empty prompt.
            timesteps: One for each picture; None is timestep 0.

        Returns:
            hf for each layer, [b, r, k, D], in the UNet's dtype.
        """
        _check_axes("latents", latents, "b r h w c", c=self.unet.in_channels)
        b, references, height, width, _ = latents.shape
        self._check_size(height, width)
        if timesteps is None:
            timesteps = jnp.zeros(b, jnp.int32)
        _check_axes("timesteps", timesteps, "b", b=b)
        states: ReferenceStates = {}
        unet_params = jax.lax.stop_gradient(unet_params)

        def of_photos(tokens: Array) -> Array:
            every_picture = jnp.broadcast_to(tokens, (b, *tokens.shape[1:]))
            return jnp.repeat(every_picture, references, axis=0)

        tokens = jax.tree.map(of_photos, self.text_tokens(unet_params, text))

        def capture(name: str, module: FlaxAttention, hidden: Array) -> Array:
            states[name] = hidden
            return self._attend(module, hidden, (tokens.keys[name], tokens.values[name]))

        self._run(
            unet_params,
            jax.lax.stop_gradient(latents.reshape(b * references, *latents.shape[2:])),
            jnp.repeat(timesteps, references),
            capture,
        )
        return {
            name: jax.lax.stop_gradient(hidden.reshape(b, references, *hidden.shape[1:]))
            for name, hidden in states.items()
        }

    def text_tokens(self, unet_params: Params, text: Float[Array, "b t d"]) -> TextTokens:
        """Equation 1: Kc and Vc of every layer.

        Args:
            unet_params: The frozen weights.
            text: Text states.

        Returns:
            Keys and values, for `__call__` in place of the text states.
        """
        _check_axes("text", text, "b t d", d=self.unet.cross_attention_dim)
        states = text.astype(self.unet.dtype)
        tokens = TextTokens({}, {})
        for name, layer in self.layers.items():
            module = functools.reduce(lambda params, part: params[part], layer.path, unet_params)
            shape = (*text.shape[:2], layer.heads, layer.head_features)
            for weight, found in (("to_k", tokens.keys), ("to_v", tokens.values)):
                kernel = module[weight]["kernel"].astype(self.unet.dtype)
                found[name] = (states @ kernel).reshape(shape)
        return tokens

    def face_tokens(
        self, fusion_params: FusionParams, states: ReferenceStates
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Equation 2: Kf and Vf of every layer.

        Args:
            fusion_params: kf and vf.
            states: hf, [b, r, k, D] for each layer.

        Returns:
            Keys and values, each [b, r, k, n, e] for each layer.
        """
        keys: dict[str, Array] = {}
        values: dict[str, Array] = {}
        for name, layer in self.layers.items():
            hidden = states[name].astype(self.unet.dtype)
            shape = (*hidden.shape[:3], layer.heads, layer.head_features)
            for weight, tokens in (("kf", keys), ("vf", values)):
                tokens[name] = _project(hidden, fusion_params[name][weight]).reshape(shape)
        return keys, values

    def faces(
        self,
        fusion_params: FusionParams,
        states: ReferenceStates,
        strength: Float[Array, "b r"],
        *,
        height: int,
        width: int,
        masks: Float[Array, "b i H W"] | None = None,
        owner: Int[Array, "b r"] | None = None,
        layer_strength: Mapping[str, float | Array] | None = None,
    ) -> Faces:
        """Everything a denoising pass needs of the people in its pictures.

        Args:
            fusion_params: kf and vf.
            states: hf, [b, r, k, D] for each layer.
            strength: λ ≥ 0 of every reference. 0 hides it: use it for padding, for dropped faces
                and for the unconditional branch.
            height: Of the latent grid of the picture that is painted.
            width: Likewise.
            masks: The region of each identity, in [0, 1], at a multiple of the latent grid
                (normally the picture's size). A mask of zeros restricts nobody.
            owner: The identity that each reference shows; needed with masks.
            layer_strength: Factors on λ for layers by name; 1 where a layer is not named.

        Returns:
            The faces, for `__call__`.

        Raises:
            UserError: On shapes or values that cannot be right, before anything is compiled.
        """
        self._check_size(height, width)
        self._check_people(states, strength, height, width, masks, owner)
        layer_strength = layer_strength or {}
        for name in layer_strength:
            if name not in self.layers:
                raise UserError(
                    f"layer_strength names {name!r}; the layers are {', '.join(self.layers)}"
                )
        keys, values = self.face_tokens(fusion_params, states)
        bias = {
            name: masking.layer_bias(
                strength * layer_strength.get(name, 1.0), layer.grid(height, width), masks, owner
            )
            + self.options.face_logit_bias
            for name, layer in self.layers.items()
        }
        return Faces(keys=keys, values=values, bias=bias)

    def __call__(
        self,
        unet_params: Params,
        latents: Float[Array, "b h w c"],
        timesteps: Int[Array, " b"] | Float[Array, " b"],
        text: Float[Array, "b t d"] | TextTokens,
        faces: Faces | None = None,
        *,
        down_residuals: tuple[Array, ...] | None = None,
        mid_residual: Array | None = None,
    ) -> Float[Array, "b h w o"]:
        """Predicts the noise (or the velocity, as the base was trained).

        Args:
            unet_params: The frozen weights.
            latents: Noisy latents. Height and width must halve evenly down to the UNet's lowest
                level.
            timesteps: One for each picture.
            text: Text states, or what `text_tokens` made of them.
            faces: The people; None is the base model. Faces of fewer pictures than the batch
                belong to the last ones; the first (the branches without faces of classifier-free
                guidance) are the base model and cost no more than it.
            down_residuals: A ControlNet's residuals, as `FlaxControlNetModel` returns them.
            mid_residual: Likewise.

        Returns:
            The prediction, float32.

        Raises:
            UserError: On latents that the UNet cannot halve.
        """
        self._check_inputs(latents, timesteps)
        tokens = self._tokens(unet_params, text, latents.shape[0])

        def fuse(name: str, module: FlaxAttention, hidden: Array) -> Array:
            own = tokens.keys[name], tokens.values[name]
            return self._attend(module, hidden, own, faces, name)

        prediction = self._run(
            unet_params,
            latents,
            timesteps,
            fuse,
            down_residuals,
            mid_residual,
            remat=self._remat,
        )
        return prediction.astype(jnp.float32)

    def attention_share(
        self,
        unet_params: Params,
        latents: Float[Array, "b h w c"],
        timesteps: Int[Array, " b"] | Float[Array, " b"],
        text: Float[Array, "b t d"] | TextTokens,
        faces: Faces,
    ) -> dict[str, Array]:
        """How much each layer attends to the text and to each reference at one denoising step.

        Args:
            unet_params: The frozen weights.
            latents: Noisy latents.
            timesteps: One for each picture.
            text: Text states, or what `text_tokens` made of them.
            faces: The people.

        Returns:
            For each layer [b, rows, columns, 1 + r]: shares that sum to 1, the text's first.
            Exact for `concat`, whose softmax is shared.

        Raises:
            UserError: For a `decoupled` adapter, where no softmax is shared.
        """
        if self.options.fusion != "concat":
            raise UserError(
                "attention shares exist for fusion='concat', where one softmax is shared"
            )
        self._check_inputs(latents, timesteps)
        tokens = self._tokens(unet_params, text, latents.shape[0])
        height, width = latents.shape[1:3]
        shares: dict[str, Array] = {}

        def record(name: str, module: FlaxAttention, hidden: Array) -> Array:
            own = tokens.keys[name], tokens.values[name]
            share = fused.attention_share(
                split_heads(module, module.query(hidden)),
                own[0],
                faces.keys[name],
                faces.bias[name],
            )
            grid = self.layers[name].grid(height, width)
            shares[name] = share.reshape(share.shape[0], *grid, share.shape[-1])
            return self._attend(module, hidden, own, faces, name)

        self._run(unet_params, latents, timesteps, record)
        return shares

    # --- inside ---------------------------------------------------------------------------

    def _run(
        self,
        unet_params: Params,
        latents: Array,
        timesteps: Array,
        cross_attention: "CrossAttention",
        down_residuals: tuple[Array, ...] | None = None,
        mid_residual: Array | None = None,
        *,
        remat: bool = False,
    ) -> Array:
        """One pass of the UNet in which `cross_attention` computes every `attn2`."""
        intercept = intercept_attention(cross_attention, self._attend)
        # Diffusers wants text states; whoever reads them is intercepted.
        text = jnp.zeros((latents.shape[0], 1, self.unet.cross_attention_dim), self.unet.dtype)

        def apply(unet_params: Params, latents: Array) -> Array:
            with nn.intercept_methods(intercept), nn.intercept_methods(intercept_convolutions):
                sample = self.unet.apply(
                    {"params": unet_params},
                    jnp.moveaxis(latents, -1, 1).astype(self.unet.dtype),
                    timesteps,
                    text,
                    down_block_additional_residuals=down_residuals,
                    mid_block_additional_residual=mid_residual,
                    return_dict=False,
                )[0]
            return jnp.moveaxis(sample, 1, -1)

        if remat:
            only_blocks = jax.checkpoint_policies.save_only_these_names(BLOCK_OUTPUT)
            apply = jax.checkpoint(apply, policy=only_blocks)
        return apply(unet_params, latents)

    def _attend(
        self,
        module: FlaxAttention,
        hidden: Array,
        text: tuple[Array, Array] | None = None,
        faces: Faces | None = None,
        name: str = "",
    ) -> Array:
        """What a `FlaxAttention` computes, by the fused attention; without text, of the image."""
        query = split_heads(module, module.query(hidden))
        key, value = text or tuple(
            split_heads(module, project(hidden)) for project in (module.key, module.value)
        )
        attend = functools.partial(
            fused.attention,
            fusion=self.options.fusion,
            implementation=self._attention,
            mesh=self._mesh,
        )
        if faces is None:
            out = attend(query, key, value)
        else:
            of_faces = faces.keys[name], faces.values[name], faces.bias[name]
            plain = query.shape[0] - of_faces[0].shape[0]
            out = attend(query[plain:], key[plain:], value[plain:], *of_faces)
            if plain:
                text_only = attend(query[:plain], key[:plain], value[:plain])
                out = jnp.concatenate([text_only, out])
        return module.proj_attn(out.reshape(*out.shape[:2], -1))

    def _tokens(self, unet_params: Params, text: Array | TextTokens, b: int) -> TextTokens:
        if isinstance(text, TextTokens):
            return text
        _check_axes("text", text, "b t d", b=b, d=self.unet.cross_attention_dim)
        return self.text_tokens(unet_params, text)

    def _check_inputs(self, latents: Array, timesteps: Array) -> None:
        _check_axes("latents", latents, "b h w c", c=self.unet.in_channels)
        b, height, width, _ = latents.shape
        _check_axes("timesteps", timesteps, "b", b=b)
        self._check_size(height, width)

    def _check_size(self, height: int, width: int) -> None:
        _check_halves(len(self.unet.down_block_types), height, width)

    def _check_people(
        self,
        states: ReferenceStates,
        strength: Array,
        height: int,
        width: int,
        masks: Array | None,
        owner: Array | None,
    ) -> None:
        _check_axes("strength", strength, "b r")
        if missing := [name for name in self.layers if name not in states]:
            raise UserError(
                f"the reference states lack {len(missing)} of {len(self.layers)} layers, first "
                f"{missing[0]}; they were made with another base model"
            )
        for name, layer in self.layers.items():
            shape = states[name].shape
            if len(shape) != 4 or shape[:2] != strength.shape or shape[3] != layer.features:
                raise UserError(
                    f"the reference states of {name} have shape {shape}; with strength of shape "
                    f"{strength.shape} they must be "
                    f"[{strength.shape[0]}, {strength.shape[1]}, tokens, {layer.features}]"
                )
        if not isinstance(strength, jax.core.Tracer):
            masking.check_strength(np.asarray(strength))
        if masks is None:
            return
        if owner is None:
            raise UserError(
                "masks are given without owner: say which identity each reference shows"
            )
        b, references = strength.shape
        _check_axes("masks", masks, "b i h w", b=b)
        _check_axes("owner", owner, "b r", b=b, r=references)
        if masks.shape[2] % height or masks.shape[3] % width:
            raise UserError(
                f"masks are {masks.shape[2]}×{masks.shape[3]} (height × width), no multiple of the "
                f"latent grid {height}×{width}; give them at the picture's size"
            )
        identities = masks.shape[1]
        if not isinstance(owner, jax.core.Tracer) and not (
            int(owner.min()) >= 0 and int(owner.max()) < identities
        ):
            raise UserError(
                f"owner names identity {int(owner.max())}, and there are {identities} masks "
                f"(0 to {identities - 1}); give one mask for each identity"
            )


def _check_axes(name: str, array: Array, axes: str, **sizes: int) -> None:
    """Raises UserError unless the array has these axes, some of them of a given size."""
    wanted = axes.split()
    shape = array.shape
    if len(shape) != len(wanted) or any(
        sizes.get(axis, size) != size for axis, size in zip(wanted, shape, strict=True)
    ):
        words = ", ".join(str(sizes.get(axis, axis)) for axis in wanted)
        raise UserError(f"{name} has shape {tuple(shape)}; it must be [{words}]")


def _check_halves(levels: int, height: int, width: int) -> None:
    step = 2 ** (levels - 1)
    if height % step or width % step or not height or not width:
        raise UserError(
            f"latents are {height}×{width} (height × width); the UNet halves them {levels - 1} "
            f"times, so both must be multiples of {step} (pictures: of {8 * step} pixels)"
        )
