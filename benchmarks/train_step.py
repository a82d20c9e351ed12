"""What a training step of the adapter costs on a CPU: ours against PyTorch diffusers.

    python benchmarks/train_step.py             # SD 1.5's size, random weights, 512²: 5 min, 16 GiB
    python benchmarks/train_step.py --small     # a quick look, one minute

Both do the same work in float32 from the same weights, latents, noise and text states: the photo
passes the frozen UNet without a gradient, the noised picture passes it and sees the photo, and kf
and vf alone get gradients, clipping, AdamW and a running average. PyTorch runs diffusers' UNet
with its scaled dot-product attention, and what the last cross-attention does not need of the photo
is not computed.

One process measures both, in turns, so that the ratio holds on a noisy machine; both use every
core, and the memory allocator is set as `python -m train` sets it. CPU seconds are those of all
threads: other programs on the machine disturb them less. Needs the extra `torch`. Prints a Markdown
table and how far the losses differ, and writes JSON.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from flax.traverse_util import unflatten_dict

from fusionjax.interop import configs, names
from fusionjax.unet import FusionUNet
from train.config import OptimizerConfig
from train.main import CPU_SETTINGS
from train.step import init_state, make_optimizer, make_step

FULL = {"sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768}
SMALL = {
    "sample_size": 32,
    "block_out_channels": (64, 128),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 8,
    "cross_attention_dim": 64,
}
STEPS = 1000  # of the run whose learning rate both follow
OPTIMIZER = OptimizerConfig(warmup_steps=0, schedule="constant")

Weights = dict[str, dict[str, np.ndarray]]
Arrays = dict[str, np.ndarray]


class Ours:
    """The step of `python -m train`, compiled."""

    def __init__(self, unet: UNet2DConditionModel, batch: Arrays) -> None:
        module = configs.unet_from_config(dict(unet.config), "the UNet")
        self.frozen = to_jax(unet, module)
        self.fusion = FusionUNet(module)
        params = self.fusion.init(jax.random.key(0), self.frozen)
        self.start: Weights = jax.device_get(params)
        optimizer = make_optimizer(OPTIMIZER, STEPS)
        self.state = init_state(params, optimizer, "float32")
        self.batch = {
            name: jnp.asarray(np.moveaxis(x, 1, -1) if x.ndim == 4 else x)
            for name, x in batch.items()
        }
        step = make_step(self._loss, optimizer, OPTIMIZER, "float32")
        began = time.perf_counter()
        lowered = jax.jit(step, donate_argnums=0).lower(
            self.state, self.frozen, self.batch, jax.random.key(0)
        )
        self.program = lowered.compile()
        self.compile_seconds = time.perf_counter() - began

    def _loss(self, params: Any, frozen: Any, batch: Any, key: Any) -> Any:
        del key
        size = batch["noisy"].shape[1:3]
        photo, empty = batch["photo"][:, None], batch["empty"]
        states = self.fusion.reference_states(frozen, photo, empty)
        strength = jnp.ones(photo.shape[:2])
        faces = self.fusion.faces(params, states, strength, height=size[0], width=size[1])
        answer = self.fusion(frozen, batch["noisy"], batch["t"], batch["text"], faces)
        return jnp.square(answer - batch["noise"]).mean(), {}

    def step(self) -> float:
        """One optimizer step; returns the loss."""
        self.state, metrics = self.program(self.state, self.frozen, self.batch, jax.random.key(0))
        return float(metrics["loss"])


class Torch:
    """The same step in PyTorch."""

    def __init__(self, unet: UNet2DConditionModel, batch: Arrays, start: Weights) -> None:
        self.unet = unet
        self.batch = {name: torch.from_numpy(x) for name, x in batch.items()}
        self.states: dict[str, torch.Tensor] = {}
        self.looking = False
        self.trained: list[torch.Tensor] = []
        processors = dict(unet.attn_processors)
        layers = list(start)
        for name, pair in start.items():
            kf, vf = (torch.tensor(pair[key].T.copy(), requires_grad=True) for key in ("kf", "vf"))
            self.trained += [kf, vf]
            processors[f"{name}.processor"] = _Fuse(self, name, kf, vf, last=name == layers[-1])
        unet.set_attn_processor(processors)
        self.averages = [p.detach().clone() for p in self.trained]
        self.optimizer = torch.optim.AdamW(
            self.trained,
            OPTIMIZER.learning_rate,
            (OPTIMIZER.beta1, OPTIMIZER.beta2),
            weight_decay=OPTIMIZER.weight_decay,
        )
        self.done = 0

    def step(self) -> float:
        """One optimizer step; returns the loss."""
        batch = self.batch
        self.looking = True
        with torch.no_grad(), contextlib.suppress(_AllSeen):
            self.unet(batch["photo"], 0, batch["empty"])
        self.looking = False
        answer = self.unet(batch["noisy"], batch["t"], batch["text"]).sample
        loss = F.mse_loss(answer, batch["noise"])
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, OPTIMIZER.max_grad_norm)
        self.optimizer.step()
        decay = min(OPTIMIZER.ema_decay, (1 + self.done) / (10 + self.done))
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.trained, 1 - decay)
        self.done += 1
        return float(loss.detach())


class _AllSeen(Exception):
    """The photo's pass has reached its last cross-attention."""


class _Fuse:
    """A cross-attention that keeps its input of the photo's pass, and shows it in the other."""

    def __init__(
        self, run: Torch, name: str, kf: torch.Tensor, vf: torch.Tensor, *, last: bool
    ) -> None:
        self.run, self.name, self.kf, self.vf, self.last = run, name, kf, vf, last

    def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, **_: Any):
        if self.run.looking:
            self.run.states[self.name] = hidden_states
            if self.last:
                raise _AllSeen
        key, value = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        if not self.run.looking:
            seen = self.run.states[self.name]
            key = torch.cat([key, F.linear(seen, self.kf)], 1)
            value = torch.cat([value, F.linear(seen, self.vf)], 1)
        q, k, v = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for x in (attn.to_q(hidden_states), key, value)
        )
        out = F.scaled_dot_product_attention(q, k, v)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def random_unet(config: dict[str, Any]) -> UNet2DConditionModel:
    """A frozen UNet with weights of a trained network's scale."""
    with torch.device("meta"):  # its own initialisation takes minutes
        unet = UNet2DConditionModel(**config)
    unet = unet.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in unet.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
    return unet


def to_jax(unet: UNet2DConditionModel, module: Any) -> Any:
    """Its weights for ours."""
    state = unet.state_dict()
    return unflatten_dict(
        {
            path: jnp.asarray(names.to_flax_layout(path, state[key].numpy(), len(shape)))
            for key, (path, shape) in names.torch_names(module).items()
        }
    )


def random_batch(config: dict[str, Any], size: int) -> Arrays:
    """Noised pictures, photos and text states, channels first."""
    rng = np.random.default_rng(0)
    side, features = config["sample_size"], config["cross_attention_dim"]
    shapes = {
        "noisy": (size, 4, side, side),
        "noise": (size, 4, side, side),
        "photo": (size, 4, side, side),
        "text": (size, 77, features),
        "empty": (size, 77, features),
    }
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return arrays | {"t": np.full(size, 500, np.int32)}


def use_train_allocator() -> None:
    """Starts this program again with the memory allocator that `python -m train` uses."""
    name = "GLIBC_TUNABLES"
    if sys.platform == "linux" and name not in os.environ:
        os.environ[name] = CPU_SETTINGS[name]
        os.execv(sys.executable, [sys.executable, *sys.argv])


def main() -> None:
    """Builds both, times them in turns, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", action="store_true", help="a small UNet and 256² pictures")
    parser.add_argument("--batch", type=int, default=1, help="pictures a step")
    parser.add_argument("--repeats", type=int, default=2, help="timed turns after the warm-up")
    parser.add_argument("--channels-last", action="store_true", help="PyTorch's other layout")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    use_train_allocator()
    name = "train_step_small.json" if args.small else "train_step.json"
    output = args.output or Path(__file__).parent / name

    config = SMALL if args.small else FULL
    unet, batch = random_unet(config), random_batch(config, args.batch)
    ours = Ours(unet, batch)
    memory = ours.program.memory_analysis()
    print(f"ours compiled in {ours.compile_seconds:.0f} s", flush=True)
    if args.channels_last:
        unet = unet.to(memory_format=torch.channels_last)
    ways = {"PyTorch": Torch(unet, batch, ours.start), "ours": ours}
    clocks = {"s": time.perf_counter, "CPU s": time.process_time}
    spent: dict[str, dict[str, list[float]]] = {c: {name: [] for name in ways} for c in clocks}
    losses: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.repeats + 1):
        for name, way in ways.items():
            began = {c: clock() for c, clock in clocks.items()}
            losses[name].append(way.step())
            took = {c: clock() - began[c] for c, clock in clocks.items()}
            said = ", ".join(f"{value:.2f} {c}" for c, value in took.items())
            print(f"turn {turn} of {args.repeats}, {name}: {said}", flush=True)
            for c, value in took.items():
                if turn:
                    spent[c][name].append(value)

    medians = {
        c: {name: statistics.median(values) for name, values in of_clock.items()}
        for c, of_clock in spent.items()
    }
    ratios = {c: of_clock["ours"] / of_clock["PyTorch"] for c, of_clock in medians.items()}
    difference = max(abs(a / b - 1) for a, b in zip(*losses.values(), strict=True))
    print("\n| a training step |" + "".join(f" {c} | of PyTorch's |" for c in clocks))
    print("| --- " * (1 + 2 * len(clocks)) + "|")
    for name in ways:
        columns = (f"{m[name]:.2f} | {m[name] / m['PyTorch']:.2f}" for m in medians.values())
        print(f"| {name} | " + " | ".join(columns) + " |")
    print(f"\nThe losses differ by at most {difference:.0e} of their value.")
    print(f"Temporaries of ours: {memory.temp_size_in_bytes / 1e6:.0f} MB.")
    report = {
        **vars(args),
        "threads": torch.get_num_threads(),
        "spent": spent,
        "ratios": ratios,
        "losses": losses,
        "loss_difference": difference,
        "temporary_mb": memory.temp_size_in_bytes / 1e6,
        "compile_seconds": ours.compile_seconds,
    }
    output.write_text(json.dumps(report, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
