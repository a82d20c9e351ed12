"""TensorBoard's events are there once the run goes on, and a disk that is full ends it."""

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
from tensorboardX.proto.event_pb2 import Event, SessionLog

from train.board import Board

ROOT = Path(__file__).parent.parent
FULL = """
import resource, sys
from pathlib import Path
from train.board import Board

board = Board(Path(sys.argv[1]), 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for step in range(1000):
    board.scalar("loss", 0.5, step)
board.close()
"""


def events(folder):
    """What a file holds: length, checksum, event, checksum, and so on."""
    (path,) = folder.iterdir()
    content, found = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        found.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return found


def test_what_is_written(tmp_path):
    board = Board(tmp_path / "board", 7)
    board.scalar("train/loss", 0.25, 8)
    board.image("grid", np.full((4, 6, 3), 9, np.uint8), 9)
    board.close()
    version, begun, loss, grid = events(tmp_path / "board")
    assert version.file_version == "brain.Event:2"
    assert (begun.step, begun.session_log.status) == (7, SessionLog.START)
    (value,) = loss.summary.value
    assert (loss.step, value.tag, value.simple_value) == (8, "train/loss", 0.25)
    (value,) = grid.summary.value
    assert (grid.step, value.tag, value.image.height, value.image.width) == (9, "grid", 4, 6)
    assert begun.wall_time > 1e9


def test_a_full_disk_is_an_error_and_no_end_of_waiting(tmp_path):
    words = [sys.executable, "-c", FULL, str(tmp_path / "board")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.stderr.splitlines()[-1] == "OSError: [Errno 27] File too large"
