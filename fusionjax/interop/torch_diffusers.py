"""An exported adapter in PyTorch diffusers.

    pipe = StableDiffusionPipeline.from_pretrained(base)
    fusion = load_fusion(pipe, "adapter.safetensors")
    anna = fusion.encode_identity(["anna1.jpg", "anna2.jpg"])
    fusion.show([anna])
    pipe("a photo of a woman in a garden").images[0].save("anna.png")
    fusion.unload()

The cross-attentions get a processor of their own, which attends to the text and, in the same
softmax, to the faces (equations 1 to 7); the rest of the pipeline does not change, so everything
else that it can do keeps working. A person is the same `fusionjax.identity.Identity` as in JAX,
and files of one serve the other. Needs PyTorch and diffusers, of any release whose UNet has
attention processors; JAX and Flax's models are not used.

Axes: b pictures, q k queries and keys, r references, i identities, n heads, e features of a head,
D features of a layer.
"""

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from fusionjax.errors import UserError
from fusionjax.identity import THUMBNAIL_SIDE, Identity
from fusionjax.interop.adapter_file import check_shapes, read_adapter, warn_of_other_base
from fusionjax.interop.fingerprint import Fingerprint
from fusionjax.photos import PhotoSource, prepare_photo
from fusionjax.pixels import to_unit

_Weights = dict[str, np.ndarray]  # of a layer: kf and vf
_INVISIBLE = -1e9  # its exponential is zero in every float type
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.")


def load_fusion(pipe: Any, path: str | os.PathLike[str]) -> "TorchFusion":
    """Installs an adapter in a PyTorch pipeline. Until people are shown, pictures do not change.

    Args:
        pipe: a `StableDiffusionPipeline` or a relative of it, with `unet`, `vae`, `text_encoder`
            and `tokenizer`.
        path: an exported adapter.

    Returns:
        The handle: `encode_identity`, `show`, `hide`, `unload`.

    Raises:
        UserError: if the file is no adapter, was trained for another base or with
            `reference="matched"`, or the pipeline has an adapter already.

    Warns:
        UserWarning: if the base's weights are not those that the adapter was trained on.
    """
    adapter, name = read_adapter(path), os.fspath(path)
    options = {"reference": "clean", "fusion": "concat", "face_logit_bias": 0.0, **adapter.options}
    if options["reference"] != "clean":
        raise UserError(
            f"{name} was trained with reference={options['reference']!r}; in PyTorch only 'clean' "
            "adapters work"
        )
    if options["fusion"] not in ("concat", "decoupled"):
        raise UserError(f"{name}: fusion is {options['fusion']!r}; known are concat, decoupled")
    layers = dict(_cross_attentions(pipe.unet))
    if _with_faces(pipe.unet):
        raise UserError("the pipeline has an adapter already; call `unload(pipe)` first")
    found = {layer: tuple(pair["kf"].shape) for layer, pair in adapter.weights.items()}
    needed = {layer: (a.to_q.out_features, a.to_q.in_features) for layer, a in layers.items()}
    check_shapes(found, needed, name)
    if adapter.base_fingerprint is not None:
        present = unet_fingerprint(pipe.unet)
        warn_of_other_base(adapter.base, adapter.base_fingerprint, present, name)
    return TorchFusion(pipe, adapter.weights, options["fusion"], float(options["face_logit_bias"]))


def unload(pipe: Any) -> None:
    """Takes the adapter out of a pipeline, which then is what it was before `load_fusion`.

    Args:
        pipe: the pipeline; one without an adapter is left alone.
    """
    for attention in _with_faces(pipe.unet)[:1]:
        attention.processor.scene.unload()


def unet_fingerprint(unet: torch.nn.Module) -> str | None:
    """The fingerprint of a PyTorch UNet's weights, as `BaseModel.fingerprint` has it.

    Args:
        unet: a `UNet2DConditionModel`.

    Returns:
        16 hex digits; None where the weights are bfloat16 or carry an unmerged LoRA, which have
        no comparable fingerprint.
    """
    fingerprint = Fingerprint()
    for name, tensor in unet.state_dict().items():
        if ".processor." in name:
            continue
        if tensor.dtype == torch.bfloat16 or ".lora_" in name:
            return None
        fingerprint.add(name, tensor.detach().cpu().numpy())
    return fingerprint.hexdigest()


class TorchFusion:
    """An adapter in a PyTorch pipeline; `fusion` and `face_logit_bias` are as it was trained."""

    def __init__(
        self, pipe: Any, weights: dict[str, _Weights], fusion: str, face_logit_bias: float
    ) -> None:
        self.pipe, self.fusion, self.face_logit_bias = pipe, fusion, face_logit_bias
        self.captured: dict[str, torch.Tensor] | None = None
        self.shown = 0  # counts calls of `show`, so that processors know what they kept is old
        self.hide()
        self._grid = (0, 0)
        self._base_fingerprint: str | None = None
        count = len(pipe.unet.config.block_out_channels)
        for name, attention in _cross_attentions(pipe.unet):
            processor = FaceProcessor(name, _level(name, count), weights[name], attention, self)
            attention.set_processor(processor)
        self._hook = pipe.unet.register_forward_pre_hook(self._before_unet, with_kwargs=True)

    def encode_identity(
        self,
        photos: PhotoSource | Sequence[PhotoSource],
        *,
        crop: str = "auto",
        weights: Sequence[float] | None = None,
    ) -> Identity:
        """Runs a person's photos through the frozen UNet, once.

        Args:
            photos: one photo or several of the same person: files, Pillow images or arrays.
            crop: `auto` finds the face, `none` takes the photo as it is.
            weights: λ of each photo; None is 1 for each.

        Returns:
            The person; `Identity.save` keeps them for later, in PyTorch and in JAX.

        Raises:
            UserError: if there is no photo, or one cannot be used.
        """
        given: Any = photos if isinstance(photos, list | tuple) else [photos]
        if not given:
            raise UserError("no photos are given; a person needs at least one")
        pipe, unet = self.pipe, self.pipe.unet
        side = unet.config.sample_size * pipe.vae_scale_factor
        images = [prepare_photo(photo, side, crop) for photo in given]
        device = getattr(pipe, "_execution_device", unet.device)
        with torch.no_grad():
            length = pipe.text_encoder.config.max_position_embeddings
            ids = pipe.tokenizer([""], padding="max_length", max_length=length, return_tensors="pt")
            empty = pipe.text_encoder(ids.input_ids.to(device))[0]
            latents, states = [], []
            for image in images:
                pixels = torch.from_numpy(to_unit(image)).permute(2, 0, 1)[None]
                posterior = pipe.vae.encode(pixels.to(device, pipe.vae.dtype)).latent_dist
                latent = posterior.mode() * pipe.vae.config.scaling_factor
                latents.append(latent.float().permute(0, 2, 3, 1).cpu().numpy())
                states.append(self._reference_states(latent.to(unet.dtype), empty.to(unet.dtype)))
        self._base_fingerprint = self._base_fingerprint or unet_fingerprint(unet) or "unknown"
        size = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
        small = [np.asarray(image.resize(size, Image.Resampling.LANCZOS)) for image in images]
        identity = Identity(
            states={name: np.concatenate([each[name] for each in states]) for name in states[0]},
            latents=np.concatenate(latents),
            thumbnails=np.stack(small),
            weights=(1.0,) * len(images),
            base_fingerprint=self._base_fingerprint,
        )
        return identity if weights is None else identity.weighted(weights)

    def show(
        self,
        people: Sequence[Identity],
        *,
        face_strength: float | Sequence[float] = 1.0,
        masks: Any = None,
        faces_in_negative: bool = False,
        guided: bool | None = None,
    ) -> None:
        """Shows people in the pictures that the pipeline paints from now on.

        Args:
            people: who; every picture of a batch shows all of them.
            face_strength: λ of each person, or one for all: 0 is the base model, 1 as trained.
            masks: where each person is, [i, H, W] at the picture's size: numbers in [0, 1],
                bools, or Pillow images, white where the person is. None: no regions.
            faces_in_negative: show them to the guidance's negative branch too.
            guided: whether the first half of a batch is the negative branch. None asks the
                pipeline, which is right inside its own call.

        Raises:
            UserError: on people of another base, or numbers that cannot be right.
        """
        factors = [float(f) for f in np.broadcast_to(face_strength, len(people))]
        if bad := [f for f in factors if not (np.isfinite(f) and f >= 0)]:
            raise UserError(f"face_strength is {bad[0]}; it must be a finite number ≥ 0")
        widths = {name: a.to_q.in_features for name, a in _cross_attentions(self.pipe.unet)}
        for number, person in enumerate(people):
            states = person.states
            if any(n not in states or states[n].shape[-1] != w for n, w in widths.items()):
                raise UserError(
                    f"person {number} was encoded with another base model or for "
                    "reference='matched'; encode the photos again with this pipeline"
                )
        self._masks = None if masks is None else self._read_masks(masks, len(people))
        pairs = zip(people, factors, strict=True)
        self._strength = [factor * weight for person, factor in pairs for weight in person.weights]
        self._owner = [i for i, person in enumerate(people) for _ in person.weights]
        self._in_negative, self._guided = faces_in_negative, guided
        self.people = tuple(people)
        self.shown += 1

    def hide(self) -> None:
        """Shows nobody: the pipeline paints what the base model paints, to the bit."""
        self.show([])

    def unload(self) -> None:
        """Gives the pipeline its own attention back. The handle is of no use after that."""
        self._hook.remove()
        for attention in _with_faces(self.pipe.unet):
            attention.set_processor(attention.processor.replaced())

    def plain_rows(self, batch: int) -> int:
        """How many pictures at the head of a batch show nobody: the guidance's negative branch."""
        guided = self._guided
        if guided is None and hasattr(self.pipe, "_guidance_scale"):  # not before its first call
            guided = self.pipe.do_classifier_free_guidance
        if self._in_negative or not guided:
            return 0
        if batch % 2:
            raise UserError(
                f"the UNet got {batch} pictures, which cannot be half negative branch; say "
                "`guided=False` to `show` when calling the UNet without guidance"
            )
        return batch // 2

    def bias(self, level: int) -> torch.Tensor:
        """M of equation 4 at a level, [q or 1, r]: log λ, equation 7, the adapter's constant."""
        strength = _log(torch.tensor(self._strength))[None]
        if self._masks is not None:
            latents = F.adaptive_max_pool2d(self._masks, self._grid)  # any pixel set
            cells = F.max_pool2d(latents, 2**level, ceil_mode=True).flatten(1)
            closed = _log(1 - cells)
            others = torch.arange(len(cells))[:, None] != torch.tensor(self._owner)[None]
            strength = strength + torch.einsum("iq,ir->qr", closed, others.float())
        return strength + self.face_logit_bias

    def _before_unet(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._grid = tuple((args[0] if args else kwargs["sample"]).shape[-2:])

    def _reference_states(self, latent: torch.Tensor, text: torch.Tensor) -> dict[str, np.ndarray]:
        self.captured = {}
        try:
            self.pipe.unet(latent, 0, encoder_hidden_states=text)
            hidden = {name: x.to(torch.bfloat16).cpu() for name, x in self.captured.items()}
            numbers = {name: x.view(torch.int16).numpy() for name, x in hidden.items()}
            return {name: x.view(ml_dtypes.bfloat16) for name, x in numbers.items()}
        finally:
            self.captured = None

    def _read_masks(self, masks: Any, people: int) -> torch.Tensor:
        arrays = [np.asarray(mask) for mask in masks]
        if len(arrays) != people or any(a.ndim != 2 or a.shape != arrays[0].shape for a in arrays):
            raise UserError(
                f"masks have the shapes {[a.shape for a in arrays]} for {people} people; give one "
                "[height, width] for each, of one size"
            )
        joined = np.stack([a / 255 if a.dtype == np.uint8 else a for a in arrays])
        values = torch.from_numpy(joined.astype(np.float32))
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise UserError("masks hold values outside [0, 1]")
        return values


class FaceProcessor(torch.nn.Module):
    """The attention processor of one cross-attention: `kf`, `vf` and the joint softmax.

    As a module it moves and changes its type with the UNet.
    """

    kf: torch.nn.Linear
    vf: torch.nn.Linear

    def __init__(
        self, layer: str, level: int, weights: _Weights, attention: Any, scene: TorchFusion
    ) -> None:
        super().__init__()
        self.layer, self.level, self.scene = layer, level, scene
        self._replaced = (attention.processor,)  # in a tuple, so that it is no submodule
        for name in ("kf", "vf"):
            values = torch.from_numpy(weights[name]).to(attention.to_q.weight)
            rows, columns = values.shape
            linear = torch.nn.Linear(columns, rows, bias=False, device="meta")
            linear.weight = torch.nn.Parameter(values, requires_grad=False)
            setattr(self, name, linear)
        self._kept: tuple[Any, ...] = (None,)

    def replaced(self) -> Any:
        """The processor that was there before."""
        return self._replaced[0]

    def forward(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attends from [b, q, D] to the text [b, t, d] and to the faces."""
        scene = self.scene
        if scene.captured is not None:
            scene.captured[self.layer] = hidden_states
        if scene.captured is not None or not scene.people:
            asked = (hidden_states, encoder_hidden_states, attention_mask, temb)
            return self.replaced()(attn, *asked, **kwargs)
        if attention_mask is not None:
            raise UserError("the pipeline masks the prompt's tokens, which is not supported here")
        plain = scene.plain_rows(len(hidden_states))
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        with_faces = self._attend(attn, hidden_states[plain:], text[plain:])
        if plain:
            head = hidden_states[:plain], text[:plain], None, temb
            with_faces = torch.cat([self.replaced()(attn, *head, **kwargs), with_faces])
        return with_faces

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
        current = (scene.shown, scene._grid, like.dtype, like.device)
        if self._kept[0] != current:
            joined = np.concatenate([person.states[self.layer] for person in scene.people])
            hf = torch.from_numpy(joined.view(np.int16)).view(torch.bfloat16)
            bias = scene.bias(self.level).repeat_interleave(hf.shape[1], dim=-1)
            states = hf.to(like.device, like.dtype).flatten(0, 1)[None]
            faces = _heads(attn, self.kf(states)), _heads(attn, self.vf(states))
            self._kept = (current, *faces, bias[None, None].to(like.device))
        return self._kept[1:]


def _heads(attn: Any, x: torch.Tensor) -> torch.Tensor:
    """[b, k, n·e] → [b, n, k, e]."""
    return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def _cross_attentions(unet: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, m) for name, m in unet.named_modules() if name.endswith(".attn2"))


def _with_faces(unet: torch.nn.Module) -> list[Any]:
    return [m for _, m in _cross_attentions(unet) if isinstance(m.processor, FaceProcessor)]


def _level(name: str, count: int) -> int:
    """How many times the latent grid is halved in a layer of that name."""
    block = _BLOCK.match(name)
    number = int(block[2]) if block else 0  # without one it is the middle block
    return number if block and block[1] == "down" else count - 1 - number


def _log(strength: torch.Tensor) -> torch.Tensor:
    return torch.where(strength > 0, strength.clamp(min=1e-38).log(), _INVISIBLE)


def _as_mask(bias: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return bias.clamp(min=torch.finfo(like.dtype).min).to(like.dtype)
