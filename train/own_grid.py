"""Prompts and photos of one's own, painted at each validation: a prompt a row, a person a column.

Legend: n prompts, r photos of a person, t tokens, h w c rows, columns and channels of the latents.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from fusionjax.errors import UserError, shortened
from fusionjax.evaluation.people import ENDINGS, photos_in, read_prompts
from fusionjax.files import folders_in
from fusionjax.models.base import BaseModel
from fusionjax.photos import prepare_photo
from fusionjax.pixels import to_bytes, to_unit
from fusionjax.sheet import labelled_sheet
from train.validation_config import ValidationConfig

_MOST = 12  # people, and prompts
_SIDES = 128, 256  # of a picture, in pixels: the base's own, but not less and not more


class Own(NamedTuple):
    """What a user wants to see.

    Attributes:
        prompts: of the rows.
        people: the columns' names and photos.
    """

    prompts: list[str]
    people: dict[str, tuple[Path, ...]]


def read_own(config: ValidationConfig, most_photos: int) -> Own | None:
    """Reads what `validation.prompts` and `validation.photos` name.

    Args:
        config: names them.
        most_photos: so many photos of a person are shown, the first by name.

    Returns:
        It; None if nothing is named.

    Raises:
        UserError: if there is no such file or folder, or there is nothing or too much in it.
    """
    if config.prompts is None or config.photos is None:
        return None
    folder, prompts = Path(config.photos), read_prompts(config.prompts)
    name = f"validation.photos {shortened(str(folder), 200)!r}"
    if not folder.is_dir():
        raise UserError(f"{name} is no folder; name one with a folder of photos for each person")
    people = {place.name: photos_in(place)[:most_photos] for place in folders_in(folder)}
    empty = [who for who, photos in people.items() if not photos]
    if empty or not people:
        raise UserError(
            f"{name} holds no photo{' of ' + shortened(empty[0], 80) if empty else ''} "
            f"({', '.join(ENDINGS)}); it needs a folder of photos for each person"
        )
    for what, count in (("people", len(people)), ("prompts", len(prompts))):
        if count > _MOST:
            raise UserError(
                f"validation.photos and validation.prompts hold {count} {what}, and a grid has "
                f"room for {_MOST}; leave some out"
            )
    return Own(prompts, people)


class OwnGrid:
    """The photos as the UNet takes them, and the sheet."""

    def __init__(self, own: Own, base: BaseModel, most_photos: int) -> None:
        """Cuts the photos and encodes them.

        Args:
            own: what is shown.
            base: whose autoencoder and tokenizer.
            most_photos: r.

        Raises:
            UserError: if a photo cannot be read, or shows no face.
        """
        self._own = own
        side = base.picture_side
        cut = {
            who: [prepare_photo(photo, side) for photo in photos]
            for who, photos in own.people.items()
        }
        self._side = min(max(side, _SIDES[0]), _SIDES[1])
        self._first = [photos[0] for photos in cut.values()]
        self._tokens = base.tokenize(own.prompts)
        encode: Any = jax.jit(base.encode_image)
        self._batches = []
        for photos in cut.values():
            # Always r photos, so that one program does for everybody.
            given = [photos[min(i, len(photos) - 1)] for i in range(most_photos)]
            photos_in = np.stack([to_unit(photo) for photo in given])
            latents = np.asarray(encode({"vae": base.params["vae"]}, photos_in))
            present = (np.arange(most_photos) < len(photos)).astype(np.float32)
            count = len(own.prompts)
            self._batches.append(
                {
                    "references": np.repeat(latents.astype(np.float32)[None], count, axis=0),
                    "present": np.repeat(present[None], count, axis=0),
                }
            )

    def paint(self, generated: Callable[..., Any]) -> Image.Image:
        """Paints everybody by every prompt, and nobody.

        Args:
            generated: (batch, tokens [n t], with_people=) → pictures [n H W 3] in -1..1.

        Returns:
            The sheet: photos above, and one row a prompt, in each the same noise for all.
        """
        columns = [generated(batch, self._tokens, with_people=True) for batch in self._batches]
        columns.append(generated(self._batches[0], self._tokens, with_people=False))
        pictures = [[Image.fromarray(x) for x in to_bytes(np.asarray(each))] for each in columns]
        rows: list[Any] = [("", [*self._first, None])]
        rows += [
            (prompt, [column[number] for column in pictures])
            for number, prompt in enumerate(self._own.prompts)
        ]
        return labelled_sheet([*self._own.people, "nobody"], rows, side=self._side)
