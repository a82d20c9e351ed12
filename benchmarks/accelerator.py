"""Is it right, and how fast is it, on this device? What to run first on a GPU or a TPU.

    python benchmarks/accelerator.py                # both parts, ten minutes on a GPU
    python benchmarks/accelerator.py --part right   # the exit status is 1 if a check failed
    python benchmarks/accelerator.py --part fast --minutes 30
    python benchmarks/accelerator.py --small        # a small size, for a CPU

Part "right" compares what the device computes with float32: every attention implementation, the
embedded mini model's picture and training, full-size models in 16 bits. Part "fast" measures
Stable Diffusion 1.5 with random weights: denoising, decoding, encoding a person, training,
compiling, reading batches, and the same UNet in PyTorch where it is installed. Nothing is
downloaded. The most telling rows come first; those that time does not suffice for are listed as
not measured. Prints each row as it is known and a Markdown table at the end, and writes JSON after
every row. Each part runs in a process of its own, so that a crash costs its own part only.
"""

# ruff: noqa: E402  (the environment is set before jax is imported)
import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# So that PyTorch, in a process beside, finds memory; and so that the peak says what was needed.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# Part "right" compares with the CPU, which must stay available beside a platform that is named.
if (_named := os.environ.get("JAX_PLATFORMS")) and "cpu" not in _named.split(","):
    os.environ["JAX_PLATFORMS"] = f"{_named},cpu"
ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import accelerator_report
from benchmarks.accelerator_report import Report

PARTS = ("right", "fast")
_RIGHT_SHARE = 0.5  # of the minutes, where both parts are run
_PACKAGES = ("jax", "jaxlib", "flax", "diffusers", "transformers", "numpy")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one part, or each in a process of its own.

    Returns:
        The exit status: 1 if a check of part "right" failed or a part crashed.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=(*PARTS, "both"), default="both")
    parser.add_argument("--small", action="store_true", help="small models and shapes")
    parser.add_argument("--minutes", type=float, default=10, help="after which no row is begun")
    parser.add_argument("--only", help="a regular expression: rows whose names it finds")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args(arguments)
    if args.part == "both":
        return _both(args)

    import jax

    from fusionjax.quiet import quiet_diffusers

    quiet_diffusers()
    if args.part == "right":
        from benchmarks.accelerator_right import rows
    else:
        from benchmarks.accelerator_fast import rows
    device = jax.devices()[0]
    report = Report(args.output, _about(device, args.small), args.part, seconds=60 * args.minutes)
    good = report.run(rows(device, small=args.small), args.only)
    print("\n" + accelerator_report.table(accelerator_report.read(args.output), args.part))
    return 0 if good else 1


def _both(args: argparse.Namespace) -> int:
    until = time.monotonic() + 60 * args.minutes
    status = 0
    for part in PARTS:
        minutes = (until - time.monotonic()) / 60
        if part == "right":
            minutes *= _RIGHT_SHARE
        command = [sys.executable, __file__, "--part", part, "--output", str(args.output)]
        command += ["--minutes", f"{minutes:.3f}", *["--small"] * args.small]
        command += ["--only", args.only] if args.only else []
        print(f"part {part}, {minutes:.1f} minutes", flush=True)
        ended = subprocess.run(command, check=False).returncode
        if ended not in (0, 1):
            rows = accelerator_report.read(args.output)["rows"]
            last = [row["name"] for row in rows if row["status"] == accelerator_report.RUNNING]
            print(f"part {part} crashed with status {ended} in {', '.join(last) or 'its start'}")
        status = max(status, 1 if ended else 0)
    print(f"{args.output} holds both parts")
    return status


def _about(device: Any, small: bool) -> dict[str, Any]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "none"
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "backend": device.client.platform_version.replace("\n", " "),
        "python": platform.python_version(),
        **versions,
        "size": "small" if small else "full",
    }


if __name__ == "__main__":
    sys.exit(main())
