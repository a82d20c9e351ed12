"""fusionjax: Stable Diffusion 1.5 that keeps a person's face, in JAX.

    pipe = fusionjax.FusionPipeline.from_pretrained(base, fusion=path)
    person = pipe.encode_identity([photo, photo])
    out = pipe("an astronaut in a garden", identities=[person])

Names are imported when they are first used, so that `import fusionjax` is instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fusionjax.quiet import quiet_diffusers
from fusionjax.version import VERSION

if TYPE_CHECKING:
    from fusionjax.errors import UserError
    from fusionjax.faces import Faces
    from fusionjax.identity import Identity
    from fusionjax.models.base import BaseModel
    from fusionjax.options import FusionOptions
    from fusionjax.pipeline import FusionPipeline
    from fusionjax.unet import FusionUNet

quiet_diffusers()

__version__ = VERSION

__all__ = [
    "BaseModel",
    "Faces",
    "FusionOptions",
    "FusionPipeline",
    "FusionUNet",
    "Identity",
    "UserError",
]

_HOME = {
    "BaseModel": "models.base",
    "Faces": "faces",
    "FusionOptions": "options",
    "FusionPipeline": "pipeline",
    "FusionUNet": "unet",
    "Identity": "identity",
    "UserError": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
