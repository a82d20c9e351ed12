"""`python -m fusionjax figure`: one of the paper's sheets, for any base and adapter.

    python -m fusionjax figure styles --output styles.png
    python -m fusionjax figure references --people PEOPLE --base sd15/ --fusion RUN --output a.png

`references` shows a person by one, two and three photos, and the way from one person to another
(the paper's figure 3); `people` three people, each in a third of the picture, and with a ControlNet
in its depth too (figure 4); `styles` expressions and styles in rows, people in columns (figure 6).
Without a base it is the miniature model's people, and nothing is downloaded.

The options of `python -m sample` that say by what and how images are made go here too: --base,
--fusion, --steps, --guidance-scale, --face-strength, --seed, --height, --width, --batch-size,
--controlnet with --control-image, and so on.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from fusionjax.command import parser_of, run_command
from fusionjax.errors import UserError, shortened
from sample.options import flag_of, parse

_NAMES = ("references", "people", "styles")
# What a figure decides itself, and what serves instead.
_DECIDED = {
    "prompt": "--prompts FILE",
    **dict.fromkeys(("people", "faces", "fresh", "weights", "looks"), "--people FOLDER"),
    **dict.fromkeys(
        ("num_images_per_prompt", "image", "mask_image", "scene", "requests", "source",
         "save_identity", "attention_share", "dry_run", "watermark"),
        "python -m sample",
    ),
}  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("fusionjax figure", __doc__)
    parser.allow_abbrev = False
    parser.add_argument("name", choices=_NAMES, metavar="NAME", help=", ".join(_NAMES))
    parser.add_argument("--output", required=True, type=Path, help="the sheet to write, *.png")
    parser.add_argument(
        "--people", type=Path, metavar="FOLDER",
        help="a folder of photos for each person (four drawn people of the mini world)",
    )  # fmt: skip
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE",
        help="a prompt a line, {person} for a person (some that suit the base)",
    )  # fmt: skip
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws the sheet that the command line names.

    Args:
        arguments: the words after the command; None takes this process's.

    Returns:
        The exit status: 0, 1 if images are not finite, 2 for what the user can mend.
    """
    args, rest = _parser().parse_known_args(arguments)
    return run_command(lambda: _run(args, rest))


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    if args.output.suffix.lower() != ".png":
        raise UserError(f"--output is {shortened(str(args.output), 200)}; it must end in .png")
    options = parse([*rest, "--output", str(args.output.parent)])
    given = options.said()
    for name, instead in _DECIDED.items():
        if name in given:
            flag = "--no-face" if name == "people" else flag_of(name)
            raise UserError(f"{flag} is nothing of a figure; use {instead}")
    job = options.job()
    if job.controlnet and args.name != "people":
        raise UserError(f"--controlnet is nothing of the figure {args.name}; people shows a depth")

    from fusionjax.files import whole_file  # from here on models are looked at
    from sample import figures
    from sample.progress import Bar, Stopwatch
    from sample.run import check_control
    from sample.studio import Studio, completed, is_embedded
    from sample.trust import check_base_of

    check_control(options, job)
    if not options.trust:
        check_base_of(job)
    mini = is_embedded(job)
    if args.people is None and not mini:
        raise UserError(
            "the example people are drawings of the mini world, and the base is another; name a "
            "folder of photos for each person with --people FOLDER"
        )
    people = figures.read_album(args.people or figures.EXAMPLES, args.name)
    prompts = figures.prompts_of(args.name, args.prompts, mini=mini)
    job = completed(dataclasses.replace(job, prompt=prompts[0]))
    watch, bar = Stopwatch(), Bar(None if options.quiet else sys.stderr)
    studio = Studio(job, options, bar)
    if options.depth_from is not None:
        job = studio.with_depth(job, options)
    job, _ = studio.resolved(job)
    sections = figures.FIGURES[args.name].sections(people, prompts, job)
    sheet, missing = figures.paint(sections, studio)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(args.output) as beside:
        sheet.save(beside, "PNG", optimize=True)
    print(args.output)
    bar.say(f"{args.name} in {watch}")
    if missing:
        print(f"{missing} of its images are not finite", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
