"""Silences what libraries say beside what is told here: one message of diffusers, which it logs
while it is imported and at every trace, and what their threads print of an error that ends a run.
"""

import errno
import functools
import logging
import os
import sys
from typing import Any

_DEPRECATION = "Flax classes are deprecated and will be removed in Diffusers"
_DIFFUSERS_MODULES = (
    "attention_flax",
    "controlnets.controlnet_flax",
    "embeddings_flax",
    "modeling_flax_utils",
    "resnet_flax",
    "unets.unet_2d_blocks_flax",
    "unets.unet_2d_condition_flax",
    "vae_flax",
)


def _not_the_deprecation(record: logging.LogRecord) -> bool:
    return _DEPRECATION not in record.getMessage()


def quiet_diffusers() -> None:
    """Silences diffusers' "Flax classes are deprecated" message, and no other.

    The message is logged once per submodule per trace, and pyproject.toml pins the release.
    Calling it again changes nothing.
    """
    for name in _DIFFUSERS_MODULES:
        logging.getLogger(f"diffusers.models.{name}").addFilter(_not_the_deprecation)


@functools.cache
def quiet_threads() -> None:
    """Leaves out what threads print of a disk that is full or of a damaged checkpoint.

    The command says it in a line. Orbax logs the traceback of its thread, and tensorstore finds
    Orbax's loop closed.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_not_of_a_thread)
    unraisable = sys.unraisablehook

    def hear_unraisable(found: Any) -> None:
        if not (
            isinstance(found.exc_value, RuntimeError)
            and str(found.exc_value) == "Event loop is closed"
        ):
            unraisable(found)

    sys.unraisablehook = hear_unraisable


def _not_of_a_thread(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    text = f"{record.getMessage()} {error}"
    return "_SignalingThread.run() raised" not in text and os.strerror(errno.ENOSPC) not in text
