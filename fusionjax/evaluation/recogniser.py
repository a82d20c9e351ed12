"""Who is in a picture, and what they do and wear: two small networks for the mini world.

`FaceNet` turns a crop of a head into a unit vector which is near for pictures of one person,
whatever they do or wear. `ReaderNet` says which expression, clothes, background, style and traits a
whole picture shows. Both are trained by `python -m fusionjax.evaluation.train_recogniser` on drawn
pictures of training people alone, never on generated ones.

Legend: b batch, h w pixels, d features.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int, UInt8
from safetensors.numpy import save_file

from fusionjax.data.batches import filled
from fusionjax.embedded import RECOGNISER
from fusionjax.errors import UserError
from fusionjax.mini.drawing import face_box
from fusionjax.mini.people import CIRCUMSTANCES, TRAITS, Circumstance
from fusionjax.pixels import to_unit
from fusionjax.safetensors_file import SafetensorsFile

CROP_PIXELS = 64
READER_PIXELS = 64
ATTRIBUTES: dict[str, tuple[str, ...]] = {**TRAITS, **CIRCUMSTANCES}
# The head in the middle of all framings: where a picture of one person is cropped.
TYPICAL_BOX = face_box(Circumstance(), clip=False)
_CHUNK = 32
FILE_NAME = "recogniser.safetensors"


class _Stage(nn.Module):
    """Halves the grid, then one residual block."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        x = nn.Conv(self.features, (3, 3), strides=2)(x)
        x = nn.gelu(nn.GroupNorm(num_groups=8)(x))
        residual = nn.Conv(self.features, (3, 3))(x)
        residual = nn.gelu(nn.GroupNorm(num_groups=8)(residual))
        return x + nn.Conv(self.features, (3, 3))(residual)


class FaceNet(nn.Module):
    """A head's crop as a unit vector."""

    features: tuple[int, ...] = (32, 64, 96)
    dim: int = 64

    @nn.compact
    def __call__(self, crops: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        x = nn.gelu(nn.Conv(16, (3, 3), strides=2)(crops))
        for features in self.features:
            x = _Stage(features)(x)
        x = nn.Dense(self.dim)(nn.gelu(nn.LayerNorm()(x.reshape(len(x), -1))))
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True).clip(1e-6)


class ReaderNet(nn.Module):
    """A whole picture's attributes, as logits for each attribute's choices."""

    features: tuple[int, ...] = (24, 64, 96)
    dim: int = 128

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> dict[str, Float[Array, "b choices"]]:
        x = nn.gelu(nn.Conv(16, (3, 3), strides=2)(images))
        for features in self.features:
            x = _Stage(features)(x)
        x = nn.Dense(self.dim)(nn.gelu(nn.LayerNorm()(x.reshape(len(x), -1))))
        x = nn.gelu(x)
        return {name: nn.Dense(len(choices), name=name)(x) for name, choices in ATTRIBUTES.items()}


def embed(params: Any, crops: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
    """`FaceNet` with its weights."""
    vectors: Any = FaceNet().apply({"params": params}, crops)
    return vectors


def read_logits(
    params: Any, images: Float[Array, "b h w 3"]
) -> dict[str, Float[Array, "b choices"]]:
    """`ReaderNet` with its weights."""
    logits: Any = ReaderNet().apply({"params": params}, images)
    return logits


def crop_face(
    image: UInt8[np.ndarray, "h w 3"], box: Sequence[float] | np.ndarray, pixels: int = CROP_PIXELS
) -> UInt8[np.ndarray, "pixels pixels 3"]:
    """Cuts a box out of a picture and resizes it; outside the picture, its edge goes on.

    Args:
        image: The picture.
        box: ymin, xmin, ymax, xmax as fractions of the picture; may reach outside of it.
        pixels: The crop's height and width.

    Returns:
        The crop.
    """
    height, width = image.shape[:2]
    ymin, xmin, ymax, xmax = (float(value) for value in box)
    scale_x, scale_y = (xmax - xmin) * width / pixels, (ymax - ymin) * height / pixels
    # Pixel centres: crop pixel 0 covers the first scale_x pixels of the box.
    matrix = np.array(
        [
            [scale_x, 0, xmin * width + scale_x / 2 - 0.5],
            [0, scale_y, ymin * height + scale_y / 2 - 0.5],
        ]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = (pixels, pixels)
    crop = cv2.warpAffine(image, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(crop, np.uint8)


@dataclass(frozen=True)
class Recogniser:
    """Both networks with their weights.

    Attributes:
        face_params: Weights of `FaceNet`.
        reader_params: Weights of `ReaderNet`.
        threshold: Pictures whose cosine distance is below it show one person.
        report: What was measured when it was trained.
    """

    face_params: Mapping[str, Any]
    reader_params: Mapping[str, Any]
    threshold: float
    report: Mapping[str, Any]

    @classmethod
    def from_pretrained(cls, path: str | Path | None = None) -> "Recogniser":
        """Reads the weights.

        Args:
            path: A file that `save` wrote, or its folder; None means the one that the package
                ships.

        Returns:
            The recogniser.

        Raises:
            UserError: If there is no such file, or it holds something else.
        """
        path = Path(RECOGNISER if path is None else path)
        if path.is_dir():
            path /= FILE_NAME
        train_one = "train one with `python -m fusionjax.evaluation.train_recogniser`"
        if not path.is_file():
            raise UserError(f"recogniser {str(path)!r} is not there; {train_one}")
        with SafetensorsFile(path) as file:
            said = file.metadata.get("recogniser")
            if said is None:
                raise UserError(f"{str(path)!r} holds no recogniser; {train_one}")
            flat = {tuple(name.split(".")): file.read(name).astype(np.float32) for name in file}
        notes, params = json.loads(said), unflatten_dict(flat)
        return cls(params["face"], params["reader"], notes["threshold"], notes["report"])

    def save(self, path: str | Path) -> None:
        """Writes both networks as one float16 safetensors file.

        Args:
            path: The file; its folder is made if it is missing.
        """
        flat = flatten_dict({"face": dict(self.face_params), "reader": dict(self.reader_params)})
        tensors = {".".join(name): np.asarray(value, np.float16) for name, value in flat.items()}
        notes = json.dumps({"threshold": self.threshold, "report": dict(self.report)})
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, str(path), metadata={"recogniser": notes})

    def embed(
        self,
        images: Sequence[UInt8[np.ndarray, "h w 3"]],
        boxes: Sequence[Sequence[float] | np.ndarray],
    ) -> Float[np.ndarray, "b d"]:
        """Turns heads into unit vectors.

        Args:
            images: Pictures of any size.
            boxes: Each head's ymin, xmin, ymax, xmax as fractions.

        Returns:
            One unit vector a picture; `1 - a @ b` is the cosine distance.
        """
        crops = [crop_face(image, box) for image, box in zip(images, boxes, strict=True)]
        return _in_chunks(self._embed, crops)

    def read(self, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> list[dict[str, str]]:
        """Says what pictures of one person show.

        Args:
            images: Square pictures of any size.

        Returns:
            For each picture, every attribute's most likely choice.
        """
        whole = [crop_face(image, (0, 0, 1, 1), READER_PIXELS) for image in images]
        chosen = _in_chunks(self._read, whole)
        return [
            {
                name: choices[index]
                for (name, choices), index in zip(ATTRIBUTES.items(), row, strict=True)
            }
            for row in chosen
        ]

    @cached_property
    def _embed(self) -> Any:
        return jax.jit(lambda crops: embed(self.face_params, crops))

    @cached_property
    def _read(self) -> Any:
        def read(images: Float[Array, "b h w 3"]) -> Int[Array, "b attributes"]:
            logits = read_logits(self.reader_params, images)
            return jnp.stack([logits[name].argmax(-1) for name in ATTRIBUTES], axis=-1)

        return jax.jit(read)


def _in_chunks(function: Any, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> np.ndarray:
    """Runs a jitted function over chunks of one size, so that it is compiled once."""
    parts = []
    for start in range(0, len(images), _CHUNK):
        chunk = np.stack(images[start : start + _CHUNK])
        answer = function(to_unit(filled(chunk, _CHUNK)))
        parts.append(np.asarray(answer)[: len(chunk)])
    return np.concatenate(parts) if parts else np.zeros((0,))
