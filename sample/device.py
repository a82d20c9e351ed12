"""`--device`: said to JAX before it starts, and looked up once it has."""

import os
import re
import sys
from typing import TYPE_CHECKING

from fusionjax.errors import UserError
from fusionjax.options import not_one_of

if TYPE_CHECKING:
    import jax

KINDS = ("cpu", "gpu", "tpu")


def check(name: str) -> tuple[str, int | None]:
    """Takes `gpu:1` apart.

    Args:
        name: one of `KINDS`, and maybe a device's number from 0.

    Returns:
        The kind and the number.

    Raises:
        UserError: for another name.
    """
    kind, colon, number = name.partition(":")
    if kind not in KINDS:
        raise UserError(not_one_of("device", name, KINDS))
    if colon and not re.fullmatch(r"[0-9]{1,3}", number):
        raise UserError(f"device is {name!r}; what follows the colon is a number, as in {kind}:1")
    return kind, int(number) if colon else None


def prepare(name: str) -> None:
    """Has JAX, which must not be imported yet, start on a kind of device.

    Args:
        name: as for `check`. A CPU is all that is started then, and no GPU's memory is taken; for
            others a `JAX_PLATFORMS` that leaves them out is set aside.
    """
    if "jax" in sys.modules:
        return
    kind, _ = check(name)
    if kind == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    elif os.environ.get("JAX_PLATFORMS") == "cpu":
        del os.environ["JAX_PLATFORMS"]


def chosen(name: str) -> "list[jax.Device]":
    """The devices of a name.

    Args:
        name: as for `check`.

    Returns:
        All of the kind, or the one of that number.

    Raises:
        UserError: if there are none here.
    """
    import jax

    kind, number = check(name)
    try:
        devices = jax.local_devices(backend=kind)
    except RuntimeError:  # of an unknown backend, and of one that cannot start
        here = ", ".join(sorted({device.platform for device in jax.local_devices()}))
        extra = {"gpu": "cuda12, cuda13 or rocm", "tpu": "tpu"}.get(kind)
        remedy = f"; JAX for it comes with the extra {extra}" if extra else ""
        raise UserError(f"device is {name}, and JAX finds none here, but {here}{remedy}") from None
    if number is None:
        return devices
    if number >= len(devices):
        raise UserError(
            f"device is {name}, and JAX finds {len(devices)} here, counted from 0; leave the "
            "number out to use all"
        )
    return [devices[number]]
