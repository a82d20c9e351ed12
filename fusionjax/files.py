"""Files that are written whole or not at all, and the folders that they go to."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fusionjax.errors import UserError


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A place beside a file to write its new content to; it takes the file's place at the end.

    A kill or a full disk leaves what the file held before, and an error leaves nothing beside it.

    Args:
        path: the file; its folder is made.

    Yields:
        The place to write to.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.new")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield beside
        beside.replace(path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def make_folder(output: Path) -> None:
    """Makes the folder for a command's `--output`, before anything expensive starts.

    Args:
        output: the folder; may exist already.

    Raises:
        UserError: if it cannot be made, or nothing can be written there.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise UserError(
            f"output is {str(output)!r}, where nothing can be written ({error.strerror}); "
            "name another folder"
        ) from None


def write_whole(path: Path, text: str) -> None:
    """Writes a text file whole or not at all.

    Args:
        path: the file; what it held stays until the new text is complete.
        text: its new content.
    """
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def full_disk_told() -> Iterator[None]:
    """Says it in a line if something could not be written for want of room or permission.

    Raises:
        UserError: in place of such an OSError.
    """
    try:
        yield
    except OSError as error:
        where = f"{error.filename!r} cannot be written" if error.filename else "writing failed"
        if error.errno in _FULL:
            remedy = "make room, and the same command goes on from the newest checkpoint"
        elif error.errno in {errno.EACCES, errno.EPERM, errno.EROFS} and error.filename:
            remedy = "mend its permissions or name another --output"
        else:
            raise
        raise UserError(f"{where} ({error.strerror}); {remedy}") from None
