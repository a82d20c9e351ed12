"""The frame of every command: errors in a line, an exit status, a progress bar."""

import argparse
import contextlib
import errno
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fusionjax.errors import UserError, shortened
from fusionjax.files import full_disk_told
from fusionjax.quiet import quiet_threads


def run_command(body: Callable[[], int | None]) -> int:
    """Runs a command, and says in a line what its user can mend.

    Args:
        body: the command; its status, or None for 0.

    Returns:
        The exit status: the body's, 2 after a `UserError`, a full disk or a name that no file can
        have, 130 after Ctrl-C.
    """
    quiet_threads()
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports its every file there
    try:
        with full_disk_told():
            return body() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        if not _is_no_name(error):
            raise
        print(f"error: {UserError(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def _is_no_name(error: OSError | ValueError) -> bool:
    """Whether no file can have a name that was asked for: it is too long, or holds a zero byte."""
    if isinstance(error, OSError):
        return error.errno == errno.ENAMETOOLONG
    return "embedded null" in str(error)


def parser_of(command: str, text: str | None) -> argparse.ArgumentParser:
    """A command line whose help begins with a module's own words.

    Args:
        command: as it is typed.
        text: the module's docstring.
    """
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=command, description=text, formatter_class=layout)
    with_version(parser)
    return parser


def typed_as(command: str) -> str:
    """How a command that is also a program of its own was typed.

    Args:
        command: `sample` or `train`.
    """
    program = Path(sys.argv[0])
    is_part = "fusionjax" in (program.stem, program.parent.name)
    return f"fusionjax {command}" if is_part else f"python -m {command}"


def with_version(parser: argparse.ArgumentParser) -> None:
    """Gives a command line `--version`."""
    text = "the versions of this and of what it rests on"
    parser.add_argument("--version", action=_Version, nargs=0, dest=argparse.SUPPRESS, help=text)


class _Version(argparse.Action):
    """Tells the versions, read when they are asked for, and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(versions())
        parser.exit()


def versions() -> str:
    """The version of this program and, for reports of errors, what it runs on; imports none."""
    import platform
    from importlib import metadata

    from fusionjax.version import VERSION

    others = [f"Python {platform.python_version()}"]
    for name in ("jax", "flax", "diffusers"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            others.append(f"{name} {metadata.version(name)}")
    return f"fusionjax {VERSION} ({', '.join(others)})"


@contextlib.contextmanager
def progress_bar(
    title: str, delay: float = 0.0, unit: str = " pictures"
) -> Iterator[Callable[..., None]]:
    """A bar on standard error.

    Args:
        title: what is done.
        delay: seconds before it is shown.
        unit: what is counted.

    Yields:
        A function of how much is done, of how much, and a new title if there is one.
    """
    from tqdm import tqdm  # here: most commands end before they show a bar

    with tqdm(desc=title, unit=unit, delay=delay) as bar:

        def progress(done: int, total: int, title: str | None = None) -> None:
            if title is not None:
                bar.set_description(title, refresh=False)
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def share_of(text: str) -> tuple[int, int]:
    """An option's `I/N`, such as 3/16, as numbers.

    Args:
        text: as it was given.

    Raises:
        argparse.ArgumentTypeError: if it is no such text, or I is not in 1..N.
    """
    index, slash, count = text.partition("/")
    are_numbers = slash and index.isdecimal() and count.isdecimal() and len(text) < 20
    if not are_numbers or not 1 <= int(index) <= int(count):
        raise argparse.ArgumentTypeError(
            f"{shortened(text, 40)!r} is not I/N with 1 ≤ I ≤ N, such as 3/16"
        )
    return int(index), int(count)
