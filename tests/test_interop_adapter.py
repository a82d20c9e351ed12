"""Adapter files: export and import, what they hold, and what is refused."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from fusionjax.__main__ import main
from fusionjax.backend.flax_unet import AttentionLayer
from fusionjax.errors import UserError
from fusionjax.interop.adapter_file import check_fits, load_adapter_file, save_adapter
from fusionjax.models.adapter import _Imported, load_adapter
from fusionjax.models.checkpoint import Checkpoints
from fusionjax.options import FusionOptions

LAYERS = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2": 8,
    "mid_block.attentions.0.transformer_blocks.0.attn2": 16,
}
OPTIONS = FusionOptions(fusion="decoupled", init="zeros", face_logit_bias=-1.5)
FINGERPRINT = "0123456789abcdef"


def make_params(seed=0):
    rng = np.random.default_rng(seed)
    return {
        layer: {
            name: jnp.asarray(rng.normal(size=(size, 2 * size)), jnp.float32)
            for name in ("kf", "vf")
        }
        for layer, size in LAYERS.items()
    }


def assert_same_bits(params, others):
    assert jax.tree.structure(params) == jax.tree.structure(others)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(others), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture
def run(tmp_path):
    """A run's folder as training leaves it: other weights in the state than in the average."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = {"base": "mini", "base_fingerprint": FINGERPRINT, "fusion": OPTIONS.to_json()}
    (folder / "config.json").write_text(json.dumps(config))
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(100, _Imported(make_params(1)), {})
    checkpoints.save(200, _Imported(make_params(2)), {})
    checkpoints.close()
    return folder


def test_export_and_import_keep_every_bit(run, tmp_path, capsys):
    assert main(["export", str(run), str(tmp_path / "a.safetensors")]) == 0
    assert main(["import", str(tmp_path / "a.safetensors"), str(tmp_path / "back")]) == 0
    assert main(["export", str(tmp_path / "back"), str(tmp_path / "b.safetensors")]) == 0
    assert capsys.readouterr().err == ""
    trained = load_adapter(run)
    for path in ("a.safetensors", "back", "b.safetensors"):
        loaded = load_adapter(tmp_path / path)
        assert_same_bits(jax.tree.map(np.asarray, loaded.params), make_params(2))
        assert loaded.options == OPTIONS
        assert loaded.base == trained.base
        assert loaded.base_fingerprint == FINGERPRINT
    first, second = (tmp_path / f"{name}.safetensors" for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_a_step_can_be_exported(run, tmp_path):
    assert main(["export", str(run / "checkpoints" / "100"), str(tmp_path / "a.safetensors")]) == 0
    assert_same_bits(load_adapter_file(tmp_path / "a.safetensors").params, make_params(1))


def test_exported_file_opens_with_safetensors_alone(run, tmp_path):
    path = tmp_path / "a.safetensors"
    assert main(["export", str(run), str(path)]) == 0
    program = f"""
import json, sys
sys.modules["jax"] = sys.modules["torch"] = sys.modules["fusionjax"] = None
from safetensors import safe_open
with safe_open({str(path)!r}, "np") as file:
    print(file.metadata()["fusionjax"])
    print({{name: file.get_tensor(name).shape for name in file.keys()}})
"""
    out = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    options, shapes = out.stdout.splitlines()
    about = {"base": "mini", "base_fingerprint": FINGERPRINT}
    read = json.loads(options)
    assert len(bytes.fromhex(read.pop("digest"))) == 16
    assert read == {**OPTIONS.to_json(), **about}
    expected = {
        f"{layer}.processor.{name}.weight": (2 * size, size)
        for layer, size in LAYERS.items()
        for name in ("kf", "vf")
    }
    assert eval(shapes) == expected
    with safe_open(path, "np") as file:
        matrix = file.get_tensor(next(iter(expected)))
    first = make_params(2)[next(iter(LAYERS))]["kf"]
    np.testing.assert_array_equal(matrix, np.asarray(first).T)


def layers(sizes=LAYERS):
    return {
        name: AttentionLayer(("x",), 0, features=size, heads=2, head_features=size)
        for name, size in sizes.items()
    }


def test_adapter_of_another_base_is_refused_by_shape_and_warned_of_by_fingerprint(run, recwarn):
    adapter = load_adapter(run)
    check_fits(adapter, layers(), FINGERPRINT)
    check_fits(adapter, layers(), None)
    assert not recwarn.list
    with pytest.warns(UserWarning, match=f"with fingerprint {FINGERPRINT}; this base has beef"):
        check_fits(adapter, layers(), "beef")
    wider = {name: 2 * size for name, size in LAYERS.items()}
    with pytest.raises(UserError, match=r"another base model: down_.* \(8, 16\) in the adapter, "
                                        r"\(16, 32\) in the base"):  # fmt: skip
        check_fits(adapter, layers(wider), FINGERPRINT)
    with pytest.raises(UserError, match=r"mid_block.* has shape \(16, 32\) .* none in the base"):
        check_fits(adapter, layers(dict(list(LAYERS.items())[:1])), FINGERPRINT)
    pair = adapter.params[layer := next(iter(LAYERS))]
    large = adapter._replace(params={**adapter.params, layer: {**pair, "vf": pair["vf"] + 1e5}})
    check_fits(large, layers(), FINGERPRINT, dtype="bfloat16")
    with pytest.raises(UserError, match=r"vf of down.* holds 1e\+05, more than float16 can; use"):
        check_fits(large, layers(), FINGERPRINT, dtype="float16")


def rewrite(path, change, **metadata):
    """Saves an adapter file after a change of its tensors, with other metadata if given."""
    save_adapter(path, make_params(), OPTIONS)
    with safe_open(path, "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = {"fusionjax": file.metadata()["fusionjax"], **metadata}
    change(tensors)
    save_file(tensors, path, metadata)


def test_files_that_are_no_adapters_are_refused(tmp_path):
    path = tmp_path / "wrong.safetensors"
    first = f"{next(iter(LAYERS))}.processor.kf.weight"

    def refused(match, change=lambda tensors: None, **metadata):
        rewrite(path, change, **metadata)
        with pytest.raises(UserError, match=match) as error:
            load_adapter_file(path)
        assert "wrong.safetensors" in str(error.value)
        assert "\n" not in str(error.value)

    refused("the options in its metadata are not a JSON object", fusionjax="[1]")
    refused("its metadata is not JSON", fusionjax="{")
    refused("has the option 'colour', which this version", fusionjax='{"colour": 1}')
    refused("fusion is 'other'; choose one of", fusionjax='{"fusion": "other"}')
    refused("the base in its metadata is not a text", fusionjax='{"base": 3}')
    refused("needs kf and vf of one shape", lambda tensors: tensors.pop(first))
    refused("is no kf or vf", lambda tensors: tensors.update(extra=np.ones(3, np.float32)))
    refused("holds numbers that are not finite", lambda tensors: tensors[first].fill(np.nan))
    refused("holds int32; export", lambda t: t.update({first: np.ones((16, 8), np.int32)}))
    save_file({"lora_unet_conv_in.lora_down.weight": np.ones((2, 2), np.float32)}, path)
    with pytest.raises(UserError, match=r"not an adapter that fusionjax exported; .* be a LoRA"):
        load_adapter_file(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "{}/nowhere", "{}/a.safetensors"], "nowhere' is no adapter; name a run's"),
        (["export", "{}/run", "{}/a.bin"], "a.bin must end in .safetensors"),
        (["export", "{}/run", "{}/taken.safetensors"], "taken.safetensors exists already"),
        (["import", "{}/nowhere.safetensors", "{}/out"], "nowhere.safetensors does not exist"),
        (["import", "{}/taken.safetensors", "{}/out"], "not an intact safetensors file"),
        (["import", "{}/taken.safetensors", "{}/run"], "run exists already"),
    ],
)
def test_errors_are_one_line(run, tmp_path, capsys, arguments, message):
    (tmp_path / "taken.safetensors").write_bytes(b"something")
    assert main([argument.format(tmp_path) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_command_line_runs_as_a_process(run, tmp_path):
    command = [
        sys.executable,
        "-m",
        "fusionjax",
        "export",
        str(run),
        str(tmp_path / "a.safetensors"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'a.safetensors'}\n"
