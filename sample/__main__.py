"""`python -m sample`: see `python -m sample --help`."""

import contextlib
import os
import sys

from fusionjax.command import run_command
from sample.device import prepare
from sample.options import parse


def main(arguments: list[str] | None = None) -> int:
    """Generates what the command line says.

    Args:
        arguments: the words after the program's name; None takes this process's.

    Returns:
        The exit status: 0, 1 if images or rows of a requests file failed, 2 for wrong usage.
    """

    def body() -> int:
        options = parse(arguments)
        if options.target is not None:  # compiled for what is not here, by a process on the CPU
            os.environ.setdefault("JAX_PLATFORMS", "cpu")
        if options.device is not None:
            prepare(options.device)
        if options.depth_from is not None:  # before the models' classes, which else keep it out
            with contextlib.suppress(ImportError):  # what wants it says so
                import torch  # noqa: F401
        from sample.run import run  # here: `--help` and wrong words need no models

        return run(options)

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
