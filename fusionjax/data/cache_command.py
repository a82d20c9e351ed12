"""`python -m fusionjax cache`: a dataset's latents and captions, computed once.

    python -m fusionjax cache --base DIR --data DATASET --output LATENTS [--splits train validation]
    python -m train configs/sd15_v100.py --cache LATENTS …

Training makes the cache by itself where there is none; this command makes it beforehand, for
instance on another machine.
"""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

from fusionjax.command import parser_of, progress_bar, run_command
from fusionjax.errors import a_share, at_least
from fusionjax.files import make_folder


def main(arguments: Sequence[str]) -> int:
    """The command line.

    Args:
        arguments: without the program's name and the command.

    Returns:
        The exit status: 0, or 2 after an error that the user can mend.
    """
    parser = parser_of("python -m fusionjax cache", __doc__)
    parser.add_argument("--base", default="mini", help="the base model (the embedded one)")
    parser.add_argument("--data", required=True, help="folder of the TFDS dataset")
    parser.add_argument("--output", required=True, help="folder of the caches, one for each split")
    parser.add_argument("--splits", nargs="+", default=["train", "validation"])
    parser.add_argument("--batch-size", type=int, default=16, help="pictures encoded together")
    parser.add_argument(
        "--views", type=int, default=4, help="augmented views of a face without other pictures"
    )
    parser.add_argument(
        "--text-states",
        action="store_true",
        help="also what the text encoder makes of the captions (for Stable Diffusion 1.5 118 kB "
        "each), for `python -m train … --text-states True`",
    )
    parser.add_argument(
        "--most-skipped", type=float, default=0.05, help="share of bad examples that may be skipped"
    )
    args = parser.parse_args(arguments)
    return run_command(lambda: _write(args))


def _write(args: argparse.Namespace) -> None:
    at_least(1, batch_size=args.batch_size)
    at_least(0, views=args.views)
    a_share(most_skipped=args.most_skipped)
    make_folder(Path(args.output))
    import jax

    from fusionjax.data.build_cache import cached_latents
    from fusionjax.data.cache import made_from
    from fusionjax.data.records import open_records
    from fusionjax.embedded import base_source
    from fusionjax.models.base import BaseModel

    base = BaseModel.from_pretrained(base_source(args.base))
    encode = jax.jit(base.encode_image)
    encode_text = jax.jit(base.encode_text)
    about = made_from(base, args.data, text_states=args.text_states)
    for split in args.splits:
        with progress_bar(split, delay=0.5) as progress:
            cache = cached_latents(
                args.output,
                functools.partial(open_records, args.data, split),
                lambda images: encode(base.params, images),
                base.tokenize,
                split=split,
                about=about,
                encode_text=functools.partial(encode_text, base.params)
                if args.text_states
                else None,
                batch_size=args.batch_size,
                views=args.views,
                most_skipped=args.most_skipped,
                side=base.picture_side,
                progress=progress,
            )
        bad = f", {cache.skipped} skipped (listed in its skipped.tsv)" if cache.skipped else ""
        print(f"{split}: {len(cache)} examples in {args.output}{bad}")
