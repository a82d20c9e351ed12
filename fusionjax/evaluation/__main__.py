"""`fusionjax evaluate`: paints a suite and writes the tables.

    python -m fusionjax evaluate --suite mini --fusion runs/mini-… --output evaluation/

paints drawn people in every way and writes `table.md`, `results.json`, `sheet.png` and `pairs.png`.
The same command gives the same numbers. `--fusion none` measures the base alone.

    python -m fusionjax evaluate --suite faces --people PEOPLE --base sd15/ --fusion RUN \\
        --method IP-Adapter=FOLDER --output evaluation/

paints real people, a folder of photos each, by 100 prompts or those of a file (one a line,
`{person}` for a person), and measures that beside other methods' pictures, which are found as
FOLDER/person/0001.png (the first prompt) and so on. Without --fusion it measures those alone.
What is painted already is kept, so that a stopped command goes on. With --group-size 2 two people
are in each picture, FOLDER/ann+bob/0001.png. Folders of MultiID-Bench's layout are measured without
--people.

    python -m fusionjax evaluate --suite faces … --face-strengths 0,0.5,1,1.5,2 --output curve/

does so at each strength, in a folder of its own, and draws identity against prompt (`curve.png`,
`curve.md`, `curve.json`); of the suite `mini` too.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fusionjax.command import parser_of, progress_bar, run_command, share_of
from fusionjax.errors import UserError, told


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("fusionjax evaluate", __doc__)
    parser.add_argument(
        "--suite", choices=["mini", "faces"], default="mini", help="what is painted (default: mini)"
    )
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
        "--split",
        help="mini: whose people: test, or validation for choosing among settings (default: test)",
    )
    parser.add_argument(
        "--people", help="mini: how many people (default: 24); faces: the folder of theirs"
    )
    parser.add_argument(
        "--prompts",
        help="mini: prompts for each of them (default: 4); faces: their file (default: 100 of the "
        "package's)",
    )
    parser.add_argument("--most-people", type=int, help="faces: so many of them (default: all)")
    parser.add_argument("--most-prompts", type=int, help="faces: so many of them (default: all)")
    parser.add_argument(
        "--method", action="append", metavar="NAME=FOLDER", dest="methods", type=_method,
        help="faces: measure these pictures too; may be given again",
    )  # fmt: skip
    parser.add_argument("--clip", help="faces: folder of a CLIP, for the score of the prompt")
    parser.add_argument(
        "--deepface", action="store_true", default=None,
        help="faces: judge by VGG-Face, Facenet512 and ArcFace too (the paper's Table 1), with "
        "weights that you have",
    )  # fmt: skip
    parser.add_argument(
        "--share", type=share_of, metavar="I/N",
        help="faces: paint the I-th of N shares of the people and measure nothing; the same "
        "command without it then measures",
    )  # fmt: skip
    parser.add_argument(
        "--group-size",
        type=int,
        help="faces: people in a picture, side by side (default: 1)",
    )
    parser.add_argument(
        "--most-groups",
        type=int,
        help="faces: so many groups, chosen by the seed (default: as many as people)",
    )
    parser.add_argument(
        "--layout", choices=["folders", "multiid"],
        help="faces: multiid puts what is painted into MultiID-Bench's layout too, beside pictures "
        "(default: folders)",
    )  # fmt: skip
    parser.add_argument("--pairs", type=int, help="mini: pictures of two people (default: 48)")
    parser.add_argument(
        "--photos", type=int, help="mini: photos to compare one photo with (default: 3)"
    )
    parser.add_argument(
        "--steps", type=int, help="steps of the sampler (default: mini 20, faces 30)"
    )
    parser.add_argument(
        "--guidance-scale",
        type=float,
        help="classifier-free guidance (default: mini 3.0, faces 7.5)",
    )
    parser.add_argument("--face-strength", type=float, help="strength of the faces (default: 1.0)")
    parser.add_argument(
        "--face-strengths", type=_numbers, metavar="λ,λ,…",
        help="several strengths: a curve of identity against prompt",
    )  # fmt: skip
    parser.add_argument("--scheduler", help="the sampler (default: dpmpp_2m)")
    parser.add_argument(
        "--faces-in-negative", action="store_true", default=None,
        help="mini: show the faces to the guidance's negative branch too",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size", type=int, help="pictures painted at once (default: mini 16, faces 4)"
    )
    parser.add_argument("--seed", type=int, help="of people, prompts and noise (default: 0)")
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


def _method(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER")
    return name, folder


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers, as in 0,0.5,1") from None


def _of_suite(args: argparse.Namespace, suite: type, others: Sequence[str]) -> dict[str, Any]:
    """What was given of a suite's fields; what only another suite knows is refused."""
    for name in others:
        if getattr(args, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} is nothing of --suite {args.suite}")
    names = [field.name for field in dataclasses.fields(suite)]
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


_OF_GROUPS = ("group_size", "most_groups")
_OF_FACES = (
    "most_people", "most_prompts", "methods", "clip", "deepface", "share", "layout", *_OF_GROUPS
)  # fmt: skip
_OF_PAINTING = (
    "base", "fusion", "prompts", "steps", "guidance_scale", "face_strength", "face_strengths",
    "scheduler", "batch_size", "seed",
)  # fmt: skip
_OF_MINI = ("decoupled", "recogniser", "split", "pairs", "photos", "faces_in_negative")


def _run(args: argparse.Namespace) -> None:
    from fusionjax.files import make_folder

    if args.face_strength is not None and args.face_strengths is not None:
        raise UserError("--face-strength and --face-strengths are both given; use one of them")
    if args.face_strengths is not None:
        for name in ("decoupled", "pairs", "photos"):
            if getattr(args, name) is not None:
                raise UserError(f"--{name} does not go with --face-strengths")
    make_folder(Path(args.output))
    (_run_faces if args.suite == "faces" else _run_mini)(args, Path(args.output))


def _run_faces(args: argparse.Namespace, folder: Path) -> None:
    from fusionjax.evaluation import bench_suite, evaluate, faces_report, faces_suite, strengths

    if args.people is None and not args.methods:
        raise UserError("--suite faces needs --people FOLDER, with a folder of photos for each")
    methods = dict(args.methods or [])
    if len(methods) < len(args.methods or []):
        raise UserError("--method has a name twice; each needs its own")
    if args.group_size in (None, 1) and args.most_groups is not None:
        raise UserError("--most-groups is given without --group-size; say how many are in a group")
    run: Callable[[Any], Any]
    if args.people is None:
        for name in (*_OF_PAINTING, *sorted({*_OF_FACES} - {"methods", "clip", "deepface"})):
            if getattr(args, name) is not None:
                raise UserError(
                    f"--{name.replace('_', '-')} is given without --people; only pictures in "
                    "MultiID-Bench's layout are measured without"
                )
        given = _of_suite(args, bench_suite.BenchSuite, _OF_MINI)
        bench = bench_suite.BenchSuite(**given | {"methods": methods})
        run = functools.partial(bench_suite.run, bench, folder)
    else:
        given = _of_suite(args, faces_suite.FacesSuite, _OF_MINI)
        suite = faces_suite.FacesSuite(**given | {"methods": methods})
        pipeline = None
        if args.fusion is not None or args.base is not None:
            pipeline = functools.partial(evaluate.open_pipeline, args.base, args.fusion)
        if args.face_strengths is not None:
            if suite.group_size > 1:
                raise UserError(
                    "--face-strengths does not go with --group-size; leave one of them out"
                )
            _draw_curve(lambda told: strengths.run_faces(
                suite, args.face_strengths, folder, pipeline, told
            ), folder)  # fmt: skip
            return
        run = functools.partial(faces_suite.run, suite, folder, pipeline)
    _tell(run, faces_report.table, f"{folder} holds it, with all numbers and a sheet")


def _tell(run: Callable[[Any], Any], table: Callable[[Any], str], where: str) -> None:
    """Runs a suite under a bar, and says what it gave."""
    with progress_bar("evaluating") as bar:
        results = run(lambda stage, done, of: bar(done, of, stage))
    if results is None:
        print("its share is painted; once all are, the command without --share measures")
    else:
        print(f"{table(results)}\n{where}")


def _draw_curve(run: Callable[[Any], Any], folder: Path) -> None:
    """Runs a suite at several strengths."""
    from fusionjax.evaluation import strengths

    _tell(run, strengths.table, f"{folder} holds it, with curve.png")


def _run_mini(args: argparse.Namespace, folder: Path) -> None:
    from fusionjax.evaluation import evaluate, report, strengths
    from fusionjax.evaluation.recogniser import Recogniser
    from fusionjax.evaluation.suite import Suite

    for name in ("people", "prompts"):
        if (value := getattr(args, name)) is not None:
            if not value.isdecimal():
                raise UserError(f"--{name} is {told(value)}; of --suite mini it is a whole number")
            setattr(args, name, int(value))
    suite = Suite(**_of_suite(args, Suite, _OF_FACES))
    if args.face_strengths is not None:
        strengths.check_strengths(args.face_strengths)
        judge = Recogniser.from_pretrained(args.recogniser)
        pipe = evaluate.open_pipeline(args.base, args.fusion)
        _draw_curve(lambda told: strengths.run_mini(
            suite, args.face_strengths, pipe, judge, folder, told
        ), folder)  # fmt: skip
        return
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
