"""A base model computes what PyTorch's diffusers and transformers compute with the same weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from flax.serialization import msgpack_serialize
from safetensors.torch import save_file

from fusionjax.interop import original
from fusionjax.models.base import BaseModel
from fusionjax.unet import FusionUNet
from tests import torch_reference as reference

PROMPTS = ["the fan and a cat", "band"]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return reference.pipeline(tmp_path_factory.mktemp("pipe") / "tokenizer")


@pytest.fixture(scope="module")
def base(folder):
    return BaseModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("diffusers")
    pipe.save_pretrained(folder)
    return folder


def outputs_torch(pipe, *, size, latent_size):
    """Text states, latents, image and noise prediction of PyTorch, for inputs made from a seed."""
    rng = np.random.default_rng(0)
    images = torch.tensor(rng.uniform(-1, 1, (2, 3, *size)), dtype=torch.float32)
    latents = torch.tensor(rng.normal(size=(2, 4, *latent_size)), dtype=torch.float32)
    ids = pipe.tokenizer(PROMPTS, padding="max_length", max_length=77, truncation=True,
                         return_tensors="pt").input_ids  # fmt: skip
    scale = pipe.vae.config.scaling_factor
    with torch.no_grad():
        text = pipe.text_encoder(ids)[0]
        results = {
            "ids": ids,
            "text": text,
            "encoded": pipe.vae.encode(images).latent_dist.mean.permute(0, 2, 3, 1) * scale,
            "decoded": pipe.vae.decode(latents / scale).sample.permute(0, 2, 3, 1),
            "noise": pipe.unet(latents, torch.tensor([7, 801]), text).sample.permute(0, 2, 3, 1),
        }
    inputs = {"images": images.permute(0, 2, 3, 1), "latents": latents.permute(0, 2, 3, 1)}
    return {k: v.numpy() for k, v in inputs.items()}, {k: v.numpy() for k, v in results.items()}


def outputs_jax(base, inputs):
    ids = base.tokenize(PROMPTS)
    text = jax.jit(base.encode_text)(base.params, ids)
    return {
        "ids": ids,
        "text": text,
        "encoded": jax.jit(base.encode_image)(base.params, inputs["images"]),
        "decoded": jax.jit(base.decode)(base.params, inputs["latents"]),
        "noise": jax.jit(FusionUNet(base.unet))(
            base.params["unet"], inputs["latents"], jnp.array([7, 801]), text
        ),
    }


def relative(ours, theirs):
    """The largest deviation relative to the largest value, and that nothing is degenerate."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.05, "the reference is degenerate"
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def deviations(base, pipe, *, size, latent_size):
    inputs, theirs = outputs_torch(pipe, size=size, latent_size=latent_size)
    ours = outputs_jax(base, inputs)
    assert (ours.pop("ids") == theirs.pop("ids")).all()
    return {name: relative(ours[name], theirs[name]) for name in theirs}


def same(params, others):
    return jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, others))


def test_diffusers_folder_computes_what_pytorch_computes(pipe, folder, base):
    errors = deviations(base, pipe, size=(32, 16), latent_size=(8, 6))
    assert max(errors.values()) < TOLERANCE, errors
    alphas = pipe.scheduler.alphas_cumprod.numpy()
    assert base.schedule.alphas_cumprod == pytest.approx(alphas, rel=1e-5)
    assert base.vae_scale_factor == 2
    assert base.source == str(folder)


def test_a_swapped_pair_of_weights_would_be_noticed(pipe, base):
    params = jax.tree.map(lambda leaf: leaf, base.params)
    norm = params["text_encoder"]["text_model"]["final_layer_norm"]
    norm["scale"], norm["bias"] = norm["bias"], norm["scale"]
    ids = base.tokenize(PROMPTS)
    with torch.no_grad():
        theirs = pipe.text_encoder(torch.tensor(ids).long())[0].numpy()
    assert relative(base.encode_text(base.params, ids), theirs) < TOLERANCE
    assert relative(base.encode_text(params, ids), theirs) > 0.1


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_skipped_layers_are_those_that_diffusers_skips(pipe, base, clip_skip):
    ids = base.tokenize(["a person reading", ""])
    with torch.no_grad():
        theirs, _ = pipe.encode_prompt(
            ["a person reading", ""], "cpu", 1, do_classifier_free_guidance=False,
            clip_skip=clip_skip,
        )  # fmt: skip
    ours = base.encode_text(base.params, ids, clip_skip=clip_skip)
    assert relative(ours, theirs.numpy()) < TOLERANCE
    assert relative(ours, base.encode_text(base.params, ids)) > 0.01


def test_encoding_draws_from_the_posterior_as_pytorch_does(pipe, base):
    images = np.random.default_rng(0).uniform(-1, 1, (1, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        posterior = pipe.vae.encode(torch.tensor(images).permute(0, 3, 1, 2)).latent_dist
    key = jax.random.key(3)
    noise = jax.random.normal(key, (1, 16, 16, 4))
    mean, std = (x.permute(0, 2, 3, 1).numpy() for x in (posterior.mean, posterior.std))
    drawn = jax.jit(base.encode_image)(base.params, images, key)
    assert relative(drawn, (mean + std * noise) * pipe.vae.config.scaling_factor) < TOLERANCE


def test_single_file_gives_the_same_model(pipe, base, tmp_path):
    save_file(reference.original_state(pipe), tmp_path / "model.safetensors")
    pipe.tokenizer.save_pretrained(tmp_path / "tokenizer")
    single = BaseModel.from_pretrained(tmp_path / "model.safetensors")
    assert same(single.params, base.params)
    assert single.fingerprint == base.fingerprint
    # Not only the weights: the modules that were inferred from the shapes compute the same.
    errors = deviations(single, pipe, size=(32, 16), latent_size=(8, 6))
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("size", ["small", "sd15"])
def test_original_names_are_those_that_diffusers_converts(size):
    unet_config = {"small": reference.UNET_SMALL, "sd15": reference.UNET_SD15}[size]
    vae_config = {"small": reference.VAE_SMALL, "sd15": reference.VAE_SD15}[size]
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**unet_config), AutoencoderKL(**vae_config)
    names = original.unet_names(unet.state_dict(), unet.config.layers_per_block)
    marks = {old: torch.tensor([i]) for i, old in enumerate(names.values())}
    converted = convert_ldm_unet_checkpoint(
        {original.UNET_PREFIX + old: mark for old, mark in marks.items()}, dict(unet.config)
    )
    assert {new: int(mark) for new, mark in converted.items()} == {
        new: int(marks[old]) for new, old in names.items()
    }
    names = original.vae_names(vae.state_dict(), len(vae.config.block_out_channels))
    # The converter squeezes the attention's 1×1 convolutions, so these marks need four axes.
    marks = {old: torch.full((1, 1, 1, 1), i) for i, old in enumerate(names.values())}
    converted = convert_ldm_vae_checkpoint(
        {original.VAE_PREFIX + old: mark for old, mark in marks.items()}, dict(vae.config)
    )
    assert {new: int(mark) for new, mark in converted.items()} == {
        new: int(marks[old]) for new, old in names.items()
    }


def test_config_is_read_off_the_shapes_of_stable_diffusion_1_5():
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**reference.UNET_SD15), AutoencoderKL(**reference.VAE_SD15)
    for model, names, infer in (
        (unet, original.unet_names(unet.state_dict(), 2), original.unet_config),
        (vae, original.vae_names(vae.state_dict(), 4), original.vae_config),
    ):
        shapes = {names[name]: tuple(t.shape) for name, t in model.state_dict().items()}
        inferred = {k: tuple(v) if isinstance(v, list) else v for k, v in infer(shapes).items()}
        actual = {k: tuple(v) if isinstance(v, list) else v for k, v in model.config.items()}
        assert inferred == {name: actual[name] for name in inferred}


def test_vae_can_be_replaced(pipe, folder, base, tmp_path):
    other = reference.randomise(AutoencoderKL(**reference.VAE_SMALL), seed=77)
    other.save_pretrained(tmp_path / "vae")
    state = reference.original_state(pipe)
    without = {k: v for k, v in state.items() if not k.startswith(original.VAE_PREFIX)}
    save_file(without, tmp_path / "model.safetensors")
    pipe.tokenizer.save_pretrained(tmp_path / "tokenizer")
    names = original.vae_names(other.state_dict(), len(other.config.block_out_channels))
    save_file(
        {names[name]: tensor for name, tensor in other.state_dict().items()},
        tmp_path / "vae.safetensors",
    )
    replaced = [
        BaseModel.from_pretrained(source, vae=vae)
        for source in (folder, tmp_path / "model.safetensors")
        for vae in (tmp_path / "vae", tmp_path / "vae.safetensors")
    ]
    for model in replaced:
        assert same(model.params, replaced[0].params)
        assert same(model.params["unet"], base.params["unet"])
    with torch.no_grad():
        expected = other.decode(torch.ones(1, 4, 8, 8)).sample.permute(0, 2, 3, 1).numpy()
    latents = jnp.full((1, 8, 8, 4), base.vae.scaling_factor)
    assert relative(jax.jit(replaced[0].decode)(replaced[0].params, latents), expected) < TOLERANCE


def test_flax_weights_load_like_safetensors(base, tmp_path):
    base.save_pretrained(tmp_path)
    files = {"unet": "diffusion_flax_model", "vae": "diffusion_flax_model",
             "text_encoder": "flax_model"}  # fmt: skip
    for part, name in files.items():
        for weights in (tmp_path / part).glob("*.safetensors"):
            weights.unlink()
        tree = jax.tree.map(np.asarray, base.params[part])
        (tmp_path / part / f"{name}.msgpack").write_bytes(msgpack_serialize(tree))
    flax = BaseModel.from_pretrained(tmp_path)
    assert same(flax.params, base.params)
    assert flax.fingerprint == base.fingerprint


def test_saved_folder_loads_in_pytorch_with_the_same_bits(pipe, base, tmp_path):
    base.save_pretrained(tmp_path, jnp.float32)
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path)
    for part in ("unet", "vae", "text_encoder"):
        theirs = getattr(loaded, part).state_dict()
        for name, tensor in getattr(pipe, part).state_dict().items():
            assert torch.equal(theirs[name], tensor), name
    assert loaded.tokenizer.get_vocab() == pipe.tokenizer.get_vocab()
    # The schedule is the same; its class, which decides how to sample, is the caller's choice.
    loaded.scheduler = pipe.scheduler
    options = {"num_inference_steps": 2, "output_type": "np", "height": 32, "width": 32}
    images = [
        p("the fan", generator=torch.Generator().manual_seed(0), **options).images
        for p in (pipe, loaded)
    ]
    assert (images[0] == images[1]).all()


def test_fingerprint_knows_the_unet_and_not_its_type(folder, base, tmp_path):
    base.save_pretrained(tmp_path / "half", jnp.float16)
    assert len(base.fingerprint) == 16
    assert int(base.fingerprint, 16) >= 0
    assert BaseModel.from_pretrained(folder, dtype=jnp.bfloat16).fingerprint == base.fingerprint
    assert BaseModel.from_pretrained(tmp_path / "half").fingerprint == base.fingerprint
    assert dataclasses.replace(base, recorded_fingerprint=None).fingerprint == base.fingerprint
    changed = jax.tree.map(lambda x: x, base.params)
    changed["unet"]["conv_out"]["bias"] += 0.01
    other = dataclasses.replace(base, params=changed, recorded_fingerprint=None)
    assert other.fingerprint != base.fingerprint


def test_half_precision_is_stored_and_computed(pipe, folder):
    base = BaseModel.from_pretrained(folder, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(base.params)} == {jnp.dtype(jnp.bfloat16)}
    ids = base.tokenize(PROMPTS)
    with torch.no_grad():
        theirs = pipe.text_encoder(torch.tensor(ids).long())[0].numpy()
    ours = base.encode_text(base.params, ids)
    assert ours.dtype == jnp.bfloat16
    assert relative(ours.astype(jnp.float32), theirs) < 0.05
