"""Everything but `interop/torch_*` works where torch is not installed, in bounded memory.

    python tests/without_torch.py

is meant for an environment that has no torch; elsewhere it forbids importing it, which is how
`test_base_without_torch.py` runs it. It stops at the first thing that fails, and prints what it
measured.
"""

# ruff: noqa: E402  (torch is forbidden before anything else is imported)
import importlib.abc
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


class NoTorch(importlib.abc.MetaPathFinder):
    """Makes `import torch` fail as it does where torch is not installed."""

    def find_spec(self, fullname, path=None, target=None):
        """Refuses torch; knows nothing of the rest."""
        if fullname == "torch" or fullname.startswith("torch."):
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


sys.modules["torch"] = None  # type: ignore[assignment]  # for those who only look for it
sys.meta_path.insert(0, NoTorch())

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

import fusionjax
from fusionjax.__main__ import main
from fusionjax.interop import configs, names, original
from fusionjax.models.base import BaseModel
from fusionjax.unet import FusionUNet
from tests import tiny

COMMANDS = (
    ["fusionjax", "evaluate", "--help"],
    ["fusionjax", "cache", "--help"],
    ["train", "--help"],
    ["sample", "--help"],
)


def memory(kind: str) -> int:
    """A line of /proc/self/status in bytes: VmRSS, what is used now, VmHWM, the most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


def single_file(path: Path) -> None:
    """A checkpoint in the original layout, float16, of 60 million parameters."""
    unet = {**tiny.UNET, "block_out_channels": [256, 512], "layers_per_block": 2}
    vae = {**tiny.VAE, "block_out_channels": [32, 32, 32, 32], "norm_num_groups": 32}
    modules = {
        original.UNET_PREFIX: configs.unet_from_config(unet, "unet"),
        original.VAE_PREFIX: configs.vae_from_config(vae, "vae"),
        original.TEXT_PREFIX: configs.text_encoder_from_config(tiny.TEXT, "text"),
    }
    state = {}
    for prefix, module in modules.items():
        wanted = names.torch_names(module)
        table = {name: name for name in wanted}
        if prefix == original.UNET_PREFIX:
            table = original.unet_names(wanted, module.layers_per_block)
        elif prefix == original.VAE_PREFIX:
            table = original.vae_names(wanted, len(module.block_out_channels))
        for name, (place, shape) in wanted.items():
            tensor = np.full(names.to_torch_shape(place, shape), 0.01, np.float16)
            state[prefix + table[name]] = tensor
    save_file(state, path)


def check(folder: Path) -> dict[str, float]:
    """Loads, computes, saves, exports and imports; returns the memory that loading took."""
    tiny.tiny_base().save_pretrained(folder / "base", jnp.float32)
    base = BaseModel.from_pretrained(folder / "base")
    assert base.fingerprint == tiny.tiny_base().fingerprint
    text = base.encode_text(base.params, base.tokenize(["a fan"]))
    latents = base.encode_image(base.params, np.zeros((1, 64, 64, 3), np.float32))
    image = base.decode(base.params, latents)
    noise = FusionUNet(base.unet)(base.params["unet"], latents, jnp.array([5]), text)
    assert all(bool(jnp.isfinite(x).all()) for x in (text, latents, image, noise))

    single_file(folder / "big.safetensors")
    before = memory("VmRSS")
    big = BaseModel.from_pretrained(
        folder / "big.safetensors", tokenizer=folder / "base" / "tokenizer"
    )
    taken = memory("VmHWM") - before
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(big.params)]
    assert sum(sizes) > 200e6
    assert taken < 1.3 * sum(sizes) + max(sizes), (taken, sum(sizes), max(sizes))

    params, options = tiny.tiny_fusion()
    from fusionjax.interop.adapter_file import save_adapter

    first, second = folder / "first.safetensors", folder / "second.safetensors"
    save_adapter(first, params, options, base="mini", base_fingerprint=base.fingerprint)
    assert main(["import", str(first), str(folder / "run")]) == 0
    assert main(["export", str(folder / "run"), str(second)]) == 0
    assert first.read_bytes() == second.read_bytes()

    for name in fusionjax.__all__:
        assert getattr(fusionjax, name) is not None
    assert not [name for name, m in sys.modules.items() if name.split(".")[0] == "torch" and m]
    return {"loading took": taken, "weights": sum(sizes), "largest tensor": max(sizes)}


def check_commands() -> None:
    """Every command line starts."""
    for command in COMMANDS:
        subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True, cwd=ROOT)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(check(Path(folder))))
    if "--no-commands" not in sys.argv:
        check_commands()
