"""What users choose: names, values, their ranges and their help, told once, in the field itself.

A field of `Description` or `Settings` is at once a keyword of `FusionPipeline`, a key of scenes,
requests and pictures' texts, and a flag of the command line. Nothing heavy is loaded
here, for command lines to be read at once.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from fusionjax.errors import UserError, shortened, told
from fusionjax.ranges import check_multiple as check_multiple
from fusionjax.ranges import check_number as check_number
from fusionjax.ranges import check_outpaint as check_outpaint
from fusionjax.ranges import check_texts as check_texts
from fusionjax.ranges import numbers_of
from fusionjax.schema import typed

Fusion = Literal["concat", "decoupled"]
Implementation = Literal["xla", "cudnn", "tpu"]
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)

SCHEDULERS = (
    "ddim", "ddim_trailing", "dpmpp_2m", "dpmpp_2m_karras", "dpmpp_2m_sde", "dpmpp_2m_sde_karras",
    "euler", "euler_karras", "euler_ancestral", "heun", "heun_karras", "lcm", "lms", "lms_karras",
    "pndm", "tcd", "unipc",
)  # fmt: skip
CROPS = ("auto", "none")
LONG_PROMPTS = ("cut", "chunks")
DTYPES = ("float32", "bfloat16", "float16")


def not_one_of(name: str, value: object, choices: Sequence[str]) -> str:
    """What to say of a value that is none of the choices, with the likeliest one if there is one.

    Args:
        name: what is chosen.
        value: what was given instead.
        choices: the names there are.

    Returns:
        The message.
    """
    written = (
        shortened(str(value), 80).lower().replace("+", "p").translate(str.maketrans(" -", "__"))
    )
    # A name's beginning is meant to be that name: "euler a", "dpm++".
    close = [choice for choice in choices if written and choice.startswith(written)]
    close = close or difflib.get_close_matches(written, choices, 1)
    meant = f"did you mean {close[0]!r}? Choose" if close else "choose"
    return f"{name} is {told(value)}; {meant} one of {', '.join(choices)}"


# What was written before names had the field's words, and is still read.
OLD_NAMES = {
    "steps": "num_inference_steps",
    "num_images": "num_images_per_prompt",
    "image_strength": "strength",
    "paint_where": "mask_image",
    "control_strength": "controlnet_conditioning_scale",
}

# diffusers' arguments that cannot be served, and what serves here.
INSTEAD = {
    "callback": "callback_on_step_end or progress",
    "callback_on_step_end_tensor_inputs": "callback_on_step_end, which is given the latents",
    "callback_steps": "callback_on_step_end",
    "control_guidance_end": "controlnet_conditioning_scale",
    "control_guidance_start": "controlnet_conditioning_scale",
    "cross_attention_kwargs": "face_strength, layer_strength, and lora in from_pretrained",
    "eta": "scheduler, for example 'euler_ancestral'",
    "guess_mode": "guidance_scale=1",
    "ip_adapter_image": "identities, from encode_identity",
    "ip_adapter_image_embeds": "identities, from Identity.load",
    "padding_mask_crop": "mask_image on an image that is cut out",
    "sigmas": "scheduler, for example 'dpmpp_2m_karras'",
    "timesteps": "num_inference_steps and scheduler",
    # … of from_pretrained:
    "torch_dtype": "dtype",
    "safety_checker": "nothing: no image is checked",
    "feature_extractor": "nothing: no image is checked",
    "requires_safety_checker": "nothing: no image is checked",
    "device_map": "devices",
    "adapter": "fusion",
    "unet": "base",
    "text_encoder": "base",
}

# Groups of the command line's help, in its order.
SEEN, WHO, HOW, MODELS, START = (
    "what is seen",
    "who is seen",
    "how it is made",
    "models",
    "starting from an image",
)
LARGEST_SEED = 2**32 - 1
LARGEST_STRENGTH = 1e6  # of faces; float32 holds its products
LARGEST_GUIDANCE = 1000.0
MOST_IMAGES = 10_000  # of one call
_LONGEST_SIDE = 8192


def option(
    default: Any,
    text: str,
    *,
    group: str,
    flags: Sequence[str] = (),
    metavar: Any = None,
    limits: tuple[float, float] | None = None,
    above: bool = False,
    choices: Sequence[str] = (),
    path: Literal["file", "source"] | None = None,
    needs: Sequence[str] = (),
) -> Any:
    """A field that a user sets, by keyword, key or flag.

    Args:
        default: its value where nothing is said.
        text: its help.
        group: of the command line's help.
        flags: on the command line, if not its name.
        metavar: what stands for its value in the help.
        limits: of its number or numbers, both included; +∞ itself never is.
        above: the lower limit is not included.
        choices: the texts that it may be.
        path: it names a file that must exist, or a model that may also be a name on a hub.
        needs: the fields without any of which it would do nothing.
    """
    metadata = {
        "help": text, "group": group, "flags": tuple(flags), "metavar": metavar, "limits": limits,
        "above": above, "choices": tuple(choices), "path": path, "needs": tuple(needs),
    }  # fmt: skip
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=type(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_options(values: Any) -> None:
    """Checks every option of a frozen dataclass against its type, its choices and its limits.

    Called at the end of its making; numbers and lists of another kind (NumPy's) are kept as its
    own.

    Raises:
        UserError: for the first that is of another type, not one of them, or out of range.
    """
    for field in dataclasses.fields(values):
        if "help" not in field.metadata:
            continue
        value = getattr(values, field.name)
        if Path not in (field.type, *get_args(field.type)):  # which only a command line has
            value = typed(value, field.type, field.name)
            object.__setattr__(values, field.name, value)  # frozen from here on
            if field.metadata["path"] is None:
                check_texts(field.name, value)
        choices = field.metadata["choices"]
        if choices and value is not None and value not in choices:
            raise UserError(not_one_of(field.name, value, choices))
        if (limits := field.metadata.get("limits")) is None:
            continue
        for part, number in numbers_of(value):
            name = f"{field.name} of {part}" if part else field.name
            check_number(name, number, *limits, above=field.metadata["above"])


def current_name(name: str) -> str:
    """The name that something goes by now."""
    return OLD_NAMES.get(name, name)


def unknown_name(name: str, known: Sequence[str]) -> str:
    """What to say of a name that is not known, with what serves instead or the likeliest one."""
    if name in INSTEAD:
        return f"{name!r} is not supported; use {INSTEAD[name]}"
    name = shortened(name, 80)
    close = difflib.get_close_matches(name, [*known, *OLD_NAMES], 1)
    hint = f"did you mean {current_name(close[0])!r}?" if close else f"known are {', '.join(known)}"
    return f"{name!r} is not known; {hint}"


@dataclasses.dataclass(frozen=True)
class Description:
    """What one image shall show, as plain values. All of it is data: no value compiles anything."""

    prompt: str | None = option(None, "what is seen", group=SEEN, metavar="TEXT")
    negative_prompt: str = option("", "what is not", group=SEEN, metavar="TEXT")
    prompt_weights: bool = option(
        False, "read (word:1.3), (word) and [word] in prompts as weights", group=SEEN
    )
    long_prompts: str = option(
        "cut", "what is done with more than 75 tokens: cut them, or read them in chunks",
        group=SEEN, choices=LONG_PROMPTS, metavar="cut|chunks",
    )  # fmt: skip
    face_steps: tuple[float, ...] = option(
        (0.0, 1.0), "from which to which share of the steps faces act", group=WHO,
        metavar=("FROM", "UNTIL"),
    )  # fmt: skip
    layer_strength: Mapping[str, float] = option(
        {}, "factors on the strength by layer", group=WHO,
        limits=(0, LARGEST_STRENGTH), metavar="LAYER=FACTOR",
    )  # fmt: skip
    face_guidance_scale: float | None = option(
        None, "guide by the faces separately, and by the text with --guidance-scale, for one more "
        "pass of the UNet a step", group=WHO, limits=(1, LARGEST_GUIDANCE), metavar="G",
    )  # fmt: skip
    seed: int = option(
        0, "of the first image; the next have the next numbers; `random` draws one", group=HOW,
        limits=(0, LARGEST_SEED), metavar="N",
    )  # fmt: skip
    guidance_scale: float | None = option(
        None, "how strictly to follow text and faces; 1 is no guidance (default: 7.5; the embedded "
        "model: 3)", group=HOW, limits=(1, LARGEST_GUIDANCE), metavar="G",
    )  # fmt: skip
    guidance_rescale: float = option(
        0.0, "give so much of the contrast back that guidance adds (arXiv 2305.08891: 0.7)",
        group=HOW, limits=(0, 1), metavar="SHARE",
    )  # fmt: skip
    controlnet_conditioning_scale: float = option(
        1.0, "a factor on the ControlNet's answer", group=START, limits=(0, 100), metavar="S",
        flags=("--controlnet-conditioning-scale", "--control-strength"),
    )  # fmt: skip
    mask_blur: float = option(
        0.0, "a soft edge between what is painted anew and what stays: the standard deviation of "
        "a Gaussian in pixels", group=START, limits=(0, 1000), metavar="PIXELS",
        needs=("mask_image", "outpaint"),
    )  # fmt: skip
    outpaint: tuple[int, ...] = option(
        (), "enlarge --image at its sides by so many pixels, and paint what is new",
        group=START, limits=(0, _LONGEST_SIDE), metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"),
        needs=("image",),
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_options(self)
        check_outpaint(self.outpaint)
        steps = self.face_steps
        if len(steps) != 2 or not 0 <= steps[0] <= steps[1] <= 1:
            raise UserError(
                f"face_steps is {' '.join(map(str, steps))}; it must be two numbers "
                "with 0 ≤ from ≤ until ≤ 1"
            )


@dataclasses.dataclass(frozen=True)
class Settings:
    """What images generated together share. Height, width and steps decide what is compiled."""

    height: int | None = option(
        None, "in pixels (default: the base's own)", group=SEEN, limits=(8, _LONGEST_SIDE),
        metavar="PIXELS",
    )  # fmt: skip
    width: int | None = option(
        None, "likewise", group=SEEN, limits=(8, _LONGEST_SIDE), metavar="PIXELS"
    )
    num_inference_steps: int = option(
        30, "noise levels to visit", group=HOW, limits=(1, 999), metavar="N",
        flags=("--num-inference-steps", "--steps"),
    )  # fmt: skip
    scheduler: str = option(
        "dpmpp_2m", f"the sampler, one of {', '.join(SCHEDULERS)}", group=HOW, choices=SCHEDULERS,
        metavar="NAME",
    )  # fmt: skip
    clip_skip: int | None = option(
        None, "leave out so many of the text encoder's last layers", group=HOW, limits=(0, 99),
        metavar="N",
    )  # fmt: skip
    strength: float = option(
        0.8, "how far to leave --image, in (0, 1]: the share of the steps that is run", group=START,
        limits=(0, 1), above=True, metavar="S", flags=("--strength", "--image-strength"),
    )  # fmt: skip
    upscale: float | None = option(
        None, "a second pass: enlarge the image by this factor (its sides rounded to multiples of "
        "8) and paint it again from there", group=HOW, limits=(1, 16), above=True, metavar="FACTOR",
    )  # fmt: skip
    upscale_strength: float = option(
        0.5, "how far the second pass leaves the first, in (0, 1]", group=HOW, limits=(0, 1),
        above=True, metavar="S", needs=("upscale",),
    )  # fmt: skip
    face_detail: bool = option(
        False, "experimental: paint each small face again, at the size the base was trained on",
        group=WHO,
    )  # fmt: skip
    face_detail_strength: float = option(
        0.6, "how far that leaves the face that is there, in (0, 1]", group=WHO, limits=(0, 1),
        above=True, metavar="S", needs=("face_detail",),
    )  # fmt: skip
    faces_in_negative: bool = option(
        False, "show the faces to the guidance's negative branch too", group=WHO
    )

    def __post_init__(self) -> None:
        check_options(self)
        for name in ("height", "width"):
            if (value := getattr(self, name)) is not None:
                check_multiple(name, value, 8)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, once they are settled."""
        assert self.height is not None
        assert self.width is not None
        return self.height, self.width

    @property
    def second_pass(self) -> "Settings | None":
        """The settings of the pass at the larger size, or None where there is none."""
        if self.upscale is None:
            return None
        height, width = (round(side * self.upscale / 8) * 8 for side in self.size)
        return dataclasses.replace(
            self, height=height, width=width, strength=self.upscale_strength, upscale=None
        )

    def face_pass(self, side: int) -> "Settings":
        """The settings of the pass that paints faces again, each on a square of so many pixels."""
        strength = self.face_detail_strength
        return dataclasses.replace(
            self, height=side, width=side, strength=strength, upscale=None, face_detail=False
        )


def check_guidance(description: Description, settings: Settings) -> None:
    """Raises UserError where the two ask for guidance that excludes each other."""
    if settings.faces_in_negative and description.face_guidance_scale is not None:
        raise UserError(
            "face_guidance_scale guides away from an image without the faces, and "
            "faces_in_negative shows them there too; give one of them"
        )


Reference = Literal["clean", "matched"]
_BIASES = (-100.0, 100.0)

Initialisation = Literal["self_attention", "zeros", "query", "random"]


@dataclasses.dataclass(frozen=True)
class FusionOptions:
    """What an adapter was trained with; recorded with every checkpoint and export.

    Attributes:
        reference: `clean`: photos pass the UNet at timestep 0, once. `matched`: noised to the
            image's own timestep, in every step (the paper read literally).
        fusion: `concat`: one softmax over text and faces (the paper). `decoupled`: a second
            softmax for the faces, added (IP-Adapter).
        init: How training starts: kf, vf as copies of the block's self-attention to_k, to_v
            (`self_attention`); kf so and vf zero (`zeros`); kf as a copy of the cross-attention's
            own to_q, so that what resembles the query in the photo weighs most, and vf zero
            (`query`); both normal with variance 1/D (`random`).
        face_logit_bias: Added to the logits of all face keys, natural logarithm: at λ = 1 a face
            key weighs exp(face_logit_bias) times what it weighs in the paper.
    """

    reference: Reference | str = "clean"
    fusion: Fusion | str = "concat"
    init: Initialisation | str = "self_attention"
    face_logit_bias: float = 0.0

    def __post_init__(self) -> None:
        for name, choices in (
            ("reference", get_args(Reference)),
            ("fusion", get_args(Fusion)),
            ("init", get_args(Initialisation)),
        ):
            if getattr(self, name) not in choices:
                raise UserError(
                    f"{name} is {told(getattr(self, name))}; choose one of {', '.join(choices)}"
                )
        check_number("face_logit_bias", self.face_logit_bias, *_BIASES)

    def to_json(self) -> dict[str, Any]:
        """The options as a JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, options: Mapping[str, Any]) -> "FusionOptions":
        """Reads what `to_json` wrote.

        Raises:
            UserError: On an option this version does not know: ignoring it could be wrong.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in names:
                raise UserError(
                    f"the adapter has the option {told(name)}, which this version does not know; "
                    f"it knows {', '.join(names)}"
                )
        return typed(options, cls, "the adapter's options")
