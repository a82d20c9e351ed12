"""Names that users choose from; here so that a command line can check them without loading JAX."""

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from fusionjax.errors import UserError

Fusion = Literal["concat", "decoupled"]
Implementation = Literal["xla", "cudnn", "tpu"]
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)

SCHEDULERS = (
    "ddim",
    "dpmpp_2m",
    "dpmpp_2m_karras",
    "euler",
    "euler_karras",
    "euler_ancestral",
    "lms",
    "lms_karras",
    "pndm",
)
CROPS = ("auto", "none")
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
    written = str(value).lower().replace("+", "p").translate(str.maketrans(" -", "__"))
    # A name's beginning is meant to be that name: "euler a", "dpm++".
    close = [choice for choice in choices if written and choice.startswith(written)]
    close = close or difflib.get_close_matches(written, choices, 1)
    meant = f"did you mean {close[0]!r}? Choose" if close else "choose"
    return f"{name} is {value!r}; {meant} one of {', '.join(choices)}"


Reference = Literal["clean", "matched"]

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
                    f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}"
                )
        if not math.isfinite(self.face_logit_bias):
            raise UserError(f"face_logit_bias is {self.face_logit_bias}; it must be finite")

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
                    f"the adapter has the option {name!r}, which this version does not know; "
                    f"it knows {', '.join(names)}"
                )
        return cls(**options)
