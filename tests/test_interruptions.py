"""Thirty kills, and disks that fill: whatever is begun again ends in the same bytes.

Each command is killed at random moments of its life, or finds a disk of random size, and is then
given again as it was. The moments are new at every run; a failure tells the seed.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from hashlib import sha256

import pytest
from PIL import Image, ImageEnhance, ImageOps
from skimage import data

from tests.test_train_processes import ROOT, environment, lines, losses, start, wait_until
from tests.test_train_processes import shelf as shelf  # a fixture

pytestmark = pytest.mark.slow
KILLS = {"train": 15, "prepare": 10, "cache": 10, "requests": 3, "export": 3, "import": 3}
FULL = 4  # disks of random size for each


@pytest.fixture(scope="module")
def rng():
    seed = random.randrange(2**32)
    print("seed", seed)
    return random.Random(seed)


@pytest.fixture(scope="module")
def whole(shelf):
    """A run of 200 steps that nothing disturbed."""
    assert start(shelf, "whole", steps=200, keep=10).wait(600) == 0
    return shelf / "whole"


@pytest.fixture(scope="module")
def commands(shelf, whole):
    """What is run but for training: the words before and after the output's name."""
    astronaut = Image.fromarray(data.astronaut()).resize((256, 256))
    for person in range(6):
        (shelf / "people" / str(person)).mkdir(parents=True)
        for name, look in (("a", ImageOps.autocontrast), ("b", ImageOps.mirror)):
            picture = look(ImageEnhance.Brightness(astronaut).enhance(0.7 + 0.1 * person))
            picture.save(shelf / "people" / str(person) / f"{name}.jpg")
            (shelf / "people" / str(person) / f"{name}.txt").write_text("an astronaut")
    rows = [{"prompt": f"picture {i}", "seed": i, "num_inference_steps": 4} for i in range(6)]
    (shelf / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    python, base = [sys.executable, "-m"], str(shelf / "base")
    adapter = shelf / "adapter.safetensors"
    subprocess.run([*python, "fusionjax", "export", str(whole), str(adapter)], cwd=ROOT, check=True)
    prepare = [*python, "fusionjax", "prepare", str(shelf / "people")]
    cache = [*python, "fusionjax", "cache", "--base", base, "--data", str(shelf / "faces")]
    cache += ["--splits", "train", "--batch-size", "2", "--output"]
    sample = [*python, "sample", "--base", base, "--fusion", str(adapter), "--no-face"]
    sample += ["--requests", str(shelf / "rows.jsonl"), "--height", "64", "--width", "64"]
    return {
        "prepare": (
            prepare,
            ["--size", "64", "--smallest-face", "32", "--processes", "1", "--keep-duplicates"],
        ),
        "cache": (cache, []),
        "requests": ([*sample, "--batch-size", "1", "--output"], []),
        "export": ([*python, "fusionjax", "export", str(whole)], []),
        "import": ([*python, "fusionjax", "import", str(adapter)], []),
    }


def begin(shelf, command, output):
    before, after = command
    words = [*before, str(output), *after]
    with (shelf / "log").open("w") as log:
        return subprocess.Popen(words, cwd=ROOT, env=environment(shelf), stderr=log, stdout=log)


def to_the_end(shelf, command, output):
    status = begin(shelf, command, output).wait(600)
    return status, (shelf / "log").read_text().replace("\r", "\n")


def content(name, output, shelf):
    """What counts of an output, byte by byte: of a run that was made, what it is exported as."""
    if name == "import":
        again = output.with_name(f"{output.name}-again.safetensors")
        words = [sys.executable, "-m", "fusionjax", "export", str(output), str(again)]
        subprocess.run(words, cwd=ROOT, env=environment(shelf), check=True)
        return again.read_bytes()
    if output.is_file():
        return output.read_bytes()
    files = sorted(path for path in output.rglob("*") if path.is_file())
    if name == "cache":  # where dates are remembered
        files = [path for path in files if path.name != "dataset.json"]
    if name == "requests":  # its log tells times
        files = [path for path in files if path.suffix == ".png"]
    assert files
    return {str(path.relative_to(output)): sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def expected(shelf, commands):
    """The content of every output, and the seconds that it took."""
    found = {}
    for name, command in commands.items():
        output = shelf / "expected" / (name + ending(name))
        output.parent.mkdir(exist_ok=True)
        to_the_end(shelf, command, shelf / "warm" / output.name)  # programs are compiled
        began = time.monotonic()
        status, said = to_the_end(shelf, command, output)
        assert status == 0, said
        found[name] = content(name, output, shelf), time.monotonic() - began
    return found


@pytest.mark.parametrize("name", [name for name in KILLS if name != "train"])
def test_killed_commands(shelf, commands, expected, rng, name):
    right, seconds = expected[name]
    for number in range(KILLS[name]):
        output = shelf / "killed" / f"{name}{number}{ending(name)}"
        process = begin(shelf, commands[name], output)
        time.sleep(rng.uniform(0.3, 1) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        status, said = to_the_end(shelf, commands[name], output)
        if output.exists() and status == 2:  # it was done before the kill
            assert "exists" in said, said
        else:
            assert status == 0, said
        assert content(name, output, shelf) == right


def test_a_killed_run(shelf, whole, rng):
    for _ in range(KILLS["train"]):
        killed = start(shelf, "killed", steps=200, keep=10)
        known = len(lines(shelf / "killed"))
        enough = min(known + rng.randrange(5, 30), 190)
        wait_until(lambda: len(lines(shelf / "killed")) >= enough, killed)  # noqa: B023
        time.sleep(rng.uniform(0, 0.1))
        killed.send_signal(signal.SIGKILL)
        assert killed.wait(60) == -signal.SIGKILL
    assert start(shelf, "killed", steps=200, keep=10).wait(600) == 0
    assert losses(shelf / "killed") == losses(whole)
    assert exported(shelf, "killed") == exported(shelf, "whole")


def exported(shelf, name):
    words = [sys.executable, "-m", "fusionjax", "export", str(shelf / name)]
    target = shelf / f"{name}-exported.safetensors"
    subprocess.run([*words, str(target)], cwd=ROOT, env=environment(shelf), check=True)
    return target.read_bytes()


@pytest.fixture
def disk(tmp_path):
    """A disk whose size can be changed, for who may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("needs the right to mount a disk")

    def resize(size):
        kilobytes = max(size // 1024, 1)
        words = ["mount", "-o", f"remount,size={kilobytes}k", str(place)]
        subprocess.run(words, check=True)

    yield place, resize
    subprocess.run(["umount", "-l", str(place)], check=True)


def ending(name):
    return ".safetensors" if name == "export" else ""


def size_of(output):
    files = [output] if output.is_file() else output.rglob("*")
    return sum(path.stat().st_size for path in files if path.is_file())


@pytest.mark.parametrize("name", [name for name in KILLS if name != "train"])
def test_full_disks(shelf, commands, expected, rng, disk, name):
    place, resize = disk
    right, size = expected[name][0], size_of(shelf / "expected" / (name + ending(name)))
    for number in range(FULL):
        output = place / f"{name}{number}{ending(name)}"
        used = sum(path.stat().st_blocks * 512 for path in place.rglob("*"))
        resize(used + rng.randrange(20_000, max(size, 30_000)))
        status, said = to_the_end(shelf, commands[name], output)
        if status:  # else the disk was large enough
            assert "Traceback" not in said, said
            assert "error: " in said or "failed" in said, said
            if name != "requests":
                assert not (output / "train" if name == "cache" else output).exists(), said
        resize(used + 3 * size + 10_000_000)
        if status:
            status, said = to_the_end(shelf, commands[name], output)
            assert status == 0, said
        assert content(name, output, shelf) == right


def test_a_run_on_a_full_disk(shelf, whole, rng, disk):
    """It says so, and goes on once there is room."""
    place, resize = disk
    resize(rng.randrange(100_000, size_of(whole) // 2))
    output = ["--output", str(place / "run")]
    status = start(shelf, "unused", *output, steps=200, keep=10, log="full.log").wait(600)
    said = (shelf / "full.log").read_text()[-3000:]
    assert status == 2, f"{status} {said}"
    assert "Traceback" not in said, said
    assert "No space left on device" in said
    resize(200_000_000)
    assert start(shelf, "unused", *output, steps=200, keep=10, log="full.log").wait(600) == 0
    assert losses(place / "run") == losses(whole)


def test_two_at_once_take_names_of_their_own(tmp_path):
    words = [sys.executable, "-m", "sample", "--steps", "2", "--output", str(tmp_path / "out")]
    both = [
        subprocess.Popen([*words, "--seed", seed], cwd=ROOT, env=environment(tmp_path))
        for seed in ("1", "1")
    ]
    assert [process.wait(300) for process in both] == [0, 0]
    names = sorted(path.name for path in (tmp_path / "out").glob("*_seed1.png"))
    assert names == ["0001_seed1.png", "0002_seed1.png"]
