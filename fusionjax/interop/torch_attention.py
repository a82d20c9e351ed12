"""Equations 2 to 4 in PyTorch: the processor of a cross-attention that sees people too.

Axes: b pictures, q k queries and keys, r references, i identities, n heads, e features of a head,
D features of a layer.
"""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fusionjax.errors import UserError

_INVISIBLE = -1e9  # its exponential is zero in every float type
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.")


class FaceProcessor(torch.nn.Module):
    """The attention processor of one cross-attention: `kf`, `vf` and the joint softmax.

    As a module it moves and changes its type with the UNet. `scene` tells what is shown:
    `captured`, `people`, `shown`, `grid`, `fusion`, `plain_rows` and `bias`.
    """

    kf: torch.nn.Linear
    vf: torch.nn.Linear

    def __init__(
        self, layer: str, level: int, weights: Mapping[str, Any], attention: Any, scene: Any
    ) -> None:
        super().__init__()
        self.layer, self.level, self.scene = layer, level, scene
        self._replaced = (attention.processor,)  # in a tuple, so that it is no submodule
        for name in ("kf", "vf"):
            values = tensor_of(weights[name]).to(attention.to_q.weight)
            rows, columns = values.shape
            linear = torch.nn.Linear(columns, rows, bias=False, device="meta")
            linear.weight = torch.nn.Parameter(values, requires_grad=False)
            setattr(self, name, linear)
        self._kept: tuple[Any, ...] = (None,)

    def over(self, processor: Any) -> "FaceProcessor":
        """The same, with the same weights, in the place of another processor."""
        same = copy.copy(self)
        same._replaced = (processor,)
        return same

    def replaced(self) -> Any:
        """The processor that was there before."""
        return self._replaced[0]

    @torch.compiler.disable
    def forward(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attends from [b, q, D] to the text [b, t, d] and to the faces.

        It is not compiled with the UNet around it: who is shown changes from call to call.
        """
        scene = self.scene
        if scene.captured is not None:
            scene.captured[self.layer] = hidden_states
        if scene.captured is not None or not scene.people:
            asked = (hidden_states, encoder_hidden_states, attention_mask, temb)
            return self._without_faces(attn, *asked, **kwargs)
        if attention_mask is not None:
            raise UserError("the pipeline masks the prompt's tokens, which is not supported here")
        plain = scene.plain_rows(len(hidden_states))
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        with_faces = self._attend(attn, hidden_states[plain:], text[plain:])
        if plain:
            head = hidden_states[:plain], text[:plain], None, temb
            with_faces = torch.cat([self._without_faces(attn, *head, **kwargs), with_faces])
        return with_faces

    def _without_faces(
        self, attn: Any, hidden: Any, text: Any, mask: Any, temb: Any, **kwargs: Any
    ) -> torch.Tensor:
        if temb is not None:  # not every processor takes it
            kwargs["temb"] = temb
        text_and_mask = {"encoder_hidden_states": text, "attention_mask": mask}
        return self.replaced()(attn, hidden, **text_and_mask, **kwargs)  # type: ignore[no-any-return]

    def _attend(self, attn: Any, hidden: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        if attn.norm_cross:
            text = attn.norm_encoder_hidden_states(text)
        query = _heads(attn, attn.to_q(hidden))
        key, value = _heads(attn, attn.to_k(text)), _heads(attn, attn.to_v(text))
        *faces, bias = self._faces(attn, hidden)
        face_key, face_value = (x.expand(len(hidden), -1, -1, -1) for x in faces)
        attend = F.scaled_dot_product_attention
        if self.scene.fusion == "concat":
            of_text = bias.new_zeros(*bias.shape[:-1], key.shape[2])
            mask = _as_mask(torch.cat([of_text, bias], -1), query)
            key, value = torch.cat([key, face_key], 2), torch.cat([value, face_value], 2)
            out = attend(query, key, value, attn_mask=mask)
        else:
            strongest = bias.max(-1, keepdim=True).values
            mask = _as_mask(bias - strongest, query)
            of_faces = attend(query, face_key, face_value, attn_mask=mask)
            out = attend(query, key, value) + strongest.exp().to(of_faces.dtype) * of_faces
        out = out.transpose(1, 2).flatten(2)
        for module in attn.to_out:
            out = module(out)
        return out / attn.rescale_output_factor

    def _faces(self, attn: Any, like: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Kf, Vf [1, n, r·k, e] and M for each of their keys [1, 1, q or 1, r·k], kept."""
        scene = self.scene
        current = (scene.shown, scene.grid, like.dtype, like.device)
        if self._kept[0] != current:
            hf = torch.cat([tensor_of(person.states[self.layer]) for person in scene.people])
            bias = scene.bias(self.level).repeat_interleave(hf.shape[1], dim=-1)
            states = hf.to(like.device, like.dtype).flatten(0, 1)[None]
            faces = _heads(attn, self.kf(states)), _heads(attn, self.vf(states))
            self._kept = (current, *faces, bias[None, None].to(like.device))
        return self._kept[1:]


def bias_of(
    strength: Sequence[float],
    owner: Sequence[int],
    masks: Sequence[np.ndarray] | None,
    grid: tuple[int, int],
    level: int,
) -> torch.Tensor:
    """M of equation 4 with the masks of equation 7.

    Args:
        strength: λ of every reference.
        owner: the person that each reference shows.
        masks: where each person is, [H, W] in [0, 1]; None: no regions.
        grid: height and width of the latents.
        level: how many times the layer's tokens are halved from them, rounded up each time.

    Returns:
        [q or 1, r].
    """
    bias = _log(torch.tensor(strength, dtype=torch.float32))[None]
    if masks is not None:
        maps = [torch.tensor(mask, dtype=torch.float32)[None] for mask in masks]
        # Any pixel set: a small face never vanishes.
        latents = torch.cat([F.adaptive_max_pool2d(each, grid) for each in maps])
        cells = F.max_pool2d(latents, 2**level, ceil_mode=True).flatten(1)
        closed = _log(1 - cells)
        others = torch.arange(len(cells))[:, None] != torch.tensor(owner)[None]
        bias = bias + torch.einsum("iq,ir->qr", closed, others.float())
    return bias


def cross_attentions(unet: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """The UNet's cross-attentions by their names."""
    return ((name, m) for name, m in unet.named_modules() if name.endswith(".attn2"))


def with_faces(unet: torch.nn.Module) -> list[Any]:
    """The cross-attentions that see people."""
    return [m for _, m in cross_attentions(unet) if isinstance(m.processor, FaceProcessor)]


def level_of(name: str, count: int) -> int:
    """How many times the latent grid is halved in a layer of that name."""
    block = _BLOCK.match(name)
    number = int(block[2]) if block else 0  # without one it is the middle block
    return number if block and block[1] == "down" else count - 1 - number


def tensor_of(values: Any) -> torch.Tensor:
    """A tensor of an array, also where NumPy has the type from elsewhere."""
    if isinstance(values, torch.Tensor):
        return values
    array = np.asarray(values)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _heads(attn: Any, x: torch.Tensor) -> torch.Tensor:
    """[b, k, n·e] → [b, n, k, e]."""
    return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def _log(strength: torch.Tensor) -> torch.Tensor:
    return torch.where(strength > 0, strength.clamp(min=1e-38).log(), _INVISIBLE)


def _as_mask(bias: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return bias.clamp(min=torch.finfo(like.dtype).min).to(like.dtype)
