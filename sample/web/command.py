"""`fusionjax web`: a page in the browser, on this machine.

    fusionjax web
    fusionjax web --base sd15/ --fusion runs/sd15 --people people/

People with their photos on the left, the place of each drawn in a colour, prompt and options with
the defaults of `python -m sample`, pictures on the right, each as a scene that the command line
repeats. Without models it is the embedded miniature, and nothing is downloaded. The page is at
http://127.0.0.1:7860, for this machine alone unless --host says otherwise; docs/web.md says how
programs use it.

The options of `python -m sample` that name models and devices go here too: --base, --fusion,
--vae, --lora, --textual-inversion, --controlnet, --prediction-type, --dtype, --device,
--batch-size, --cache, --trust; and --watermark, for all pictures of the page.
"""

import argparse
import importlib.util
import ipaddress
import sys
from collections.abc import Sequence
from pathlib import Path

from fusionjax.command import parser_of, run_command
from fusionjax.errors import UserError
from sample.device import prepare
from sample.options import Options, flag_of, parse

_OF_DEVICES = {"device", "batch_size", "cache", "trust", "quiet"}


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("fusionjax web", __doc__)
    parser.allow_abbrev = False
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS",
        help="to listen on; 0.0.0.0 is every network that this machine is in (default: 127.0.0.1)",
    )  # fmt: skip
    parser.add_argument(
        "--port", type=int, default=7860, metavar="N", help="likewise (default: 7860)"
    )
    parser.add_argument(
        "--people", type=Path, metavar="FOLDER",
        help="saved people: identity files (--save-identity) and photos, which every visitor can "
        "choose and download (default: the embedded model's four, with it)",
    )  # fmt: skip
    parser.add_argument(
        "--queue", type=int, default=20, metavar="N",
        help="requests that may wait; one more is refused (default: 20)",
    )  # fmt: skip
    parser.add_argument(
        "--upload-mb", type=float, default=20.0, metavar="MB",
        help="the largest upload in megabytes (default: 20)",
    )  # fmt: skip
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves the page that the command line asks for.

    Args:
        arguments: the words after the command; None takes this process's.

    Returns:
        The exit status: 2 for what the user can mend, 130 after Ctrl-C.
    """
    args, rest = _parser().parse_known_args(arguments)
    return run_command(lambda: _run(args, rest))


def _run(args: argparse.Namespace, rest: list[str]) -> None:
    options = parse(rest)
    _check(args, options)
    if options.device is not None:
        prepare(options.device)
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs gradio; pip install 'fusionjax[web]'")

    from fusionjax.embedded import MINI_FACE  # from here on models are looked at
    from sample.studio import is_embedded
    from sample.trust import check_base_of
    from sample.web.server import own_folder, serve

    job = options.job()
    if not options.trust:
        check_base_of(job)
    people = args.people.resolve() if args.people is not None else None
    if people is None and is_embedded(job):
        people = MINI_FACE.parent.resolve()
    folder = own_folder()

    from sample.web.painter import Limits, Painter

    painter = Painter(options, job, folder, people, Limits(waiting=args.queue))
    if not _is_own(args.host):
        print(f"warning: everybody who reaches {args.host} can use the page", file=sys.stderr)
    serve(painter, host=args.host, port=args.port, upload_mb=args.upload_mb)


def _check(args: argparse.Namespace, options: Options) -> None:
    """Raises UserError for numbers that make no sense, and for what is said on the page."""
    for name, value, least, most in (
        ("--port", args.port, 1, 65535),
        ("--queue", args.queue, 1, 10_000),
        ("--upload-mb", args.upload_mb, 0.001, 1000),
    ):
        if not least <= value <= most:
            raise UserError(f"{name} is {value:g}; it must be in [{least:g}, {most:g}]")
    if args.people is not None and not args.people.is_dir():
        raise UserError(f"--people is {args.people}, which is no folder")
    from sample.web.asked import DECIDED_AT_START  # here: `--help` needs no photos

    if said := options.said() - DECIDED_AT_START - _OF_DEVICES:
        raise UserError(f"{flag_of(min(said))} is said on the page, not where it is started")


def _is_own(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    sys.exit(main())
