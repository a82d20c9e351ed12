"""What turns a dataset's pictures and captions into a cache's arrays.

Axes: b batch, h w c latent grid and channels, H W pixels, t d tokens and text features.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from fusionjax.backend.sharding import batch_sharding, make_mesh
from fusionjax.models.base import BaseModel

Encode = Callable[[Float[np.ndarray, "b H W 3"]], Any]
Tokenize = Callable[[Sequence[str]], Int[np.ndarray, "b t"]]
EncodeText = Callable[[Int[np.ndarray, "b t"]], Any]


@dataclasses.dataclass(frozen=True)
class Encoders:
    """What turns pictures and captions into a cache's arrays.

    Attributes:
        images: pictures in [-1, 1] to scaled latents [b, h, w, c], or with the posterior's
            deviations behind them [b, h, w, 2c]; always called with full batches.
        tokenize: captions to token ids.
        text: token ids to text states [b, t, d], always in full batches; None where the cache is
            to hold none.
    """

    images: Encode
    tokenize: Tokenize
    text: EncodeText | None = None


def encoders_of(
    base: BaseModel,
    devices: Sequence[jax.Device],
    *,
    text_states: bool = False,
    posterior: bool = False,
) -> Encoders:
    """A base model's, compiled, each batch divided among devices.

    Args:
        base: its autoencoder, tokenizer and text encoder.
        devices: of this process; batches must be multiples of their number.
        text_states: whether captions are encoded too.
        posterior: whether the deviations are wanted.
    """
    sharding = batch_sharding(make_mesh(devices=list(devices)))
    encode = jax.jit(base.encode_posterior if posterior else base.encode_image)
    encode_text = jax.jit(base.encode_text)
    return Encoders(
        lambda images: encode(base.params, jax.device_put(images, sharding)),
        base.tokenize,
        (lambda tokens: encode_text(base.params, jax.device_put(tokens, sharding)))
        if text_states
        else None,
    )


def batch_size_for(wanted: int, devices: int) -> int:
    """The smallest multiple of the devices' number that is no less than what is wanted."""
    return -(-wanted // devices) * devices
