"""One part of a base model: a Flax module, and the tensors of a file that are its parameters."""

import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from fusionjax.diffusion.noise_schedule import NoiseSchedule
from fusionjax.errors import UserError
from fusionjax.interop import names
from fusionjax.interop.load import Tensors, check_complete, locate

_POSITIONS = "embeddings.position_ids"  # a table of 0, 1, 2, … in older text encoders
_ADAPTER = re.compile(r"\.processor\.[kv]f\.weight$")  # saved in PyTorch with an adapter on


class Part(NamedTuple):
    """One part of a base model, ready to be read.

    Attributes:
        module: its Flax module.
        wanted: its parameters by PyTorch name.
        tensors: the open file.
        located: the name in the file of every parameter, by PyTorch name.
        folder: the diffusers folder that it is in, if it is.
        schedule: the noise schedule that comes with it.
    """

    module: Any
    wanted: dict[str, names.Parameter]
    tensors: Tensors
    located: dict[str, str]
    folder: Path | None = None
    schedule: NoiseSchedule = NoiseSchedule()


def match(
    module: Any, tensors: Tensors, what: str, rename: Any, config: Path | None = None
) -> Part:
    """Pairs a module's parameters with a file's tensors, all of both.

    Args:
        module: the Flax module.
        tensors: the file.
        what: what it should be, for errors.
        rename: the names that a parameter may have in the file.
        config: what describes the module, for errors.

    Returns:
        The part.

    Raises:
        UserError: if a parameter has no tensor, or a tensor no place.

    Warns:
        UserWarning: if the file holds a face adapter, which is left out.
    """
    try:
        wanted = names.torch_names(module)
    except (TypeError, ValueError, ZeroDivisionError, AttributeError, IndexError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"{config or tensors.path} describes a model that cannot be built: {reason}"
        ) from None
    located = locate(wanted, tensors, rename)
    used = set(located.values())
    unused = [name for name in tensors if name not in used and not name.endswith(_POSITIONS)]
    if adapter := [name for name in unused if _ADAPTER.search(name)]:
        warnings.warn(
            f"{tensors.path} holds a face adapter's kf and vf, {len(adapter)} tensors, which are "
            "left out; give an adapter as fusion (--fusion)",
            stacklevel=2,
        )
        unused = [name for name in unused if name not in adapter]
    check_complete(tensors, what, [name for name in wanted if name not in located], unused)
    return Part(module, wanted, tensors, located)
