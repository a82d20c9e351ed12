"""`fusionjax watermark`: the letters that `--watermark` hid in images.

    fusionjax sample --watermark ann
    fusionjax watermark pictures/0001_seed0.png

One line an image: its name, and the letters if it has any. They are read from a copy that was
saved as JPEG too, the better the larger the image is, but not from one that was cut, turned or
scaled. The status is 1 if an image has none.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fusionjax.command import parser_of, run_command


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("fusionjax watermark", __doc__)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the watermarks of the images that the command line names.

    Args:
        arguments: the words after the command; None takes this process's.

    Returns:
        The exit status: 0, 1 if an image has none, or 2 for one that cannot be read.
    """
    args = _parser().parse_args(arguments)
    return run_command(lambda: _run(args.images))


def _run(images: list[Path]) -> int:
    import numpy as np  # here: `--help` needs neither

    from fusionjax.photos import read_photo
    from fusionjax.watermark import read

    found = [read(np.asarray(read_photo(image))) for image in images]
    for image, text in zip(images, found, strict=True):
        print(f"{image}: no watermark" if text is None else f"{image}: {text}")
    return 1 if None in found else 0


if __name__ == "__main__":
    sys.exit(main())
