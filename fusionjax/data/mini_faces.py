"""The mini world on disk: a TFDS dataset of drawn people, captions and reference photos.

`build` draws the pictures on all cores and writes ArrayRecord files; TensorFlow is neither needed
to write them nor to read them. From the command line:

    python -m fusionjax.data.mini_faces data/mini_faces

draws 15,000 training pictures in a few minutes. Read it with
`tfds.builder_from_directory("data/mini_faces").as_data_source("train")`. Splits: `train`,
`validation` and `test` hold pictures of one person each, and no person is in two of them; `scenes`
holds pictures of two and three training people, and `train+scenes` reads both. `face_boxes` are
those of all people in the picture, from left to right, and `owners` says for each of the
`references` whose photo it is.
"""

import contextlib
import functools
import io
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fusionjax.errors import UserError
from fusionjax.mini.drawing import PICTURE_PIXELS
from fusionjax.mini.examples import Example, Plan, draw_part
from fusionjax.mini.people import SPLITS

_PEOPLE_PER_TASK = 8


class MiniFaces(tfds.core.GeneratorBasedBuilder):
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

    def _log_download_bytes(self) -> None:
        """Nothing is printed; `progress` reports."""

    def _log_download_done(self) -> None:
        """Likewise."""

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


def build(
    folder: str | os.PathLike[str],
    *,
    people: int = 5000,
    pictures_per_person: int = 3,
    scenes: int = 6000,
    identity_share: float = 0.5,
    seed: int = 0,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draws the dataset and writes it as ArrayRecord files.

    Args:
        folder: Where; must not exist yet, or be empty.
        people: Training people; validation and test have a twentieth of that each, at least 8.
        pictures_per_person: Pictures of each person.
        scenes: Pictures of two or three training people, in a split of their own.
        identity_share: The probability with which a person's caption tells their traits at all.
        seed: The same seed draws the same dataset.
        processes: How many draw at once; None means all cores.
        progress: Called with the pictures drawn so far and in all.

    Returns:
        The folder, for `tfds.builder_from_directory`.

    Raises:
        UserError: If the folder holds something already, or a count is not possible.
    """
    target = Path(folder)
    plan = Plan(people, pictures_per_person, scenes, identity_share, seed)
    if processes is not None and processes < 1:
        raise UserError(f"processes is {processes}; it must be at least 1, or not given")
    try:
        if target.exists() and any(target.iterdir()):
            raise UserError(f"folder {str(target)!r} is not empty; remove it or name another")
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"folder {str(target)!r} cannot be made ({error.strerror}); name another"
        ) from None
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        builder = MiniFaces(plan=plan, processes=processes, progress=progress, data_dir=scratch)
        tfds.disable_progress_bar()
        builder.download_and_prepare()
        if target.exists():
            target.rmdir()
        shutil.move(builder.data_dir, target)
    return target


def main() -> None:
    """The command line: builds the dataset with a progress bar."""
    import argparse

    from tqdm import tqdm

    defaults = Plan()
    parser = argparse.ArgumentParser(
        prog="python -m fusionjax.data.mini_faces", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", help="where to write; must not exist yet")
    parser.add_argument(
        "--people", type=int, default=defaults.people, help="training people (%(default)s)"
    )
    parser.add_argument("--pictures-per-person", type=int, default=defaults.pictures_per_person)
    parser.add_argument(
        "--scenes", type=int, default=defaults.scenes, help="pictures of several people"
    )
    parser.add_argument(
        "--identity-share",
        type=float,
        default=defaults.identity_share,
        help="share of the captions that tell the person's traits (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument(
        "--processes", type=int, default=None, help="how many draw at once (all cores)"
    )
    args = parser.parse_args()
    with tqdm(unit=" pictures") as bar:

        def progress(drawn: int, total: int) -> None:
            bar.total = total
            bar.update(drawn - bar.n)

        try:
            build(**vars(args), progress=progress)
        except UserError as error:
            parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
