"""Your own pictures as a dataset: TFDS ArrayRecord, without TensorFlow.

    python -m fusionjax.data.face_pairs PICTURES DATASET --size 512

PICTURES holds a folder for each person, in it that person's pictures, and beside each picture a
text file of the same name with its caption:

    PICTURES/ada/garden.jpg     PICTURES/ada/garden.txt
    PICTURES/ada/office.png     PICTURES/ada/office.txt

`fusionjax prepare` takes these and much else, in less room and with all cores.

A picture becomes a square with the face inside; the references are the faces of the person's
other pictures. Of somebody with one picture there are none, and the face is cut from the target
when latents are cached. What cannot be used is skipped, counted and listed in `skipped.tsv`.
"""

import collections
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fusionjax import photos
from fusionjax.command import parser_of, progress_bar, run_command
from fusionjax.data.assemble import held_out
from fusionjax.data.picture import Picture, Unusable, decoded
from fusionjax.data.prepared import Dropped, Prepared, Wishes, prepare_picture
from fusionjax.errors import UserError
from fusionjax.files import folders_in, has_ending, write_whole

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif"}
Example = dict[str, Any]


def build(
    pictures: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    size: int = 512,
    validation_share: float = 0.05,
    max_references: int = 4,
    most_skipped: float = 0.2,
    progress: Callable[[int, int], None] | None = None,
) -> collections.Counter[str]:
    """Finds the faces in a folder of pictures and writes the dataset.

    Args:
        pictures: a folder for each person, see above.
        folder: where the dataset goes; must not exist yet.
        size: side of every picture in pixels: the base model's.
        validation_share: share of the people (not of the pictures) kept for validation; at least
            one, and not all.
        max_references: most photos kept with an example.
        most_skipped: the largest share of pictures that may be skipped.
        progress: called with the pictures read and their number.

    Returns:
        How many pictures were skipped, by reason.

    Raises:
        UserError: if there are no pictures, too many were skipped, or the folder is in use.
    """
    from fusionjax.data.builders import FacePairs  # here: `--help` needs no TFDS

    root, target = Path(pictures), Path(folder)
    if target.exists():
        raise UserError(f"{str(target)!r} already exists; remove it or name another")
    if not root.is_dir():
        raise UserError(f"{str(root)!r} is no folder of pictures")
    files = [
        p for place in folders_in(root) for p in sorted(place.iterdir()) if has_ending(p, ENDINGS)
    ]
    if not files:
        raise UserError(
            f"{str(root)!r} holds no pictures; it needs a folder for each person, with that "
            f"person's pictures ({', '.join(sorted(ENDINGS))})"
        )
    by_person: dict[str, list[Prepared]] = collections.defaultdict(list)
    skipped: list[tuple[Path, str]] = []
    for number, path in enumerate(files):
        try:
            by_person[path.parent.name].append(_read(path, size))
        except Dropped as reason:
            skipped.append((path, str(reason)))
        if progress is not None:
            progress(number + 1, len(files))
    reasons = collections.Counter(reason for _, reason in skipped)
    lines = "".join(f"{path}\t{reason}\n" for path, reason in skipped)
    if len(skipped) > most_skipped * len(files):
        listed = target.with_name(f"{target.name}.skipped.tsv")
        write_whole(listed, lines)
        told = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        raise UserError(
            f"{len(skipped)} of {len(files)} pictures cannot be used ({told}), more than the "
            f"share of {most_skipped} that may be skipped; they are listed in {str(listed)!r}"
        )
    splits: dict[str, list[Example]] = {"train": [], "validation": []}
    if len(by_person) < 2:
        raise UserError(
            f"{str(root)!r} holds usable pictures of {len(by_person)} person; at least two are "
            "needed, one of them for validation"
        )
    validation = held_out(by_person, validation_share)
    for name, persons in (("validation", validation), ("train", by_person.keys() - validation)):
        for person in sorted(persons):
            splits[name] += _examples(person, by_person[person], max_references)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        builder = FacePairs(splits=splits, data_dir=scratch)
        builder.download_and_prepare()
        shutil.move(builder.data_dir, target)
    (target / "skipped.tsv").write_text(lines, encoding="utf-8")
    return reasons


def _read(path: Path, size: int) -> Prepared:
    """A picture with its caption, cut; of several faces the person's must be clearly the largest.

    Raises:
        Dropped: if it cannot be used.
    """
    words = path.with_suffix(".txt")
    try:
        caption = decoded(words.read_bytes()) if words.is_file() else ""
    except Unusable as reason:
        raise Dropped(str(reason)) from None
    wishes = Wishes(size=size, smallest_picture=photos.MIN_SIDE, smallest_face=1, most_faces=99)
    return prepare_picture(Picture(path.name, path, caption, path.parent.name), wishes)


def _examples(person: str, found: list[Prepared], max_references: int) -> list[Example]:
    return [
        {
            "image": one.image,
            "caption": one.caption,
            "references": [other.face for other in found if other is not one][:max_references],
            "identity": person,
            "face_box": one.boxes[0],
        }
        for one in found
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
        arguments: without the program's name; None is the process's own.

    Returns:
        The exit status.
    """
    parser = parser_of("python -m fusionjax.data.face_pairs", __doc__)
    parser.add_argument("pictures", help="a folder with a folder for each person")
    parser.add_argument("folder", help="the dataset's folder; must not exist yet")
    parser.add_argument("--size", type=int, default=512, help="side in pixels (%(default)s)")
    parser.add_argument(
        "--validation-share", type=float, default=0.05, help="share of people (%(default)s)"
    )
    parser.add_argument("--max-references", type=int, default=4, help="most photos an example")
    parser.add_argument(
        "--most-skipped", type=float, default=0.2, help="share that may be skipped (%(default)s)"
    )
    args = parser.parse_args(arguments)

    def body() -> None:
        with progress_bar("reading pictures") as progress:
            reasons = build(**vars(args), progress=progress)
        for reason, count in reasons.most_common():
            print(f"skipped: {count} {reason}")
        print(args.folder)

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
