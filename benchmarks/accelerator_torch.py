"""The guided UNet step of `accelerator_fast.py` in PyTorch, in a process without JAX's device.

    python benchmarks/accelerator_torch.py [--small] [--dtype bfloat16]

Prints one JSON object a line: steps a second of diffusers' UNet at batch 1 (two answers a step),
eager and compiled, and with a person by this project's PyTorch adapter.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["JAX_PLATFORMS"] = "cpu"  # should anything import it: the card is PyTorch's here
STEPS = 10
SMALL = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 4,
}


def tell(name: str, **values: Any) -> None:
    """One row."""
    print(json.dumps({"name": name, **values}), flush=True)


def main() -> None:
    """Measures what is possible here."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", action="store_true", help="a small UNet; a CPU will do")
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    try:
        import torch
        from diffusers import UNet2DConditionModel
    except Exception as error:  # also where one of them is broken
        tell("all", skip=f"PyTorch with diffusers cannot be imported: {error}"[:300])
        return
    if not torch.cuda.is_available() and not args.small:
        tell("all", skip="PyTorch sees no card")
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, args.dtype)
    torch.manual_seed(0)
    side, words = (16, 64) if args.small else (64, 768)
    config: dict[str, Any] = {
        "sample_size": side,
        "cross_attention_dim": words,
        "attention_head_dim": 8,
    }
    if args.small:
        config |= SMALL
    with torch.device("meta"):  # their own initialisation takes minutes
        unet: Any = UNet2DConditionModel(**config)
    unet = unet.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    for name, parameter in unet.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            parameter.normal_(0, parameter[0].numel() ** -0.5)
    text = torch.randn(2, 77, words, device=device, dtype=dtype)
    times = torch.linspace(900, 0, STEPS, device=device).long()

    def rate(call: Callable[..., Any], layout: Any) -> float:
        start = torch.randn(1, 4, side, side, device=device, dtype=dtype)
        start = start.to(memory_format=layout)

        def steps() -> None:
            x = start
            for t in times:
                both = torch.cat([x, x]).to(memory_format=layout)
                without, with_all = call(both, t, encoder_hidden_states=text).sample.chunk(2)
                x = x - (without + 7.5 * (with_all - without)) / STEPS
            if device == "cuda":
                torch.cuda.synchronize()

        steps()
        seconds: list[float] = []
        while len(seconds) < 3 or (sum(seconds) < 3 and len(seconds) < 20 and not args.small):
            began = time.perf_counter()
            steps()
            seconds.append(time.perf_counter() - began)
        return STEPS / statistics.median(seconds)

    def measure(name: str, call: Callable[..., Any], layout: Any) -> None:
        try:
            began = time.perf_counter()
            found = rate(call, layout)
            peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
            took = time.perf_counter() - began
            tell(name, steps_per_second=found, all_seconds=took, peak_bytes_so_far=peak,
                 torch=torch.__version__, device=device)  # fmt: skip
        except Exception as error:
            tell(name, error=f"{type(error).__name__}: {error}"[:300])

    with torch.inference_mode():
        measure("eager, no person", unet, torch.contiguous_format)
        _with_person(unet, side, lambda: measure("eager, 1 photo", unet, torch.contiguous_format))
    name = "compiled, channels last, no person"
    if device == "cuda":
        unet = unet.to(memory_format=torch.channels_last)
        with torch.no_grad():
            measure(name, torch.compile(unet), torch.channels_last)
    else:
        tell(name, skip="PyTorch sees no card")


def _with_person(unet: Any, side: int, then: Callable[[], None]) -> None:
    """Calls `then` while a person of one drawn photo is shown."""
    try:
        import ml_dtypes
        import numpy as np

        from fusionjax.identity import Identity
        from fusionjax.interop.torch_diffusers import TorchFusion

        rng = np.random.default_rng(0)
        weights, states = {}, {}
        levels = len(unet.config.block_out_channels)
        for name, module in unet.named_modules():
            if name.endswith(".attn2"):
                shape = module.to_q.weight.shape
                weights[name] = {
                    key: (rng.standard_normal(shape) * shape[1] ** -0.5).astype(np.float32)
                    for key in ("kf", "vf")
                }
                block, number = name.split(".")[:2]
                level = levels - 1  # the middle block
                if block == "down_blocks":
                    level = int(number)
                elif block == "up_blocks":
                    level -= int(number)
                tokens = (side >> level) ** 2
                states[name] = rng.standard_normal((1, tokens, shape[1])).astype(ml_dtypes.bfloat16)
        person = Identity(
            states=states,
            latents=np.zeros((1, side, side, 4), np.float32),
            thumbnails=np.zeros((1, 128, 128, 3), np.uint8),
            weights=(1.0,),
            base_fingerprint="",
        )
        fusion = TorchFusion(SimpleNamespace(unet=unet), weights, "concat", 0.0)
        fusion.show([person], guided=True)
    except Exception as error:
        tell("eager, 1 photo", error=f"{type(error).__name__}: {error}"[:300])
        return
    then()
    fusion.unload()


if __name__ == "__main__":
    main()
