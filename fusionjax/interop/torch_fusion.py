"""An adapter in a PyTorch pipeline: who is shown, and the processors that show them.

Axes: i identities, r references, k tokens of a photo in a layer, D its features, H W pixels.
"""

import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from fusionjax.errors import UserError, told
from fusionjax.interop.fingerprint import Fingerprint
from fusionjax.interop.fits import check_shapes, warn_of_other_base
from fusionjax.interop.torch_attention import (
    FaceProcessor,
    bias_of,
    cross_attentions,
    level_of,
    with_faces,
)
from fusionjax.interop.torch_files import Person
from fusionjax.photos import PhotoSource, prepare_photo
from fusionjax.pixels import to_unit
from fusionjax.regions import read_regions, region_at

# Processors that do the same in other words: where one takes the adapter's place, the adapter goes
# over it again.
_ALIKE = (
    "AttnProcessor",
    "AttnProcessor2_0",
    "FusedAttnProcessor2_0",
    "SlicedAttnProcessor",
    "XFormersAttnProcessor",
)
THUMBNAIL = (128, 128)


class Fusion:
    """An adapter in a PyTorch pipeline; `fusion` and `face_logit_bias` are as it was trained."""

    def __init__(
        self, pipe: Any, weights: Mapping[str, Any], fusion: str, face_logit_bias: float
    ) -> None:
        self.pipe, self.fusion, self.face_logit_bias = pipe, fusion, face_logit_bias
        self.unet = unet_of(pipe)
        self.captured: dict[str, torch.Tensor] | None = None
        self.people: tuple[Any, ...] = ()
        self._regions: list[Any] | None = None
        self._strength: list[float] = []
        self._owner: list[int] = []
        self._in_negative = False
        self._guided: bool | None = None
        self.shown = 0  # counts calls of `show`, so that processors know what they kept is old
        self.grid = (0, 0)
        self._fingerprint: str | None = None
        self._caller_guided: bool | None = None
        count = len(self.unet.config.block_out_channels)
        self._attentions = dict(cross_attentions(self.unet))
        self._processors = {
            name: FaceProcessor(name, level_of(name, count), weights[name], attention, self)
            for name, attention in self._attentions.items()
        }
        for name, attention in self._attentions.items():
            attention.set_processor(self._processors[name])
        self._hook = self.unet.register_forward_pre_hook(self._before_unet, with_kwargs=True)
        self.hide()

    def encode_identity(
        self,
        photos: PhotoSource | Sequence[PhotoSource],
        *,
        crop: str = "auto",
        weights: Sequence[float] | None = None,
    ) -> Any:
        """Runs a person's photos through the frozen UNet, once.

        Args:
            photos: one photo or several of the same person: files, Pillow images or arrays.
            crop: `auto` finds the face, `none` takes the photo as it is.
            weights: λ of each photo; None is 1 for each.

        Returns:
            The person; `save` keeps them for later, in PyTorch and in JAX.

        Raises:
            UserError: if there is no photo, or one cannot be used.
        """
        given: Any = photos if isinstance(photos, list | tuple) else [photos]
        if not given:
            raise UserError("no photos are given; a person needs at least one")
        pipe, unet = self.pipe, self.unet
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
                latents.append(latent.float().permute(0, 2, 3, 1).cpu())
                states.append(self._reference_states(latent.to(unet.dtype), empty.to(unet.dtype)))
        small = [np.asarray(image.resize(THUMBNAIL, Image.Resampling.LANCZOS)) for image in images]
        person = self._person(
            {name: torch.cat([each[name] for each in states]) for name in states[0]},
            torch.cat(latents),
            np.stack(small),
        )
        return person if weights is None else person.weighted(weights)

    def _person(
        self, states: dict[str, torch.Tensor], latents: torch.Tensor, thumbnails: np.ndarray
    ) -> Any:
        ones = (1.0,) * len(latents)
        return Person(states, latents, thumbnails, ones, self.fingerprint())

    def fingerprint(self) -> str:
        """The UNet's, computed once; "unknown" where its weights have none."""
        self._fingerprint = self._fingerprint or unet_fingerprint(self.unet) or "unknown"
        return self._fingerprint

    def show(
        self,
        people: Any,
        *,
        face_strength: float | Sequence[float] = 1.0,
        masks: Any = None,
        faces_in_negative: bool = False,
        guided: bool | None = None,
    ) -> None:
        """Shows people in the pictures that the pipeline paints from now on.

        Args:
            people: who, one or several; every picture of a batch shows all of them.
            face_strength: λ of each person, or one for all: 0 is the base model, 1 as trained.
            masks: where each person is: Pillow images, white where the person is; numbers [H, W]
                in [0, 1]; or boxes of left, top, right, bottom as fractions. None: no regions.
            faces_in_negative: show them to the guidance's negative branch too.
            guided: whether the first half of a batch is the negative branch. None asks the
                pipeline that calls the UNet.

        Raises:
            UserError: on people of another base, or numbers that cannot be right.

        Warns:
            UserWarning: on people who were encoded with other weights of the same shape.
        """
        people = [people] if hasattr(people, "states") else list(people)
        if unet_of(self.pipe) is not self.unet:
            raise UserError("the pipeline has another UNet now; load the adapter into it again")
        factors = _factors(face_strength, len(people))
        widths = {name: a.to_q.in_features for name, a in self._attentions.items()}
        for number, person in enumerate(people):
            states = getattr(person, "states", None)
            if states is None:
                raise UserError(
                    f"person {number} is {told(person)}; encode photos by encode_identity, or "
                    "load an identity file"
                )
            if any(n not in states or states[n].shape[-1] != w for n, w in widths.items()):
                raise UserError(
                    f"person {number} was encoded with another base model or for "
                    "reference='matched'; encode the photos again with this pipeline"
                )
            own, ours = person.base_fingerprint, self._fingerprint
            if ours is not None and len({own, ours, "unknown"}) > 2:
                warnings.warn(
                    f"person {number} was encoded with the base model {own}, and this is {ours}; "
                    "encode the photos again with this pipeline",
                    stacklevel=2,
                )
        regions = None if masks is None else read_regions(masks)
        if regions is not None and len(regions) != len(people):
            raise UserError(
                f"{len(regions)} masks are given for {len(people)} people; give one for each"
            )
        pairs = zip(people, factors, strict=True)
        self._regions = regions
        self._strength = [factor * weight for person, factor in pairs for weight in person.weights]
        self._owner = [i for i, person in enumerate(people) for _ in person.weights]
        self._in_negative, self._guided = faces_in_negative, guided
        self.people = tuple(people)
        self.shown += 1

    def hide(self) -> None:
        """Shows nobody: the pipeline paints what the base model paints, to the bit."""
        self.people, self._regions = (), None
        self.shown += 1

    def unload(self) -> None:
        """Gives the pipeline its own attention back. The handle is of no use after that."""
        self._hook.remove()
        self.hide()
        for attention in with_faces(self.unet):
            attention.set_processor(attention.processor.replaced())

    def plain_rows(self, batch: int) -> int:
        """How many pictures at the head of a batch show nobody: the guidance's negative branch."""
        guided = self._caller_guided if self._guided is None else self._guided
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
        masks = None
        if self._regions is not None:
            pixels = getattr(self.pipe, "vae_scale_factor", 8)
            height, width = (side * pixels for side in self.grid)
            masks = [region_at(region, height, width) for region in self._regions]
        bias = bias_of(self._strength, self._owner, masks, self.grid, level)
        return bias + self.face_logit_bias

    @torch.compiler.disable
    def _before_unet(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.grid = tuple((args[0] if args else kwargs["sample"]).shape[-2:])
        if self.captured is None and not self.people:
            return
        for name, attention in self._attentions.items():
            if attention.processor is not self._processors[name]:
                self._put_back(name, attention)
        if self.people and self._guided is None:
            self._caller_guided = self._guidance_of_caller()

    def _put_back(self, name: str, attention: Any) -> None:
        """Goes over a processor that something has put in the place of the adapter's."""
        found = attention.processor
        if isinstance(found, FaceProcessor):  # kept by somebody, and put back
            if found.scene is self:
                self._processors[name] = found
                return
            found = found.replaced()
        if type(found).__name__ not in _ALIKE:
            raise UserError(
                f"{name} has a {type(found).__name__} in place of the adapter's processor and "
                "would show nobody; take it out again, or call `hide()` or `unload()`"
            )
        processor, like = self._processors[name], attention.to_q.weight
        if like.device.type != "meta":  # where the UNet went meanwhile
            processor.to(like)
        self._processors[name] = processor.over(found)
        attention.set_processor(self._processors[name])

    def _guidance_of_caller(self) -> bool:
        """Whether the pipeline in whose call the UNet runs guides; pipelines may share a UNet."""
        frame = sys._getframe(1)
        while frame is not None:
            own: Any = frame.f_locals.get("self")
            if hasattr(type(own), "do_classifier_free_guidance") and _is_of(own, self.unet):
                return bool(own.do_classifier_free_guidance)
            frame = frame.f_back  # type: ignore[assignment]
        if hasattr(self.pipe, "_guidance_scale"):  # not before its first call
            return bool(self.pipe.do_classifier_free_guidance)
        return False

    def _reference_states(
        self, latent: torch.Tensor, text: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        self.captured = {}
        if self.unet.config.in_channels == 2 * latent.shape[1] + 1:  # an inpainting base
            nowhere = torch.zeros_like(latent[:, :1])  # is to be painted: all of it is known
            latent = torch.cat([latent, nowhere, latent], 1)
        try:
            self.unet(latent, 0, encoder_hidden_states=text)
            return {name: x.to(torch.bfloat16).cpu() for name, x in self.captured.items()}
        finally:
            self.captured = None


def install(
    kind: type[Fusion],
    pipe: Any,
    weights: Mapping[str, Any],
    options: Mapping[str, Any],
    base: tuple[str | None, str | None],
    name: str,
) -> Any:
    """Puts an adapter into a pipeline.

    Args:
        kind: of handle.
        pipe: see `load_fusion`.
        weights: kf and vf by layer, [out, in].
        options: how it was trained.
        base: the source and the fingerprint of the base that it was trained on, if known.
        name: how to name the adapter in messages.

    Returns:
        The handle.

    Raises:
        UserError: as `load_fusion`.
    """
    options = {"reference": "clean", "fusion": "concat", "face_logit_bias": 0.0, **options}
    if options["reference"] != "clean":
        raise UserError(
            f"{name} was trained with reference={options['reference']!r}; in PyTorch only 'clean' "
            "adapters work"
        )
    if options["fusion"] not in ("concat", "decoupled"):
        raise UserError(f"{name}: fusion is {options['fusion']!r}; known are concat, decoupled")
    unet = unet_of(pipe)
    if with_faces(unet):
        raise UserError("the pipeline has an adapter already; call `unload(pipe)` first")
    found = {layer: tuple(pair["kf"].shape) for layer, pair in weights.items()}
    layers = dict(cross_attentions(unet))
    needed = {layer: (a.to_q.out_features, a.to_q.in_features) for layer, a in layers.items()}
    check_shapes(found, needed, name)
    present = None
    if base[1] is not None:
        present = unet_fingerprint(unet)
        warn_of_other_base(*base, present, name)
    handle = kind(pipe, weights, options["fusion"], float(options["face_logit_bias"]))
    handle._fingerprint = present
    return handle


def unload(pipe: Any) -> None:
    """Takes the adapter out of a pipeline, which then is what it was before `load_fusion`.

    Args:
        pipe: the pipeline; one without an adapter is left alone.
    """
    for attention in with_faces(unet_of(pipe))[:1]:
        attention.processor.scene.unload()


def unet_of(pipe: Any) -> Any:
    """A pipeline's UNet, itself where `torch.compile` has wrapped it."""
    return getattr(pipe.unet, "_orig_mod", pipe.unet)


def unet_fingerprint(unet: torch.nn.Module) -> str | None:
    """The fingerprint of a PyTorch UNet's weights, as `BaseModel.fingerprint` has it.

    Args:
        unet: a `UNet2DConditionModel`.

    Returns:
        16 hex digits; None where the weights are bfloat16 or carry an unmerged LoRA, which have
        no comparable fingerprint.
    """
    fingerprint = Fingerprint()
    for name, tensor in getattr(unet, "_orig_mod", unet).state_dict().items():
        if ".processor." in name or name.endswith((".to_qkv.weight", ".to_kv.weight")):
            continue  # ours, and copies that `fuse_qkv_projections` makes
        if tensor.dtype == torch.bfloat16 or ".lora_" in name:
            return None
        fingerprint.add(name, tensor.detach().cpu().numpy())
    return fingerprint.hexdigest()


def _is_of(pipe: Any, unet: Any) -> bool:
    return getattr(pipe, "unet", None) is not None and unet_of(pipe) is unet


def _factors(face_strength: Any, people: int) -> list[float]:
    try:
        factors = [float(f) for f in np.broadcast_to(face_strength, people)]
    except (ValueError, TypeError):
        raise UserError(
            f"face_strength is {told(face_strength)} for {people} people; give one number, or one "
            "for each"
        ) from None
    if bad := [f for f in factors if not (np.isfinite(f) and f >= 0)]:
        raise UserError(f"face_strength is {bad[0]}; it must be a finite number ≥ 0")
    return factors
