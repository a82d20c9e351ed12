"""How a run is watched, as settings."""

import dataclasses
from typing import Literal

from fusionjax.errors import UserError, at_least

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
    prompts: str | None = None
    """A file with a prompt a line, painted below the grid of a run that trains an adapter, for the
    people of `photos`."""
    photos: str | None = None
    """A folder with a folder of photos for each of these people; as many photos of one are shown
    as the run's `references`."""

    def __post_init__(self) -> None:
        at_least(
            1,
            validation__every_steps=self.every_steps,
            validation__examples=self.examples,
            validation__grid_rows=self.grid_rows,
        )
        if (self.prompts is None) != (self.photos is None):
            given, missing = ("prompts", "photos") if self.photos is None else ("photos", "prompts")
            raise UserError(
                f"validation.{given} is given without validation.{missing}; give both or none"
            )
