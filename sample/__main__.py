"""`python -m sample`: see `python -m sample --help`."""

import os
import sys

from fusionjax.errors import UserError
from sample.options import parse


def main(arguments: list[str] | None = None) -> int:
    """Paints what the command line says.

    Args:
        arguments: the words after the program's name; None takes this process's.

    Returns:
        The exit status: 0, 1 if some rows of a requests file were bad, 2 for wrong usage.
    """
    try:
        options = parse(arguments)
        if options.target is not None:  # compiled for what is not here, by a process on the CPU
            os.environ.setdefault("JAX_PLATFORMS", "cpu")
        from sample.run import run  # here: `--help` and wrong words need no models

        return run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
