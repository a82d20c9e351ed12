"""Stable Diffusion 1.5's own sizes: conversion parity with PyTorch, and the memory of loading.

Slow: minutes, 9 GB of disk and up to 10 GB of memory. "small" runs the same code with small
models: `pytest -m slow -n 0 tests/test_base_full_size.py -k small`.
"""

import gc
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from flax.traverse_util import flatten_dict
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from fusionjax.interop import configs, names, original
from fusionjax.interop.load import fill, locate
from fusionjax.interop.lora import read_lora
from fusionjax.models.base import BaseModel
from fusionjax.safetensors_file import SafetensorsFile
from fusionjax.unet import FusionUNet
from tests import torch_reference as reference

pytestmark = pytest.mark.slow
SIZES = ["small", "sd15"]
TOLERANCE = 1e-4


def save_and_compute(folder, size):
    """Makes one part after the other in PyTorch, keeps what it computes, saves it, forgets it."""
    full = size == "sd15"
    rng = np.random.default_rng(0)
    side, latent_side = (256, 64) if full else (32, 8)
    inputs = {
        "images": rng.uniform(-1, 1, (1, 3, side, side)),
        "latents": rng.normal(size=(1, 4, latent_side, latent_side)),
        "decode": rng.normal(size=(1, 4, side // (8 if full else 2), side // (8 if full else 2))),
    }
    inputs = {name: torch.tensor(x, dtype=torch.float32) for name, x in inputs.items()}
    pipe = reference.pipeline(folder / "words")
    pipe.tokenizer.save_pretrained(folder / "tokenizer")
    pipe.scheduler.save_pretrained(folder / "scheduler")
    words = len(pipe.tokenizer)
    del pipe
    ids = torch.tensor(rng.integers(0, words, (1, 77)))
    computed = {}
    with torch.no_grad():
        text = reference.TEXT_SD15 if full else {**reference.TEXT_SMALL, "vocab_size": words}
        model = reference.randomise(
            CLIPTextModel(CLIPTextConfig(**text, eos_token_id=words - 1)), seed=1
        )
        model.save_pretrained(folder / "text_encoder")
        computed["text"] = model(ids)[0]
        vae = AutoencoderKL(**(reference.VAE_SD15 if full else reference.VAE_SMALL))
        model = reference.randomise(vae, seed=2)
        model.save_pretrained(folder / "vae")
        scale = model.config.scaling_factor
        computed["encoded"] = model.encode(inputs["images"]).latent_dist.mean * scale
        computed["decoded"] = model.decode(inputs["decode"] / scale).sample
        del model, vae
        gc.collect()
        unet = UNet2DConditionModel(**(reference.UNET_SD15 if full else reference.UNET_SMALL))
        model = reference.randomise(unet, seed=3)
        model.save_pretrained(folder / "unet", max_shard_size="100GB")
        computed["noise"] = model(inputs["latents"], torch.tensor([801]), computed["text"]).sample
        del model, unet
        gc.collect()
    channels_last = {
        name: (x if x.ndim == 3 else x.permute(0, 2, 3, 1)).numpy()
        for name, x in {**inputs, **computed}.items()
    }
    return ids.numpy().astype(np.int32), channels_last


def digest(params):
    """A checksum of every parameter, so that two models need not be in memory together."""
    return {
        path: hashlib.blake2b(np.asarray(leaf).tobytes()).hexdigest()
        for path, leaf in flatten_dict(params).items()
    }


def to_single_file(folder, path):
    """The folder's weights in the original layout, in one file."""
    unet = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    text = load_file(folder / "text_encoder" / "model.safetensors")
    layers = sum(name.endswith("conv1.bias") for name in unet if name.startswith("down_blocks.0."))
    levels = len({name.split(".")[2] for name in vae if name.startswith("encoder.down_blocks.")})
    state = {original.TEXT_PREFIX + name: tensor for name, tensor in text.items()}
    for prefix, tensors, table in (
        (original.UNET_PREFIX, unet, original.unet_names(unet, layers)),
        (original.VAE_PREFIX, vae, original.vae_names(vae, levels)),
    ):
        state |= {prefix + table[name]: tensor for name, tensor in tensors.items()}
    save_file(state, path)


@pytest.mark.parametrize("size", SIZES)
def test_every_part_computes_what_pytorch_computes(size, tmp_path):
    ids, theirs = save_and_compute(tmp_path, size)
    base = BaseModel.from_pretrained(tmp_path)
    params = base.params
    text = jax.jit(base.encode_text)(params, ids)
    ours = {
        "text": text,
        "encoded": jax.jit(base.encode_image)(params, theirs["images"]),
        "decoded": jax.jit(base.decode)(params, theirs["decode"]),
        "noise": jax.jit(FusionUNet(base.unet))(
            params["unet"], theirs["latents"], jnp.array([801]), text
        ),
    }
    errors = {}
    for name, value in ours.items():
        assert theirs[name].std() > 0.02, f"the reference of {name} is degenerate"
        errors[name] = float(np.abs(value - theirs[name]).max() / np.abs(theirs[name]).max())
    print({name: f"{error:.1e}" for name, error in errors.items()})
    assert max(errors.values()) < TOLERANCE, errors

    expected = digest(params)
    fingerprint = base.fingerprint
    del base, params, ours, text
    gc.collect()
    to_single_file(tmp_path, tmp_path / "single.safetensors")
    single = BaseModel.from_pretrained(tmp_path / "single.safetensors")
    assert digest(single.params) == expected
    assert single.fingerprint == fingerprint


@pytest.mark.parametrize("size", SIZES)
def test_merged_lora_is_what_pytorch_fuses(size, tmp_path):
    full = size == "sd15"
    model = UNet2DConditionModel(**(reference.UNET_SD15 if full else reference.UNET_SMALL))
    model = reference.randomise(model, seed=4)
    model.save_pretrained(tmp_path, max_shard_size="100GB")
    config = LoraConfig(r=8, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    model.add_adapter(config)
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = noise / parameter[0].numel() ** 0.5
            state["unet." + name.replace(".default", "")] = parameter.data.clone()
    save_file(state, tmp_path / "lora.safetensors")
    model.fuse_lora(lora_scale=0.8)
    fused = {
        name.replace(".base_layer", ""): tensor
        for name, tensor in model.state_dict().items()
        if ".lora_" not in name
    }
    module = configs.unet_from_config(dict(model.config), "the UNet")
    wanted = names.torch_names(module)
    shapes = {n: names.to_torch_shape(p.path, p.shape) for n, p in wanted.items()}
    updates = read_lora(
        tmp_path / "lora.safetensors", 0.8, {"unet": shapes, "text_encoder": {}},
        module.layers_per_block,
    )["unet"]  # fmt: skip
    assert len(updates) * 2 == len(state)
    with SafetensorsFile(tmp_path / "diffusion_pytorch_model.safetensors") as file:
        located = locate(wanted, file, lambda name: [name])
        changes = {name: update.merge for name, update in updates.items()}
        params = fill(wanted, file, located, jnp.float32, changes=changes)
        for path, leaf in flatten_dict(params).items():
            name = names.torch_name(path)
            expected = fused[name].numpy()
            ours = names.to_torch_layout(path, np.asarray(leaf))
            assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max(), name
            if name in updates:
                assert np.abs(expected - file.read(name)).max() > 1e-3
