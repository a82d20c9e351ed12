"""Whether an adapter belongs to a base model. Nothing here needs Flax's or PyTorch's models."""

import warnings
from collections.abc import Mapping

from fusionjax.errors import UserError


def check_shapes(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], name: str
) -> None:
    """Raises UserError unless both map the same layers to the same shapes."""
    for layer in [*expected, *found]:
        if found.get(layer) != expected.get(layer):
            raise UserError(
                f"{name} was trained for another base model: {layer} has shape "
                f"{found.get(layer, 'none')} in the adapter, {expected.get(layer, 'none')} in the "
                f"base ({len(found)} and {len(expected)} layers in all)"
            )


def warn_of_other_base(
    base: str | None, trained: str | None, present: str | None, name: str
) -> None:
    """Warns if both fingerprints are known and differ."""
    if trained is not None and present is not None and trained != present:
        warnings.warn(
            f"{name} was trained on the base {base or 'unknown'} with fingerprint {trained}; this "
            f"base has {present}: faces may come out less alike",
            stacklevel=3,
        )
