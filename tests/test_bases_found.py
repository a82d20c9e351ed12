"""Base models as they are found: in parts, in eight bits, with more in them than a model needs."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fusionjax.errors import UserError
from fusionjax.interop.hub import download
from fusionjax.interop.names import to_torch_state
from fusionjax.interop.tokenizer import load_tokenizer
from fusionjax.models.base import BaseModel
from tests import torch_reference as reference

UNET = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return reference.pipeline(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def good_folder(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("found") / "model"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(good_folder, tmp_path):
    return shutil.copytree(good_folder, tmp_path / "model")


@pytest.fixture(scope="module")
def expected(good_folder):
    return BaseModel.from_pretrained(good_folder)


@pytest.fixture(scope="module")
def state(pipe):
    return reference.original_state(pipe)


@pytest.fixture
def single(pipe, tmp_path):
    pipe.tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "model.safetensors"


def equal(found, expected):
    assert found.fingerprint == expected.fingerprint
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


def refused(source, words, **options):
    with pytest.raises(UserError, match=words) as error:
        BaseModel.from_pretrained(source, **options)
    assert "\n" not in str(error.value)


def test_folders_in_parts(pipe, expected, tmp_path):
    """As diffusers and transformers themselves divide them."""
    folder = tmp_path / "parts"
    pipe.save_pretrained(folder, max_shard_size="200KB")
    for part, name in (("unet", UNET), ("vae", UNET), ("text_encoder", "model")):
        assert len(list((folder / part).glob("*.safetensors"))) > 1
        assert (folder / part / f"{name}.safetensors.index.json").is_file()
    found = BaseModel.from_pretrained(folder)
    equal(found, expected)
    equal(found.with_loras([]), expected)

    index = folder / "unet" / f"{UNET}.safetensors.index.json"
    content = json.loads(index.read_text())
    names = content["weight_map"]
    first, file = next(iter(names.items()))
    for change, words in (
        ({first: "../../somewhere.safetensors"}, "it must be a .safetensors beside it"),
        ({first: "none.safetensors"}, r"none\.safetensors does not exist"),
        ({"more": file}, "says that 'more' is in"),
        ({first: 3}, r"weight_map: .*is 3; it must be"),
    ):
        index.write_text(json.dumps({**content, "weight_map": {**names, **change}}))
        refused(folder, words)
    index.write_text(json.dumps({"weight_map": {k: v for k, v in names.items() if k != first}}))
    refused(folder, "knows nothing; download both again")


def test_parts_on_the_hub(pipe, expected, tmp_path, monkeypatch):
    import huggingface_hub.constants

    snapshot = tmp_path / "models--someone--parts" / "snapshots" / "abc"
    pipe.save_pretrained(snapshot, max_shard_size="200KB")
    (tmp_path / "models--someone--parts" / "refs").mkdir()
    (tmp_path / "models--someone--parts" / "refs" / "main").write_text("abc")
    for module in (huggingface_hub.constants, huggingface_hub._snapshot_download.constants):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path))
    assert download("someone/parts", [["unet/a", f"unet/{UNET}.safetensors.index.json"]]).samefile(
        snapshot
    )
    equal(BaseModel.from_pretrained("someone/parts"), expected)


def test_variants(folder, expected):
    weights = folder / "unet" / f"{UNET}.safetensors"
    weights.rename(weights.with_name(f"{UNET}.non_ema.safetensors"))
    with pytest.warns(UserWarning, match="of a training's last step, not their average"):
        found = BaseModel.from_pretrained(folder)
    equal(found, expected)
    # An averaged one in 16 bits goes first, and nothing is told.
    half = {
        n: t.half() for n, t in load_file(folder / "unet" / f"{UNET}.non_ema.safetensors").items()
    }
    save_file(half, folder / "unet" / f"{UNET}.fp16.safetensors")
    assert BaseModel.from_pretrained(folder).fingerprint == expected.fingerprint


def test_what_tools_add_to_a_single_file(state, single, expected):
    more = {"model_sampling.sigmas": torch.ones(1000), "denoiser.sigmas": torch.ones(1000),
            "global_step": torch.tensor(3)}  # fmt: skip
    save_file(state | more, single)
    with pytest.warns(UserWarning, match="left out: 3 .*model_sampling.sigmas"):
        equal(BaseModel.from_pretrained(single), expected)
    save_file(state | {"head.weight": torch.ones(1)}, single)
    refused(single, r"tensors without a place: 1 \(head\.weight\)")


@pytest.mark.slow
def test_what_a_single_file_predicts_is_told_beside_it(state, single, good_folder):
    save_file(state, single, metadata={"modelspec.prediction_type": "epsilon"})
    beside = single.with_suffix(".yaml")
    for text, prediction in (
        ("model: {params: {parameterization: v}}", "v_prediction"),
        ("model: {params: {parameterization: eps}}", "epsilon"),
        ("model:\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n", "epsilon"),
        ("- a list", "epsilon"),
    ):
        beside.write_text(text)
        assert BaseModel.from_pretrained(single).schedule.prediction_type == prediction
    for text, words in (("model: [", "is not YAML"), ("model: {params: {parameterization: x0}}",
                         "model.yaml: parameterization is 'x0'; known are")):  # fmt: skip
        beside.write_text(text)
        refused(single, words)
    beside.write_text("model: {params: {parameterization: eps}}")
    for source in (single, good_folder):  # the option goes first
        found = BaseModel.from_pretrained(source, prediction_type="v_prediction")
        assert found.schedule.prediction_type == "v_prediction"
    refused(good_folder, "prediction_type is 'v'; did you mean|one of", prediction_type="v")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bits(pipe, state, single, dtype):
    save_file({n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}, single)
    found = BaseModel.from_pretrained(single)
    expected = pipe.unet.conv_in.weight.to(dtype).float().numpy()
    kernel = found.params["unet"]["conv_in"]["kernel"]
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), expected)


@pytest.mark.parametrize(("name", "by_row"), [("scale_weight", False), ("weight_scale", True)])
def test_eight_bits_with_scales(pipe, folder, single, state, name, by_row):
    """One scale for a weight or one for each row, beside linear layers, in both layouts."""
    whole = pipe.unet.state_dict()
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    weight = whole[f"{layer}.weight"]
    largest = weight.abs().amax(1) if by_row else weight.abs().max()
    scale = largest / 448
    stored = (weight / (scale[:, None] if by_row else scale)).to(torch.float8_e4m3fn)
    more = {f"{layer}.{name}": scale, f"{layer}.input_scale": torch.ones(()),
            "scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}  # fmt: skip
    save_file(whole | {f"{layer}.weight": stored} | more, folder / "unet" / f"{UNET}.safetensors")
    found = BaseModel.from_pretrained(folder)
    kernel = to_torch_state(found.params["unet"], np.float32)[f"{layer}.weight"]
    expected = stored.float() * (scale[:, None] if by_row else scale)
    np.testing.assert_allclose(kernel, expected, rtol=1e-6)
    np.testing.assert_allclose(kernel, weight, rtol=0.07, atol=float(scale.max()) / 256)

    old = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k"
    more = {f"{old}.{name}": scale, "model.diffusion_model.scaled_fp8": torch.zeros(0)}
    save_file(state | {f"{old}.weight": stored} | more, single)
    equal(BaseModel.from_pretrained(single), found)
    more[f"{old}.{name}"] = torch.ones(2, 2)
    save_file(state | {f"{old}.weight": stored} | more, single)
    refused(single, "has 4 numbers for .*; one for all or one for each row")


def test_a_base_that_was_saved_with_a_face_adapter(folder, expected):
    path = folder / "unet" / f"{UNET}.safetensors"
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.processor"
    more = {f"{layer}.{kind}.weight": torch.ones(64, 64) for kind in ("kf", "vf")}
    save_file(load_file(path) | more, path)
    with pytest.warns(UserWarning, match="a face adapter's kf and vf, 2 tensors, which are left"):
        equal(BaseModel.from_pretrained(folder), expected)


def test_a_tokenizer_of_transformers_5(tmp_path):
    """`tokenizer.json` alone, written by transformers 5.24, which gave these ids itself."""
    folder = Path(__file__).parent / "data" / "tokenizer_of_transformers5"
    tokenizer = load_tokenizer(folder)
    ids = tokenizer(["the man and <ann>"], padding="max_length", max_length=12)["input_ids"]
    assert ids == [[517, 515, 76, 64, 333, 513, 519, 518, 518, 518, 518, 518]]
    assert len(tokenizer) == 520
    assert tokenizer.model_max_length == 77
    for text, words in (("{", "is not JSON"), ('{"model": {"vocab": {}}}', "merges")):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(UserError, match=words) as error:
            load_tokenizer(tmp_path)
        assert "\n" not in str(error.value)
