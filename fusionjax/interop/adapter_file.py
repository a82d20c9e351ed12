"""The exported adapter: one safetensors file that PyTorch reads too.

For each cross-attention of the UNet, by its PyTorch path, two matrices as PyTorch's `nn.Linear`
stores them:

    down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.kf.weight   [heads·dim_head, D]
    down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.vf.weight   [heads·dim_head, D]

The file's metadata hold one text, `fusionjax`: a JSON object of the fusion options and, if known,
of the base model's source and fingerprint (`base`, `base_fingerprint`), and a `digest` of all this
and the matrices; a file without one is not checked. One text, because
safetensors writes several in random order, and the same adapter should be the same file.

Nothing here needs Flax's or PyTorch's models.
"""

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from fusionjax.errors import UserError, shortened, told
from fusionjax.files import whole_file
from fusionjax.interop.fingerprint import Fingerprint
from fusionjax.interop.fits import check_shapes, warn_of_other_base
from fusionjax.interop.kinds import kind_of
from fusionjax.options import FusionOptions
from fusionjax.safetensors_file import SafetensorsFile, check_seal, sealed
from fusionjax.schema import parse_json

if TYPE_CHECKING:
    from fusionjax.backend.flax_unet import AttentionLayer
    from fusionjax.faces import FusionParams

_WEIGHTS = ("kf", "vf")
METADATA = "fusionjax"


class Adapter(NamedTuple):
    """A trained adapter and what it belongs to.

    Attributes:
        params: kf and vf of every layer.
        options: how it was trained.
        base: the base model's source as it was named in training, if known.
        base_fingerprint: that base model's fingerprint, if known.
    """

    params: "FusionParams"
    options: FusionOptions
    base: str | None = None
    base_fingerprint: str | None = None


class AdapterTensors(NamedTuple):
    """An adapter file as it is: matrices [out, in] by layer, options as JSON values."""

    weights: dict[str, dict[str, np.ndarray]]
    options: dict[str, Any]
    base: str | None
    base_fingerprint: str | None


def save_adapter(
    path: str | os.PathLike[str],
    params: Mapping[str, Mapping[str, Any]],
    options: FusionOptions,
    *,
    base: str | None = None,
    base_fingerprint: str | None = None,
) -> None:
    """Writes an adapter for PyTorch (and for `load_adapter_file`).

    Args:
        path: the file to write, by custom `*.safetensors`.
        params: kf and vf of every layer, each [D, heads·dim_head].
        options: how it was trained.
        base: the base model's source.
        base_fingerprint: the base model's fingerprint.

    Raises:
        UserError: if the file cannot be written.
    """
    tensors = {
        f"{layer}.processor.{name}.weight": np.ascontiguousarray(np.asarray(weights[name]).T)
        for layer, weights in params.items()
        for name in _WEIGHTS
    }
    about = {"base": base, "base_fingerprint": base_fingerprint}
    about = {name: value for name, value in about.items() if value is not None}
    metadata = {METADATA: json.dumps(sealed(tensors, {**options.to_json(), **about}))}
    try:
        with whole_file(path) as beside:
            save_file(tensors, beside, metadata=metadata)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be written: {reason}") from None


def load_adapter_file(path: str | os.PathLike[str]) -> Adapter:
    """Reads an exported adapter.

    Args:
        path: the `.safetensors` file.

    Returns:
        The adapter; its matrices are [D, heads·dim_head] with the file's bits.

    Raises:
        UserError: if the file is damaged or is not an adapter of this kind.
    """
    import jax

    file = read_adapter(path)
    try:
        options = FusionOptions.from_json(file.options)
    except (TypeError, UserError) as error:
        raise UserError(f"{path}: {error}") from None
    params: Any = {
        layer: {name: jax.device_put(matrix.T) for name, matrix in weights.items()}
        for layer, weights in file.weights.items()
    }
    return Adapter(params, options, file.base, file.base_fingerprint)


def read_adapter(path: str | os.PathLike[str]) -> AdapterTensors:
    """Reads an exported adapter as PyTorch would: matrices [heads·dim_head, D].

    Args:
        path: the `.safetensors` file.

    Returns:
        Its contents.

    Raises:
        UserError: if the file is damaged or is not an adapter of this kind.
    """
    weights: dict[str, dict[str, np.ndarray]] = {}
    tensors: dict[str, np.ndarray] = {}
    with SafetensorsFile(path) as file:
        if METADATA not in file.metadata:
            kind = kind_of(file) or "something else"
            raise UserError(
                f"{path} is not an adapter that fusionjax exported; it seems to be {kind}"
            )
        options = parse_json(file.metadata[METADATA], f"{path}: its metadata")
        if not isinstance(options, dict):
            raise UserError(f"{path}: the options in its metadata are not a JSON object")
        for name in file:
            layer, found, rest = name.rpartition(".processor.")
            kind = rest.removesuffix(".weight")
            if not found or kind not in _WEIGHTS or kind == rest or len(file[name]) != 2:
                raise UserError(
                    f"{path} has a tensor {told(name)} {told(file[name])} that is no kf or vf"
                )
            matrix = tensors[name] = file.read(name)
            if matrix.dtype.kind != "f" and matrix.dtype.name != "bfloat16":
                raise UserError(
                    f"{path}: {shortened(name, 80)} holds {matrix.dtype}; export it as float32"
                )
            if not np.isfinite(matrix.astype(np.float32)).all():
                raise UserError(
                    f"{path}: {shortened(name, 80)} holds numbers that are not finite in float32; "
                    "export it again"
                )
            weights.setdefault(layer, {})[kind] = matrix
        for layer, pair in weights.items():
            if len(pair) != len(_WEIGHTS) or pair["kf"].shape != pair["vf"].shape:
                raise UserError(f"{path}: {layer} needs kf and vf of one shape; export it again")
    check_seal(path, tensors, options)
    base, base_fingerprint = (options.pop(name, None) for name in ("base", "base_fingerprint"))
    if not all(value is None or isinstance(value, str) for value in (base, base_fingerprint)):
        raise UserError(f"{path}: the base in its metadata is not a text; export it again")
    return AdapterTensors(weights, options, base, base_fingerprint)


def adapter_fingerprint(params: Mapping[str, Mapping[str, Any]]) -> str:
    """16 hex digits that tell one adapter's kf and vf from another's."""
    fingerprint = Fingerprint()
    for layer, pair in params.items():
        for name, matrix in pair.items():
            fingerprint.add(f"{layer}.{name}", np.asarray(matrix))
    return fingerprint.hexdigest()


def check_fits(
    adapter: Adapter,
    layers: Mapping[str, "AttentionLayer"],
    fingerprint: str | None,
    name: str = "the adapter",
    dtype: Any = np.float32,
) -> None:
    """Checks that an adapter belongs to a base model: its shapes must, its fingerprint should.

    Args:
        adapter: as loaded.
        layers: the cross-attentions of the base model's UNet (`FusionUNet.layers`).
        fingerprint: the base model's fingerprint, None to skip this check.
        name: how to name the adapter in messages.
        dtype: what the base computes in.

    Raises:
        UserError: if the layers or their shapes differ, or a weight is beyond the type.

    Warns:
        UserWarning: if the shapes agree but the base's weights are not those of the training.
    """
    shapes = {
        layer: (layers[layer].features, layers[layer].heads * layers[layer].head_features)
        for layer in layers
    }
    check_shapes({layer: pair["kf"].shape for layer, pair in adapter.params.items()}, shapes, name)
    import jax.numpy as jnp

    for layer, pair in adapter.params.items():
        for kind, matrix in pair.items():
            largest = float(np.abs(np.asarray(matrix, np.float32)).max())
            if largest > float(jnp.finfo(dtype).max):
                raise UserError(
                    f"{name}: {kind} of {layer} holds {largest:.3g}, more than {np.dtype(dtype)} "
                    "can; use dtype float32 (--dtype float32), or export the adapter again"
                )
    warn_of_other_base(adapter.base, adapter.base_fingerprint, fingerprint, name)
