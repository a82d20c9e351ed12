"""What a picture of one person costs: ours against PyTorch diffusers.

    python benchmarks/picture.py             # SD 1.5's size, random weights, 512²: 15 min, 16 GiB
    python benchmarks/picture.py --small     # a quick look, two minutes

Three ways to the same kind of picture, ten steps of DPM-Solver++ with guidance, from prompt to
pixels:

* PyTorch: diffusers' UNet without a person;
* PyTorch, literal: the paper as it reads, the photo passes the UNet in every step;
* ours: the person encoded before (their identity is cached), faces in the guided branch.

One process measures everything, in turns, so that ratios hold on a noisy machine; all use every
core. Needs the extra `torch`. Prints a Markdown table and writes JSON.
"""

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from flax.traverse_util import unflatten_dict
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.models.clip.tokenization_clip import bytes_to_unicode

from fusionjax.diffusion.noise_schedule import NoiseSchedule
from fusionjax.interop import configs, names
from fusionjax.models.base import BaseModel
from fusionjax.pipeline import FusionPipeline
from fusionjax.unet import FusionUNet

FULL = {
    "unet": {"sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768},
    "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "levels": 4},
    "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
             "num_attention_heads": 12},
}  # fmt: skip
SMALL = {
    "unet": {
        "sample_size": 16,
        "block_out_channels": (64, 128),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 8,
        "cross_attention_dim": 64,
    },
    "vae": {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1, "levels": 4},
    "text": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 2},
}  # fmt: skip
PROMPT = "a person in a garden"
GUIDANCE = 7.5


class Torch:
    """The three models in PyTorch, with random weights."""

    def __init__(self, size: dict[str, dict[str, Any]]) -> None:
        vae = dict(size["vae"])
        levels = vae.pop("levels")
        vae |= {
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
            "sample_size": size["unet"]["sample_size"] * 8,
            "latent_channels": 4,
        }
        with torch.device("meta"):  # their own initialisation takes minutes
            self.unet = UNet2DConditionModel(**size["unet"])
            self.vae = AutoencoderKL(**vae)
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(vocab_size=514, bos_token_id=512, eos_token_id=513, **size["text"])
        ).eval()
        self.unet, self.vae = (fill_randomly(model) for model in (self.unet, self.vae))
        self.tokenizer = letters()

    @torch.no_grad()
    def picture(self, steps: int, start: np.ndarray, fusion: "Literal | None") -> np.ndarray:
        """From prompt to pixels."""
        ids = self.tokenizer(
            ["", PROMPT], padding="max_length", max_length=77, return_tensors="pt"
        ).input_ids
        text = self.text_encoder(ids).last_hidden_state
        scheduler = DPMSolverMultistepScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        )
        scheduler.set_timesteps(steps)
        x = torch.from_numpy(start)
        for t in scheduler.timesteps:
            if fusion is not None:
                fusion.look(t, text[:1])
            negative, positive = self.unet(torch.cat([x, x]), t, text).sample.chunk(2)
            x = scheduler.step(negative + GUIDANCE * (positive - negative), t, x).prev_sample
        return self.vae.decode(x / self.vae.config.scaling_factor).sample.numpy()

    def to_jax(self) -> BaseModel:
        """The same weights for ours."""
        modules = {
            "unet": configs.unet_from_config(dict(self.unet.config), "the UNet"),
            "vae": configs.vae_from_config(dict(self.vae.config), "the VAE"),
            "text_encoder": configs.text_encoder_from_config(
                self.text_encoder.config.to_dict(), "the text encoder"
            ),
        }
        params = {}
        for name, module in modules.items():
            state = getattr(self, name).state_dict()
            params[name] = unflatten_dict(
                {
                    path: jnp.asarray(names.to_flax_layout(path, state[key].numpy(), len(shape)))
                    for key, (path, shape) in names.torch_names(module).items()
                }
            )
        return BaseModel(
            tokenizer=self.tokenizer, params=params, schedule=NoiseSchedule(), **modules
        )


class Literal:
    """The paper as it reads: in every step the photo, noised alike, passes the UNet."""

    def __init__(self, models: Torch, photo: np.ndarray, weights: dict[str, Any]) -> None:
        self.models = models
        self.photo = torch.from_numpy(photo)
        self.noise = torch.randn(self.photo.shape, generator=torch.Generator().manual_seed(0))
        self.alphas = torch.from_numpy(NoiseSchedule().alphas_cumprod.copy())
        self.states: dict[str, torch.Tensor] = {}
        self.looking = False
        self.original = models.unet.attn_processors
        self.fusing = dict(self.original)
        for name, pair in weights.items():
            kf, vf = (torch.from_numpy(np.array(pair[key]).T.copy()) for key in ("kf", "vf"))
            self.fusing[f"{name}.processor"] = _Fuse(self, name, kf, vf)

    def put_in(self) -> None:
        """Replaces the cross-attention of the base."""
        self.models.unet.set_attn_processor(dict(self.fusing))

    def look(self, t: torch.Tensor, empty: torch.Tensor) -> None:
        """Passes the photo and keeps every cross-attention's input."""
        a = self.alphas[int(t)]
        self.looking = True
        self.models.unet(a.sqrt() * self.photo + (1 - a).sqrt() * self.noise, t, empty)
        self.looking = False

    def remove(self) -> None:
        """Puts the base's own attention back."""
        self.models.unet.set_attn_processor(dict(self.original))


class _Fuse:
    def __init__(self, fusion: Literal, name: str, kf: torch.Tensor, vf: torch.Tensor) -> None:
        self.fusion, self.name, self.kf, self.vf = fusion, name, kf, vf

    def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, **_: Any):
        if self.fusion.looking:
            self.fusion.states[self.name] = hidden_states
        q, k, v = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for x in (
                attn.to_q(hidden_states),
                attn.to_k(encoder_hidden_states),
                attn.to_v(encoder_hidden_states),
            )
        )
        if self.fusion.looking:
            out = F.scaled_dot_product_attention(q, k, v)
        else:  # the guided branch sees the face
            kf, vf = (
                (self.fusion.states[self.name] @ w.T)
                .unflatten(-1, (attn.heads, -1))
                .transpose(1, 2)
                for w in (self.kf, self.vf)
            )
            negative = F.scaled_dot_product_attention(q[:1], k[:1], v[:1])
            positive = F.scaled_dot_product_attention(
                q[1:], torch.cat([k[1:], kf], 2), torch.cat([v[1:], vf], 2)
            )
            out = torch.cat([negative, positive])
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def fill_randomly(model: torch.nn.Module) -> torch.nn.Module:
    """Weights of a trained network's scale for a model on the meta device."""
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            fan_in = parameter[0].numel()
            parameter.normal_(0, fan_in**-0.5, generator=generator)
    return model


def letters() -> CLIPTokenizer:
    """A tokenizer of letters; what words mean does not matter here."""
    single = list(bytes_to_unicode().values())
    words = [*single, *(x + "</w>" for x in single), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocab, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocab.write_text(json.dumps({word: i for i, word in enumerate(words)}))
        merges.write_text("#version: 0.2\n")
        return CLIPTokenizer(str(vocab), str(merges), model_max_length=77)


def timed(way: Callable[[], Any]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    way()
    return time.perf_counter() - began


def main() -> None:
    """Builds the models, times the three ways in turns, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", action="store_true", help="small models and 128² pictures")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=2, help="timed turns after the warm-up")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    name = "picture_small.json" if args.small else "picture.json"
    output = args.output or Path(__file__).parent / name

    models = Torch(SMALL if args.small else FULL)
    base = models.to_jax()
    fusion = FusionUNet(base.unet)
    weights = fusion.init(jax.random.key(0), base.params["unet"])
    pipe = FusionPipeline(base, weights, fusion.options, devices=jax.devices()[:1])
    side = pipe.photo_side
    face = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    person = pipe.encode_identity(face, crop="none")
    photo = np.moveaxis(person.latents, -1, 1)
    grid = side // 8
    start = np.random.default_rng(1).standard_normal((1, 4, grid, grid), np.float32)

    paper = Literal(models, photo, weights)

    def literal(steps: int) -> Any:
        paper.put_in()
        result = models.picture(steps, start, paper)
        paper.remove()
        return result

    def ours(steps: int) -> Any:
        return pipe(
            PROMPT,
            [person],
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            latents=np.moveaxis(start, 1, -1),
        ).images

    # Each way and the steps of its warm-up: ours is compiled for a number of steps.
    ways: dict[str, tuple[Callable[[int], Any], int]] = {
        "PyTorch, no person": (lambda steps: models.picture(steps, start, None), 1),
        "PyTorch, literal: photo in every step": (literal, 1),
        "ours, identity cached": (ours, args.steps),
    }
    for way, steps in ways.values():
        way(steps)
    compiled = pipe.runner.compile_seconds
    print(f"warm; ours compiled in {compiled:.0f} s, which no picture below contains", flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.repeats):
        for name, (way, _) in ways.items():
            seconds[name].append(timed(functools.partial(way, args.steps)))
        print(f"turn {turn + 1} of {args.repeats} done", flush=True)
    encoding = timed(lambda: pipe.encode_identity(face, crop="none"))
    assert pipe.runner.compile_seconds == compiled, "nothing was compiled while timing"

    medians = {name: statistics.median(values) for name, values in seconds.items()}
    plain, literally, own = medians.values()
    print(f"\n| a picture of one person, {args.steps} steps | s | of PyTorch without a person "
          "| of the literal |")  # fmt: skip
    print("| --- " * 4 + "|")
    for name, value in medians.items():
        print(f"| {name} | {value:.1f} | {value / plain:.2f} | {value / literally:.2f} |")
    print(f"\nOnce for a person, before: encoding the identity, {encoding:.1f} s")
    report = {
        **vars(args),
        "seconds": medians,
        "of_plain": own / plain,
        "of_literal": own / literally,
        "encoding_seconds": encoding,
        "compile_seconds": compiled,
    }
    output.write_text(json.dumps(report, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
