"""Files that a kill or a full disk leaves as they were, and what to say about a full disk."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from fusionjax.errors import UserError
from fusionjax.files import whole_file

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_whole(path: Path, text: str) -> None:
    """Writes a text file whole or not at all.

    Args:
        path: the file; what it held stays until the new text is complete.
        text: its new content.
    """
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def make_folder(folder: Path) -> None:
    """Makes a run's folder.

    Raises:
        UserError: if it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the run's folder {str(folder)!r} cannot be made ({error.strerror}); "
            "name another --output"
        ) from None


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
