"""What TensorBoard shows of a run, written by the run itself.

tensorboardX's own writer passes events to a thread through a short queue. Once that thread has met
a full disk and is gone, the run would wait for it without end.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

_FLUSH_SECONDS = 30.0


class Board:
    """A file of events."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Opens a new file.

        Args:
            folder: where; made if it is not there.
            first_step: what older files tell of this step and later ones does not count.

        Raises:
            OSError: as all methods, if it cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / "events"))
        self._flushed = time.monotonic()
        self._write(first_step, session_log=SessionLog(status=SessionLog.START))

    def scalar(self, name: str, value: float, step: int) -> None:
        """Writes a number of a step."""
        self._write(step, summary=summary.scalar(name, value))

    def image(self, name: str, picture: UInt8[np.ndarray, "h w 3"], step: int) -> None:
        """Writes a picture of a step."""
        self._write(step, summary=summary.image(name, picture, dataformats="HWC"))

    def close(self) -> None:
        """Writes what is left."""
        self._file.close()

    def _write(self, step: int, **what: Any) -> None:
        self._file.write_event(Event(wall_time=time.time(), step=step, **what))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()
