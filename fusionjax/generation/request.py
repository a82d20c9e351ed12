"""What one image shall show, what images of a batch share, and whether a model can do it."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from fusionjax import masks as masking
from fusionjax.diffusion import samplers
from fusionjax.errors import UserError, told
from fusionjax.generation.model import Model
from fusionjax.generation.prompts import Prompts, texts_of
from fusionjax.identity import Identity
from fusionjax.options import (
    HOW,
    LARGEST_GUIDANCE,
    Settings,
    check_guidance,
    check_multiple,
    option,
)
from fusionjax.photos import PhotoSource, read_photo
from fusionjax.regions import box_mask as box_mask


@dataclasses.dataclass(frozen=True, eq=False)
class Request(Prompts):
    """What one image shall show. All of it is data: no value compiles anything.

    Attributes:
        identities: the people in it.
        face_strength: λ of each identity; 0 is the base model, 1 the trained strength.
        masks: where each identity is, [i, H, W] in [0, 1]. None: no regions.
        latents: the unit-variance starting noise, [h, w, c], in place of the seed's.
        image: an image to start from, [H, W, 3] in [-1, 1]; how far to leave it is
            `Settings.strength`.
        mask_image: with an image: 1 where it is painted anew, 0 where it stays, [H, W].
        control_image: the ControlNet's input, [H, W, 3] in [0, 1].
    """

    guidance_scale: float = option(7.5, "", group=HOW, limits=(1, LARGEST_GUIDANCE))
    identities: Sequence[Identity] = ()
    face_strength: Sequence[float] | float = 1.0
    masks: np.ndarray | None = None
    latents: np.ndarray | None = None
    image: np.ndarray | None = None
    mask_image: np.ndarray | None = None
    control_image: np.ndarray | None = None


class FaceDetail(NamedTuple):
    """What became of a person's face in one image.

    Attributes:
        person: its number, from 0.
        box: the square around the face: left, top, right, bottom in pixels; None where no place
            was found.
        side: of the square that was painted in its stead, in pixels; None where it was left.
        why: how its place was found, or why it was left.
    """

    person: int
    box: tuple[int, int, int, int] | None
    side: int | None
    why: str

    def __str__(self) -> str:
        name = f"the face of person {self.person + 1}"
        if self.box is None:
            return f"{name} is left as it is: {self.why}"
        left, top, right, _ = self.box
        place = f"{name}, in a square of {right - left} pixels at {left}, {top} (column, row)"
        if self.side is None:
            return f"{place}, is left as it is: {self.why}"
        return f"{place}, is painted again at {self.side} ({self.why})"


class Output(NamedTuple):
    """What was generated.

    Attributes:
        images: the images, as `output_type` says; None in place of one that is not finite (a
            warning tells).
        latents: [b, h, w, c], before decoding.
        seeds: each image's seed.
        attention_share: where it was asked for: [b, rows, columns, 1 + r], the share of the
            attention that each place gave to the text and to each photo (of all identities, in
            order), mean of layers, heads and the steps looked at; else None.
        faces: of each image, what became of its people's faces (`face_detail`).
    """

    images: Any
    latents: Float[np.ndarray, "b h w c"]
    seeds: list[int]
    attention_share: np.ndarray | None = None
    faces: Sequence[tuple[FaceDetail, ...]] = ()


def check_settings(settings: Settings, model: Model) -> None:
    """Raises UserError for a size or a sampler that the base cannot do."""
    base = model.base
    for name, value in zip(("height", "width"), settings.size, strict=True):
        check_multiple(name, value, base.vae_scale_factor)
    layers = base.text_encoder.config.num_hidden_layers
    if (settings.clip_skip or 0) >= layers:
        raise UserError(
            f"clip_skip is {settings.clip_skip}; the text encoder has {layers} layers, so it must "
            f"be in 0..{layers - 1}"
        )
    samplers.plan(base.schedule, settings.scheduler, settings.num_inference_steps)


def check_request(request: Request, settings: Settings, model: Model, *, adapter: bool) -> None:
    """Checks all that can be wrong with a request, without compiling anything.

    Args:
        request: what to generate.
        settings: and how.
        model: with what.
        adapter: whether one is loaded.

    Raises:
        UserError: if something is wrong.

    Warns:
        UserWarning: if a prompt is cut or has weights that are not read, or a person cannot be
            seen.
    """
    check_settings(settings, model)
    if (larger := settings.second_pass) is not None:
        check_settings(larger, model)
        _check_strength(larger, model)
    if settings.face_detail:
        _check_strength(settings.face_pass(model.photo_side), model)
    check_guidance(request, settings)
    texts_of(request, model.vocabulary, heard=True)
    _check_people(request, settings, model, adapter=adapter)
    if any(request.outpaint):
        raise UserError("outpaint is for images that are read by the pipeline; enlarge the array")
    if request.mask_blur and request.mask_image is None:
        raise UserError("mask_blur is given without mask_image; give the mask that it softens")
    if request.mask_image is not None:
        if request.image is None:
            raise UserError("mask_image is given without an image to paint in")
        if not request.mask_image.any():
            raise UserError("mask_image is black everywhere: nothing would be painted")
        if model.base.is_inpainting and not (request.mask_image >= 0.5).any():
            brightest = float(request.mask_image.max())
            raise UserError(
                f"mask_image is at most {brightest:.2f} of white, and an inpainting model paints "
                "where it is half white or more: nothing would be painted"
            )
    if request.image is not None:
        _check_strength(settings, model)
    if request.control_image is not None and model.controlnet is None:
        raise UserError("a control image is given, but no ControlNet is loaded")
    if model.controlnet is not None and request.control_image is None:
        raise UserError("a ControlNet is loaded, but no control image is given")


def _check_strength(settings: Settings, model: Model) -> None:
    """Raises UserError if a sampler has no row for starting from an image."""
    steps = settings.num_inference_steps
    samplers.plan(model.base.schedule, settings.scheduler, steps, strength=settings.strength)


def check_attention_share(requests: Sequence[Request], model: Model) -> None:
    """Raises UserError where it cannot be measured what photos are attended to."""
    options = model.fusion.options
    if options.fusion != "concat" or options.reference != "clean":
        raise UserError(
            "attention shares exist for adapters with fusion='concat' and reference='clean'"
        )
    if not all(request.identities for request in requests):
        raise UserError("attention shares are asked for, but an image shows no identity")
    if any(request.control_image is not None for request in requests):
        raise UserError("attention shares do not see a ControlNet; leave one of them out")


def check_alike(requests: Sequence[Request]) -> None:
    """Raises UserError unless all requests have masks, images and so on, or none has."""
    for name in (
        "masks", "image", "control_image", "prompt_embeds", "negative_prompt_embeds",
    ):  # fmt: skip
        if len({getattr(request, name) is not None for request in requests}) > 1:
            raise UserError(f"some images have {name} and some do not; generate them separately")


def _check_people(request: Request, settings: Settings, model: Model, *, adapter: bool) -> None:
    if request.identities and not adapter:
        raise UserError(
            "identities are given, but no adapter is loaded; pass fusion (--fusion) with a "
            "run's folder or an exported .safetensors"
        )
    fusion = model.fusion
    for number, person in enumerate(request.identities):
        if not isinstance(person, Identity):
            raise UserError(
                f"identity {number} is {told(person)}; encode photos by encode_identity, or load "
                "a file by Identity.load"
            )
        name = f"identity {number}"
        check_person(person, model, name)
    try:
        strengths = np.asarray(request.face_strength, np.float64)
    except (ValueError, TypeError, OverflowError):
        raise UserError(
            f"face_strength is {told(request.face_strength)}; it must be a number, or one for each "
            "identity"
        ) from None
    masking.check_strength(strengths, "face_strength")
    if strengths.ndim and strengths.shape != (len(request.identities),):
        raise UserError(
            f"face_strength has {strengths.size} numbers for {len(request.identities)} "
            "identities; give one for each, or one for all"
        )
    for layer in request.layer_strength:
        if layer not in fusion.layers:
            raise UserError(
                f"layer_strength names {layer!r}; the layers are {', '.join(fusion.layers)}"
            )
    if request.masks is None:
        return
    height, width = settings.size
    masking.check_masks(
        request.masks, identities=len(request.identities), height=height, width=width
    )
    for number, mask in enumerate(request.masks):
        if not mask.any():
            raise UserError(
                f"mask {number} is empty: its person would have no place; give it some pixels "
                "or leave the person out"
            )
        others = np.delete(request.masks, number, 0).max(0, initial=0)
        if (np.minimum(mask, 1 - others) <= 0).all():
            warnings.warn(
                f"mask {number} lies within the others' masks: its person is not seen there, "
                "for where masks overlap no face is",
                stacklevel=5,
            )


def check_person(person: Identity, model: Model, name: str) -> None:
    """Checks that a person can be shown: with their states, or with new ones from their latents.

    Args:
        person: the identity.
        model: what shows it.
        name: how to name the identity in errors.

    Raises:
        UserError: if it is of another kind, or of a base with other latents.
    """
    here, reference = model.base.identity_fingerprint, model.fusion.options.reference
    if person.base_fingerprint == here:
        person.check_fits(here, reference, name)
        _check_states(person, model, name)
        return
    grid = model.grid(model.photo_side, model.photo_side)
    is_alike = len(person) and person.latents.shape[1:] == (*grid, model.base.latent_channels)
    person.check_fits(person.base_fingerprint if is_alike else here, reference, name)


def _check_states(person: Identity, model: Model, name: str) -> None:
    """An identity file of the right base may still lack something."""
    if person.latents.shape[-1] != model.base.latent_channels or not len(person):
        raise UserError(f"{name} has latents of shape {person.latents.shape}; encode it again")
    if model.fusion.options.reference != "clean":
        return
    for layer, about in model.fusion.layers.items():
        states = person.states.get(layer)
        if states is None or states.ndim != 3 or states.shape[::2] != (len(person), about.features):
            shape = "none" if states is None else states.shape
            raise UserError(
                f"{name} has states of shape {shape} for {layer}, where {len(person)} photos have "
                f"({len(person)}, tokens, {about.features}); encode the photos again"
            )


def fit_image(source: PhotoSource, size: tuple[int, int], *, behind: str = "white") -> np.ndarray:
    """Reads a picture and scales it to the size that is generated.

    Args:
        source: see `photos.read_photo`.
        size: width and height in pixels.
        behind: the colour behind what is transparent.

    Returns:
        [H, W, 3] in [0, 1].

    Raises:
        UserError: if it cannot be read, or its sides are to each other as no crop could mend.
    """
    image = read_photo(source, behind=behind)
    if image.size != size:
        wide, high = image.width / size[0], image.height / size[1]
        if max(wide, high) > 1.02 * min(wide, high):
            raise UserError(
                f"the image has {image.width}×{image.height} pixels (width × height), which is "
                f"another shape than {size[0]}×{size[1]}; cut it or set the size"
            )
        image = image.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(image, np.float32) / 255


def fit_mask(source: PhotoSource, size: tuple[int, int]) -> Float[np.ndarray, "H W"]:
    """Reads a mask picture and scales it to the size that is generated; transparent is black.

    Args:
        source: see `photos.read_photo`.
        size: width and height in pixels.

    Returns:
        Brightness in [0, 1].

    Raises:
        UserError: as `fit_image`.
    """
    return fit_image(source, size, behind="black").mean(-1)
