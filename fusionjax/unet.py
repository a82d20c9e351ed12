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

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from fusionjax import attention as fused
from fusionjax import masks as masking
from fusionjax.backend import flax_unet
from fusionjax.backend.flax_apply import applied
from fusionjax.backend.flax_classes import FlaxAttention, FlaxUNet2DConditionModel
from fusionjax.backend.flax_unet import Params, split_heads
from fusionjax.errors import UserError
from fusionjax.faces import (
    Faces,
    FusionParams,
    ReferenceStates,
    TextTokens,
    check_axes,
    check_people,
    check_states,
    initial_params,
    project,
)
from fusionjax.options import FusionOptions, Implementation


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
        self.layers = flax_unet.find_layers(unet)
        self._attention = attention
        self._remat = remat
        self._mesh = mesh

    def init(self, key: Array, unet_params: Params) -> FusionParams:
        """Starts kf and vf as `options.init` says, see `faces.initial_params`."""
        return initial_params(self.layers, self.options.init, key, unet_params)

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
        check_axes("latents", latents, "b r h w c", c=self.unet.in_channels)
        b, references = latents.shape[:2]
        if timesteps is None:
            timesteps = jnp.zeros(b, jnp.int32)
        check_axes("timesteps", timesteps, "b", b=b)
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
        check_axes("text", text, "b t d", d=self.unet.cross_attention_dim)
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
                tokens[name] = project(hidden, fusion_params[name][weight]).reshape(shape)
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
    ) -> Faces:
        """Everything a denoising pass needs of the people in its images.

        Args:
            fusion_params: kf and vf.
            states: hf, [b, r, k, D] for each layer; [1, r, k, D] where all images show the same.
            strength: λ ≥ 0 of every reference. 0 hides it: use it for padding, for dropped faces
                and for the unconditional branch.
            height: Of the latent grid of the image that is generated.
            width: Likewise.
            masks: The region of each identity, in [0, 1], at a multiple of the latent grid
                (normally the image's size). A mask of zeros restricts nobody.
            owner: The identity that each reference shows; needed with masks.

        Returns:
            The faces, for `__call__`.

        Raises:
            UserError: On shapes or values that cannot be right, before anything is compiled.
        """
        check_states(self.layers, states, strength)
        keys, values = self.face_tokens(fusion_params, states)
        bias = self.face_bias(strength, height=height, width=width, masks=masks, owner=owner)
        return Faces(keys=keys, values=values, bias=bias)

    def face_bias(
        self,
        strength: Float[Array, "b r"],
        *,
        height: int,
        width: int,
        masks: Float[Array, "b i H W"] | None = None,
        owner: Int[Array, "b r"] | None = None,
    ) -> dict[str, Array]:
        """M of equation 4 for every layer, see `faces`."""
        check_people(strength, height, width, masks, owner)

        def of_layer(layer: flax_unet.AttentionLayer) -> Array:
            grid, cell = layer.grid(height, width), None
            if masks is not None:  # a token stands for 2^level latents
                pixels = masks.shape[2] // height, masks.shape[3] // width
                cell = pixels[0] << layer.level, pixels[1] << layer.level
            return masking.layer_bias(strength, grid, masks, owner, cell=cell)

        bias = self.options.face_logit_bias
        return {name: of_layer(layer) + bias for name, layer in self.layers.items()}

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
            latents: Noisy latents.
            timesteps: One for each picture.
            text: Text states, or what `text_tokens` made of them.
            faces: The people; None is the base model. Faces of fewer pictures than the batch
                belong to the last ones; the first (the branches without faces of classifier-free
                guidance) are the base model and cost no more than it.
            down_residuals: A ControlNet's residuals, as `FlaxControlNetModel` returns them.
            mid_residual: Likewise.

        Returns:
            The prediction, float32.
        """
        tokens = self._checked_tokens(unet_params, latents, timesteps, text)

        def fuse(name: str, module: FlaxAttention, hidden: Array) -> Array:
            own = tokens.keys[name], tokens.values[name]
            return self._attend(module, hidden, own, faces, name)

        residuals = down_residuals, mid_residual
        prediction = self._run(unet_params, latents, timesteps, fuse, residuals, remat=self._remat)
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

        Args: as of `__call__`.

        Returns:
            For each layer [b, rows, columns, 1 + r]: shares that sum to 1, the text's first.
            Exact for `concat`, whose softmax is shared.

        Raises:
            UserError: For a `decoupled` adapter, where no softmax is shared.
        """
        if self.options.fusion != "concat":
            raise UserError("attention shares exist for fusion='concat', with its one softmax")
        tokens = self._checked_tokens(unet_params, latents, timesteps, text)
        height, width = latents.shape[1:3]
        shares: dict[str, Array] = {}

        def record(name: str, module: FlaxAttention, hidden: Array) -> Array:
            own = tokens.keys[name], tokens.values[name]
            query = split_heads(module, module.query(hidden))
            share = fused.attention_share(query, own[0], faces.keys[name], faces.bias[name])
            grid = self.layers[name].grid(height, width)
            shares[name] = share.reshape(share.shape[0], *grid, share.shape[-1])
            return self._attend(module, hidden, own, faces, name)

        self._run(unet_params, latents, timesteps, record)
        return shares

    def _run(
        self,
        unet_params: Params,
        latents: Array,
        timesteps: Array,
        cross_attention: flax_unet.CrossAttention,
        residuals: tuple[tuple[Array, ...] | None, Array | None] = (None, None),
        *,
        remat: bool = False,
    ) -> Array:
        """One pass of the UNet in which `cross_attention` computes every `attn2`."""
        levels = len(self.unet.down_block_types)
        _, height, width, _ = latents.shape
        convolutions = flax_unet.intercept_convolutions(height, width, levels)
        intercept = flax_unet.intercept_attention(cross_attention, self._attend)
        # Diffusers wants text states; whoever reads them is intercepted.
        text = jnp.zeros((latents.shape[0], 1, self.unet.cross_attention_dim), self.unet.dtype)

        def apply(unet_params: Params, latents: Array) -> Array:
            with nn.intercept_methods(intercept), nn.intercept_methods(convolutions):
                sample = applied(
                    self.unet,
                    unet_params,
                    jnp.moveaxis(latents, -1, 1).astype(self.unet.dtype),
                    timesteps,
                    text,
                    down_block_additional_residuals=residuals[0],
                    mid_block_additional_residual=residuals[1],
                    return_dict=False,
                )[0]
            return jnp.moveaxis(sample, 1, -1)

        if remat:
            only_blocks = jax.checkpoint_policies.save_only_these_names(flax_unet.BLOCK_OUTPUT)
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

    def _checked_tokens(
        self, unet_params: Params, latents: Array, timesteps: Array, text: Array | TextTokens
    ) -> TextTokens:
        check_axes("latents", latents, "b h w c", c=self.unet.in_channels)
        b = latents.shape[0]
        check_axes("timesteps", timesteps, "b", b=b)
        if isinstance(text, TextTokens):
            return text
        check_axes("text", text, "b t d", b=b, d=self.unet.cross_attention_dim)
        return self.text_tokens(unet_params, text)
