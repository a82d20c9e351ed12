"""How fast `fusionjax prepare` is, what memory it takes, and what room a picture takes.

    python benchmarks/prepare.py [--pictures 1000 10000] [--side 512] [--people 5]

Makes tar shards of cut-outs of one photo (scikit-image's astronaut), prepares each number of them
in a process of its own, and prints pictures a second, CPU time a picture, the peak memory of the
largest process, and bytes a picture on the disk, with so many pictures a person.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

SHARD = 250
PREPARE = [sys.executable, "-m", "fusionjax", "prepare"]
MEASURED = (  # prints the status, the largest process's peak in kilobytes, all CPU seconds
    "import resource, subprocess, sys\n"
    "done = subprocess.run(sys.argv[1:], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)\n"
    "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
    "print(done.returncode, used.ru_maxrss, used.ru_utime + used.ru_stime)"
)


def shards(folder: Path, count: int, side: int, people: int) -> None:
    """Writes so many pictures, none like another."""
    astronaut, rng = Image.fromarray(data.astronaut()), np.random.default_rng(0)
    for first in range(0, count, SHARD):
        with tarfile.open(folder / f"{first // SHARD:05d}.tar", "w") as shard:
            for number in range(first, min(first + SHARD, count)):
                x, y, wide = rng.integers(0, 80), rng.integers(0, 30), rng.integers(260, 420)
                cut = astronaut.crop((x + 40, y, x + 40 + wide, y + wide))
                picture = io.BytesIO()
                cut.resize((side, side)).rotate(rng.uniform(-8, 8)).save(picture, "JPEG")
                about = {"caption": "an astronaut", "person": str(number // people)}
                for ending, content in (("jpg", picture.getvalue()),
                                        ("json", json.dumps(about).encode())):  # fmt: skip
                    info = tarfile.TarInfo(f"{number:09d}.{ending}")
                    info.size = len(content)
                    shard.addfile(info, io.BytesIO(content))


def main() -> None:
    """Measures, and prints a row for each number of pictures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--side", type=int, default=512, help="of the pictures, in pixels")
    parser.add_argument("--people", type=int, default=5, help="pictures a person")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    for count in args.pictures:
        with tempfile.TemporaryDirectory() as place:
            (folder := Path(place) / "shards").mkdir()
            shards(folder, count, args.side, args.people)
            wishes = f"--size {args.side} --smallest-picture {args.side} --smallest-face 24"
            wishes += f" --keep-duplicates --most-skipped 0.9 --processes {args.processes}"
            command = [*PREPARE, str(folder), str(Path(place) / "out"), *wishes.split()]
            began = time.perf_counter()
            said = subprocess.run(
                [sys.executable, "-c", MEASURED, *command],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            seconds = time.perf_counter() - began
            status, peak, used = map(float, said.split())
            if status:
                raise SystemExit(f"prepare ended with status {status}")
            out = Path(place) / "out"
            dropped = len((out / "skipped.tsv").read_text().splitlines())
            size = sum(path.stat().st_size for path in out.iterdir())
            rate = count / seconds / args.processes
            print(
                f"{count} pictures of {args.side}²: {rate:.1f} a second and process, "
                f"{1000 * used / count:.0f} ms of a core each, {peak / 1000:.0f} MB at the peak of "
                f"the largest process, {size / (count - dropped) / 1000:.1f} kB a picture, "
                f"{dropped} dropped",
                flush=True,
            )


if __name__ == "__main__":
    main()
