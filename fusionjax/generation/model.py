"""What images are generated with: a base, its UNet that sees faces, perhaps a ControlNet."""

import dataclasses
import functools
from typing import Any

from fusionjax.generation.vocabulary import Vocabulary
from fusionjax.models.base import BaseModel
from fusionjax.unet import FusionUNet


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """The structure of all that computes; weights are arguments of the programs.

    Attributes:
        base: tokenizer, text encoder, VAE, noise schedule.
        fusion: its UNet, able to see faces.
        controlnet: a `fusionjax.models.controlnet.ControlNet` or None.
    """

    base: BaseModel
    fusion: FusionUNet
    controlnet: Any = None

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The words that prompts may hold; `Vocabulary.add` adds some."""
        return Vocabulary(self.base)

    @property
    def photo_side(self) -> int:
        """Side of the square photos that the base model looks at, in pixels."""
        return self.base.picture_side

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the latents of an image of so many pixels."""
        factor = self.base.vae_scale_factor
        return height // factor, width // factor
