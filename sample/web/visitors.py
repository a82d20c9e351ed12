"""What is kept of a visitor while the page is open: the pictures, and the job behind each."""

import dataclasses
import secrets
import threading
from pathlib import Path
from typing import NamedTuple

from fusionjax.errors import UserError
from fusionjax.options import LARGEST_SEED, MOST_IMAGES
from sample.job import Job
from sample.web.painter import Done

VARY_STRENGTH = 0.7
"""How far a variant leaves its picture, see `Settings.strength`."""
_SHOWN = 40  # tiles of the gallery


class Tile(NamedTuple):
    """What stands in the gallery: a picture, or its attention map.

    Attributes:
        file: that is seen.
        caption: below it.
        picture: the file of the picture itself.
        job: that made it, with the picture's own seed.
    """

    file: Path
    caption: str
    picture: Path
    job: Job


@dataclasses.dataclass
class Visitor:
    """A visitor.

    Attributes:
        stop: ends the job that is under way; set when none is.
        tiles: of the gallery, the newest first.
        chosen: the one that was clicked on last, of those that are there since the last job.
    """

    stop: threading.Event | None = None
    tiles: list[Tile] = dataclasses.field(default_factory=list)
    chosen: Tile | None = None

    @property
    def is_served(self) -> bool:
        """Whether a job of theirs waits or is under way."""
        return self.stop is not None and not self.stop.is_set()

    def add(self, done: Done) -> None:
        """Puts pictures before those that are there, each with its map; none is chosen then."""
        new = []
        for number, (picture, seed) in enumerate(zip(done.pictures, done.seeds, strict=True)):
            job = dataclasses.replace(done.job, seed=seed)
            new.append(Tile(picture, f"seed {seed}", picture, job))
            if done.maps:
                caption = f"seed {seed}: where each photo was looked at"
                new.append(Tile(done.maps[number], caption, picture, job))
        kept = [tile for tile in self.tiles if tile.file.is_file()]
        self.tiles, self.chosen = [*new, *kept][:_SHOWN], None

    def choose(self, index: int) -> Tile:
        """The tile that is clicked on.

        Raises:
            UserError: if it is not there, or not any more.
        """
        if not 0 <= index < len(self.tiles):
            raise UserError(f"there is no picture {index + 1}; there are {len(self.tiles)}")
        self.chosen = _there(self.tiles[index])
        return self.chosen

    @property
    def taken(self) -> Tile:
        """What Again, Vary and Use as start take: the chosen picture, else the last.

        Raises:
            UserError: if there is none.
        """
        if not self.tiles:
            raise UserError("nothing has been painted yet")
        return _there(self.chosen or self.tiles[0])


def again(tile: Tile) -> Job:
    """A picture's job with another seed."""
    return dataclasses.replace(tile.job, seed=_new_seed())


def varied(tile: Tile) -> Job:
    """A picture's job with another seed, from the picture itself."""
    return dataclasses.replace(
        tile.job, seed=_new_seed(), image=str(tile.picture), strength=VARY_STRENGTH
    )


def _new_seed() -> int:
    return secrets.randbelow(LARGEST_SEED - MOST_IMAGES)


def _there(tile: Tile) -> Tile:
    if not tile.picture.is_file():
        raise UserError(f"{tile.picture.name} is not kept any more; make another picture")
    return tile
