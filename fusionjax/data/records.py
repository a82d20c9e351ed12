"""The examples of a TFDS dataset, read from its folder with their pictures still encoded."""

import re
from pathlib import Path
from typing import Any

from fusionjax.errors import UserError

Example = dict[str, Any]


def dataset_info(folder: str | Path) -> Path:
    """The file that says what the TFDS dataset in a folder holds.

    Raises:
        UserError: if there is no dataset.
    """
    info = Path(folder) / "dataset_info.json"
    if not info.is_file():
        raise UserError(
            f"data.folder is {str(folder)!r}; it holds no dataset_info.json: name the folder "
            "of a TFDS dataset, or build one first"
        )
    return info


def open_records(folder: str | Path, split: str) -> Any:
    """Opens one split of a TFDS ArrayRecord dataset; pictures stay encoded.

    Args:
        folder: the folder that holds `dataset_info.json`.
        split: a split's name, slice or sum, such as `train`, `train[:100]` or `train+scenes`.

    Returns:
        A random-access source of examples: `len(source)`, `source[i]`.

    Raises:
        UserError: if there is no such dataset or split.
    """
    dataset_info(folder)
    import tensorflow_datasets as tfds

    class Encoded(tfds.decode.SkipDecoding):
        """Leaves a picture's bytes as they are, in a sequence too."""

        def decode_batch_example_np(self, example: Any) -> Any:
            return example

    builder = tfds.builder_from_directory(str(folder))
    known = sorted(builder.info.splits)
    for name in re.split(r"\s*\+\s*", re.sub(r"\[.*?\]", "", split)):
        if name not in known:
            raise UserError(
                f"split {name!r} is not in {str(folder)!r}; there are {', '.join(known)}"
            )
    encoded = {
        key: Encoded()
        for key, feature in builder.info.features.items()
        if isinstance(getattr(feature, "feature", feature), tfds.features.Image)
    }
    return builder.as_data_source(split, decoders=encoded or None)
