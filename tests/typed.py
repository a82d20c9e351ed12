"""A command as a reader types it: a process of its own, away from the checkout."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def typed(words, folder, home, tools=""):
    """Runs a program on the CPU that finds the checkout's packages, and no hub.

    Args:
        words: the program and its arguments.
        folder: where.
        home: of its user.
        tools: a folder whose programs go before the system's.

    Returns:
        The ended process, with what it printed.
    """
    return subprocess.run(
        words, cwd=folder, capture_output=True, text=True, check=False, timeout=1200,
        env={
            "PATH": f"{tools}:/usr/bin:/bin".lstrip(":"), "PYTHONPATH": str(ROOT),
            "HOME": str(home), "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1",
            **{name: os.environ[name] for name in ("XDG_CACHE_HOME",) if name in os.environ},
        },
    )  # fmt: skip
