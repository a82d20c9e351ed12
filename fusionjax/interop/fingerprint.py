"""A short name for a UNet's weights, the same in JAX and in PyTorch.

Nothing here needs Flax's or PyTorch's models.
"""

import hashlib

import numpy as np

_SAMPLES = 1024  # of each tensor, evenly spaced


class Fingerprint:
    """Collects samples of named tensors; the order in which they come does not matter.

    Values are rounded to float16 first, so that a model has one fingerprint whether its file is
    float32 or float16.
    """

    def __init__(self) -> None:
        self._digests: dict[str, bytes] = {}

    def add(self, name: str, tensor: np.ndarray) -> None:
        """Adds one tensor, in place of one of the same name.

        Args:
            name: its PyTorch name.
            tensor: its values in PyTorch's layout.
        """
        places = np.arange(0, tensor.size, max(1, tensor.size // _SAMPLES))
        sample = tensor[np.unravel_index(places, tensor.shape)].astype(np.float32)
        with np.errstate(over="ignore"):
            rounded = sample.astype("<f2").tobytes()
        content = f"{name} {list(tensor.shape)} ".encode() + rounded
        self._digests[name] = hashlib.blake2b(content, digest_size=16).digest()

    def copy(self) -> "Fingerprint":
        """Another one with all that was added so far."""
        copy = Fingerprint()
        copy._digests.update(self._digests)
        return copy

    def hexdigest(self) -> str:
        """16 hexadecimal digits over all that was added."""
        total = hashlib.blake2b(digest_size=8)
        for name in sorted(self._digests):
            total.update(self._digests[name])
        return total.hexdigest()
