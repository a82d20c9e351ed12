"""fusionjax: Stable Diffusion 1.5 that keeps a person's face.

    fusionjax sample …                                images of people
    fusionjax prepare SOURCE… DATASET                 pictures of people as a dataset
    fusionjax train [CONFIG] …                        an adapter of your own
    fusionjax export RUN_DIR adapter.safetensors      it, for PyTorch
    fusionjax export RUN_DIR FOLDER                   it, with a page about it, to share
    fusionjax import adapter.safetensors DIR          back into a run's folder
    fusionjax report RUN_DIR                          a run as a page: curves, grids, settings
    fusionjax evaluate --output DIR …                 tables and contact sheets
    fusionjax figure NAME --output sheet.png          one of the paper's sheets, for your own model
    fusionjax cache …                                 a dataset's latents, computed once
    fusionjax watermark IMAGE…                        the hidden letters of images
    fusionjax web …                                   a page in the browser

`fusionjax COMMAND --help` says more; `python -m fusionjax`, `python -m sample` and
`python -m train` are the same. Only what a command needs is imported.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from fusionjax.command import run_command, with_version

# Commands with a command line of their own: the module whose `main(arguments)` runs them.
_ELSEWHERE = {
    "cache": "fusionjax.data.cache_command",
    "evaluate": "fusionjax.evaluation.__main__",
    "figure": "sample.figure_command",
    "prepare": "fusionjax.data.prepare_command",
    "report": "train.report",
    "sample": "sample.__main__",
    "train": "train.main",
    "watermark": "sample.watermark_command",
    "web": "sample.web.command",
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
    parser = _parser()
    args = parser.parse_args(arguments)
    if [] in vars(args).values():  # Python 3.11 takes a second "--" for a name, and out again
        parser.error("'--' is no name")

    def body() -> None:
        from fusionjax.models import adapter

        if args.command == "export":
            missing = adapter.export_adapter(args.fusion, args.output)
            if missing:
                page = Path(args.output) / "README.md"
                print(
                    f"{page}: fill in {' and '.join(missing)} before you share it", file=sys.stderr
                )
        else:
            adapter.import_adapter(args.adapter, args.output)
        print(args.output)

    return run_command(body)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fusionjax",
        usage="fusionjax COMMAND …, or fusionjax --help",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    with_version(parser)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", prog="fusionjax"
    )
    export = commands.add_parser("export", help="write a run's adapter, as one file or to share")
    export.add_argument("fusion", help="a run's folder, one step's in checkpoints/, or a file")
    export.add_argument("output", help="the file to write, *.safetensors; or a folder")
    back = commands.add_parser("import", help="make a run's folder from an exported adapter")
    back.add_argument("adapter", help="an exported adapter, *.safetensors")
    back.add_argument("output", help="the folder to make")
    for command in (export, back):
        with_version(command)
    for name in _ELSEWHERE:
        commands.add_parser(name)
    return parser


if __name__ == "__main__":
    sys.exit(main())
