"""Trains the recogniser and the attribute reader on drawn pictures of training people.

    python -m fusionjax.evaluation.train_recogniser --data data/mini_faces --output DIR

About ten minutes on two cores.
"""

import json
import sys
from collections.abc import Sequence

from fusionjax.command import parser_of, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
        arguments: without the program's name; None is the process's own.

    Returns:
        The exit status.
    """
    parser = parser_of("python -m fusionjax.evaluation.train_recogniser", __doc__)
    parser.add_argument("--data", required=True, help="a mini_faces dataset")
    parser.add_argument("--output", required=True, help="the folder to write to")
    parser.add_argument("--steps", type=int, default=2000, help="steps of each network (2000)")
    parser.add_argument("--batch", type=int, default=48, help="pictures a step (48)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=["face", "reader"],
        default=["face", "reader"],
        help="which are trained; the other is taken from the output folder",
    )
    parser.add_argument(
        "--go-on", action="store_true", help="start from the reader in the output folder"
    )
    args = vars(parser.parse_args(arguments))

    def report(name: str, step: int, loss: float) -> None:
        print(f"{name}: step {step}/{args['steps']}, loss {loss:.3f}", flush=True)

    def body() -> None:
        from fusionjax.evaluation.recogniser_training import train_recogniser

        measured = train_recogniser(args.pop("data"), args.pop("output"), **args, report=report)
        print(json.dumps(measured, indent=2))

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
