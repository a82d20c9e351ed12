"""The adapter in a PyTorch pipeline paints what ours paints."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

from fusionjax.errors import UserError
from fusionjax.identity import Identity
from fusionjax.interop.adapter_file import save_adapter
from fusionjax.interop.torch_diffusers import load_fusion, unet_fingerprint, unload
from fusionjax.models.base import BaseModel
from fusionjax.options import FusionOptions
from fusionjax.pipeline import FusionPipeline
from fusionjax.unet import FusionUNet
from tests import torch_reference as reference

STEPS = 10
SIDE = 32
PROMPTS = ["the fan and a cat", "band"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    reference.pipeline(folder / "words").save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def base(folder):
    return BaseModel.from_pretrained(folder)


@pytest.fixture
def pipe(folder):
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(5)
    return [
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((SIDE, SIDE))
        for _ in range(4)
    ]


def make_adapter(base, seed, path, **options):
    """Random kf and vf, large enough that the faces are plainly seen."""
    layers = FusionUNet(base.unet).layers
    rng = np.random.default_rng(seed)
    params = {
        name: {
            weight: jnp.asarray(
                rng.normal(0, layer.features**-0.5, (layer.features, layer.features)), jnp.float32
            )
            for weight in ("kf", "vf")
        }
        for name, layer in layers.items()
    }
    settings = FusionOptions(**options)
    save_adapter(path, params, settings, base=base.source, base_fingerprint=base.fingerprint)
    return params, settings


def starting_noise(count):
    return np.random.default_rng(9).normal(size=(count, SIDE // 2, SIDE // 2, 4)).astype(np.float32)


def paint_torch(pipe, count=2, **options):
    start = torch.from_numpy(starting_noise(count)).permute(0, 3, 1, 2)
    settings = {"num_inference_steps": STEPS, "guidance_scale": 5.0, "height": SIDE, "width": SIDE,
                "negative_prompt": ["th"] * count, **options}  # fmt: skip
    out = pipe(PROMPTS[:count], latents=start, output_type="latent", **settings)
    return out.images.permute(0, 2, 3, 1).numpy()


def relative(ours, theirs):
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.05, "the reference is degenerate"
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def left_and_right():
    masks = np.zeros((2, SIDE, SIDE), np.float32)
    masks[0, :, :14] = 1
    masks[1, 5:, 18:] = 1
    return masks


@pytest.mark.parametrize("fusion", ["concat", "decoupled"])
def test_whole_picture_agrees_with_pytorch(base, pipe, photos, tmp_path, fusion):
    path = tmp_path / "adapter.safetensors"
    params, options = make_adapter(base, 0, path, fusion=fusion, face_logit_bias=0.7)
    ours = FusionPipeline(base, params, options)
    theirs = load_fusion(pipe, path)

    people = [photos[:2], photos[2:3]]
    in_jax = [ours.encode_identity(own, crop="none") for own in people]
    in_torch = [theirs.encode_identity(own, crop="none") for own in people]
    for a, b in zip(in_jax, in_torch, strict=True):
        assert a.base_fingerprint == b.base_fingerprint
        assert relative(a.latents, b.latents) < 1e-4
        for layer in a.states:
            # bfloat16 keeps 8 bits: a value on the edge between two may fall to either side.
            x, y = a.states[layer].astype(np.float32), b.states[layer].astype(np.float32)
            assert relative(x, y) < 2**-7

    masks = left_and_right()
    out = ours(
        PROMPTS, in_jax, masks=masks, negative_prompt="th", num_inference_steps=STEPS,
        guidance_scale=5.0, face_strength=[1.0, 0.6], height=SIDE, width=SIDE, scheduler="ddim",
        latents=starting_noise(2),
    )  # fmt: skip
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, set_alpha_to_one=False, steps_offset=1
    )
    plain = paint_torch(pipe)
    theirs.show(in_torch, face_strength=[1.0, 0.6], masks=masks)
    seen = paint_torch(pipe)
    assert relative(np.asarray(out.latents), seen) < 1e-3
    assert relative(plain, seen) > 0.05  # the faces do show


def test_identities_travel_between_the_two(base, pipe, photos, tmp_path):
    path = tmp_path / "adapter.safetensors"
    make_adapter(base, 0, path)
    fusion = load_fusion(pipe, path)
    person = fusion.encode_identity(photos[0], crop="none")
    person.save(tmp_path / "person.safetensors")
    loaded = Identity.load(tmp_path / "person.safetensors")
    loaded.check_fits(base.fingerprint, "clean")
    fusion.show([person])
    first = paint_torch(pipe, 1, num_inference_steps=2)
    fusion.show([loaded])
    assert (paint_torch(pipe, 1, num_inference_steps=2) == first).all()


def test_without_people_and_after_unload_the_pipeline_is_the_base(base, pipe, photos, tmp_path):
    path = tmp_path / "adapter.safetensors"
    make_adapter(base, 0, path)
    paint = {"count": 1, "num_inference_steps": 2}
    before, keys = paint_torch(pipe, **paint), list(pipe.unet.state_dict())
    processors = dict(pipe.unet.attn_processors)
    fusion = load_fusion(pipe, path)
    assert (paint_torch(pipe, **paint) == before).all()
    person = fusion.encode_identity(photos[:1], crop="none")
    fusion.show([person])
    changed = paint_torch(pipe, **paint)
    assert relative(changed, before) > 0.05
    # λ = 0 is the base model, by the same arithmetic but another kernel.
    fusion.show([person], face_strength=0.0)
    assert relative(paint_torch(pipe, **paint), before) < 1e-5
    # In both branches faces cancel partly: another picture.
    fusion.show([person], faces_in_negative=True)
    assert relative(paint_torch(pipe, **paint), changed) > 0.01
    # Without guidance there is no negative branch.
    fusion.show([person])
    unguided = paint_torch(pipe, **paint, guidance_scale=1.0)
    fusion.hide()
    assert relative(paint_torch(pipe, **paint, guidance_scale=1.0), unguided) > 0.05
    assert (paint_torch(pipe, **paint) == before).all()
    unload(pipe)
    assert pipe.unet.attn_processors == processors
    assert list(pipe.unet.state_dict()) == keys
    assert (paint_torch(pipe, **paint) == before).all()
    unload(pipe)  # once more is nothing


def test_masks_and_the_processor_move_with_the_pipeline(base, pipe, photos, tmp_path):
    path = tmp_path / "adapter.safetensors"
    make_adapter(base, 0, path)
    fusion = load_fusion(pipe, path)
    person = fusion.encode_identity(photos[:1], crop="none")
    left = left_and_right()[0]
    fusion.show([person, person], masks=[left, 1 - left])
    as_numbers = paint_torch(pipe, 1, num_inference_steps=2)
    pictures = [Image.fromarray((m * 255).astype(np.uint8)) for m in (left, 1 - left)]
    fusion.show([person, person], masks=pictures)
    assert (paint_torch(pipe, 1, num_inference_steps=2) == as_numbers).all()
    pipe.to(torch.bfloat16)
    assert {p.dtype for p in pipe.unet.parameters()} == {torch.bfloat16}
    start = torch.from_numpy(starting_noise(1)).permute(0, 3, 1, 2).bfloat16()
    half = pipe(
        PROMPTS[0], latents=start, output_type="latent", num_inference_steps=2, height=SIDE,
        width=SIDE, guidance_scale=5.0, negative_prompt="th",
    ).images  # fmt: skip
    assert relative(half.float().permute(0, 2, 3, 1).numpy(), as_numbers) < 0.1


def test_exported_weights_are_the_processors_own(base, pipe, tmp_path):
    from safetensors.torch import load_file

    path = tmp_path / "adapter.safetensors"
    make_adapter(base, 0, path)
    load_fusion(pipe, path)
    state = pipe.unet.state_dict()
    for name, tensor in load_file(path).items():
        assert torch.equal(state[name], tensor)


def test_fingerprint_is_that_of_jax(base, pipe):
    assert unet_fingerprint(pipe.unet) == base.fingerprint
    assert unet_fingerprint(pipe.unet.half()) == base.fingerprint
    assert unet_fingerprint(pipe.unet.bfloat16()) is None


def test_what_cannot_be_right_is_refused(base, pipe, photos, tmp_path):
    path = tmp_path / "adapter.safetensors"
    make_adapter(base, 0, path, reference="matched")
    with pytest.raises(UserError, match="only 'clean' adapters work"):
        load_fusion(pipe, path)
    params, options = make_adapter(base, 0, path)
    name = next(iter(params))
    wrong = {**params, name: {k: np.ones((32, 48), np.float32) for k in ("kf", "vf")}}
    save_adapter(tmp_path / "wrong.safetensors", wrong, options)
    with pytest.raises(UserError, match=r"trained for another base model: .*\(48, 32\) in the ad"):
        load_fusion(pipe, tmp_path / "wrong.safetensors")
    save_adapter(path, params, options, base="other", base_fingerprint="0" * 16)
    with pytest.warns(UserWarning, match="trained on the base other with fingerprint 0000"):
        fusion = load_fusion(pipe, path)
    with pytest.raises(UserError, match="has an adapter already"):
        load_fusion(pipe, path)
    person = fusion.encode_identity(photos[:1], crop="none")
    with pytest.raises(UserError, match="face_strength is -1"):
        fusion.show([person], face_strength=-1)
    with pytest.raises(UserError, match="give one"):
        fusion.show([person], masks=left_and_right())
    with pytest.raises(UserError, match=r"outside \[0, 1\]"):
        fusion.show([person], masks=[2 * left_and_right()[0]])
    stranger = Identity({}, person.latents, person.thumbnails, (1.0,), "?")
    with pytest.raises(UserError, match="person 0 was encoded with another base"):
        fusion.show([stranger])
    with pytest.raises(UserError, match="no photos"):
        fusion.encode_identity([])
