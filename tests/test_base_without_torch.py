"""Runs `without_torch.py` in a process of its own; CI runs it where torch is not installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_everything_works_without_torch_and_weights_stream_in_bounded_memory():
    script = Path(__file__).with_name("without_torch.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, "--no-commands"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["weights"] > 200e6
    bound = 1.3 * report["weights"] + report["largest tensor"]
    assert report["loading took"] < bound, report
