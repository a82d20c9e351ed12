"""What is broken, odd or hostile ends in one line, whatever the border: the smallest inputs."""

import dataclasses
import gc
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file

from fusionjax import schema
from fusionjax.__main__ import main as fusionjax_main
from fusionjax.diffusion.noise_schedule import NoiseSchedule
from fusionjax.errors import UserError, told
from fusionjax.files import locked, open_regular, whole_file
from fusionjax.identity import Identity
from fusionjax.interop import configs
from fusionjax.interop.adapter_file import load_adapter_file, read_adapter, save_adapter
from fusionjax.interop.tokenizer import load_tokenizer
from fusionjax.models import controlnet
from fusionjax.models.adapter import import_adapter, load_adapter
from fusionjax.models.checkpoint import Checkpoints, DamagedCheckpoint
from fusionjax.options import FusionOptions
from fusionjax.photos import MAX_PIXELS, prepare_photo, read_photo
from fusionjax.safetensors_file import SafetensorsFile
from sample.__main__ import main
from sample.formats import read_picture, read_requests, read_scene
from sample.inputs import checksum
from sample.job import Job
from tests import tiny
from tests.checkpoint_writer import state_of
from train.main import read_config
from train.resume import is_continued

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


def test_keys_of_half_a_character():
    refused(lambda: NoiseSchedule.from_config({"\ud800": 1}), "has the key", "half a character")


def test_names_that_no_file_can_have(capsys):
    for words in (["--output", "x" * 5000], ["--scene", "x" * 5000], ["--requests", "a\0b"],
                  ["--save-identity", "x" * 5000], ["--fusion", "x" * 5000], ["--base", "a\0b"],
                  ["--faces", "x" * 5000], ["--from", "x" * 5000]):  # fmt: skip
        assert main([*words, "--prompt", "x"]) == 2
        told_ = capsys.readouterr().err
        assert told_.startswith("error: ")
        assert len(told_) <= 510
    for words in (["export", "x" * 5000, "y"], ["import", "y", "x" * 5000], ["export", "a\0", "y"],
                  ["cache", "--data", "x" * 5000, "--output", "y"],
                  ["evaluate", "--output", "x" * 5000]):  # fmt: skip
        assert fusionjax_main(words) == 2
        told_ = capsys.readouterr().err
        assert told_.strip().splitlines()[-1].startswith("error: ")
        assert len(told_) <= 510
    with pytest.raises(SystemExit, match="2"):
        fusionjax_main(["import", "x", "--", "--"])


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


# --- checkpoints ----------------------------------------------------------------------------------


# After an error Orbax leaves readers behind that complain when they are collected.
orbax_complains = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine .* was never awaited"
)


@pytest.fixture
def steps(tmp_path):
    """A folder with steps 1 and 2, of different numbers."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep_last=3)
    for step in (1, 2):
        checkpoints.save(step, state_of(step), {"next": step})
    checkpoints.close()
    yield tmp_path / "checkpoints"
    gc.collect()  # here, and not in another test


def newest(folder, *, read_only=True):
    checkpoints = Checkpoints(folder, read_only=read_only)
    try:
        return checkpoints.newest(lambda step: checkpoints.restore(step, state_of(0))[0])
    finally:
        checkpoints.close()


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.slow
@orbax_complains
@pytest.mark.parametrize(
    "harm",
    [
        lambda step: [_flip(p) for p in step.rglob("*") if "/d/" in str(p) and p.is_file()],
        lambda step: [p.unlink() for p in step.rglob("manifest.ocdbt")],
        lambda step: [p.write_bytes(b"") for p in step.rglob("_METADATA")],
        lambda step: [p.write_bytes(p.read_bytes()[:40]) for p in step.rglob("metadata")],
        lambda step: shutil.rmtree(step / "state"),
        lambda step: [shutil.rmtree(p) for p in step.iterdir() if p.is_dir()],
    ],
)
def test_a_damaged_step_is_told_and_the_one_before_is_taken(steps, harm):
    harm(steps / "2")
    with pytest.warns(UserWarning, match=r"step 2 in .* is damaged .*; step 1 is taken"):
        step, state = newest(steps, read_only=False)
    assert (step, float(state.ema["x"][0, 0])) == (1, 1.0)
    assert [p.name[:9] for p in steps.iterdir() if p.name != "1"] == ["damaged-2"]
    assert newest(steps)[0] == 1
    for path in (p for p in (steps / "1").rglob("*") if "/d/" in str(p) and p.is_file()):
        _flip(path)
    refused(lambda: newest(steps), "step 1 in", "no other step is whole")


def test_a_step_whose_date_is_not_where_it_should_be(steps):
    (steps / "2" / "_CHECKPOINT_METADATA").write_text('"x"')
    refused(lambda: newest(steps), "2/_CHECKPOINT_METADATA is damaged", "delete the folder")


@orbax_complains
def test_what_is_no_step_is_none(steps):
    (steps / "999").mkdir()
    (steps / "500").write_text("")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert newest(steps)[0] == 2


@pytest.mark.slow
@orbax_complains
def test_no_flipped_bit_is_read_silently(steps):
    """A hundred, wherever in the step's files."""
    rng = np.random.default_rng(0)
    files = [path for path in (steps / "2").rglob("*") if path.is_file()]
    expected = jax.tree.map(np.asarray, state_of(2))
    for _ in range(100):
        path = files[rng.integers(len(files))]
        before = path.read_bytes()
        if not before:
            continue
        data = bytearray(before)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        checkpoints = Checkpoints(steps, read_only=True)
        try:
            read, _ = checkpoints.restore(2, state_of(0))
            jax.tree.map(np.testing.assert_array_equal, read, expected)
        except DamagedCheckpoint:
            pass
        checkpoints.close()
        path.write_bytes(before)


@pytest.mark.slow
def test_no_flipped_bit_of_an_adapter_or_a_person_is_read_silently(tmp_path):
    """A thousand each, wherever in the file."""
    params, options = tiny.tiny_fusion()
    save_adapter(tmp_path / "adapter.safetensors", params, options, base="x")
    tensors, _ = _identity()
    Identity(
        {"a": tensors["states/a"]}, tensors["latents"], tensors["thumbnails"], (1.0,), "f"
    ).save(tmp_path / "person.safetensors")
    rng = np.random.default_rng(0)
    for name, read in (("adapter", load_adapter_file), ("person", Identity.load)):
        path = tmp_path / f"{name}.safetensors"
        good = path.read_bytes()
        read(path)
        header = 8 + int.from_bytes(good[:8], "little")
        for number in range(1000):
            # Half of them in the header, which is a small part of the file.
            place = rng.integers(header if number % 2 else len(good))
            data = bytearray(good)
            data[place] ^= 1 << rng.integers(8)
            path.write_bytes(data)
            refused(lambda read=read, path=path: read(path), path.name)


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture
def begun(tmp_path):
    """The folder of a run that has only just begun, and its configuration."""
    folder = tmp_path / "run"
    config = read_config(
        ["mini", "--output", str(folder), "--steps", "7", "--optimizer.schedule", "constant"]
    )
    folder.mkdir()
    config.write(folder / "config.json", base_fingerprint="f")
    return folder, config


def test_the_folder_alone_names_the_run(begun):
    folder, config = begun
    again = read_config(["--output", str(folder)])
    assert again == config
    assert is_continued(again, folder)
    assert read_config([f"--output={folder}", "--steps", "9"]).steps == 9
    assert read_config(["--output", str(folder / "other")]).steps != 7


def test_a_constant_schedule_may_go_on_for_longer(begun):
    folder, config = begun
    assert is_continued(dataclasses.replace(config, steps=9), folder)
    refused(lambda: is_continued(dataclasses.replace(config, steps=5), folder), "steps 7")
    cosine = dataclasses.replace(config.optimizer, schedule="cosine")
    config = dataclasses.replace(config, optimizer=cosine)
    config.write(folder / "config.json")
    refused(lambda: is_continued(dataclasses.replace(config, steps=9), folder), "steps 7")


@pytest.mark.parametrize("text", ["", "{", "[]", DEEP, '{"kind": 3}', '{"kind": "AdapterRun"'])
def test_a_runs_configuration_that_is_broken(begun, text):
    folder, config = begun
    (folder / "config.json").write_text(text)
    refused(lambda: read_config(["--output", str(folder)]), "config.json")
    refused(lambda: load_adapter(folder), str(folder))
    if text[-1:] != "}":
        refused(lambda: is_continued(config, folder), "config.json")


@pytest.mark.parametrize("name", ["adapter.safetensors", "metrics.jsonl", "checkpoints"])
def test_somebody_elses_files_are_not_replaced(tmp_path, name):
    config = read_config(["mini", "--output", str(tmp_path)])
    (tmp_path / name).write_text("mine")
    refused(lambda: is_continued(config, tmp_path), f"holds {name} and is no run")


def test_two_processes_do_not_write_one_run(tmp_path):
    script = (
        "import sys; from fusionjax.files import locked; from pathlib import Path\n"
        "with locked(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(UserError, match=f"written by process {other.pid} on"), locked(tmp_path):
            pass
        other.kill()
    with locked(tmp_path):  # a dead process holds nothing
        pass


def test_what_is_imported_is_whole_or_not_there(tmp_path, monkeypatch):
    params, options = tiny.tiny_fusion()
    save_adapter(tmp_path / "a.safetensors", params, options, base="x", base_fingerprint="f")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            import_adapter(tmp_path / "a.safetensors", tmp_path / "run")
    assert os.listdir(tmp_path) == ["a.safetensors"]
    import_adapter(tmp_path / "a.safetensors", tmp_path / "run")
    assert load_adapter(tmp_path / "run").base_fingerprint == "f"
    refused(lambda: import_adapter(tmp_path / "a.safetensors", tmp_path / "run"), "exists already")


@pytest.mark.parametrize(
    "words",
    [
        ["mini", "--text-dropout", "nan"],
        ["mini", "--optimizer.learning-rate", "nan"],
        ["mini", "--optimizer.learning-rate", "inf"],
        ["mini_vae", "--norm-num-groups", "0"],
        ["mini_vae", "--latent-noise", "nan"],
        ["mini_base", "--attention-heads", "0"],
        ["mini_base", "--block-out-channels", "0", "0", "0"],
    ],
)
def test_runs_numbers(words):
    refused(lambda: read_config(words))


@pytest.mark.parametrize(
    "words",
    [
        ["cache", "--data", "x", "--batch-size", "0", "--output", "{out}"],
        ["cache", "--data", "x", "--views", "-1", "--output", "{out}"],
        ["cache", "--data", "x", "--most-skipped", "nan", "--output", "{out}"],
        ["cache", "--data", "x", "--output", "/dev/null"],
        ["evaluate", "--steps", "0", "--output", "{out}"],
        ["evaluate", "--guidance-scale", "nan", "--output", "{out}"],
        ["evaluate", "--scheduler", "x", "--output", "{out}"],
        ["evaluate", "--face-strength", "1e39", "--output", "{out}"],
    ],
)
def test_commands_refuse_before_anything_is_loaded(words, tmp_path, capsys):
    assert fusionjax_main([word.format(out=tmp_path) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.slow
def test_calls_from_python():
    """In a process of its own, where types are not checked at run time."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.odd_calls"],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    ends = json.loads(done.stdout.splitlines()[-1])
    assert len(ends["bad"]) > 70
    others = {call: end for call, end in ends["bad"].items() if not end.startswith("UserError: ")}
    assert not others
    assert all(10 < len(end) <= 511 for end in ends["bad"].values())
    assert set(ends["good"].values()) == {"fine"}
