"""Equations 1 to 7 said plainly in PyTorch, on diffusers' own PyTorch UNet: the oracle."""

import math

import torch
from diffusers import UNet2DConditionModel


class Literal:
    """The paper, step by step: pass the photos, project, concatenate, mask, one softmax.

    Args:
        unet: A PyTorch UNet.
        weights: `{layer: (kf, vf)}`, each [n·e, D] as PyTorch's Linear stores it.
    """

    def __init__(self, unet: UNet2DConditionModel, weights: dict[str, tuple]):
        self.unet = unet
        self.weights = weights
        self.attentions = {
            name: module for name, module in unet.named_modules() if name.endswith(".attn2")
        }
        self.original = unet.attn_processors

    def capture(self, photos, timestep, empty_text) -> dict[str, torch.Tensor]:
        """hf of each layer, [r, k, D], for photos [r, c, h, w]."""
        states, hooks = {}, []
        for name, module in self.attentions.items():

            def keep(_, args, kwargs, name=name):
                states[name] = args[0]

            hooks.append(module.register_forward_pre_hook(keep, with_kwargs=True))
        text = empty_text.expand(len(photos), -1, -1)
        self.unet(photos, timestep, text)
        for hook in hooks:
            hook.remove()
        return states

    def paint(
        self, latents, timestep, text, states, strength, owner=None, masks=None, decoupled=False
    ):
        """The prediction for latents [b, c, h, w] with the same people in every picture.

        `strength` has one λ a reference; `owner` one identity a reference; masks [i, H, W] bool.
        """
        height, width = latents.shape[-2:]
        processors = {}
        for name, module in self.attentions.items():
            processors[f"{name}.processor"] = _Processor(
                module, states[name], *self.weights[name],
                strength, owner, masks, (height, width), decoupled,
            )  # fmt: skip
        self.unet.set_attn_processor(self.original | processors)
        try:
            return self.unet(latents, timestep, text).sample
        finally:
            self.unet.set_attn_processor(self.original)


class _Processor:
    def __init__(self, module, hf, kf, vf, strength, owner, masks, latent_size, decoupled):
        self.keys = [h @ kf.T for h in hf]  # equation 2
        self.values = [h @ vf.T for h in hf]
        self.strength, self.owner, self.masks = strength, owner, masks
        self.latent_size, self.decoupled = latent_size, decoupled

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        out = torch.empty_like(hidden_states)
        head = hidden_states.shape[-1] // attn.heads
        for b, (h, c) in enumerate(zip(hidden_states, encoder_hidden_states, strict=True)):
            q, kc, vc = attn.to_q(h), attn.to_k(c), attn.to_v(c)  # equation 1
            k = torch.cat([kc, *self.keys])  # equations 3, 6
            v = torch.cat([vc, *self.values])
            m = self.bias(len(q), len(kc))
            columns = []
            for n in range(attn.heads):
                s = slice(n * head, (n + 1) * head)
                logits = m + q[:, s] @ k[:, s].T / math.sqrt(head)  # equation 4
                if self.decoupled:
                    text = logits[:, : len(kc)].softmax(-1) @ vc[:, s]
                    largest = max(self.strength)
                    faces = logits[:, len(kc) :].softmax(-1) @ v[len(kc) :, s]
                    columns.append(text + largest * faces.nan_to_num(0.0))
                else:
                    columns.append(logits.softmax(-1) @ v[:, s])  # equation 5
            out[b] = attn.to_out[0](torch.cat(columns, -1))
        return out

    def bias(self, queries, text_keys):
        """log λ and equation 7, as one queries × keys matrix with real −∞."""
        m = torch.zeros(queries, text_keys + sum(len(k) for k in self.keys))
        rows, columns, times = _grid(queries, *self.latent_size)
        start = text_keys
        for r, keys in enumerate(self.keys):
            face = slice(start, start + len(keys))
            start += len(keys)
            m[:, face] = math.log(self.strength[r]) if self.strength[r] else -math.inf
            if self.masks is None:
                continue
            for j, mask in enumerate(self.masks):
                cell_h, cell_w = (
                    mask.shape[axis] // self.latent_size[axis] * 2**times for axis in (0, 1)
                )
                for y in range(rows):
                    for x in range(columns):
                        cell = mask[y * cell_h : (y + 1) * cell_h, x * cell_w : (x + 1) * cell_w]
                        if j != self.owner[r] and cell.any():
                            m[y * columns + x, face] = -math.inf
        return m


def _grid(queries, height, width):
    """The layer's rows and columns, and how often the UNet has halved the latents for it."""
    times = 0
    while height * width != queries:
        height, width, times = -(-height // 2), -(-width // 2), times + 1
    return height, width, times
