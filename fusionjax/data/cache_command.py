"""`python -m fusionjax cache`: a dataset's latents and captions, computed once.

    python -m fusionjax cache --base DIR --data DATASET --output LATENTS [--splits train validation]
    python -m train configs/sd15_v100.py --cache LATENTS …

Training makes the cache by itself where there is none; this command makes it beforehand, for
instance on another machine. Given again, a command that was stopped goes on, and after a dataset
has changed only what is new in it is encoded.
"""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

from fusionjax.command import parser_of, progress_bar, run_command, share_of
from fusionjax.errors import a_share, at_least
from fusionjax.files import make_folder


def main(arguments: Sequence[str]) -> int:
    """The command line.

    Args:
        arguments: without the program's name and the command.

    Returns:
        The exit status: 0, or 2 after an error that the user can mend.
    """
    parser = parser_of("fusionjax cache", __doc__)
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
        "--posterior",
        action="store_true",
        help="also the deviations of the autoencoder's posterior (twice the disk), for "
        "`python -m train … --sample-posterior True`",
    )
    parser.add_argument(
        "--share",
        type=share_of,
        metavar="I/N",
        help="do the I-th of N shares and no more: for N machines with a common disk; the same "
        "command without it then puts the cache together",
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
    from fusionjax.data.encoders import batch_size_for, encoders_of
    from fusionjax.data.records import open_records
    from fusionjax.embedded import base_source
    from fusionjax.models.base import BaseModel

    base = BaseModel.from_pretrained(base_source(args.base))
    devices = jax.local_devices()
    encoders = encoders_of(base, devices, text_states=args.text_states, posterior=args.posterior)
    about = made_from(
        base, args.data, args.output, text_states=args.text_states, posterior=args.posterior
    )
    for split in args.splits:
        with progress_bar(split, delay=0.5) as progress:
            cache, how = cached_latents(
                args.output,
                functools.partial(open_records, args.data, split),
                encoders,
                split=split,
                about=about,
                batch_size=batch_size_for(args.batch_size, len(devices)),
                views=args.views,
                most_skipped=args.most_skipped,
                side=base.picture_side,
                share=args.share,
                progress=progress,
            )
        if cache is None:
            done = "its share is done; once all are, the command without --share ends it"
            print(f"{split}: {done if how == 'made' else how}")
            continue
        bad = f", {cache.skipped} skipped (listed in its skipped.tsv)" if cache.skipped else ""
        print(f"{split}: {len(cache)} examples in {args.output}{bad}; {how}")
