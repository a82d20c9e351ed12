"""`python -m fusionjax COMMAND`: what is neither training nor sampling.

    python -m fusionjax export RUN_DIR adapter.safetensors    an adapter for PyTorch, or to share
    python -m fusionjax import adapter.safetensors DIR        back into a run's folder
    python -m fusionjax evaluate --suite mini --fusion RUN_DIR --output DIR
    python -m fusionjax cache …                               a dataset's latents, computed once

`python -m fusionjax COMMAND --help` says more. Only what a command needs is imported.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

# Commands with a command line of their own: the module whose `main(arguments)` runs them.
_ELSEWHERE = {
    "evaluate": "fusionjax.evaluation.__main__",
    "cache": "fusionjax.data.cache_command",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: the command line without the program's name; None is the process's own.

    Returns:
        The exit status: 0, or 2 after an error that the user can mend.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] in _ELSEWHERE:
        return importlib.import_module(_ELSEWHERE[arguments[0]]).main(arguments[1:])
    args = _parser().parse_args(arguments)
    from fusionjax.errors import UserError
    from fusionjax.models import adapter as commands

    try:
        if args.command == "export":
            commands.export_adapter(args.fusion, args.output)
        else:
            commands.import_adapter(args.adapter, args.output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(args.output)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fusionjax",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    export = commands.add_parser("export", help="write a run's adapter as one safetensors file")
    export.add_argument("fusion", help="a run's folder, or one step's folder in its checkpoints/")
    export.add_argument("output", help="the file to write, *.safetensors")
    back = commands.add_parser("import", help="make a run's folder from an exported adapter")
    back.add_argument("adapter", help="an exported adapter, *.safetensors")
    back.add_argument("output", help="the folder to make")
    commands.add_parser("evaluate", help="measure an adapter: tables and contact sheets")
    commands.add_parser("cache", help="compute a dataset's latents once")
    return parser


if __name__ == "__main__":
    sys.exit(main())
