"""A person, as the frozen UNet sees them: the reference states of their photos, computed once.

What is kept is hf, the input of `kf` and `vf`, and not Kf and Vf: it depends on the base model and
on how references are passed, but on no adapter, so one identity file serves every adapter trained
on the same base.

Legend: r references (photos), k tokens of one photo in a layer, D features of the layer, h w c a
photo's latents, p the side of a thumbnail.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.numpy import save_file

from fusionjax import schema
from fusionjax.errors import UserError, told
from fusionjax.files import whole_file
from fusionjax.options import LARGEST_STRENGTH, check_number
from fusionjax.safetensors_file import SafetensorsFile, check_seal, sealed

_KIND = "identity"
_VERSION = 1
_METADATA = "fusionjax"
THUMBNAIL_SIDE = 128


@dataclasses.dataclass(frozen=True, eq=False)
class Identity:
    """One person, from one or more photos.

    Attributes:
        states: hf of every cross-attention by name, [r, k, D], bfloat16. Empty for the reference
            option `matched`, which passes the photos anew in every step.
        latents: the photos' scaled latents, float32.
        thumbnails: the photos as they were cut, small.
        weights: λ of each photo, multiplied with the strength of the call.
        base_fingerprint: of the base model that computed the states.
        reference: the reference option, `clean` or `matched`.
    """

    states: Mapping[str, np.ndarray]
    latents: Float[np.ndarray, "r h w c"]
    thumbnails: UInt8[np.ndarray, "r p p 3"]
    weights: tuple[float, ...]
    base_fingerprint: str
    reference: str = "clean"

    def __len__(self) -> int:
        """The number of photos."""
        return len(self.weights)

    def weighted(self, weights: float | Sequence[float]) -> "Identity":
        """The same person with other weights.

        Args:
            weights: λ ≥ 0 for each photo, or one for all; 0 hides a photo.

        Returns:
            A new identity that shares the arrays.

        Raises:
            UserError: if the number of weights is wrong or one is negative or not finite.
        """
        one = isinstance(weights, float | int)
        given = schema.typed([weights] * len(self) if one else weights, list[float], "weights")
        if len(given) != len(self):
            raise UserError(f"{len(given)} weights are given for {len(self)} photos")
        for weight in given:
            check_number("a photo's weight", weight, 0, LARGEST_STRENGTH)
        return dataclasses.replace(self, weights=tuple(given))

    @classmethod
    def mix(
        cls, people: Sequence["Identity"], weights: Sequence[float] | None = None
    ) -> "Identity":
        """A mixture of people: one identity with the photos of all of them.

        Two strangers mixed evenly are a new person; moving the weights from (1, 0) to (0, 1)
        morphs one into the other.

        Args:
            people: the people.
            weights: one for each person, multiplied into the weights of their photos. None is
                one for each.

        Returns:
            The mixture.

        Raises:
            UserError: if nobody is given, the numbers differ, or the people were encoded with
                different base models or reference options.
        """
        if not people:
            raise UserError("a mixture of no people; give at least one identity")
        weights = [1.0] * len(people) if weights is None else list(weights)
        if len(weights) != len(people):
            raise UserError(f"{len(weights)} weights are given for {len(people)} people")
        first = people[0]
        for other in people[1:]:
            other.check_fits(first.base_fingerprint, first.reference)
            if other.latents.shape[1:] != first.latents.shape[1:]:
                raise UserError(
                    f"photos of different sizes cannot be mixed: latents {first.latents.shape[1:]} "
                    f"and {other.latents.shape[1:]}"
                )
        weights = schema.typed(weights, list[float], "weights")
        scaled = [
            person.weighted([own * weight for own in person.weights])
            for person, weight in zip(people, weights, strict=True)
        ]
        return cls(
            states={
                layer: np.concatenate([person.states[layer] for person in people])
                for layer in first.states
            },
            latents=np.concatenate([person.latents for person in people]),
            thumbnails=np.concatenate([person.thumbnails for person in people]),
            weights=tuple(weight for person in scaled for weight in person.weights),
            base_fingerprint=first.base_fingerprint,
            reference=first.reference,
        )

    def check_fits(self, base_fingerprint: str, reference: str, name: str = "the identity") -> None:
        """Raises UserError unless the identity was made with this base and reference option.

        Args:
            base_fingerprint: of the base model in use.
            reference: the adapter's reference option.
            name: how to name the identity in the message.
        """
        if self.base_fingerprint != base_fingerprint:
            raise UserError(
                f"{name} was encoded with the base model {self.base_fingerprint}, and this is "
                f"{base_fingerprint}; encode the photos again with this base"
            )
        if self.reference != reference:
            raise UserError(
                f"{name} was encoded for reference={self.reference!r}, and the adapter was trained "
                f"with {reference!r}; encode the photos again with this adapter"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the identity as one safetensors file.

        Args:
            path: the file, by custom `*.safetensors`.

        Raises:
            UserError: if it cannot be written.
        """
        tensors = {f"states/{layer}": np.ascontiguousarray(x) for layer, x in self.states.items()}
        tensors["latents"] = np.ascontiguousarray(self.latents)
        tensors["thumbnails"] = np.ascontiguousarray(self.thumbnails)
        about = {
            "kind": _KIND,
            "version": _VERSION,
            "weights": self.weights,
            "base_fingerprint": self.base_fingerprint,
            "reference": self.reference,
        }
        try:
            with whole_file(path) as beside:
                save_file(tensors, beside, metadata={_METADATA: json.dumps(sealed(tensors, about))})
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{path} cannot be written: {reason}") from None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Identity":
        """Reads what `save` wrote.

        Args:
            path: the file.

        Returns:
            The identity; whether it fits a base is for `check_fits` to say.

        Raises:
            UserError: if it is missing, damaged or no identity file.
        """
        with SafetensorsFile(path) as file:
            values = _read_about(path, file.metadata.get(_METADATA))
            tensors = {name: file.read(name) for name in file}
        check_seal(path, tensors, values)
        about: _About = schema.typed(values, _About, f"{path} is a damaged identity file")
        damaged = f"{path} is a damaged identity file"
        photos = len(about.weights)
        for name, axes in {"latents": 4, "thumbnails": 4}.items():
            if name not in tensors or tensors[name].ndim != axes:
                raise UserError(f"{damaged}: it has no {name}, or of another shape")
        states = {}
        for name, tensor in tensors.items():
            if not photos or tensor.shape[:1] != (photos,):
                raise UserError(
                    f"{damaged}: {name} has shape {tensor.shape}, not of {photos} photos"
                )
            if name.startswith("states/"):
                if tensor.ndim != 3:
                    raise UserError(f"{damaged}: {name} has shape {tensor.shape}")
                states[name.removeprefix("states/")] = tensor.astype(ml_dtypes.bfloat16)
        for name, tensor in {**states, "latents": tensors["latents"]}.items():
            if not np.isfinite(tensor).all():
                raise UserError(f"{damaged}: {name} holds numbers that are not finite")
        if tensors["thumbnails"].dtype != np.uint8 or tensors["thumbnails"].shape[3] != 3:
            raise UserError(f"{damaged}: its thumbnails are no pictures")
        return cls(
            states=states,
            latents=tensors["latents"].astype(np.float32),
            thumbnails=tensors["thumbnails"],
            weights=about.weights,
            base_fingerprint=about.base_fingerprint,
            reference=about.reference,
        )


class _About(msgspec.Struct, forbid_unknown_fields=True):
    """An identity file's metadata."""

    kind: str
    version: int
    weights: tuple[schema.real(0, LARGEST_STRENGTH), ...]  # type: ignore[misc]
    base_fingerprint: schema.Name
    reference: schema.Name


def _read_about(path: str | os.PathLike[str], text: str | None) -> dict[str, Any]:
    about = None if text is None else schema.parse_json(text, f"{path}: its metadata")
    if not isinstance(about, dict) or about.get("kind") != _KIND:
        raise UserError(
            f"{path} is not an identity file; save one with `Identity.save` or --save-identity"
        )
    if about.get("version") != _VERSION:
        raise UserError(
            f"{path} is an identity file of version {told(about.get('version'))}, this release "
            f"reads version {_VERSION}; encode the photos again"
        )
    return about
