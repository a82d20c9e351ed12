"""What every program needs on every kind of hardware, compiled without any of it.

    python benchmarks/compiled.py                       # needs pip install -e '.[cuda12-v100,tpu]'
    python benchmarks/compiled.py --targets a100 h100   # a minute each; a TPU ten

Sampling (Stable Diffusion 1.5, one picture of 512×512 with a photo on each device, guidance, the
type that the hardware is fastest in) and the training step of its configuration are compiled with
the target's own compiler, each target in a process of its own. Prints a Markdown table, and fails
if memory or traffic is more than a tenth above what is recorded in docs/compiled.json; `--record`
writes what was measured there.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# Target → the configuration whose training step is compiled for it.
TARGETS = {
    "v100": None,
    "v100:2": "sd15_v100",
    "a100": None,
    "a100:8": "sd15_a100",
    "h100": None,
    "h100:8": "sd15_a100",
    "v5e": None,
    "v5e:8": "sd15_tpu_v5e",
}
RECORD = Path(__file__).parent.parent / "docs" / "compiled.json"
TOLERANCE = 1.1
CHECKED = ("peak_bytes", "temporary_bytes", "moved_bytes")
Rows = dict[str, dict[str, Any]]


def compile_target(name: str) -> Rows:
    """Compiles a target's programs in this process: rows by program."""
    from fusionjax.backend.compilation import compiler_options
    from fusionjax.backend.devices import default_dtype
    from fusionjax.backend.program import compile_for
    from fusionjax.backend.targets import target
    from fusionjax.generation.dry_run import abstract_pipeline, picture_programs

    hardware = target(name)
    devices, chip = hardware.devices, hardware.chip
    rows: Rows = {}

    def add(program: str, needs: Any, seconds: float) -> None:
        rows[program] = dataclasses.asdict(needs) | {"seconds": seconds}
        print(f"{name}: {program}, {needs.compile_seconds:.0f} s", file=sys.stderr, flush=True)

    config_name = TARGETS.get(name)
    if config_name is not None:
        from train.dry_run import dry_run
        from train.main import read_config

        run = dry_run(read_config([config_name]), hardware)
        assert run.seconds is not None
        add(f"a training step of {config_name}", run.needs, run.seconds)
    pipe = abstract_pipeline("Stable Diffusion 1.5", default_dtype(devices), devices)
    programs = picture_programs(pipe, images=len(devices), photos=1, height=512, width=512)
    for program, traced in programs.items():
        if len(devices) > 1 and program != "a step":
            continue  # as on one device
        xla = compiler_options(devices[0])
        _, needs = compile_for(traced, len(devices), devices[0], program, "", xla)
        add(program, needs, needs.seconds(chip, in_16_bits=True))
    return rows


def in_a_process(name: str) -> Rows:
    """`compile_target` in a process of its own; a failure is a row."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", name],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    return {"all programs": {"error": f"ended with status {done.returncode}"}}


def table(measured: dict[str, Rows]) -> str:
    """All rows in Markdown."""
    lines = [
        "| target | program | peak | TFLOP | moved | operations | attention | to expect |",
        "| --- " * 8 + "|",
    ]
    for name, rows in measured.items():
        for program, row in rows.items():
            if "error" in row:
                lines.append(f"| {name} | {program} | {row['error']} | | | | | |")
                continue
            peak = row["peak_bytes"] or row["arguments_bytes"] + row["temporary_bytes"]
            flash = ", ".join(f"{n} × {kernel}" for kernel, n in row["attention"].items())
            lines.append(
                f"| {name} | {program} | {peak / 1e9:.2f} GB | {row['flops'] / 1e12:.2f} "
                f"| {row['moved_bytes'] / 1e9:.2f} GB | {row['operations']} | {flash or 'xla'} "
                f"| {1000 * row['seconds']:.1f} ms |"
            )
    return "\n".join(lines)


def worse(measured: dict[str, Rows], recorded: dict[str, Rows]) -> list[str]:
    """What failed, or is more than `TOLERANCE` of what was recorded; a line each."""
    found = []
    for name, rows in measured.items():
        for program, row in rows.items():
            if "error" in row:
                found.append(f"{name}, {program}: {row['error']}")
                continue
            before = recorded.get(name, {}).get(program, {})
            if not before:
                found.append(f"{name}, {program}: nothing is recorded; --record does it")
            for figure in CHECKED:
                was, now = before.get(figure), row[figure]
                if was and now and now > TOLERANCE * was:
                    found.append(
                        f"{name}, {program}: {figure} is {now:,}, and {was:,} is recorded "
                        f"({now / was:.2f} of it)"
                    )
    return found


def main() -> int:
    """Compiles, prints the table, compares."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), metavar="NAME")
    parser.add_argument("--record", action="store_true", help="write docs/compiled.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(compile_target(args.one)))
        return 0
    recorded: dict[str, Rows] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    measured = {}
    for name in args.targets:
        measured[name] = in_a_process(name)
        if args.record and not any("error" in row for row in measured[name].values()):
            recorded[name] = measured[name]
            RECORD.write_text(json.dumps(recorded, indent=1) + "\n")
    print(table(measured))
    problems = worse(measured, recorded)
    print("\n".join(problems), file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
