"""`python -m fusionjax evaluate`: paints the suite in every way and writes the tables.

    python -m fusionjax evaluate --suite mini --fusion runs/mini-… --output evaluation/

writes `table.md`, `results.json`, `sheet.png` and `pairs.png`. The same command gives the same
numbers. `--fusion none` measures the base alone.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from fusionjax.command import parser_of, progress_bar, run_command


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("python -m fusionjax evaluate", __doc__)
    parser.add_argument("--suite", choices=["mini"], default="mini", help="what is painted")
    parser.add_argument("--base", help="the base model; without it the adapter's own, or the mini")
    parser.add_argument(
        "--fusion",
        help="a run's folder or an exported adapter; `none` for the base alone; without it the "
        "shipped one, which belongs to the mini base",
    )
    parser.add_argument(
        "--decoupled",
        help="an adapter with fusion=decoupled to compare with; beside the shipped adapter the "
        "shipped one",
    )
    parser.add_argument("--output", required=True, help="the folder to write to")
    parser.add_argument("--recogniser", help="a recogniser's file, in place of the shipped one")
    parser.add_argument(
        "--split", help="whose people: test, or validation for choosing among settings"
    )
    parser.add_argument("--people", type=int, help="how many people")
    parser.add_argument("--prompts", type=int, help="prompts for each of them")
    parser.add_argument("--pairs", type=int, help="pictures of two people")
    parser.add_argument("--photos", type=int, help="photos to compare one photo with")
    parser.add_argument("--steps", type=int, help="steps of the sampler")
    parser.add_argument("--guidance-scale", type=float, help="classifier-free guidance")
    parser.add_argument("--face-strength", type=float, help="strength of the faces")
    parser.add_argument("--scheduler", help="the sampler")
    parser.add_argument("--batch-size", type=int, help="pictures painted at once")
    parser.add_argument("--seed", type=int, help="of people, prompts and noise")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: The arguments; None means those of the process.

    Returns:
        The exit status: 0, or 2 after an error that the user can mend.
    """
    args = _parser().parse_args(argv)
    return run_command(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    from fusionjax.evaluation import evaluate, report
    from fusionjax.evaluation.suite import Suite
    from fusionjax.files import make_folder

    given = {
        field.name: getattr(args, field.name)
        for field in dataclasses.fields(Suite)
        if getattr(args, field.name) is not None
    }
    suite, folder = Suite(**given), Path(args.output)
    make_folder(folder)
    with progress_bar("evaluating") as progress:
        results, sheets = evaluate.evaluate(
            suite,
            base=args.base,
            fusion=args.fusion,
            decoupled=args.decoupled,
            recogniser=args.recogniser,
            progress=lambda stage, done, of: progress(done, of, stage),
        )
    print(report.table(results))
    report.write(results, sheets, folder)


if __name__ == "__main__":
    sys.exit(main())
