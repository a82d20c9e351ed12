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

import numpy as np

from fusionjax import photos
from fusionjax.command import parser_of, progress_bar, run_command
from fusionjax.data.assemble import held_out
from fusionjax.data.prepared import jpeg
from fusionjax.errors import UserError
from fusionjax.files import write_whole

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
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
    files = sorted(p for p in root.glob("*/*") if p.suffix.lower() in ENDINGS)
    if not files:
        raise UserError(
            f"{str(root)!r} holds no pictures; it needs a folder for each person, with that "
            f"person's pictures ({', '.join(sorted(ENDINGS))})"
        )
    by_person: dict[str, list[_Found]] = collections.defaultdict(list)
    skipped: list[tuple[Path, str]] = []
    for number, path in enumerate(files):
        try:
            by_person[path.parent.name].append(_read(path, size))
        except _Unusable as reason:
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


class _Unusable(Exception):
    """The reason why a picture is skipped."""


class _Found:
    """A picture of one face: the whole as a square, the face alone, and what is said of it."""

    def __init__(self, image: bytes, face: bytes, box: np.ndarray, caption: str) -> None:
        self.image, self.face, self.box, self.caption = image, face, box, caption


def _read(path: Path, size: int) -> _Found:
    words = path.with_suffix(".txt")
    try:
        caption = words.read_text(encoding="utf-8").strip() if words.is_file() else ""
    except UnicodeDecodeError:
        raise _Unusable("with a caption that is not UTF-8") from None
    if not caption:
        raise _Unusable("without caption")
    try:
        image = photos.read_photo(path)
    except UserError:
        raise _Unusable("unreadable") from None
    faces = photos.find_faces(image)
    if not faces:
        raise _Unusable("without face")
    left, top, width, height = faces[0]
    side = min(image.size)
    x = min(max(round(left + width / 2 - side / 2), 0), image.width - side)
    y = min(max(round(top + height / 2 - side / 2), 0), image.height - side)
    box = np.clip(
        np.array([top - y, left - x, top + height - y, left + width - x], np.float32) / side, 0, 1
    )
    if box[2] <= box[0] or box[3] <= box[1]:
        raise _Unusable("face of no size")
    face = image.crop(photos.face_square(faces[0], *image.size))
    return _Found(
        jpeg(image.crop((x, y, x + side, y + side)), size), jpeg(face, size), box, caption
    )


def _examples(person: str, found: list[_Found], max_references: int) -> list[Example]:
    return [
        {
            "image": one.image,
            "caption": one.caption,
            "references": [other.face for other in found if other is not one][:max_references],
            "identity": person,
            "face_box": one.box,
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
