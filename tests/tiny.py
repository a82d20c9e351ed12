"""A real base model small enough for every test: random weights, seconds to compile."""

import functools
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from transformers import CLIPTokenizer
from transformers.models.clip.tokenization_clip import bytes_to_unicode

from fusionjax.backend.param_shapes import param_shapes
from fusionjax.diffusion.noise_schedule import NoiseSchedule
from fusionjax.identity import Identity
from fusionjax.interop import configs
from fusionjax.interop.adapter_file import save_adapter
from fusionjax.models.base import BaseModel
from fusionjax.options import FusionOptions
from fusionjax.pipeline import FusionPipeline
from fusionjax.unet import FusionUNet

PIXELS = 64  # photos' and pictures' side; latents are 8×8×4
UNET = {
    "sample_size": 8,
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
}
VAE = {
    "sample_size": PIXELS,
    "block_out_channels": [8, 8, 8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "scaling_factor": 0.18215,
}
TEXT = {
    "model_type": "clip_text_model",
    "vocab_size": 514,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "bos_token_id": 512,
    "eos_token_id": 513,
    "pad_token_id": 513,
}


def random_params(shapes, seed: int):
    """Weights at the scale of a trained network, without compiling an initialiser."""
    rng = np.random.default_rng(seed)

    def one(path, shape):
        if path[-1] == "scale":
            return 1 + 0.1 * rng.standard_normal(shape.shape)
        if path[-1] == "bias":
            return 0.05 * rng.standard_normal(shape.shape)
        if path[-1] == "embedding":
            return 0.5 * rng.standard_normal(shape.shape)
        return rng.standard_normal(shape.shape) * np.prod(shape.shape[:-1]) ** -0.5

    flat = {path: jnp.asarray(one(path, shape), jnp.float32)
            for path, shape in sorted(flatten_dict(shapes).items())}  # fmt: skip
    return unflatten_dict(flat)


def tokenizer() -> CLIPTokenizer:
    """A tokenizer of letters, without merges."""
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocab, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocab.write_text(json.dumps({word: i for i, word in enumerate(words)}))
        merges.write_text("#version: 0.2\n")
        return CLIPTokenizer(str(vocab), str(merges), model_max_length=77)


@functools.cache
def tiny_base(seed: int = 0, prediction_type: str = "v_prediction") -> BaseModel:
    """A base model with two levels of 32 and 64 channels and three cross-attentions."""
    unet = configs.unet_from_config(UNET, "the tiny UNet")
    vae = configs.vae_from_config(VAE, "the tiny VAE")
    text_encoder = configs.text_encoder_from_config(TEXT, "the tiny text encoder")
    shapes = {
        "unet": unflatten_dict(param_shapes(unet)),
        "vae": unflatten_dict(param_shapes(vae)),
        "text_encoder": unflatten_dict(param_shapes(text_encoder)),
    }
    return BaseModel(
        tokenizer=tokenizer(),
        text_encoder=text_encoder,
        vae=vae,
        unet=unet,
        params=random_params(shapes, seed),
        schedule=NoiseSchedule(prediction_type=prediction_type),
        source="tiny",
    )


@functools.cache
def tiny_fusion(seed: int = 1, **options):
    """kf and vf for `tiny_base`, and the options: an adapter that changes the picture."""
    base = tiny_base()
    fusion = FusionUNet(base.unet, FusionOptions(init="random", **options))
    return fusion.init(jax.random.key(seed), base.params["unet"]), fusion.options


@functools.cache
def tiny_pipe(**options) -> FusionPipeline:
    """A pipeline of both on one device: what one module compiles, the next one finds.

    For whoever leaves it as it is: no words, LoRAs or hooks.
    """
    return FusionPipeline(tiny_base(), *tiny_fusion(**options), devices=jax.devices()[:1])


@functools.cache
def tiny_people() -> tuple[Identity, Identity]:
    """The people of `photo(1)` and `photo(2)`."""
    one, two = (tiny_pipe().encode_identity(photo(seed), crop="none") for seed in (1, 2))
    return one, two


def write_tiny(folder: Path) -> None:
    """Writes `base/` and `fusion.safetensors`, an adapter that names it."""
    base = tiny_base()
    base.save_pretrained(folder / "base", np.float32)
    save_adapter(
        folder / "fusion.safetensors", *tiny_fusion(),
        base=str(folder / "base"), base_fingerprint=base.fingerprint,
    )  # fmt: skip


def photo(seed: int, side: int = PIXELS) -> np.ndarray:
    """A smooth random picture [side, side, 3], uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    waves = [
        np.sin(2 * np.pi * (rng.uniform(-2, 2) * x + rng.uniform(-2, 2) * y) + rng.uniform(0, 6))
        for _ in range(3)
    ]
    return np.round((np.stack(waves, -1) + 1) * 127.5).astype(np.uint8)
