"""People and adapters in files, read and written with PyTorch alone.

The files are those of `fusionjax.identity` and `fusionjax.interop.adapter_file`.

Legend: r references (photos), k tokens of one photo in a layer, D features of the layer, h w c a
photo's latents, p the side of a thumbnail.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fusionjax.errors import UserError, told
from fusionjax.files import whole_file

_SUFFIXES = (".processor.kf.weight", ".processor.vf.weight")


@dataclasses.dataclass(frozen=True, eq=False)
class Person:
    """One person, from one or more photos.

    Attributes:
        states: hf of every cross-attention by name, [r, k, D], bfloat16.
        latents: the photos' scaled latents, [r, h, w, c], float32.
        thumbnails: the photos as they were cut, small, [r, p, p, 3] of uint8.
        weights: λ of each photo, multiplied with the strength of `show`.
        base_fingerprint: of the base model that computed the states.
        reference: how references are passed; "clean" here.
    """

    states: Mapping[str, torch.Tensor]
    latents: torch.Tensor
    thumbnails: np.ndarray
    weights: tuple[float, ...]
    base_fingerprint: str
    reference: str = "clean"

    def __len__(self) -> int:
        """The number of photos."""
        return len(self.weights)

    def weighted(self, weights: float | Sequence[float]) -> "Person":
        """The same person with other weights.

        Args:
            weights: λ ≥ 0 for each photo, or one for all; 0 hides a photo.

        Raises:
            UserError: if the number of weights is wrong or one is negative or not finite.
        """
        given = [weights] * len(self) if isinstance(weights, float | int) else list(weights)
        if len(given) != len(self):
            raise UserError(f"{len(given)} weights are given for {len(self)} photos")
        return dataclasses.replace(self, weights=_checked_weights(given, "the weights"))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the person as one safetensors file.

        Args:
            path: the file, by custom `*.safetensors`.

        Raises:
            UserError: if it cannot be written.
        """
        tensors = {f"states/{name}": x.contiguous() for name, x in self.states.items()}
        tensors["latents"] = self.latents.contiguous()
        tensors["thumbnails"] = torch.from_numpy(np.ascontiguousarray(self.thumbnails))
        about: dict[str, Any] = {
            "kind": "identity",
            "version": 1,
            "weights": self.weights,
            "base_fingerprint": self.base_fingerprint,
            "reference": self.reference,
        }
        about["digest"] = _digest(tensors, about)
        try:
            with whole_file(path) as beside:
                save_file(tensors, beside, metadata={"fusionjax": json.dumps(about)})
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{path} cannot be written: {reason}") from None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Person":
        """Reads what `save` wrote, here or in JAX.

        Args:
            path: the file.

        Raises:
            UserError: if it is missing, damaged or no identity file.
        """
        tensors, about = _read(path, "an identity file that fusionjax wrote")
        if about.get("kind") != "identity":
            raise UserError(f"{path} is not an identity file; save one with `Person.save`")
        if about.get("version") != 1:
            raise UserError(
                f"{path} is an identity file of version {told(about.get('version'))}, and this "
                "reads version 1; encode the photos again"
            )
        damaged = f"{path} is a damaged identity file"
        given, names = about.get("weights"), (about.get("base_fingerprint"), about.get("reference"))
        if not isinstance(given, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{damaged}: its metadata make no sense")
        weights = _checked_weights(given, damaged)
        axes = {"latents": 4, "thumbnails": 4}
        for name in (*tensors, *axes):
            shape = tuple(tensors[name].shape) if name in tensors else "none"
            if len(shape) != axes.get(name, 3) or shape[0] != len(weights):
                raise UserError(f"{damaged}: {told(name)} has shape {shape}")
        states = {
            name.removeprefix("states/"): x.to(torch.bfloat16)
            for name, x in tensors.items()
            if name.startswith("states/")
        }
        if not all(bool(x.isfinite().all()) for x in (*states.values(), tensors["latents"])):
            raise UserError(f"{damaged}: it holds numbers that are not finite")
        latents, thumbnails = tensors["latents"].float(), tensors["thumbnails"].numpy()
        return cls(states, latents, thumbnails, weights, *map(str, names))


def read_adapter_tensors(
    path: str | os.PathLike[str],
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """Reads an exported adapter.

    Args:
        path: the `.safetensors` file.

    Returns:
        kf and vf [out, in] by layer; how it was trained, with `base` and `base_fingerprint`.

    Raises:
        UserError: if the file is damaged or is not an adapter of this kind.
    """
    tensors, about = _read(path, "an adapter that fusionjax exported")
    weights: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        suffix = next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), None)
        if suffix is None or tensor.ndim != 2 or not tensor.is_floating_point():
            raise UserError(
                f"{path} has a tensor {told(name)} {told(tuple(tensor.shape))} that is no kf or vf"
            )
        if not bool(tensor.float().isfinite().all()):
            raise UserError(f"{path}: {told(name)} holds numbers that are not finite")
        weights.setdefault(name.removesuffix(suffix), {})[suffix.split(".")[2]] = tensor
    for layer, pair in weights.items():
        if len(pair) != 2 or pair["kf"].shape != pair["vf"].shape:
            raise UserError(f"{path}: {layer} needs kf and vf of one shape; export it again")
    return weights, about


def _read(
    path: str | os.PathLike[str], what: str
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """All tensors of a file and what its metadata say, with its digest checked."""
    if not os.path.isfile(path):
        raise UserError(f"there is no file {str(path)!r}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(metadata.get("fusionjax", "null"))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is no intact safetensors file ({error}); copy it again") from None
    if not isinstance(about, dict):
        raise UserError(f"{path} is not {what}")
    digest = about.pop("digest", None)
    if digest is not None and digest != _digest(tensors, about):
        raise UserError(
            f"{path} is damaged: it holds other numbers than were written; copy it again"
        )
    return tensors, about


def _digest(tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> str:
    digest = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=16)
    for name, x in sorted(tensors.items()):
        kind = str(x.dtype).removeprefix("torch.")
        digest.update(f"{name} {kind} {tuple(x.shape)} ".encode())
        digest.update(x.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _checked_weights(given: Sequence[Any], where: str) -> tuple[float, ...]:
    for weight in given:
        if not (isinstance(weight, float | int) and np.isfinite(weight) and weight >= 0):
            raise UserError(f"{where}: a photo's weight is {told(weight)}; it must be ≥ 0")
    return tuple(float(weight) for weight in given)
