"""What threads print of an error that the command tells is left out, and nothing else."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SCRIPT = """
import logging, sys, threading
from fusionjax.quiet import quiet_threads

quiet_threads(), quiet_threads()

class Odd:
    def __init__(self, words):
        self.words = words
    def __del__(self):
        raise RuntimeError(self.words)

Odd("Event loop is closed")
logging.getLogger("absl").error("1: _SignalingThread.run() raised an exception: full")
full = OSError(28, "No space left on device")
logging.getLogger("absl").error("in a thread", exc_info=full)
logging.getLogger("asyncio").error("Task exception was never retrieved", exc_info=full)
print("now what is shown", file=sys.stderr)
Odd("something else")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start(), thread.join()
logging.getLogger("absl").error("another error")
logging.getLogger("asyncio").error("Task exception", exc_info=ValueError("of another kind"))
"""


def test_only_echoes_are_left_out():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    quiet, shown = done.stderr.split("now what is shown")
    assert not quiet
    for words in ("something else", "ZeroDivisionError", "another error", "of another kind"):
        assert words in shown
