"""Names that users choose from; here so that a command line can check them without loading JAX."""

import difflib
from collections.abc import Sequence
from typing import Literal, get_args

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
