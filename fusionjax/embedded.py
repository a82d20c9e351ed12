"""The shipped miniature: its base model, adapters, people and defaults, known in this one place."""

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
MINI = "mini"
"""The name of the embedded mini base model, wherever a base's source is asked for."""
MINI_BASE = ASSETS / "mini"
MINI_FUSION = ASSETS / "mini_fusion.safetensors"
MINI_DECOUPLED = ASSETS / "mini_decoupled.safetensors"
RECOGNISER = ASSETS / "recogniser"

# What is painted when nothing is asked for.
MINI_FACE = ASSETS / "faces" / "cleo.png"  # one of four people
MINI_PROMPT = "a person laughing, wearing an astronaut suit, in a garden with flowers"
MINI_GUIDANCE = 3.0


def base_source(name: str) -> str:
    """Where a base lies: the embedded model for "mini", an existing folder in full, else as is."""
    if name == MINI and not Path(name).exists():
        return str(MINI_BASE)
    return str(Path(name).absolute()) if Path(name).exists() else name


def is_mini(base: str | None) -> bool:
    """Whether a base's source is the embedded model."""
    return base is not None and Path(base_source(base)).resolve() == MINI_BASE.resolve()
