"""The TFDS builders: what the records of our datasets hold, as ArrayRecord, without TensorFlow.

They are no commands: a builder cannot live in a module that runs as `__main__`.
"""

import contextlib
import functools
import io
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fusionjax.mini.drawing import PICTURE_PIXELS
from fusionjax.mini.examples import Example, Plan, draw_part
from fusionjax.mini.people import SPLITS

tfds.disable_progress_bar()  # whoever builds tells of the progress


def features() -> tfds.features.FeaturesDict:
    """The record's fields, as every dataset that is trained on has them.

    One with pictures of several people has `face_boxes` [people, 4] in place of `face_box`, and
    `owners`, the number of the person whom each of the references shows.
    """
    picture = tfds.features.Image(encoding_format="jpeg")
    return tfds.features.FeaturesDict(
        {
            "image": picture,
            "caption": tfds.features.Text(),
            "references": tfds.features.Sequence(picture),
            "identity": tfds.features.Text(),
            "face_box": tfds.features.Tensor(shape=(4,), dtype=np.float32),
        }
    )


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Prints nothing either."""

    def _log_download_bytes(self) -> None:
        """Not said."""

    def _log_download_done(self) -> None:
        """Likewise."""


class FacePairs(_Builder):
    """The builder; `build` runs it."""

    VERSION = tfds.core.Version("1.0.0")
    name = "face_pairs"

    def __init__(self, *, splits: dict[str, list[dict[str, Any]]], **kwargs: Any) -> None:
        self._splits = splits
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(features=features())

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        del dl_manager  # nothing is downloaded
        return {name: self._generate_examples(found) for name, found in self._splits.items()}

    def _generate_examples(
        self, found: list[dict[str, Any]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, example in enumerate(found):
            files = {
                "image": io.BytesIO(example["image"]),
                "references": [io.BytesIO(photo) for photo in example["references"]],
            }
            yield f"{number:08d}", {**example, **files}


def prepared_features() -> tfds.features.FeaturesDict:
    """The fields of `prepare`'s records; their references are beside them, see there."""
    picture = tfds.features.Image(encoding_format="jpeg")
    return tfds.features.FeaturesDict(
        {
            "image": picture,
            "faces": tfds.features.Sequence(picture),
            "caption": tfds.features.Text(),
            "identity": tfds.features.Text(),
            "face_boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
        }
    )


class Prepared(_Builder):
    """Describes what `prepare` writes, shard by shard, by itself."""

    VERSION = tfds.core.Version("1.0.0")
    name = "prepared"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(features=prepared_features())

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        raise NotImplementedError("`prepare` writes the shards")

    def _generate_examples(self) -> Any:
        raise NotImplementedError("`prepare` writes the shards")


_PEOPLE_PER_TASK = 8


class MiniFaces(_Builder):
    """Drawn people with captions, reference photos and all attributes."""

    name = "mini_faces"
    VERSION = tfds.core.Version("2.0.0")
    pkg_dir_path = Path(__file__).parent

    def __init__(
        self,
        *,
        plan: Plan | None = None,
        processes: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        **kwargs: Any,
    ) -> None:
        self.plan = plan or Plan()
        self.processes = os.cpu_count() or 1 if processes is None else processes
        self.progress = progress
        self._drawn = 0
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        picture = tfds.features.Image(
            shape=(PICTURE_PIXELS, PICTURE_PIXELS, 3), encoding_format="png"
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description="Drawn people in varying circumstances; see fusionjax.mini.drawing.",
            features=tfds.features.FeaturesDict(
                {
                    "image": picture,
                    "caption": tfds.features.Text(),
                    "references": tfds.features.Sequence(picture),
                    "owners": tfds.features.Sequence(np.int32),
                    "identity": tfds.features.Text(),
                    "face_boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
                    "attributes": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Example]]:
        del dl_manager  # nothing is downloaded
        sizes = {split: len(self.plan.people_of(split)) for split in SPLITS}
        if self.plan.scenes:
            sizes["scenes"] = self.plan.scenes
        return {split: self._generate_examples(split, size) for split, size in sizes.items()}

    def _generate_examples(self, split: str, size: int) -> Iterator[Example]:
        starts = range(0, size, _PEOPLE_PER_TASK)
        tasks = [(split, start, min(start + _PEOPLE_PER_TASK, size)) for start in starts]
        total = self.plan.total_pictures()
        draw = functools.partial(draw_part, plan=self.plan)
        with contextlib.ExitStack() as stack:
            if self.processes == 1:
                parts: Iterator[list[Example]] = map(draw, tasks)
            else:
                spawn = multiprocessing.get_context("spawn")
                pool = stack.enter_context(spawn.Pool(min(self.processes, len(tasks))))
                parts = pool.imap(draw, tasks)
            for examples in parts:
                for key, example in examples:
                    files = {
                        "image": io.BytesIO(example["image"]),
                        "references": [io.BytesIO(photo) for photo in example["references"]],
                    }
                    yield key, {**example, **files}
                self._drawn += len(examples)
                if self.progress:
                    self.progress(self._drawn, total)
