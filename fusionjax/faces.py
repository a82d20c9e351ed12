"""Equation 2 and M: the people of a batch, as one pass of the UNet is told of them.

Axes: as in `unet.py`; b batch, r references, k tokens of one reference, D features of a layer,
n heads, e features of a head, q queries, t tokens of the text.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fusionjax import masks as masking
from fusionjax.backend.flax_unet import AttentionLayer, Params
from fusionjax.errors import UserError

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


class Faces(NamedTuple):
    """The people of a batch, as one denoising pass needs them. All of it is data: none recompiles.

    Attributes:
        keys: Kf of each layer, [b, r, k, n, e].
        values: Vf of each layer, [b, r, k, n, e].
        bias: M of each layer, [b, q or 1, r]: log λ, masks, and INVISIBLE for padding.
    """

    keys: dict[str, Array]
    values: dict[str, Array]
    bias: dict[str, Array]

    def with_strength(
        self,
        strength: Float[Array, "b r"],
        layer_strength: Mapping[str, Float[Array, " b"]] | None = None,
    ) -> "Faces":
        """Multiplies every λ: here the strength meets M, for all steps and layers.

        Args:
            strength: log of the factor on each reference, from `masks.log_strength`.
            layer_strength: log of a factor on each layer by name.

        Returns:
            The faces with their new M.
        """

        def stronger(layer: str, bias: Array) -> Array:
            log = strength if layer_strength is None else strength + layer_strength[layer][:, None]
            return bias + log[:, None, :]

        return self._replace(
            bias={layer: stronger(layer, bias) for layer, bias in self.bias.items()}
        )


@jax.custom_vjp
def project(hidden: Array, kernel: Array) -> Array:
    """Equation 2 in the type of `hidden`; the gradient of `kernel` is worked out in float32.

    It is summed over the batch, on several devices by an all-reduce, and 16 bits would lose what
    the sum is for.
    """
    return jnp.einsum("brkD,De->brke", hidden, kernel.astype(hidden.dtype))


def project_forward(hidden: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return project(hidden, kernel), (hidden, kernel)


def project_backward(saved: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
    hidden, kernel = saved
    of_hidden = jnp.einsum("brke,De->brkD", slope, kernel.astype(slope.dtype))
    of_kernel = jnp.einsum("brkD,brke->De", hidden, slope, preferred_element_type=jnp.float32)
    return of_hidden, of_kernel.astype(kernel.dtype)


project.defvjp(project_forward, project_backward)


def initial_params(
    layers: Mapping[str, AttentionLayer], init: str, key: Array, unet_params: Params
) -> FusionParams:
    """How kf and vf start.

    Args:
        layers: Of the UNet.
        init: Of `FusionOptions`.
        key: For `random`.
        unet_params: The frozen weights, whose attention is copied.

    Returns:
        `{layer: {"kf": [D, n·e], "vf": [D, n·e]}}`, float32.
    """
    params: FusionParams = {}
    for index, (name, layer) in enumerate(layers.items()):
        block: Any = unet_params
        for part in layer.path[:-1]:
            block = block[part]
        kf = jnp.asarray(block["attn1"]["to_k"]["kernel"], jnp.float32)
        vf = jnp.asarray(block["attn1"]["to_v"]["kernel"], jnp.float32)
        if init == "query":
            kf = jnp.asarray(block["attn2"]["to_q"]["kernel"], jnp.float32)
        if init in ("zeros", "query"):
            vf = jnp.zeros_like(vf)
        elif init == "random":
            keys = jax.random.split(jax.random.fold_in(key, index))
            kf, vf = (
                jax.random.normal(k, x.shape) * x.shape[0] ** -0.5
                for k, x in zip(keys, (kf, vf), strict=True)
            )
        params[name] = {"kf": kf, "vf": vf}
    return params


def check_states(
    layers: Mapping[str, AttentionLayer], states: ReferenceStates, strength: Array
) -> None:
    """Raises UserError unless there are states of every layer for every reference."""
    if missing := [name for name in layers if name not in states]:
        raise UserError(
            f"the reference states lack {len(missing)} of {len(layers)} layers, first "
            f"{missing[0]}; they were made with another base model"
        )
    check_axes("strength", strength, "b r")
    b, references = strength.shape
    for name, layer in layers.items():
        shape = states[name].shape
        fits = len(shape) == 4 and shape[0] in (1, b) and shape[1] == references
        if not fits or shape[3] != layer.features:
            raise UserError(
                f"the reference states of {name} have shape {shape}; with strength of shape "
                f"{strength.shape} they must be [{b}, {references}, tokens, {layer.features}]"
            )


def check_people(
    strength: Array,
    height: int,
    width: int,
    masks: Array | None,
    owner: Array | None,
) -> None:
    """Raises UserError for strengths, masks or owners that cannot be right."""
    check_axes("strength", strength, "b r")
    if not isinstance(strength, jax.core.Tracer):
        masking.check_strength(np.asarray(strength))
    if masks is None:
        return
    if owner is None:
        raise UserError("masks are given without owner: say which identity each reference shows")
    b, references = strength.shape
    check_axes("masks", masks, "b i h w", b=b)
    check_axes("owner", owner, "b r", b=b, r=references)
    if masks.shape[2] % height or masks.shape[3] % width:
        raise UserError(
            f"masks are {masks.shape[2]}×{masks.shape[3]} (height × width), no multiple of the "
            f"latent grid {height}×{width}; give them at the image's size"
        )
    identities = masks.shape[1]
    if not isinstance(owner, jax.core.Tracer) and not (
        int(owner.min()) >= 0 and int(owner.max()) < identities
    ):
        raise UserError(
            f"owner names identity {int(owner.max())}, and there are {identities} masks "
            f"(0 to {identities - 1}); give one mask for each identity"
        )


def check_axes(name: str, array: Array, axes: str, **sizes: int) -> None:
    """Raises UserError unless the array has these axes, some of them of a given size."""
    wanted = axes.split()
    shape = array.shape
    if len(shape) != len(wanted) or any(
        sizes.get(axis, size) != size for axis, size in zip(wanted, shape, strict=True)
    ):
        words = ", ".join(str(sizes.get(axis, axis)) for axis in wanted)
        raise UserError(f"{name} has shape {tuple(shape)}; it must be [{words}]")
