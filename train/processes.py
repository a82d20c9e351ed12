"""Several processes of one run: how they meet, agree, wait for each other and part.

They share the run's folder and the data's; the first process writes, the others read.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils

from fusionjax.backend.sharding import of_all_processes
from train.config import DistributedConfig


def join(config: DistributedConfig) -> None:
    """Meets the other processes, if there are any; before anything else asks for a device."""
    if not (config.enabled or config.coordinator):
        return
    # CPU processes need a library for their collectives; others ignore this.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        config.coordinator,
        config.processes,
        config.process,
        heartbeat_timeout_seconds=config.heartbeat_timeout_s,
    )


def broadcast_text(text: str) -> str:
    """The first process's text, in every process."""
    return of_all_processes(text)[0]


def on_first_process(make: Callable[[], object], is_made: Callable[[], bool]) -> None:
    """The first process makes something on disk; the others wait until it is there.

    They watch the disk, however long it takes. Should the first process die, the heartbeat ends
    them.

    Args:
        make: makes it; called only if it is not there.
        is_made: whether it is there, complete.
    """
    if jax.process_index() == 0 and not is_made():
        make()
    while not is_made():
        time.sleep(0.2)


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[int], bool]]:
    """SIGTERM ends a run after a step that is the same in all processes; so does Ctrl-C once.

    Yields:
        A function to be called with the number of steps done, once before each further step:
        whether to stop now.
    """
    if jax.process_count() > 1:
        # JAX's own handler tells the other processes; they agree on a step to come.
        yield multihost_utils.reached_preemption_sync_point
        return
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda _: False
        return

    def heard(number: int, _: Any) -> None:
        event.set()
        signal.signal(number, before[number])  # the second time it ends the program at once

    before: dict[int, Any] = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, heard)
    try:
        yield lambda _: event.is_set()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_the_others(status: int) -> NoReturn:
    """Ends this process at once, without the meeting at the end that the others would miss."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
