"""Files that are written whole or not at all, and the folders that they go to."""

import contextlib
import errno
import functools
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Container, Iterator
from pathlib import Path
from typing import BinaryIO

from fusionjax.errors import UserError, shortened, told

_UNFINISHED = ".new"
_POINT = r"\d{1,5},\d{1,5}"  # column and row
_ABANDONED_SECONDS = 3600


def has_ending(path: Path, endings: Container[str]) -> bool:
    """Whether a file's name ends so, in small letters or large.

    Names that begin with a dot never do: a Mac puts `._ann.jpg` beside each `ann.jpg`.
    """
    return path.suffix.lower() in endings and not path.name.startswith(".")


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder by their names, without those that begin with a dot."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str], *, replace: bool = True) -> Iterator[Path]:
    """A place beside a file to write its new content to; it takes the file's place at the end.

    A kill or a full disk leaves what the file held before, and an error leaves nothing beside it.

    Args:
        path: the file; its folder is made.
        replace: it may be there already.

    Yields:
        The place to write to.

    Raises:
        FileExistsError: without `replace`, if it is there already, whoever wrote it meanwhile.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    # A name of its own: another process may be writing the same file.
    beside = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}{_UNFINISHED}")
    try:
        yield beside
        if replace:
            beside.replace(path)
        else:
            os.link(beside, path)  # refused, in one step, where the name is taken
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


@contextlib.contextmanager
def whole_folder(path: Path, *, or_there: bool = False) -> Iterator[Path]:
    """A folder beside another's place to be filled; it takes the place at the end.

    Args:
        path: the folder to be; the folder that it is in is made.
        or_there: if somebody else has filled it meanwhile, theirs will do.

    Yields:
        The folder to fill.

    Raises:
        UserError: if something is there already, or nothing can be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{path.name[:100]}.", suffix=_UNFINISHED, dir=path.parent,
            ignore_cleanup_errors=True,
        ) as beside:  # fmt: skip
            filled = Path(beside) / "folder"
            filled.mkdir()
            yield filled
            filled.rename(path)
    except OSError as error:
        if or_there and path.is_dir():
            return
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


def take_place(whole: Path, folder: Path, aside: Path) -> None:
    """Puts a finished folder at the place of another, which is kept aside; see `put_back`."""
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        folder.rename(aside)
    whole.rename(folder)


def put_back(folder: Path, aside: Path) -> None:
    """Undoes what `take_place` could not finish, if it was killed between its two steps."""
    if aside.exists() and not folder.exists():
        aside.rename(folder)


def check_room(folder: Path, wanted: int) -> None:
    """Says early that a disk will not do.

    Args:
        folder: where something is being written.
        wanted: bytes still to come, as far as that is known.

    Raises:
        UserError: if there are fewer.
    """
    if wanted > (free := shutil.disk_usage(folder).free):
        raise UserError(
            f"{shortened(str(folder), 200)} would take {wanted / 1e9:.3g} GB more, of which "
            f"{free / 1e9:.3g} GB are free; make room and give the same command again: what is "
            "done is kept"
        )


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


@functools.cache
def _sweep(folder: Path) -> None:
    """Removes what killed processes left half written in a folder, once in a process's life."""
    with contextlib.suppress(OSError):
        for left in folder.glob(f".*{_UNFINISHED}"):
            if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file to be read: a regular one, without waiting for anybody to write it.

    Args:
        path: the file.

    Returns:
        The open file.

    Raises:
        UserError: if it does not exist, is a folder, a pipe or a device, or may not be read.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"{told(path)} is no path")
    name = shortened(os.fspath(path), 120)
    try:
        # A named pipe is waited for at its opening, without this.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        handle = os.open(path, flags)
    except FileNotFoundError:
        raise UserError(f"{name} does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{name} cannot be read: {reason}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        what = "is a folder" if os.path.isdir(path) else "is no regular file"
        raise UserError(f"{name} {what}; name a file")
    return os.fdopen(handle, "rb")


def file_and_face(name: str) -> tuple[str, tuple[int, ...]]:
    """Takes a photo and which face in it is meant apart.

    Args:
        name: of a photo; a file that is called so is meant as it is.

    Returns:
        The file, and what chooses a face: its number from the left and from 1 (`photo.jpg#2`), a
        point's column and row in pixels (`#310,120`), a box's left, top, right and bottom
        (`#260,60,360,180`), or nothing.
    """
    match = re.fullmatch(
        rf"(.+)#([1-9]\d{{0,2}}|{_POINT}(?:,{_POINT})?)", name, re.DOTALL | re.ASCII
    )
    try:
        if match is None or os.path.isfile(name):
            return name, ()
    except ValueError:  # a zero byte
        return name, ()
    return match[1], tuple(map(int, match[2].split(",")))


def file_and_word(name: str) -> tuple[str, str | None]:
    """Takes `file.pt=word`, a textual inversion under a word of one's own, apart.

    Args:
        name: of a file; a file that is called so is meant as it is.

    Returns:
        The file, and the word if one is named; it holds no slash.
    """
    file, equals, word = name.rpartition("=")
    try:
        if not equals or "/" in word or os.sep in word or os.path.isfile(name):
            return name, None
    except ValueError:  # a zero byte
        return name, None
    return file, word


def read_whole(path: str | os.PathLike[str], most: int) -> bytes:
    """Reads a small file.

    Args:
        path: the file.
        most: how many bytes it may have.

    Raises:
        UserError: as `open_regular`; if it is larger, or reading fails.
    """
    with open_regular(path) as file:
        try:
            content = file.read(most + 1)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(content) > most:
        raise UserError(
            f"{path} is larger than {most:,} bytes, which no such file is; name another"
        )
    return content


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


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes of this kind out of a folder.

    Args:
        folder: is there.

    Raises:
        UserError: if another process has it; the message tells which.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with open(folder / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                yield  # a file system without locks
                return
            file.seek(0)
            raise UserError(
                f"{str(folder)!r} is being written by {file.read(200) or 'another process'}; wait "
                "for it, or name another output"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def wait_for_shares(folder: Path, seconds: float = 20) -> None:
    """Waits a little until nobody works on a share of what is to be put together.

    Args:
        folder: in which each share has a folder of its own, which it locks.
        seconds: that are waited.

    Raises:
        UserError: if a share is still being worked on.
    """
    until = time.monotonic() + seconds
    for share in sorted(folder.glob("share-*")):
        while True:
            try:
                with locked(share):
                    break
            except UserError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)


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
        UserError: in place of such an OSError, and of what a library makes of one.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if isinstance(error, UserError) or os.strerror(errno.ENOSPC) not in str(error):
            raise
        reason = " ".join(str(error).split())
        raise UserError(
            f"writing failed ({shortened(reason, 200)}); make room, and give the same command again"
        ) from None
    except OSError as error:
        where = f"{error.filename!r} cannot be written" if error.filename else "writing failed"
        if error.errno in _FULL:
            remedy = "make room, and give the same command again: it goes on where it was"
        elif error.errno in {errno.EACCES, errno.EPERM, errno.EROFS} and error.filename:
            remedy = "mend its permissions or name another output"
        else:
            raise
        raise UserError(f"{where} ({error.strerror}); {remedy}") from None
