"""Every kind of LoRA is merged as the package that trains it applies it: LyCORIS's, peft's."""

import copy
import json
import re

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from lycoris.modules.full import FullModule
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from fusionjax.errors import UserError
from fusionjax.interop.lora import read_lora
from fusionjax.interop.lora_kinds import Lora
from tests import torch_reference as reference

LINEAR = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
WINDOW = "down_blocks.0.resnets.0.conv1"  # 3×3
POINT = "mid_block.attentions.0.proj_in"  # 1×1
WIDER = "down_blocks.1.resnets.0.conv1"  # 32 → 64 channels
WEIGHTS, CONVOLUTIONS = (LINEAR, WINDOW, POINT, WIDER), (WINDOW, WIDER)
STRENGTH = 0.6


@pytest.fixture(scope="module")
def unet():
    return reference.randomise(UNet2DConditionModel(**reference.UNET_SMALL), 2)


@pytest.fixture(scope="module")
def shapes(unet):
    return {"unet": {n: tuple(t.shape) for n, t in unet.state_dict().items()}, "text_encoder": {}}


def read(path, shapes, strength=1.0):
    return read_lora(path, strength, shapes, reference.UNET_SMALL["layers_per_block"])["unet"]


def randomised(module, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [
            *module.parameters(),
            *([module.dora_scale] if hasattr(module, "dora_scale") else []),
        ]:
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(0.5 * noise)
        if hasattr(module, "dora_scale"):
            module.dora_scale.abs_().add_(0.5)
    return module.eval()


@pytest.mark.parametrize("strength", [1.0, STRENGTH])
@pytest.mark.parametrize(
    ("kind", "options", "layers"),
    [
        (LoConModule, {}, WEIGHTS),
        (LoConModule, {"use_tucker": True}, CONVOLUTIONS),
        (LohaModule, {}, WEIGHTS),
        (LohaModule, {"use_tucker": True}, CONVOLUTIONS),
        (LokrModule, {"factor": 4}, WEIGHTS),
        (LokrModule, {"factor": 8, "decompose_both": True, "lora_dim": 2}, WEIGHTS),
        (LokrModule, {"factor": 4, "full_matrix": True}, WEIGHTS),
        (LokrModule, {"factor": 4, "use_tucker": True}, CONVOLUTIONS),
        (LoConModule, {"weight_decompose": True}, WEIGHTS),
        (LoConModule, {"weight_decompose": True, "wd_on_out": False}, WEIGHTS),
        (LohaModule, {"weight_decompose": True}, WEIGHTS),
        (LokrModule, {"factor": 4, "weight_decompose": True}, WEIGHTS),
        (LoConModule, {"rs_lora": True}, WEIGHTS),
    ],
)
def test_a_kind_is_merged_as_lycoris_applies_it(
    unet, shapes, tmp_path, kind, options, layers, strength
):
    """LyCORIS's layer, which adds to the original one's output, and ours with the merged weight."""
    state, modules = {}, {}
    for seed, name in enumerate(layers):
        layer = unet.get_submodule(name)
        module = kind(name, layer, strength, **{"lora_dim": 4, "alpha": 3.0, **options})
        modules[name] = randomised(module, seed)
        own = {role: tensor.detach().clone() for role, tensor in module.custom_state_dict().items()}
        state |= {f"lora_unet_{name.replace('.', '_')}.{role}": t for role, t in own.items()}
    save_file(state, tmp_path / "lora.safetensors")
    updates = read(tmp_path / "lora.safetensors", shapes, strength)
    assert updates.keys() == {f"{name}.weight" for name in layers}
    for name, module in modules.items():
        layer = unet.get_submodule(name)
        size = (2, layer.weight.shape[1], *([5, 6] if layer.weight.ndim == 4 else []))
        x = torch.randn(size, generator=torch.Generator().manual_seed(9))
        merged = updates[f"{name}.weight"].merge(layer.weight.numpy())
        assert np.abs(merged - layer.weight.numpy()).max() > 0.05
        with torch.no_grad():
            expected = module(x)
            weight = torch.from_numpy(merged)
            found = (
                torch.nn.functional.linear(x, weight, layer.bias)
                if weight.ndim == 2
                else torch.nn.functional.conv2d(x, weight, layer.bias, padding=layer.padding)
            )
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strength", [1.0, STRENGTH])
def test_whole_differences_and_norms(unet, shapes, tmp_path, strength):
    norms = ("down_blocks.0.resnets.0.norm1", "mid_block.attentions.0.transformer_blocks.0.norm1")
    state, expected = {}, {}
    for seed, name in enumerate((LINEAR, WINDOW, POINT, *norms)):
        kind = NormModule if name in norms else FullModule
        module = randomised(kind(name, unet.get_submodule(name), strength), seed)
        key = f"lora_unet_{name.replace('.', '_')}"
        if kind is NormModule:
            own = {"w_norm": module.w_norm, "b_norm": module.b_norm}
        else:  # before `apply_to`, its weight is the difference
            own = {"diff": module.weight, "diff_b": module.bias}
        state |= {f"{key}.{r}": t.detach().clone() for r, t in own.items() if t is not None}
        weight, bias = module.get_merged_weight(strength)
        expected[f"{name}.weight"] = weight.detach()
        if bias is not None:
            expected[f"{name}.bias"] = bias.detach()
    save_file(state, tmp_path / "full.safetensors")
    updates = read(tmp_path / "full.safetensors", shapes, strength)
    assert updates.keys() == expected.keys()
    assert len([name for name in expected if name.endswith("bias")]) == 4  # to_k has none
    for name, update in updates.items():
        merged = update.merge(unet.state_dict()[name].numpy())
        np.testing.assert_allclose(merged, expected[name], rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def dora(tmp_path_factory):
    """A DoRA that peft made, and the UNet with it; names as diffusers writes them."""
    unet = reference.randomise(UNet2DConditionModel(**reference.UNET_SMALL), 2)
    plain = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    targets = ["attn2.to_k", "proj_in", "conv1"]
    unet.add_adapter(LoraConfig(r=4, lora_alpha=3, use_dora=True, target_modules=targets))
    generator = torch.Generator().manual_seed(5)
    for name, parameter in unet.named_parameters():
        if "lora_" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = 0.5 + noise.abs() if "magnitude" in name else noise / 4
    state = {
        f"unet.{n}": t.detach().clone().contiguous()
        for n, t in get_peft_model_state_dict(unet).items()
    }
    return unet, plain, state


@pytest.mark.parametrize("strength", [1.0, STRENGTH])
def test_a_dora_of_peft_is_merged_like_fuse_lora(dora, shapes, tmp_path, strength):
    unet, plain, state = copy.deepcopy(dora[0]), *dora[1:]  # peft takes no DoRA out exactly
    metadata = {"unet.r": 4, "unet.lora_alpha": 3, "unet.use_dora": True}
    path = tmp_path / "dora.safetensors"
    save_file(state, path, metadata={"lora_adapter_metadata": json.dumps(metadata)})
    updates = read(path, shapes, strength)
    unet.fuse_lora(lora_scale=strength)
    fused = {name.replace(".base_layer", ""): t.clone() for name, t in unet.state_dict().items()}
    unet.unfuse_lora()
    assert len(updates) == 4 + 4 + 8  # attn2.to_k, proj_in, conv1
    for name, update in updates.items():
        merged = update.merge(plain[name].numpy())
        assert np.abs(merged - plain[name].numpy()).max() > 0.05
        np.testing.assert_allclose(merged, fused[name].detach(), rtol=1e-4, atol=1e-5)


def _same(found: dict[str, Lora], expected: dict[str, Lora]) -> None:
    assert found.keys() == expected.keys()
    for name, update in expected.items():
        assert found[name].factor == update.factor
        for role, tensor in update.tensors.items():
            assert (found[name].tensors[role] == tensor).all()


def test_names_of_peft_with_its_adapters_and_wrappers(dora, shapes, tmp_path):
    state = dora[2]
    path = tmp_path / "plain.safetensors"
    save_file(state, path)
    expected = read(path, shapes)
    assert {update.factor for update in expected.values()} == {1.0}  # nothing tells α
    for number, (pattern, new) in enumerate(
        (
            (r"(lora_[AB])\.", r"\1.default_0."),
            (r"(lora_[AB])\.", r"\1.my-name."),
            (r"^unet\.", "unet.base_model.model."),
            (r"^unet\.", "base_model.model."),
            (r"^unet\.", ""),
            (r"(lora_magnitude_vector)", r"\1.default_0.weight"),
        )
    ):
        other = tmp_path / f"{number}.safetensors"
        renamed = {re.sub(pattern, new, name): tensor for name, tensor in state.items()}
        assert renamed.keys() != state.keys()
        save_file(renamed, other)
        _same(read(other, shapes), expected)
    # peft's own folder: α beside, √r for rank-stabilised ones, another α for some.
    beside = {"lora_alpha": 3, "use_rslora": True, "alpha_pattern": {"proj_in": 5}, "r": 4}
    (tmp_path / "adapter_config.json").write_text(json.dumps(beside))
    bare = {f"base_model.model.{n.removeprefix('unet.')}": t for n, t in state.items()}
    save_file(bare, tmp_path / "adapter_model.safetensors")
    for name, update in read(tmp_path / "adapter_model.safetensors", shapes).items():
        assert update.factor == (5 if "proj_in" in name else 3) / 2


def test_embeddings_beside_a_lora_are_told(dora, shapes, tmp_path):
    path = tmp_path / "bundle.safetensors"
    save_file(dora[2], tmp_path / "plain.safetensors")
    save_file(dora[2] | {"bundle_emb.ann.string_to_param.*": torch.ones(2, 64)}, path)
    with pytest.warns(UserWarning, match=r"textual inversion embeddings \(ann\), which are left"):
        found = read(path, shapes)
    _same(found, read(tmp_path / "plain.safetensors", shapes))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
def test_loras_in_few_bits(dora, shapes, tmp_path, dtype):
    path = tmp_path / "few.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in dora[2].items()}, path)
    few = {name: tensor.to(dtype).float() for name, tensor in dora[2].items()}
    save_file(few, tmp_path / "float32.safetensors")
    for name, update in read(path, shapes).items():
        weight = dora[1][name].numpy()
        expected = read(tmp_path / "float32.safetensors", shapes)[name].merge(weight)
        np.testing.assert_array_equal(update.merge(weight), expected)


def test_tensors_that_do_not_fit_each_other(unet, shapes, tmp_path):
    module = randomised(LokrModule(LINEAR, unet.get_submodule(LINEAR), 1, 4, 1, factor=4), 0)
    state = {
        f"lora_unet_{LINEAR.replace('.', '_')}.{role}": tensor.detach().clone()
        for role, tensor in module.custom_state_dict().items()
    }
    path = tmp_path / "lokr.safetensors"
    for role, shape in (("lokr_w1", (4, 5)), ("lokr_w2_b", (3, 16)), ("dora_scale", (65, 1))):
        (name,) = {f"{next(iter(state)).rpartition('.')[0]}.{role}"}
        save_file(state | {name: torch.ones(shape)}, path)
        with pytest.raises(UserError, match="made for another base model") as error:
            read(path, shapes)
        assert "\n" not in str(error.value)
    save_file(state, path)
    assert load_file(path).keys() == state.keys()
    assert len(read(path, shapes)) == 1
