"""Pictures from wherever they are as a dataset to train on.

    fusionjax prepare SOURCE… DATASET --size 512
    fusionjax prepare laion-face/*.tar people/ table.parquet data/faces

A source is a folder with a folder for each person, a folder of pictures, tar shards as img2dataset
writes them, a table (metadata.jsonl or .csv, IP-Adapter's JSON, .parquet or .arrow with pictures'
bytes); all kinds together. The caption stands beside the picture (.txt, .json), or in the table's
column `text` or `caption`.

Where the source says whose a picture is (a folder a person; the column `person`), the references
are the faces of that person's other pictures. Else, as in the paper, each face is a person of its
own, and its references are made from the picture itself.

What cannot be used is dropped, counted, listed in DATASET/skipped.tsv and shown, with what is kept,
on a page, DATASET/report.html. Given again, a command that was stopped goes on, and one whose
sources have grown reads only what is new in them.
"""

import argparse
import sys
from collections.abc import Sequence

from fusionjax.command import parser_of, progress_bar, run_command, share_of
from fusionjax.data.prepared import PEOPLE, Wishes
from fusionjax.options import CROPS


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
        arguments: without the program's name; None is the process's own.

    Returns:
        The exit status.
    """
    args = _parser().parse_args(arguments)

    def body() -> None:
        from fusionjax.data.prepare import prepare

        wishes = Wishes(
            size=args.size,
            crop=args.crop,
            smallest_picture=args.smallest_picture,
            smallest_face=args.smallest_face,
            most_faces=args.most_faces,
            shortest_caption=args.shortest_caption,
            language=args.language,
            least_sharpness=args.least_sharpness,
            people=args.people,
        )
        with progress_bar("preparing", unit=" parts") as progress:
            reasons = prepare(
                args.sources,
                args.dataset,
                wishes,
                column=args.person_column,
                validation_share=args.validation_share,
                max_references=args.max_references,
                most_skipped=args.most_skipped,
                keep_duplicates=args.keep_duplicates,
                same_person=args.same_person,
                processes=args.processes,
                share=args.share,
                forget=args.forget,
                progress=progress,
                tell=lambda text: print(f"{args.dataset}: {text}"),
            )
        if reasons is None:
            print(f"done; once all are, the command without --share writes {args.dataset}")
            return
        for reason, count in reasons.most_common():
            print(f"dropped: {count} × {reason}")
        print(f"{args.dataset} (see report.html there)")

    return run_command(body)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("fusionjax prepare", __doc__)
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="folders, shards, tables")
    parser.add_argument("dataset", metavar="DATASET", help="the folder to make")
    default = Wishes()
    numbers = {
        "size": "side of every picture in pixels: the base model's",
        "smallest-picture": "its shorter side as found, in pixels",
        "smallest-face": "longer side of a face as found, in pixels; smaller ones do not count",
        "most-faces": "more of them, and a picture is dropped",
        "shortest-caption": "in characters",
    }
    for name, text in numbers.items():
        value = getattr(default, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} (%(default)s)")
    parser.add_argument(
        "--crop", choices=CROPS, default=default.crop,
        help="auto: the largest square around the person's face; none: the picture whole, with "
        "white beside it, which is then learnt too (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--language", default="", help="of the captions, such as en; others are dropped (any)"
    )
    parser.add_argument(
        "--least-sharpness", type=float, default=default.least_sharpness,
        help="least variance of the Laplacian of a face; 100 drops blurred ones (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--people", choices=PEOPLE, default="source",
        help="source: whose a picture is is what the source says, if it does; own: each face is a "
        "person of its own; cluster: faces that are alike are one person's (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--same-person", type=float, default=0.5,
        help="with --people cluster: from which mean similarity faces are one person's; -1 to 1 "
        "(%(default)s)",
    )  # fmt: skip
    parser.add_argument("--person-column", help="the tables' column that names a person (person)")
    parser.add_argument(
        "--validation-share", type=float, default=0.05, help="share of people (%(default)s)"
    )
    parser.add_argument(
        "--max-references", type=int, default=4, help="most photos with a picture (%(default)s)"
    )
    parser.add_argument(
        "--most-skipped", type=float, default=0.5, help="share that may be dropped (%(default)s)"
    )
    parser.add_argument(
        "--keep-duplicates", action="store_true", help="keep what looks like an earlier picture"
    )
    parser.add_argument(
        "--forget", action="store_true",
        help="leave out what DATASET has of sources that are not named now",
    )  # fmt: skip
    parser.add_argument("--processes", type=int, help="how many work at once (all cores)")
    parser.add_argument(
        "--share", type=share_of, metavar="I/N",
        help="do the I-th of N shares of the sources and no more: for N machines with a common "
        "disk; the same command without it then writes the dataset",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
