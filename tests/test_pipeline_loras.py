"""LoRAs that change while a pipeline is in use leave what a freshly loaded base would have."""

import warnings

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from fusionjax.errors import UserError
from fusionjax.interop import names
from fusionjax.interop.lora_source import find_lora, is_here, located, parse_all
from fusionjax.models.base import BaseModel
from fusionjax.pipeline import FusionPipeline
from sample.job import Job
from sample.trust import check_models
from tests.tiny import photo, tiny_base, tiny_fusion

CALL = {"prompt": "a", "seed": 3, "num_inference_steps": 2, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras") / "base"
    tiny_base().save_pretrained(folder, np.float32)
    return folder


def write_lora(path, base, parts, seed):
    rng = np.random.default_rng(seed)
    state = {}
    for part, pattern in parts.items():
        for name, tensor in names.to_torch_state(base.params[part], np.float32).items():
            if pattern in name and name.endswith(".weight"):
                module, (out, inner) = name.removesuffix(".weight"), tensor.shape[:2]
                state[f"{part}.{module}.lora_A.weight"] = rng.normal(size=(2, inner)) / 4
                state[f"{part}.{module}.lora_B.weight"] = rng.normal(size=(out, 2))
    assert state
    save_file({name: tensor.astype(np.float32) for name, tensor in state.items()}, path)
    return path


@pytest.fixture(scope="module")
def loras(folder):
    base = tiny_base()
    both = {"unet": "attn2.to_q", "text_encoder": "self_attn.q_proj"}
    return {
        "one": write_lora(folder.parent / "one.safetensors", base, both, 1),
        "two": write_lora(folder.parent / "two.safetensors", base, {"unet": "to_v"}, 2),
        "text": write_lora(folder.parent / "text.safetensors", base, {"text_encoder": "fc1"}, 3),
    }


def pipeline(folder, lora=()):
    params, options = tiny_fusion()
    base = BaseModel.from_pretrained(folder, lora=lora)
    return FusionPipeline(base, params, options, devices=jax.devices()[:1])


def equal(one, other):
    assert one.fingerprint == other.fingerprint
    assert one.identity_fingerprint == other.identity_fingerprint
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


@pytest.mark.slow
def test_weights_are_those_of_a_fresh_load(folder, loras):
    """Bit for bit, whatever was merged before; what no LoRA touches is shared."""
    base = BaseModel.from_pretrained(folder)
    fresh = {
        (): base,
        ("one",): BaseModel.from_pretrained(folder, lora={loras["one"]: 0.7}),
        ("two", "one"): BaseModel.from_pretrained(folder, lora=[(loras["two"], 1), loras["one"]]),
        ("text",): BaseModel.from_pretrained(folder, lora=loras["text"]),
    }
    assert len({model.identity_fingerprint for model in fresh.values()}) == len(fresh)
    now = base
    for chosen, strengths in (
        (("one",), (0.7,)),
        (("two", "one"), (1, 1)),
        (("text",), (1,)),
        (("one",), (0.7,)),
        ((), ()),
    ):
        given = [(loras[name], strength) for name, strength in zip(chosen, strengths, strict=True)]
        now = now.with_loras(given)
        equal(now, fresh[chosen])
        assert now.params["vae"] is base.params["vae"]
        assert now.params["unet"]["conv_in"]["kernel"] is base.params["unet"]["conv_in"]["kernel"]


@pytest.mark.slow
def test_a_picture_is_that_of_a_fresh_pipeline(folder, loras):
    pipe = pipeline(folder)
    person = pipe.encode_identity(photo(1), crop="none")
    plain = pipe(identities=[person], **CALL).latents
    fresh = pipeline(folder, [f"{loras['one']}=0.7", loras["text"]])
    own = fresh.encode_identity(photo(1), crop="none")
    expected = fresh(identities=[own], **CALL).latents
    assert np.abs(expected - plain).max() > 0.1
    compiled = pipe.runner.compilations

    pipe.load_lora_weights(loras["one"], "one")
    assert pipe.get_active_adapters() == ["one"]
    pipe.load_lora_weights(loras["text"])
    assert pipe.get_active_adapters() == ["default_1"]  # the last loaded alone, as in diffusers
    pipe.set_adapters(["one", "default_1"], [0.7, None])
    equal(pipe.base, fresh.base)
    assert pipe.fingerprints == fresh.fingerprints
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of the same base with other LoRAs nothing is told
        found = pipe(identities=[person], **CALL).latents
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert pipe.runner.compilations == compiled + 1  # the latents' pass through the UNet
    np.testing.assert_array_equal(pipe(identities=[person], **CALL).latents, found)

    # An identity that the other pipeline knew nothing of: it is told, and painted alike.
    with pytest.warns(UserWarning, match="computed again from its latents"):
        again = fresh(identities=[person.weighted(1.0)], **CALL).latents
    np.testing.assert_allclose(again, expected, atol=1e-4)

    pipe.unload_lora_weights()
    assert pipe.get_active_adapters() == []
    np.testing.assert_array_equal(pipe(identities=[person], **CALL).latents, plain)
    assert pipe.runner.compilations == compiled + 1


def test_wrong_names_leave_a_pipeline_as_it_was(folder, loras, tmp_path):
    pipe = pipeline(folder, f"{loras['two']}:0.5")
    before = pipe.base
    assert pipe.get_active_adapters() == ["default_0"]
    save_file({"x.lora_A.weight": np.ones((1, 1), np.float32)}, tmp_path / "no.safetensors")
    for call, words in (
        (lambda: pipe.load_lora_weights(tmp_path / "no.safetensors"), "not a LoRA for this base"),
        (lambda: pipe.load_lora_weights(loras["one"], "default_0"), "'default_0' is taken"),
        (lambda: pipe.load_lora_weights("nowhere"), "nowhere does not exist"),
        (lambda: pipe.set_adapters("default_9"), "'default_9'"),
        (lambda: pipe.set_adapters("default_0", [1, 2]), "2 adapter_weights for 1"),
        (lambda: pipe.set_adapters("default_0", 1e9), "adapter_weights"),
    ):
        with pytest.raises(UserError, match=words):
            call()
        assert pipe.base is before
        assert pipe.get_active_adapters() == ["default_0"]
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    try:
        weights.write_bytes(content)  # another time of change
        with pytest.raises(UserError, match="have changed since they were loaded"):
            pipe.unload_lora_weights()
    finally:
        weights.write_bytes(content)
    with pytest.raises(UserError, match="put together in Python"):
        tiny_base().with_loras([])


def test_what_may_stand_for_a_lora(loras, tmp_path, monkeypatch):
    one, name = loras["one"], str(loras["one"])
    assert parse_all(None) == parse_all(()) == parse_all([]) == []
    for given in (name, one, (one, 1), [one], [(one, 1.0)], {one: 1}, [f"{name}:1"], f"{name}=1"):
        assert parse_all(given) == [(name, 1.0)]
    assert parse_all((name, f"{name}=-2")) == [(name, 1.0), (name, -2.0)]
    for wrong in (7, [7], [""], ":0.5", f"{name}:x", (one, float("nan")), {one: "x"}):
        with pytest.raises(UserError, match=r"lora.*(write|give)"):
            parse_all(wrong)

    monkeypatch.chdir(one.parent)
    assert find_lora("one") == find_lora("one.safetensors").with_suffix(".safetensors")
    assert is_here("one:0.5")
    assert is_here("one")
    assert not is_here("owner/name=0.5")
    assert located("one=0.5", one.parent) == f"{one}=0.5"
    assert located("owner/name=0.5", one.parent) == "owner/name=0.5"
    lone = tmp_path / "folder"
    lone.mkdir()
    with pytest.raises(UserError, match=r"holds 0 \.safetensors files"):
        find_lora(str(lone))
    (lone / "a.safetensors").write_bytes(one.read_bytes())
    assert find_lora(str(lone)) == lone / "a.safetensors"
    (lone / "b.safetensors").write_bytes(one.read_bytes())
    with pytest.raises(UserError, match=r"holds 2 \.safetensors files \(a.safetensors, b"):
        find_lora(str(lone))
    assert find_lora(str(lone), "b.safetensors") == lone / "b.safetensors"
    (lone / "pytorch_lora_weights.safetensors").write_bytes(one.read_bytes())
    assert find_lora(str(lone)).name == "pytorch_lora_weights.safetensors"


def test_loras_on_the_hub(loras, tmp_path, monkeypatch):
    """In the hub's cache, as huggingface_hub lays it out; nothing leaves this machine."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub._snapshot_download.constants, "HF_HUB_CACHE", str(tmp_path))
    stored = tmp_path / "models--someone--detail"
    snapshot = stored / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text("abc")
    (snapshot / "detail.safetensors").write_bytes(loras["one"].read_bytes())
    assert find_lora("someone/detail").samefile(snapshot / "detail.safetensors")
    assert find_lora("someone/detail/detail.safetensors").name == "detail.safetensors"
    assert find_lora("someone/detail", "detail.safetensors").name == "detail.safetensors"
    with pytest.raises(UserError, match="the hub did not give it"):
        find_lora("someone/else")


def test_loras_of_a_scene_lie_beside_it_and_none_is_downloaded_unasked(loras):
    one = loras["one"]
    given = {"prompt": "a", "lora": ["one=0.5", "two.safetensors:2"], "prediction_type": "epsilon"}
    job = Job.from_mapping(given, folder=one.parent)
    assert job.lora == (f"{one}=0.5", f"{loras['two']}:2")
    check_models(one, job, {})
    job = Job.from_mapping({"prompt": "a", "lora": "someone/detail=0.5"}, folder=one.parent)
    assert job.lora == ("someone/detail=0.5",)
    with pytest.raises(UserError, match=r"names the lora 'someone/detail=0\.5', which is not here"):
        check_models(one, job, {})
    check_models(one, job, {"lora": job.lora})
    with pytest.raises(UserError, match="prediction_type"):
        Job.from_mapping({"prompt": "a", "prediction_type": "x0"})
