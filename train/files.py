"""What to say where a run's files cannot be written."""

import contextlib
import errno
from collections.abc import Iterator

from fusionjax.errors import UserError

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
