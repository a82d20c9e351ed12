"""What is broken, odd or hostile ends in one line, whatever the border: the smallest inputs."""

import io
import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file

from fusionjax import schema
from fusionjax.diffusion.noise_schedule import NoiseSchedule
from fusionjax.errors import UserError, told
from fusionjax.files import open_regular, whole_file
from fusionjax.identity import Identity
from fusionjax.interop import configs
from fusionjax.interop.adapter_file import read_adapter
from fusionjax.interop.tokenizer import load_tokenizer
from fusionjax.models import controlnet
from fusionjax.options import FusionOptions
from fusionjax.photos import MAX_PIXELS, prepare_photo, read_photo
from fusionjax.safetensors_file import SafetensorsFile
from sample.__main__ import main
from sample.formats import checksum, read_picture, read_requests, read_scene
from sample.job import Job
from tests import tiny

DEEP = "[" * 100_000
HUGE = 10**400


def refused(call, *words):
    """The message of the error that a call ends in."""
    with pytest.raises(UserError) as error:
        call()
    message = str(error.value)
    assert len(message) <= 500
    assert message.isprintable()
    for word in words:
        assert word in message
    return message


# --- values ---------------------------------------------------------------------------------------


def test_messages_are_short_whatever_is_in_them():
    nested = [1]
    for _ in range(40):
        nested = [nested] * 40  # 10^64 numbers, if it were written out
    assert len(told(nested)) <= 81
    assert told(10**5000) == "a whole number of 16610 bits"
    assert str(UserError("a\nb\ud800\x1b")) == "a\\nb\\ud800\\x1b"
    assert len(str(UserError("x" * 10**6))) == 500


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        (True, int, "x is True; it must be a whole number"),
        (1.0, int, "x is 1; it must be a whole number"),
        ("1", float, "x is '1'; it must be a number"),
        (HUGE, float, "x: a number is out of range"),
        (float("nan"), schema.real(0, 1), "x is nan; it must be a number >= 0.0"),
        ({"a": ["b", 3]}, dict[str, list[str]], "x: [...][1] is 3; it must be a text"),
        (None, list[int], "x is None; it must be a list"),
    ],
)
def test_values_of_another_type(value, kind, words):
    refused(lambda: schema.typed(value, kind, "x"), words)


def test_numpys_numbers_are_numbers():
    assert type(schema.typed(np.int64(64), int | None, "height")) is int
    assert schema.typed(np.float32(2.5), schema.real(0, 3), "x") == 2.5


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": 3},
        {"prompt": "\ud800"},
        {"prompt": "x" * 3_000_000},
        {"seed": None},
        {"seed": True},
        {"guidance_scale": 1e30},
        {"guidance_scale": HUGE},
        {"guidance_scale": "7"},
        {"face_strength": 1e39},
        {"layer_strength": {"a": float("nan")}},
        {"height": "64"},
        {"height": [[[[1] * 50] * 50] * 50] * 50},
        {"num_inference_steps": 1.5},
        {"people": 5},
        {"people": [[]]},
        {"people": [{"fresh": 1, "strength": "x"}]},
        {"faces": ["a\0b"]},
        {"faces": ["x" * 5000]},
    ],
)
def test_jobs(options):
    refused(lambda: Job.from_mapping(options))


# --- configurations -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "config"),
    [
        (configs.unet_from_config, {"attention_head_dim": None}),
        (configs.unet_from_config, {"down_block_types": 5}),
        (configs.unet_from_config, {"down_block_types": ["DownBlock2D"]}),
        (configs.unet_from_config, {"block_out_channels": [1, 2]}),
        (configs.unet_from_config, {"block_out_channels": [8, 8, 8, 8]}),
        (configs.unet_from_config, {"freq_shift": float("nan")}),
        (configs.unet_from_config, {"layers_per_block": 10**9}),
        (configs.vae_from_config, {"scaling_factor": 0}),
        (configs.vae_from_config, {"norm_num_groups": "x"}),
        (configs.vae_from_config, {"norm_num_groups": 0}),
        (configs.text_encoder_from_config, {"hidden_act": "x"}),
        (configs.text_encoder_from_config, {"vocab_size": 10**12}),
        (configs.text_encoder_from_config, {"num_attention_heads": 7}),
        (controlnet.module_from_config, {"conditioning_embedding_out_channels": None}),
        (controlnet.module_from_config, {"attention_head_dim": None}),
    ],
)
def test_models_configurations(build, config):
    refused(lambda: build(config, "config.json"), "config.json: ", next(iter(config)))


@pytest.mark.parametrize(
    "config",
    [
        {"num_train_timesteps": 10**9},
        {"num_train_timesteps": "x"},
        {"beta_end": 0.5},
        {"beta_end": float("nan")},
        {"prediction_type": None},
    ],
)
def test_noise_schedules(config):
    refused(lambda: NoiseSchedule.from_config(config), next(iter(config)))


@pytest.mark.parametrize(
    "options",
    [{"face_logit_bias": []}, {"face_logit_bias": HUGE}, {"reference": 3}, {"unknown": 1}],
)
def test_adapters_options(options):
    refused(lambda: FusionOptions.from_json(options))


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture
def pipe(tmp_path):
    """A named pipe that nobody writes to."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def test_only_regular_files_are_opened_and_none_is_waited_for(pipe):
    for path in (pipe, "/dev/zero", "/nowhere", "a\0b", "x" * 5000, pipe.parent):
        refused(lambda path=path: open_regular(path))
    for reader in (read_photo, SafetensorsFile, Identity.load, read_scene, schema.read_json):
        refused(lambda reader=reader: reader(pipe), "no regular file")


def test_a_file_is_whole_whoever_writes_it_at_once(tmp_path):
    """Three processes write one file 300 times each; whoever reads it sees all of one."""
    path = tmp_path / "file"
    script = (
        "import sys; from fusionjax.files import write_whole; from pathlib import Path\n"
        "for _ in range(300): write_whole(Path(sys.argv[1]), sys.argv[2] * 100_000)"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(path), letter]) for letter in "abc"
    ]
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            text = path.read_text()
            assert len(text) == 100_000
            assert text.count(text[0]) == 100_000
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert os.listdir(tmp_path) == ["file"]


def test_a_name_is_taken_once(tmp_path):
    (tmp_path / "a").write_text("first")
    with (
        pytest.raises(FileExistsError),
        whole_file(tmp_path / "a", replace=False) as beside,
    ):
        beside.write_text("second")
    assert (tmp_path / "a").read_text() == "first"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("shape", [[0, 2**62], [0] * 40, [2**40, 2**40, 0]])
def test_tensors_that_numpy_cannot_hold(tmp_path, shape):
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    refused(lambda: SafetensorsFile(path), "makes no sense")


def test_a_header_that_is_too_long(tmp_path):
    path = tmp_path / "long.safetensors"
    with path.open("wb") as file:
        file.write((60_000_000).to_bytes(8, "little"))
        file.truncate(60_000_100)
    refused(lambda: SafetensorsFile(path), "its header has 60,000,000 bytes")


def _identity(**changes):
    tensors = {
        "states/a": np.zeros((1, 4, 8), ml_dtypes.bfloat16),
        "latents": np.zeros((1, 8, 8, 4), np.float32),
        "thumbnails": np.zeros((1, 16, 16, 3), np.uint8),
    }
    about = {
        "kind": "identity",
        "version": 1,
        "weights": [1.0],
        "base_fingerprint": "f",
        "reference": "clean",
    }
    tensors |= {name: value for name, value in changes.items() if name in tensors}
    about |= {name: value for name, value in changes.items() if name in about}
    return {name: x for name, x in tensors.items() if x is not None}, json.dumps(about)


@pytest.mark.parametrize(
    "changes",
    [
        {"latents": np.zeros((), np.float32)},
        {"latents": None},
        {"latents": np.full((1, 8, 8, 4), np.nan, np.float32)},
        {"states/a": np.full((1, 4, 8), np.inf, np.float32)},
        {"states/a": np.zeros((1, 4), np.float32)},
        {"states/a": np.zeros((), np.float32)},
        {"thumbnails": np.zeros((1, 16, 16, 3), np.float32)},
        {"weights": [HUGE]},
        {"weights": ["1"]},
        {"weights": []},
        {"weights": [-1.0]},
        {"reference": None},
        {"version": HUGE},
    ],
)
def test_identity_files(tmp_path, changes):
    tensors, about = _identity(**changes)
    path = tmp_path / "person.safetensors"
    save_file(tensors, path, metadata={"fusionjax": about})
    refused(lambda: Identity.load(path), "person.safetensors")


@pytest.mark.parametrize("text", [DEEP, "{", "[]", json.dumps({"base": 3})])
def test_adapters_metadata(tmp_path, text):
    path = tmp_path / "adapter.safetensors"
    save_file({}, path, metadata={"fusionjax": text})
    refused(lambda: read_adapter(path), "adapter.safetensors")


def test_an_adapter_in_bfloat16_is_read(tmp_path):
    matrix = np.ones((4, 4), ml_dtypes.bfloat16)
    names = [f"a.attn2.processor.{name}.weight" for name in ("kf", "vf")]
    save_file(dict.fromkeys(names, matrix), tmp_path / "a.safetensors", {"fusionjax": "{}"})
    assert read_adapter(tmp_path / "a.safetensors").weights["a.attn2"]["kf"].dtype == matrix.dtype


@pytest.mark.parametrize(
    "config",
    [{"vocab_file": "/dev/zero"}, {"vocab_file": 1}, {"tokenizer_file": "pipe"}, {"name": None}],
)
def test_a_tokenizer_follows_no_path(tmp_path, pipe, config):
    tiny.tiny_base().tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    assert len(load_tokenizer(tmp_path)) == len(tiny.tiny_base().tokenizer)


# --- photos ---------------------------------------------------------------------------------------


def test_only_formats_on_the_list_are_opened(tmp_path):
    """PostScript would start Ghostscript."""
    with (tmp_path / "photo.jpg").open("wb") as file:
        Image.new("RGB", (64, 64)).save(file, "EPS")
    refused(lambda: read_photo(tmp_path / "photo.jpg"), "is not a picture that can be read here")


@pytest.mark.parametrize("content", [b"", b"P6\n", b"II*\0\x08\0\0\0\0\0\0\0\0\0", b"\x89PNG\r\n"])
def test_broken_photos(tmp_path, content):
    (tmp_path / "photo").write_bytes(content)
    refused(lambda: read_photo(tmp_path / "photo"), "photo")


def test_photos_of_other_kinds(tmp_path):
    refused(lambda: read_photo(Image.new("La", (64, 64))), "the image is damaged")
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "PNG")
    assert read_photo(io.BytesIO(file.getvalue())).getpixel((0, 0)) == (255, 0, 0)
    text = PngInfo()
    text.add_text("x", "y" * 2_000_000, zip=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "text.png", pnginfo=text)
    refused(lambda: prepare_photo(tmp_path / "text.png", 64, "none"), "text.png is damaged")


def test_a_small_file_with_many_pixels(tmp_path):
    side = int(MAX_PIXELS**0.5) + 1
    Image.new("1", (side, side)).save(tmp_path / "large.png")
    refused(lambda: read_photo(tmp_path / "large.png"), "more than 50 million pixels")


# --- scenes, requests, pictures' texts ------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        "prompt: 2001-99-99",
        "seed: 0x_",
        "seed: !!int ''",
        "a: &a [1,1]\nb: &b [*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b]\nheight: [*c,*c,*c,*c]",
        "\0",
        "prompt: !!python/object/apply:os.system ['true']",
    ],
)
def test_scenes(tmp_path, text):
    (tmp_path / "scene.yaml").write_text(text)
    refused(lambda: read_scene(tmp_path / "scene.yaml"), "scene.yaml")


def test_a_bad_row_is_a_row(tmp_path):
    bad = [
        '{"id":"a\\u0000b","prompt":"x"}',
        '{"prompt":"\\ud800"}',
        DEEP,
        '{"prompt":"x","guidance_scale":1' + "0" * 400 + "}",
        '{"prompt":"x","guidance_scale":1' + "0" * 5000 + "}",
        '{"id":[],"prompt":"x"}',
        '{"id":"../x","prompt":"x"}',
        '{"prompt":"x","faces":"nobody.jpg"}',
        "3",
        '{"prompt":"' + "x" * 2_000_000 + '"}',
    ]
    good = ['{"prompt":"x"}'] * 9
    rows = [row for pair in zip(good, bad, strict=False) for row in pair] + bad[len(good) :]
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(rows))
    read = list(read_requests(path, Job()))
    assert len([row for row in read if row.job]) == 9
    failed = [row for row in read if row.job is None and row.error]
    assert len(failed) >= len(bad)
    assert all(row.error and len(row.error) <= 500 for row in failed)


def test_given_and_made_ids_cannot_meet(tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_text('{"id":"row0002","prompt":"x"}\n{"prompt":"y"}\n')
    names = [row.name for row in read_requests(path, Job()) if row.job]
    assert names == ["row0002", "row0002_"]


def _picture(path, job, files):
    text = PngInfo()
    text.add_itxt("fusionjax", json.dumps({"version": 2, "job": job, "files": files, "models": {}}))
    Image.new("RGB", (64, 64)).save(path, pnginfo=text)
    return path


def test_a_picture_cannot_have_private_files_read(tmp_path, monkeypatch):
    """Nor does it tell whether they exist."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir(), here.mkdir()
    monkeypatch.chdir(here)
    Image.new("RGB", (64, 64)).save(home / "private.png")
    for name in ("private.png", "nothing.png"):
        private = str(home / name)
        path = _picture(here / "a.png", {"prompt": "x", "image": private}, {})
        refused(lambda path=path: read_picture(path, trust=False), "without its digest", "--trust")
        path = _picture(here / "b.png", {"prompt": "x", "image": private}, {private: "0" * 16})
        refused(lambda path=path: read_picture(path, trust=False), "outside the current folder")
    path = _picture(here / "c.png", {"prompt": "x", "people": [{"faces": [private]}]}, {})
    refused(lambda: read_picture(path, trust=False), "without its digest")


@pytest.mark.parametrize("text", [DEEP, "{", '{"version": 2, "job": 3}', "null"])
def test_pictures_texts(tmp_path, text):
    about = PngInfo()
    about.add_itxt("fusionjax", text)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png", pnginfo=about)
    refused(lambda: read_picture(tmp_path / "a.png"), "a.png")


def test_what_a_picture_names_near_by_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save(tmp_path / "me.png")
    sums = {str(tmp_path / "me.png"): checksum(tmp_path / "me.png")}
    job = {"prompt": "x", "people": [{"faces": list(sums)}, {"fresh": 1, "faces": []}]}
    path = _picture(tmp_path / "a.png", job, sums)
    assert read_picture(path, trust=False).people[0].faces == tuple(sums)


@pytest.mark.parametrize("words", [["--scene", "scene.yaml"], ["--fusion", "adapter.safetensors"]])
def test_nothing_is_downloaded_that_a_file_names(tmp_path, monkeypatch, words, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scene.yaml").write_text("{prompt: x, base: somebody/model}")
    metadata = {"fusionjax": json.dumps({"base": "somebody/model"})}
    save_file({}, tmp_path / "adapter.safetensors", metadata=metadata)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "'somebody/model', which is not here and would be downloaded" in error
    assert "--trust" in error
