"""How a run is watched, as settings."""

import dataclasses
from typing import Literal

from fusionjax.errors import at_least

LogTo = Literal["tensorboard", "wandb", "none"]


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
    """How a run is watched."""

    every_steps: int = 200
    """Steps between validations: a loss on fixed pictures and fixed noise, and a grid."""
    examples: int = 64
    """Pictures of the validation split that the loss is taken over."""
    grid_rows: int = 6
    """Rows of the picture grid."""

    def __post_init__(self) -> None:
        at_least(
            1,
            validation__every_steps=self.every_steps,
            validation__examples=self.examples,
            validation__grid_rows=self.grid_rows,
        )
