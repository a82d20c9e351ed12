"""What cannot be loaded ends in one readable line that names the thing and the remedy."""

import json
import os
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from flax.serialization import msgpack_serialize
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from fusionjax.errors import UserError
from fusionjax.interop import hub, lora, original
from fusionjax.interop.adapter_file import load_adapter_file, save_adapter
from fusionjax.interop.flax_file import FlaxFile
from fusionjax.interop.kinds import kind_of
from fusionjax.interop.tokenizer import clip_tokenizer
from fusionjax.models.base import BaseModel
from fusionjax.options import FusionOptions
from fusionjax.safetensors_file import SafetensorsFile, pickle_message
from tests import torch_reference as reference


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return reference.pipeline(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def good_folder(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "model"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(good_folder, tmp_path):
    return shutil.copytree(good_folder, tmp_path / "model")


@pytest.fixture(scope="module")
def good_single(pipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    save_torch(reference.original_state(pipe), path)
    pipe.tokenizer.save_pretrained(path.parent / "tokenizer")
    return path


def refused(source, *words, **options):
    with pytest.raises(UserError) as error:
        BaseModel.from_pretrained(source, **options)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


# --- files and folders that are not there, not whole, not JSON --------------------------------


def test_a_path_that_does_not_exist(tmp_path):
    refused(tmp_path / "nowhere", "nowhere does not exist; give a diffusers folder")
    refused("nowhere.safetensors", "nowhere.safetensors does not exist")


@pytest.mark.parametrize("part", ["text_encoder", "vae", "unet", "tokenizer", "scheduler"])
def test_a_missing_subfolder(folder, part):
    shutil.rmtree(folder / part)
    refused(folder, f"has no subfolder '{part}'")


def test_damaged_parts_of_a_folder(folder):
    config = folder / "unet" / "config.json"
    whole = config.read_text()
    for text, words in (
        ("{", "is not JSON"),
        ("[1]", "holds no JSON object"),
        (whole.replace('"act_fn": "silu"', '"act_fn": "mish"'), "act_fn is 'mish'; only 'silu'"),
        (whole.replace("CrossAttnDownBlock2D", "AttnDownBlock2D"), "has 'AttnDownBlock2D'"),
        (
            whole.replace('"layers_per_block": 1', '"layers_per_block": "x"'),
            "layers_per_block is 'x'; it",
        ),
        (whole.replace('"layers_per_block": 1', '"layers_per_block": 2'), "parameters missing"),
    ):
        config.write_text(text)
        refused(folder, "unet", words)
    config.write_text(whole.replace('"cross_attention_dim": 64', '"cross_attention_dim": 32'))
    refused(folder, "the UNet reads text states of 32 features, the text encoder gives 64")
    config.unlink()
    refused(folder, "unet/config.json does not exist")
    config.write_text(whole)
    (folder / "tokenizer" / "merges.txt").unlink()
    refused(folder, "tokenizer lacks merges.txt")


def test_an_unsupported_schedule(folder):
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "prediction_type": "sample"}))
    refused(folder, "scheduler_config.json: prediction_type is 'sample'")
    path.write_text(json.dumps({**config, "timestep_spacing": "trailing"}))
    with pytest.warns(UserWarning, match="timestep_spacing 'trailing', which is not followed"):
        BaseModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("metadata", "empty", "what"),
    [
        ({}, (), "epsilon"),
        ({"modelspec.prediction_type": "epsilon"}, (), "epsilon"),
        ({"modelspec.prediction_type": "v"}, (), "v_prediction"),
        ({}, ("v_pred",), "v_prediction"),
        ({"modelspec.prediction_type": "x0"}, (), None),
        ({}, ("v_pred", "ztsnr"), "v_prediction"),
        ({}, ("ztsnr",), None),
    ],
)
def test_a_single_file_says_what_it_predicts(good_single, tmp_path, metadata, empty, what):
    path = tmp_path / "model.safetensors"
    shutil.copytree(good_single.parent / "tokenizer", tmp_path / "tokenizer")
    more = dict.fromkeys(empty, np.zeros(0, np.float32))
    save_file(load_file(good_single) | more, path, metadata=metadata)
    if what is None:
        refused(path, "'x0'; known are epsilon, " if metadata else "no noise can be told")
    else:
        schedule = BaseModel.from_pretrained(path).schedule
        assert schedule.prediction_type == what
        assert schedule.rescale_betas_zero_snr == ("ztsnr" in empty)


def test_weights_that_are_missing_or_pickled(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(folder / "unet" / "diffusion_pytorch_model.bin")
    message = refused(folder, "is a pickle", "weights_only=True", weights.name)
    assert "diffusion_pytorch_model.bin" in message
    (folder / "unet" / "diffusion_pytorch_model.bin").unlink()
    refused(folder, "unet has no weights; there should be one of")


def test_pickles_are_refused_with_the_command_that_converts_them(tmp_path):
    state = {"a.weight": torch.randn(3, 4), "b": torch.ones(2)}
    state["tied"] = state["a.weight"]
    path = tmp_path / "old model.ckpt"
    torch.save({"state_dict": state, "global_step": 7}, path)
    message = refused(path, "old model.ckpt is a pickle, which can run any code")
    shutil.copy(path, tmp_path / "renamed.safetensors")
    refused(tmp_path / "renamed.safetensors", "renamed.safetensors is a pickle")
    command = message.partition("convert it once, in its folder: ")[2]
    arguments = [sys.executable, *shlex.split(command)[1:]]
    subprocess.run(arguments, check=True, capture_output=True, cwd=tmp_path)
    converted = load_file(tmp_path / "old model.safetensors")
    assert converted.keys() == state.keys()
    np.testing.assert_array_equal(converted["tied"], state["a.weight"].numpy())
    assert "a.bin" in pickle_message("a.bin", "b.safetensors")


def test_values_that_are_not_finite_or_too_large(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state["conv_out.bias"][1] = 1e6
    save_file(state, path)
    refused(folder, "conv_out.bias holds values up to 1e+06, too large for float16",
            dtype=np.float16)  # fmt: skip
    state["conv_out.bias"][1] = np.nan
    save_file(state, path)
    refused(folder, "conv_out.bias holds values that are not finite; the file is damaged")
    state["conv_out.bias"] = np.ones(4, np.int32)
    save_file(state, path)
    refused(folder, "conv_out.bias holds int32, not real numbers")
    state["conv_out.bias"] = np.ones(5, np.float32)
    save_file(state, path)
    refused(folder, "conv_out.bias has shape [5]")


# --- checkpoints of other kinds ---------------------------------------------------------------


def test_nothing_is_left_over_and_nothing_is_missing(folder, good_single, tmp_path):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    save_file({**state, "extra.weight": np.ones(3, np.float32)}, path)
    refused(folder, "tensors without a place: 1 (extra.weight)", "missing from it: none")
    bias = state.pop("conv_in.bias")
    save_file({**state, "conv_in.bais": bias}, path)
    refused(folder, "missing from it: 1 (conv_in.bias)", "1 (conv_in.bais)")
    single = load_file(good_single)
    copy = tmp_path / "model.safetensors"
    save_file({**single, "surprise": np.ones(1, np.float32)}, copy)
    refused(copy, "tensors without a place: 1 (surprise)")
    del single[original.UNET_PREFIX + "out.2.bias"]
    shutil.copytree(good_single.parent / "tokenizer", tmp_path / "tokenizer")
    save_file(single, copy)
    refused(copy, "missing from it: 1 (conv_out.bias)")


def test_single_files_without_a_part(good_single, tmp_path):
    state = load_file(good_single)
    for prefix, words in (
        (original.VAE_PREFIX, "has no VAE (first_stage_model.*); name one with vae"),
        (original.TEXT_PREFIX, "has no text encoder"),
        (original.UNET_PREFIX, "has no model.diffusion_model.*"),
    ):
        path = tmp_path / "part.safetensors"
        save_file({k: v for k, v in state.items() if not k.startswith(prefix)}, path)
        refused(path, "part.safetensors", words)


def tensors(**shapes):
    return {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}


UNET = "model.diffusion_model."
KINDS = {
    "SDXL": {f"{UNET}label_emb.0.0.weight": (4, 4), "conditioner.embedders.0.x": (2,)},
    "SDXL is not supported": {f"{UNET}label_emb.0.0.weight": (4, 4)},
    "Stable Diffusion 2": {
        f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024)
    },
    "Stable Diffusion 2 checkpoint in one file": {
        f"{UNET}time_embed.0.bias": (4,),
        "cond_stage_model.model.ln_final.bias": (4,),
    },
    "InstructPix2Pix": {f"{UNET}input_blocks.0.0.weight": (320, 8, 3, 3)},
    "a LoRA (give it as lora": {"lora_unet_mid_block_x.lora_down.weight": (4, 4)},
    "an SDXL LoRA": {"lora_te2_text_model_x.lora_down.weight": (4, 4)},
    "a face adapter that fusionjax exported (give it as fusion)": {
        "mid_block.attentions.0.transformer_blocks.0.attn2.processor.kf.weight": (4, 4)
    },
    "an IP-Adapter": {"image_proj.proj.weight": (4, 4)},
    "a ControlNet": {"control_model.input_hint_block.0.weight": (4, 4)},
    "Flux": {"double_blocks.0.img_attn.qkv.weight": (4, 4)},
    "a VAE alone (give it as vae)": {"decoder.conv_in.weight": (4, 4, 3, 3)},
    "the UNet alone of a diffusers folder": {"down_blocks.0.resnets.0.conv1.bias": (4,)},
    "a textual inversion": {"emb_params": (1, 768)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_are_recognised(kind, tmp_path):
    save_file(tensors(**KINDS[kind]), tmp_path / "model.safetensors")
    refused(tmp_path / "model.safetensors", "model.safetensors", "seems to be", kind)


def test_other_kinds_of_folders_are_recognised(folder, good_folder):
    (folder / "text_encoder_2").mkdir()
    refused(folder, "is an SDXL model, which is not supported")
    (folder / "text_encoder_2").rmdir()
    config = json.loads((folder / "unet" / "config.json").read_text())
    changed = {**config, "addition_embed_type": "text_time"}
    (folder / "unet" / "config.json").write_text(json.dumps(changed))
    refused(folder, "describes an SDXL UNet")
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "in_channels": 5}))
    state = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    state["conv_in.weight"] = np.zeros((32, 5, 3, 3), np.float32)
    save_file(state, folder / "unet" / "diffusion_pytorch_model.safetensors")
    refused(folder, "seems to be a model for something else: its UNet takes 5 channels")
    assert kind_of({"something": (3,)}) is None
    lonely = folder / "lonely.safetensors"
    save_file(tensors(something=(3,)), lonely)
    refused(lonely, "has no model.diffusion_model.*", "it holds 1 tensors, first something")


# --- damage -----------------------------------------------------------------------------------


def damaged_copies(path, rng, count):
    """Copies of a file, truncated or with flipped bits, half of them among its first bytes."""
    content = path.read_bytes()
    target = path.with_name("damaged" + path.suffix)
    for number in range(count):
        copy = bytearray(content)
        if number % 3 == 0:
            copy = copy[: int(rng.integers(0, len(copy)))]
        else:
            for _ in range(int(rng.integers(1, 4))):
                end = len(copy) if number % 2 else min(len(copy), 4096)
                copy[int(rng.integers(0, end))] ^= 1 << int(rng.integers(0, 8))
        target.write_bytes(copy)
        yield target


def small_lora(path):
    module = "lora_unet_mid_block_attentions_0_proj_in"
    state = {f"{module}.lora_down.weight": np.ones((2, 64, 1, 1), np.float32),
             f"{module}.lora_up.weight": np.ones((64, 2, 1, 1), np.float32),
             f"{module}.alpha": np.ones((), np.float32)}  # fmt: skip
    save_file(state, path)


def read_safetensors(path):
    with SafetensorsFile(path) as file:
        return [file.read(name) for name in file]


def read_flax(path):
    with FlaxFile(path) as file:
        return [file.read(name) for name in file]


def read_lora(path):
    shapes = {"unet": {"mid_block.attentions.0.proj_in.weight": (64, 64, 1, 1)}, "text_encoder": {}}
    return lora.read_lora(path, 1.0, shapes, 1)


READERS = {
    "safetensors": read_safetensors,
    "adapter": load_adapter_file,
    "lora": read_lora,
    "flax": read_flax,
}


def error_of(kind, path):
    """The message of our error; None if the file is read; any other error goes through."""
    try:
        READERS[kind](path)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", READERS)
def test_nothing_but_our_error_comes_out_of_damaged_files(kind, tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "file.safetensors"
    matrices = {"kf": np.ones((4, 6), np.float32), "vf": np.ones((4, 6), np.float32)}
    if kind == "flax":
        tree = {"conv_in": {"kernel": np.ones((3, 3, 4, 8), np.float32), "bias": np.ones(8)}}
        path.write_bytes(msgpack_serialize(tree))
    elif kind == "lora":
        small_lora(path)
    elif kind == "adapter":
        save_adapter(path, {"mid_block.attn2": matrices}, FusionOptions(), base="mini")
    else:
        save_file({f"{i}.{k}": v for i in range(9) for k, v in matrices.items()}, path)
    READERS[kind](path)
    messages = [
        message for copy in damaged_copies(path, rng, 600) if (message := error_of(kind, copy))
    ]
    assert all("damaged.safetensors" in m and "\n" not in m for m in messages)
    # A digest sees all; without one truncations at least, a flipped bit of a weight not.
    assert len(messages) == 600 if kind == "adapter" else 200 < len(messages) < 600


def test_nothing_but_our_error_comes_out_of_damaged_checkpoints(good_single, tmp_path):
    """The same through the whole loader, with flips that the reader itself does not see."""
    content = good_single.read_bytes()
    length = int.from_bytes(content[:8], "little")
    rng = np.random.default_rng(1)
    path = tmp_path / "model.safetensors"
    loaded = 0
    for _ in range(400):
        copy = bytearray(content)
        copy[int(rng.integers(8, 8 + length))] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(copy)
        if error_of("safetensors", path):
            continue
        loaded += 1
        refused(path, "model.safetensors", tokenizer=good_single.parent / "tokenizer")
        if loaded == 5:
            break
    assert loaded == 5


def test_odd_headers(tmp_path):
    path = tmp_path / "odd.safetensors"

    def write(header, data=b""):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)

    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    write({"a": entry}, bytes(8))
    assert read_safetensors(path)[0].tolist() == [0, 0]
    for header, words in (
        ({"a": {**entry, "shape": [-2]}}, "the entry 'a' makes no sense"),
        ({"a": {**entry, "shape": [True, 2]}}, "the entry 'a' makes no sense"),
        ({"a": {**entry, "shape": [3]}}, "the entry 'a' makes no sense"),
        ({"a": {**entry, "dtype": "Q7"}}, "the entry 'a' makes no sense"),
        ({"a": {**entry, "data_offsets": [0]}}, "the entry 'a' makes no sense"),
        ({"a": 3}, "the entry 'a' makes no sense"),
        ({"a": {**entry, "data_offsets": [4, 12]}}, "not where the others end"),
        ({"a": entry, "b": entry}, "not where the others end"),
        ({}, "it should have 10 bytes and has 18"),
        ({"__metadata__": {"a": 3}}, "metadata are not texts"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"a": 1, "a": 2}', "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", "is not a JSON object"),
    ):
        write(header, bytes(8))
        with pytest.raises(UserError, match=r"odd\.safetensors is not an intact") as error:
            read_safetensors(path)
        assert words in str(error.value)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="it has 0 bytes"):
        read_safetensors(path)
    with pytest.raises(UserError, match="is a folder; name a file"):
        read_safetensors(tmp_path)


# --- the tokenizer and the hub ----------------------------------------------------------------


def test_clips_own_tokenizer_needs_no_download():
    tokenizer = clip_tokenizer()
    assert len(tokenizer) == 49408
    # As the original implementation encodes it.
    ids = tokenizer("a photo of an astronaut").input_ids
    assert ids == [49406, 320, 1125, 539, 550, 18376, 49407]
    assert tokenizer.model_max_length == 77
    assert tokenizer.pad_token_id == 49407


def test_a_single_file_finds_its_tokenizer(good_single, folder, tmp_path):
    path = tmp_path / "alone" / "model.safetensors"
    path.parent.mkdir()
    shutil.copy(good_single, path)
    refused(path, "its text encoder knows 519 tokens, CLIP's tokenizer has 49408")
    base = BaseModel.from_pretrained(path, tokenizer=folder / "tokenizer")
    assert len(base.tokenizer) == 519
    refused(path, "lacks vocab.json", tokenizer=tmp_path)


@pytest.fixture
def cached(good_folder, tmp_path, monkeypatch):
    """The hub's cache as huggingface_hub lays it out, with one model."""
    import huggingface_hub.constants

    cache = tmp_path / "hub"
    snapshot = cache / "models--someone--model" / "snapshots" / ("0" * 40)
    shutil.copytree(good_folder, snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub._snapshot_download.constants, "HF_HUB_CACHE", str(cache))
    return snapshot


def test_hub_names_are_found_in_the_cache_without_a_network(cached, good_single):
    base = BaseModel.from_pretrained("someone/model")
    assert base.source == "someone/model"
    shutil.copy(good_single, cached / "single.safetensors")
    assert hub.download("someone/model/single.safetensors", []) == cached / "single.safetensors"


def test_without_a_network_or_with_a_wrong_name_there_is_one_line(cached):
    refused("someone/other", "someone/other is no file or folder here", "check the name")
    refused("someone/model/none.safetensors", "the hub did not give it")
    assert not hub.looks_like_hub_id("a/b/c/d")


def test_no_network_at_all(tmp_path):
    """Online, with a hub that nothing listens at."""
    program = (
        "from fusionjax.interop import hub\n"
        "try:\n    hub.download('someone/model', [['unet/x.safetensors']])\n"
        "except ValueError as error:\n    print(type(error).__name__, error)\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0",
                   "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}  # fmt: skip
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], env=environment,
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.startswith("UserError someone/model is no file or folder here")
    assert done.stdout.count("\n") == 1
