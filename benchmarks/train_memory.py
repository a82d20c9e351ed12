"""What a training step needs on hardware that is not here: memory and arithmetic of a device.

    python benchmarks/train_memory.py sd15_v100 v100:2          # needs pip install -e '.[v100]'
    python benchmarks/train_memory.py sd15_tpu_v5e v5e:2x4      # needs pip install -e '.[tpu]'

Compiles the configuration's step with the target's own compiler for every batch size, with and
without rematerialisation, and prints a Markdown table. Each row is a process of its own and is
appended to a JSON-lines file as soon as it is known, so a run that was stopped goes on where it
was, and a step that does not compile costs its own row only. A row takes one to ten minutes.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def compile_row(config_name: str, target_name: str, images: int, remat: bool) -> Row:
    """Compiles one step in this process.

    Args:
        config_name: as for `python -m train`.
        target_name: as for `--target`.
        images: pictures that a device works through at once.
        remat: whether only block outputs are kept for the backward pass.

    Returns:
        `Needs` as a dictionary, with `seconds` to compile and `step_seconds` to expect.
    """
    import dataclasses

    from fusionjax.backend.targets import target
    from train.dry_run import dry_run
    from train.main import read_config

    hardware, config = target(target_name), read_config([config_name])
    batch_size = images * len(hardware.devices) * config.optimizer.accumulate_steps
    config = dataclasses.replace(config, batch_size=batch_size, remat=remat)
    start = time.perf_counter()
    run = dry_run(config, hardware)
    told = dataclasses.asdict(run.needs) | {"batch_size": batch_size}
    return told | {"seconds": time.perf_counter() - start, "step_seconds": run.seconds}


def in_a_process(key: Row) -> Row:
    """Compiles one step in a process of its own.

    Returns:
        Its row, or one with the `error` that it ended with.
    """
    done = subprocess.run(
        [sys.executable, __file__, "--row", json.dumps(key)],
        env={"JAX_PLATFORMS": "cpu", **os.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return key | json.loads(done.stdout.splitlines()[-1])
    lines = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
    return key | {"error": lines[-1]}


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| batch a device | remat | weights, moments, batch | temporaries | peak "
        "| TFLOP a step | compiled in |",
        "| --- " * 7 + "|",
    ]
    for row in sorted(rows, key=lambda row: (row["images"], row["remat"])):
        name = f"| {row['images']} | {'yes' if row['remat'] else 'no'} "
        if "error" in row:
            lines.append(f"{name}| {row['error'].replace('|', '/')} | | | | |")
        else:
            sizes = (row[f"{part}_bytes"] for part in ("arguments", "temporary", "peak"))
            lines.append(
                name
                + "".join(f"| {'unknown' if x is None else f'{x / 1e9:.2f} GB'} " for x in sizes)
                + f"| {row['flops'] / 1e12:.1f} | {row['seconds']:.0f} s |"
            )
    return "\n".join(lines)


def main() -> None:
    """Compiles what is not in the file yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", nargs="?", default="sd15_v100", help="as for python -m train")
    parser.add_argument("target", nargs="?", default="v100:2", help="as for --target")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 2, 4, 8],
                        help="pictures that a device works through at once")  # fmt: skip
    parser.add_argument("--remat", nargs="+", choices=["no", "yes"], default=["no", "yes"])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/train_memory.jsonl"))
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        key = json.loads(args.row)
        row = compile_row(key["config"], key["target"], key["images"], key["remat"])
        print(json.dumps(row))
        return

    done = args.output.read_text().splitlines() if args.output.exists() else []
    rows: list[Row] = [json.loads(line) for line in done]
    wanted = [
        {"config": args.config, "target": args.target, "images": n, "remat": remat == "yes"}
        for n in args.images
        for remat in args.remat
    ]
    for key in wanted:
        if any(key.items() <= row.items() for row in rows):
            continue
        print(f"compiling {key}", file=sys.stderr, flush=True)
        rows.append(in_a_process(key))
        with args.output.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    print(table([row for row in rows if any(key.items() <= row.items() for key in wanted)]))


if __name__ == "__main__":
    main()
