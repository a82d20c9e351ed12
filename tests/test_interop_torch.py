"""The adapter in a PyTorch pipeline paints what ours paints."""

import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

from fusionjax.errors import UserError
from fusionjax.generation.keywords import read_call
from fusionjax.identity import Identity
from fusionjax.interop.adapter_file import save_adapter
from fusionjax.interop.one_file import one_file
from fusionjax.interop.torch_attention import with_faces
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


@pytest.mark.parametrize("fusion", ["concat", pytest.param("decoupled", marks=pytest.mark.slow)])
def test_whole_picture_agrees_with_pytorch(base, pipe, photos, tmp_path, fusion):
    path = tmp_path / "adapter.safetensors"
    params, options = make_adapter(base, 0, path, fusion=fusion, face_logit_bias=0.7)
    ours = FusionPipeline(base, params, options, devices=jax.devices()[:1])
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
    with pytest.raises(UserError, match="2 masks are given for 1 people; give one"):
        fusion.show([person], masks=left_and_right())
    with pytest.raises(UserError, match=r"outside \[0, 1\]"):
        fusion.show([person], masks=[2 * left_and_right()[0]])
    stranger = Identity({}, person.latents, person.thumbnails, (1.0,), "?")
    with pytest.raises(UserError, match="person 0 was encoded with another base"):
        fusion.show([stranger])
    with pytest.raises(UserError, match="no photos"):
        fusion.encode_identity([])


@pytest.fixture
def shown(base, pipe, photos, tmp_path):
    """A pipeline that shows a person, and what it paints."""
    make_adapter(base, 0, tmp_path / "adapter.safetensors")
    fusion = load_fusion(pipe, tmp_path / "adapter.safetensors")
    plain = paint_torch(pipe, 1, num_inference_steps=2)
    fusion.show(fusion.encode_identity(photos[0], crop="none"))
    painted = paint_torch(pipe, 1, num_inference_steps=2)
    assert relative(plain, painted) > 0.05
    return fusion, plain, painted


def slice_attention(pipe):
    pipe.enable_attention_slicing(1)
    pipe.disable_attention_slicing()
    pipe.enable_attention_slicing("max")


def another_processor(pipe):
    from diffusers.models.attention_processor import AttnProcessor

    pipe.unet.set_attn_processor(AttnProcessor())


CHANGES = {
    "sliced": slice_attention,
    "set": another_processor,
    "fused": lambda pipe: pipe.fuse_qkv_projections(vae=False),
    "of the UNet": lambda pipe: pipe.unet.fuse_qkv_projections(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_people_stay_when_the_pipeline_changes_its_processors(pipe, shown, photos, change):
    fusion, plain, painted = shown
    change(pipe)
    again = paint_torch(pipe, 1, num_inference_steps=2)
    assert relative(again, painted) < 1e-4
    person = fusion.encode_identity(photos[0], crop="none")
    for layer, states in fusion.people[0].states.items():
        assert relative(person.states[layer].astype("f4"), states.astype("f4")) < 2**-7
    fusion.hide()
    assert relative(paint_torch(pipe, 1, num_inference_steps=2), plain) < 1e-4
    unload(pipe)
    assert relative(paint_torch(pipe, 1, num_inference_steps=2), plain) < 1e-4
    assert not [name for name in pipe.unet.state_dict() if ".processor." in name]


def test_fusing_projections_and_back(pipe, shown):
    _, _, painted = shown
    pipe.fuse_qkv_projections(vae=False)
    paint_torch(pipe, 1, num_inference_steps=2)
    pipe.unfuse_qkv_projections(vae=False)
    names = {type(m.processor.replaced()).__name__ for m in with_faces(pipe.unet)}
    assert names == {"AttnProcessor2_0"}
    assert relative(paint_torch(pipe, 1, num_inference_steps=2), painted) < 1e-5


def test_a_processor_that_does_something_else_is_told(pipe, shown):
    from diffusers.models.attention_processor import AttnProcessor2_0

    class Other(AttnProcessor2_0):
        pass

    fusion, plain, _ = shown
    pipe.unet.set_attn_processor(Other())
    with pytest.raises(UserError, match="attn2 has a Other in place of the adapter's processor"):
        paint_torch(pipe, 1, num_inference_steps=2)
    fusion.hide()
    assert relative(paint_torch(pipe, 1, num_inference_steps=2), plain) < 1e-5


def test_the_pipeline_that_calls_is_asked_for_its_guidance(pipe, shown):
    _, _, painted = shown
    others = [
        StableDiffusionPipeline.from_pipe(pipe),
        StableDiffusionPipeline(**pipe.components, requires_safety_checker=False),
    ]
    unguided = {"num_inference_steps": 2, "guidance_scale": 1.0}
    expected = paint_torch(pipe, 1, **unguided)
    for other in others:
        other.set_progress_bar_config(disable=True)
        # The old pipeline's last call was without guidance, then with.
        assert (paint_torch(other, 1, num_inference_steps=2) == painted).all()
        paint_torch(pipe, 1, num_inference_steps=2)
        assert (paint_torch(other, 1, **unguided) == expected).all()
        paint_torch(pipe, 1, **unguided)


@pytest.mark.slow
def test_a_compiled_unet(base, pipe, photos, tmp_path):
    path = tmp_path / "adapter.safetensors"
    make_adapter(base, 0, path)
    whole = pipe.unet
    fusion = load_fusion(pipe, path)
    person = fusion.encode_identity(photos[0], crop="none")
    fusion.show(person)
    expected = paint_torch(pipe, 1, num_inference_steps=2)
    fusion.unload()
    pipe.unet = torch.compile(whole, backend="eager")
    fusion = load_fusion(pipe, path)
    assert unet_fingerprint(pipe.unet) == base.fingerprint
    plain = paint_torch(pipe, 1, num_inference_steps=2)
    fusion.show(person)
    assert relative(paint_torch(pipe, 1, num_inference_steps=2), expected) < 1e-5
    pipe.enable_attention_slicing()
    assert relative(paint_torch(pipe, 1, num_inference_steps=2), expected) < 1e-4
    fusion.hide()
    assert relative(paint_torch(pipe, 1, num_inference_steps=2), plain) < 1e-4
    pipe.unet = whole
    fusion.show(person)
    pipe.unet = reference.pipeline(tmp_path / "words").unet
    with pytest.raises(UserError, match="another UNet now; load the adapter into it again"):
        fusion.show(person)


LEFT, RIGHT = (0, 0, 14 / SIDE, 1), (18 / SIDE, 5 / SIDE, 1, 1)
KINDS = {
    "pictures": lambda: [Image.fromarray(np.uint8(255 * m)) for m in left_and_right()],
    "grey levels": lambda: np.uint8(255 * left_and_right()),
    "zeros and ones": lambda: list(np.uint8(left_and_right())),
    "bools": lambda: left_and_right() > 0,
    "boxes": lambda: [LEFT, RIGHT],
    "a box and numbers": lambda: [LEFT, left_and_right()[1]],
    "tensors": lambda: torch.from_numpy(left_and_right()),
}


def test_masks_of_all_kinds_are_the_same_in_both(base, pipe, photos, tmp_path):
    params, options = make_adapter(base, 0, tmp_path / "adapter.safetensors")
    model = FusionPipeline(base, params, options).model
    fusion = load_fusion(pipe, tmp_path)
    person = fusion.encode_identity(photos[0], crop="none")
    fusion.show([person, person], masks=left_and_right())
    expected = fusion.bias(0)
    assert expected.shape == ((SIDE // 2) ** 2, 2)
    for kind, masks in KINDS.items():
        fusion.show([person, person], masks=masks())
        assert torch.equal(fusion.bias(0), expected), kind
        [request], _ = read_call(
            model, "a", "", 1, 0, None, {"height": SIDE, "width": SIDE}, masks=masks(),
            prompt_embeds=None, negative_prompt_embeds=None, identities=[person, person],
            face_strength=1.0, image=None, mask_image=None, control_image=None,
        )  # fmt: skip
        assert (request.masks == left_and_right()).all(), kind
    assert (fusion.bias(0) < -1e8).any()


def test_one_clear_line_for_people_and_masks(pipe, shown, tmp_path):
    fusion, _, _ = shown
    person = fusion.people[0]
    with pytest.raises(UserError, match=r"person 0 is 'anna\.jpg'; encode photos"):
        fusion.show(["anna.jpg"])
    with pytest.raises(UserError, match=r"face_strength is \[1, 2\] for 1 people"):
        fusion.show(person, face_strength=[1, 2])
    for masks, line in {
        "1 masks are given for 2 people": [LEFT],
        "mask 1 is empty": [LEFT, np.zeros((8, 8))],
        r"the box is \[0.5, 0, 0.2, 1\]": [LEFT, (0.5, 0, 0.2, 1)],
        r"mask 0 is 'left.png' of shape \(\)": ["left.png", RIGHT],
    }.items():
        with pytest.raises(UserError, match=masks):
            fusion.show([person, person], masks=line)
    other = Identity(person.states, person.latents, person.thumbnails, (1.0,), "0" * 16)
    with pytest.warns(UserWarning, match="encoded with the base model 0000000000000000"):
        fusion.show(other)


def test_the_hub_and_folders(base, pipe, tmp_path, monkeypatch):
    with pytest.raises(
        UserError, match=r"owner/faces/adapter\.safetensors is no file or folder he"
    ):
        load_fusion(pipe, "owner/faces")
    with pytest.raises(UserError, match=r"holds no adapter\.safetensors; name an adapter's file"):
        load_fusion(pipe, tmp_path)
    with pytest.raises(UserError, match=r"none\.safetensors"):
        load_fusion(pipe, "folder/none.safetensors")
    # What the hub's cache holds is found offline.
    commit = "0" * 40
    repository = tmp_path / "models--owner--faces"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    make_adapter(base, 0, repository / "snapshots" / commit / "adapter.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for source in ("owner/faces", "owner/faces/adapter.safetensors"):
        load_fusion(pipe, source).unload()
    load_fusion(pipe, repository / "snapshots" / commit).unload()


def test_the_one_file_does_what_the_package_does(base, pipe, photos, tmp_path, monkeypatch):
    (tmp_path / "fusion_diffusers.py").write_text(one_file())
    spec = importlib.util.spec_from_file_location(
        "fusion_diffusers", tmp_path / "fusion_diffusers.py"
    )
    alone = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fusion_diffusers", alone)  # its dataclass looks it up
    spec.loader.exec_module(alone)
    make_adapter(base, 0, tmp_path / "adapter.safetensors", fusion="decoupled")

    ours = load_fusion(pipe, tmp_path)
    person = ours.encode_identity(photos[:2], crop="none", weights=[1, 0.5])
    ours.show(person, masks=[LEFT])
    expected = paint_torch(pipe, 1, num_inference_steps=2)
    person.save(tmp_path / "ours.safetensors")
    ours.unload()

    theirs = alone.load_fusion(pipe, tmp_path)
    other = theirs.encode_identity(photos[:2], crop="none", weights=[1, 0.5])
    other.save(tmp_path / "theirs.safetensors")
    loaded = alone.Person.load(tmp_path / "ours.safetensors")
    for each in (other, loaded, Identity.load(tmp_path / "theirs.safetensors")):
        theirs.show(each, masks=[LEFT])
        assert (paint_torch(pipe, 1, num_inference_steps=2) == expected).all()
    assert len(loaded) == 2
    assert loaded.base_fingerprint == base.fingerprint
    alone.unload(pipe)

    # The two write and check the same seal.
    for name in ("ours", "theirs"):
        path = tmp_path / f"{name}.safetensors"
        damaged = bytearray(path.read_bytes())
        damaged[-1] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="holds other numbers than were written"):
            Identity.load(path)
        with pytest.raises(alone.UserError, match="holds other numbers than were written"):
            alone.Person.load(path)
    with pytest.raises(alone.UserError, match="is not an identity file"):
        alone.Person.load(tmp_path / "adapter.safetensors")
    with pytest.raises(alone.UserError, match="there is no file"):
        alone.Person.load(tmp_path / "nobody.safetensors")
