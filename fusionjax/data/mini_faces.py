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

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from fusionjax.command import parser_of, progress_bar, run_command
from fusionjax.errors import UserError
from fusionjax.mini.examples import Plan


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
    from fusionjax.data.builders import MiniFaces  # here: `--help` needs no TFDS

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
        builder.download_and_prepare()
        if target.exists():
            target.rmdir()
        shutil.move(builder.data_dir, target)
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: builds the dataset with a progress bar.

    Args:
        arguments: without the program's name; None is the process's own.

    Returns:
        The exit status.
    """
    defaults = Plan()
    parser = parser_of("python -m fusionjax.data.mini_faces", __doc__)
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
    args = parser.parse_args(arguments)

    def body() -> None:
        with progress_bar("drawing the mini world") as progress:
            build(**vars(args), progress=progress)

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
