"""A merged LoRA is what PyTorch's `fuse_lora` makes of the same file."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from fusionjax.errors import UserError
from fusionjax.interop import lora as loras
from fusionjax.interop import lora_source, names, original
from fusionjax.models.base import BaseModel
from tests import torch_reference as reference

UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv1", "ff.net.0.proj"]
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]  # kohya's
RANK, ALPHA = 4, 2.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    reference.pipeline(folder / "words").save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def shapes(folder):
    return {
        part: {name: tuple(t.shape) for name, t in load_file(folder / file).items()}
        for part, file in (
            ("unet", "unet/diffusion_pytorch_model.safetensors"),
            ("text_encoder", "text_encoder/model.safetensors"),
        )
    }


@pytest.fixture(scope="module")
def diffusers_lora(folder, tmp_path_factory):
    """A LoRA made by peft and saved by diffusers, with alphas in its metadata."""
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    layers, metadata = {}, {}
    for seed, (model, targets) in enumerate(
        ((pipe.unet, UNET_TARGETS), (pipe.text_encoder, TEXT_TARGETS))
    ):
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets)
        model.add_adapter(config)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data = noise / parameter[0].numel() ** 0.5
        layers[seed] = get_peft_model_state_dict(model)
        metadata[seed] = config.to_dict()
    out = tmp_path_factory.mktemp("lora")
    StableDiffusionPipeline.save_lora_weights(
        out,
        unet_lora_layers=layers[0],
        text_encoder_lora_layers=layers[1],
        unet_lora_adapter_metadata=metadata[0],
        text_encoder_lora_adapter_metadata=metadata[1],
    )
    (path,) = out.glob("*.safetensors")
    return path


@pytest.fixture(scope="module")
def kohya_lora(diffusers_lora):
    """The same update as kohya's trainer names it, with an alpha for each layer."""
    state = {}
    for name, tensor in load_file(diffusers_lora).items():
        part, _, rest = name.partition(".")
        module, _, role = rest.rpartition(".lora_")
        prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[part]
        module = prefix + module.replace(".", "_")
        role = {"A.weight": "lora_down", "B.weight": "lora_up"}[role]
        state[f"{module}.{role}.weight"] = tensor
        state[f"{module}.alpha"] = torch.tensor(3.0)
    path = diffusers_lora.with_name("kohya.safetensors")
    save_file(state, path)
    return path


def fused_by_pytorch(folder, path, scale):
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.load_lora_weights(path.parent, weight_name=path.name)
    pipe.fuse_lora(lora_scale=scale)
    pipe.unload_lora_weights()
    return pipe.unet.state_dict(), pipe.text_encoder.state_dict()


def assert_merged_like(folder, path, scale, argument):
    plain = BaseModel.from_pretrained(folder)
    merged = BaseModel.from_pretrained(folder, lora=[argument])
    changed = 0
    for part, theirs in zip(
        ("unet", "text_encoder"), fused_by_pytorch(folder, path, scale), strict=True
    ):
        before = names.to_torch_state(plain.params[part], jnp.float32)
        for name, ours in names.to_torch_state(merged.params[part], jnp.float32).items():
            expected = theirs[name].numpy()
            deviation = np.abs(ours - expected).max() / np.abs(expected).max()
            assert deviation < 1e-5, name
            changed += np.abs(before[name] - expected).max() > 0.01
    assert changed > 20  # the reference itself did merge
    assert merged.fingerprint != plain.fingerprint


@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_diffusers_lora_is_merged_like_fuse_lora(folder, diffusers_lora, scale):
    argument = str(diffusers_lora) if scale == 1.0 else f"{diffusers_lora}:{scale}"
    assert_merged_like(folder, diffusers_lora, scale, argument)


def test_kohya_lora_is_merged_like_fuse_lora(folder, kohya_lora):
    assert_merged_like(folder, kohya_lora, 0.5, f"{kohya_lora}:0.5")


def read(path, shapes, scale=1.0):
    return loras.read_lora(path, scale, shapes, reference.UNET_SMALL["layers_per_block"])


def test_other_names_of_the_same_lora(shapes, kohya_lora, tmp_path):
    state = load_file(kohya_lora)
    modules = [name.removesuffix(".weight") for name in shapes["unet"] if name.endswith("weight")]
    dotted = {"lora_unet_" + module.replace(".", "_"): module for module in modules}
    table = original.unet_names(shapes["unet"], reference.UNET_SMALL["layers_per_block"])

    def rename(style):
        renamed = {}
        for name, tensor in state.items():
            module, _, role = name.partition(".")
            if module not in dotted:
                renamed[name] = tensor
                continue
            new = dotted[module]
            if style == "original":
                old = table[f"{new}.weight"].removesuffix(".weight")
                renamed[f"lora_unet_{old.replace('.', '_')}.{role}"] = tensor
                continue
            role = role.replace("lora_down", "down").replace("lora_up", "up")
            short = new.rpartition(".attn")[2].partition(".")[2].removesuffix(".0")
            if style == "processor" and short in ("to_q", "to_k", "to_v", "to_out"):
                owner = new.removesuffix(".0").removesuffix(f".{short}")
                key = f"unet.{owner}.processor.{short}_lora"
            else:
                key = f"unet.{new}.lora"
            renamed[f"unet.{new}.alpha" if role == "alpha" else f"{key}.{role}"] = tensor
        return renamed

    expected = read(kohya_lora, shapes)
    for style in ("original", "processor", "dotted"):
        renamed = rename(style)
        assert renamed.keys() != state.keys()
        save_file(renamed, tmp_path / f"{style}.safetensors")
        found = read(tmp_path / f"{style}.safetensors", shapes)
        for part, updates in expected.items():
            assert found[part].keys() == updates.keys()
            for name, update in updates.items():
                other = found[part][name]
                assert other.factor == update.factor == 3.0 / RANK
                assert other.tensors.keys() == update.tensors.keys() == {"up", "down"}
                for role, tensor in update.tensors.items():
                    assert (other.tensors[role] == tensor).all()


def test_several_loras_add_up(folder, shapes, kohya_lora, diffusers_lora):
    plain = BaseModel.from_pretrained(folder)
    both = BaseModel.from_pretrained(folder, lora=[kohya_lora, f"{diffusers_lora}:-0.5"])
    before, after = (names.to_torch_state(m.params["unet"], jnp.float32) for m in (plain, both))
    first, second = read(kohya_lora, shapes)["unet"], read(diffusers_lora, shapes, -0.5)["unet"]
    assert first.keys() == second.keys()
    for name in before:
        expected = before[name]
        if name in first:
            expected = second[name].merge(first[name].merge(expected))
            assert np.abs(expected - before[name]).max() > 0.01
        np.testing.assert_array_equal(after[name], expected)


def test_scale_is_parsed(tmp_path):
    parse = lora_source.parse
    assert parse("a.safetensors") == ("a.safetensors", 1.0)
    assert parse("a.safetensors:0.25") == parse("a.safetensors=0.25") == ("a.safetensors", 0.25)
    assert parse(("a.safetensors", 0.25)) == ("a.safetensors", 0.25)
    assert parse("owner/name/file.safetensors=-1") == ("owner/name/file.safetensors", -1.0)
    strange = tmp_path / "a:b.safetensors"
    strange.write_bytes(b"")
    assert parse(strange) == (str(strange), 1.0)
    assert parse(f"{strange}:0.5") == (str(strange), 0.5)
    for wrong in ("a.safetensors:much", "a.safetensors:nan", "a.safetensors:inf"):
        with pytest.raises(UserError, match=r"write FILE or FILE:0\.8"):
            parse(wrong)


def _write(path, change, source):
    state = load_file(source)
    change(state)
    save_file(state, path)
    return path


def test_loras_that_do_not_fit_are_refused(shapes, kohya_lora, tmp_path):
    first = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"

    def refused(change, match):
        path = _write(tmp_path / "wrong.safetensors", change, kohya_lora)
        with pytest.raises(UserError, match=match) as error:
            read(path, shapes)
        assert "wrong.safetensors" in str(error.value)
        assert "\n" not in str(error.value)

    def wider(state):
        state[f"{first}.lora_down.weight"] = torch.ones(RANK, 99)

    def lonely(state):
        del state[f"{first}.lora_up.weight"]

    def stranger(state):
        state["lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"] = torch.ones(2, 2)

    def half_a_loha(state):
        state[f"{first}.hada_w1_a"] = torch.ones(2, 2)

    def oft(state):
        state[f"{first}.oft_blocks"] = torch.ones(2, 2, 2)

    def two_adapters(state):
        for name in ("one", "two"):
            state[f"unet.mid_block.attentions.0.proj_in.lora_A.{name}.weight"] = torch.ones(2, 2)

    def nan(state):
        state[f"{first}.lora_up.weight"][0, 0] = torch.nan

    def whole_numbers(state):
        state[f"{first}.lora_up.weight"] = torch.ones(64, RANK, dtype=torch.int32)

    refused(wider, r"made for another base model: .*\[4, 99\].* do not fit")
    refused(lonely, r"without a partner: 1 \(lora_unet_mid_block")
    refused(stranger, r"seems to be an SDXL LoRA; tensors without a place: 1 \(lora_te2")
    refused(half_a_loha, r"without a partner: 3 \(lora_unet_mid_block")
    refused(oft, r"of a kind that cannot be merged here \(.*oft_blocks\)")
    refused(two_adapters, "for the same place: it holds several LoRAs")
    refused(nan, "not finite")
    refused(whole_numbers, "int32, not real numbers")
    refused(lambda state: state.clear(), "is not a LoRA for this base model")
