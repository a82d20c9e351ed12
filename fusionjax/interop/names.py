"""One map between the names and layouts of Flax parameters and PyTorch tensors.

It starts from the Flax module's own parameter tree, so that whatever the configuration, each
parameter has exactly one PyTorch name, and reading and writing cannot disagree.

    Flax                                          PyTorch (diffusers, transformers)
    down_blocks_0/attentions_1/…/attn2/query/kernel   down_blocks.0.attentions.1.….attn2.to_q.weight
    kernel [in, out]                              weight [out, in]
    kernel [h, w, in, out]                        weight [out, in, h, w]
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict

from fusionjax.backend.param_shapes import ParamPath, param_shapes


class Parameter(NamedTuple):
    """A parameter of a Flax module.

    Attributes:
        path: its path in the parameter tree.
        shape: its shape in Flax.
    """

    path: ParamPath
    shape: tuple[int, ...]


_NUMBERED = re.compile(
    r"(down_blocks|up_blocks|resnets|attentions|transformer_blocks|downsamplers|upsamplers|net|to_out)"
    r"_(\d+)"
)
_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


def torch_name(path: ParamPath) -> str:
    """The PyTorch name of a Flax parameter of the UNet, the VAE or the text encoder.

    Args:
        path: the parameter's path in the Flax tree.

    Returns:
        The dotted name in PyTorch's state dict.
    """
    modules = [_NUMBERED.sub(r"\1.\2", _ATTENTION.get(part, part)) for part in path[:-1]]
    return ".".join([*modules, _LEAVES.get(path[-1], path[-1])])


def to_torch_layout(path: ParamPath, array: np.ndarray) -> np.ndarray:
    """A Flax parameter as PyTorch stores it; a view where possible."""
    if path[-1] != "kernel":
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def to_torch_shape(path: ParamPath, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a Flax parameter has in PyTorch."""
    if path[-1] != "kernel":
        return shape
    return tuple(shape[i] for i in (3, 2, 0, 1)) if len(shape) == 4 else shape[::-1]


def to_flax_layout(path: ParamPath, tensor: np.ndarray, ndim: int) -> np.ndarray:
    """A PyTorch tensor as Flax stores it; a view where possible.

    Args:
        path: the Flax parameter's path.
        tensor: the PyTorch tensor. A 1×1 convolution may stand for a linear layer or the reverse,
            as they do between the layouts of Stable Diffusion's attention blocks.
        ndim: the number of axes of the Flax parameter.

    Returns:
        The tensor in Flax's layout.
    """
    if path[-1] != "kernel":
        return tensor
    if tensor.ndim == 4 and ndim == 2 and tensor.shape[2:] == (1, 1):
        tensor = tensor[:, :, 0, 0]
    elif tensor.ndim == 2 and ndim == 4:
        tensor = tensor[:, :, None, None]
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def torch_names(module: nn.Module) -> dict[str, Parameter]:
    """All parameters of a module by their PyTorch names.

    Args:
        module: a UNet, VAE or ControlNet of diffusers, or a `FlaxCLIPTextModule`.

    Returns:
        In the tree's order.
    """
    return {
        torch_name(path): Parameter(path, leaf.shape) for path, leaf in param_shapes(module).items()
    }


def to_torch_state(params: Mapping[str, Any], dtype: Any) -> dict[str, np.ndarray]:
    """A Flax parameter tree as a PyTorch state dict of numpy arrays.

    Args:
        params: the tree of one module.
        dtype: the arrays' type.

    Returns:
        PyTorch names → contiguous arrays in PyTorch's layout.
    """
    return {
        torch_name(path): np.ascontiguousarray(to_torch_layout(path, np.asarray(leaf)), dtype)
        for path, leaf in flatten_dict(dict(params)).items()
    }
