"""What a denoising step costs: diffusers' Flax UNet against ours, with and without faces.

    python benchmarks/unet.py             # SD 1.5's size, random weights, 512²: 10 minutes, 12 GiB
    python benchmarks/unet.py --small     # a quick look, under a minute

One process measures everything, so that ratios hold on a noisy machine: after a warm-up the
variants take turns. Memory is given twice: the temporaries that XLA plans, and on Linux the
resident memory above that before the step, because on a CPU some of XLA's kernels allocate scratch
memory of their own. Prints a Markdown table and writes JSON.
"""

import argparse
import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from diffusers import FlaxUNet2DConditionModel

from fusionjax.unet import FusionUNet

SMALL = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 64,
}


def variants(
    unet: FlaxUNet2DConditionModel,
    batch: int,
    pixels: int,
    text_features: int,
    references: Sequence[int],
    reference_pass: bool,
) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Each measured program by name: a function and its arguments."""
    size = pixels // 8
    key = jax.random.key(0)
    ours = FusionUNet(unet)
    shapes = jax.eval_shape(unet.init_weights, jax.eval_shape(lambda: key))
    params = random_weights(shapes)
    fusion = ours.init(key, params)
    latents = jax.random.normal(key, (batch, size, size, 4), unet.dtype)
    text = jax.random.normal(key, (batch, 77, text_features), unet.dtype)
    timesteps = jnp.full(batch, 500)

    def diffusers(params: Any, latents: Any, timesteps: Any, text: Any) -> Any:
        nchw = jnp.moveaxis(latents, -1, 1)
        return unet.apply({"params": params}, nchw, timesteps, text).sample

    programs: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "diffusers' Flax UNet": (diffusers, (params, latents, timesteps, text)),
        "ours, no faces": (ours, (params, latents, timesteps, text)),
    }
    for count in references:
        photos = jnp.zeros((1, count, size, size, 4), unet.dtype)
        states = jax.eval_shape(ours.reference_states, params, photos, text[:1])
        states = {name: jax.random.normal(key, s.shape, s.dtype) for name, s in states.items()}
        faces = ours.faces(fusion, states, jnp.ones((1, count)), height=size, width=size)
        # As the pipeline does it: the picture has faces, its unconditional twin has none.
        programs[f"ours, {count} cached reference{'s' * (count > 1)}"] = (
            ours,
            (params, latents, timesteps, text, faces),
        )
    if reference_pass:
        programs["reference pass, 1 photo"] = (
            ours.reference_states,
            (params, jnp.zeros((1, 1, size, size, 4), unet.dtype), text[:1]),
        )
    return programs


def random_weights(shapes: Any) -> Any:
    """Weights of the right scale, made one by one: the UNet's own initialisation is slow."""
    leaves, tree = jax.tree.flatten(shapes)
    made = []
    for index, leaf in enumerate(leaves):
        scale = 0.1 if leaf.ndim == 1 else (leaf.size / leaf.shape[-1]) ** -0.5
        made.append(scale * jax.random.normal(jax.random.key(index), leaf.shape, leaf.dtype))
    return jax.tree.unflatten(tree, made)


def compile_program(function: Callable[..., Any], arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Compiles, and reports what the compiler knows."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return {
        "program": compiled,
        "compile_seconds": seconds,
        "temporary_mb": memory.temp_size_in_bytes / 1e6,
        "gflops": cost.get("flops", float("nan")) / 1e9,
    }


class ResidentPeak:
    """The largest resident memory of this process inside a `with`, above that at its start."""

    def __enter__(self) -> "ResidentPeak":
        self._start = self.megabytes = _resident_megabytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.megabytes = max(self.megabytes, _resident_megabytes())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.megabytes -= self._start


def _resident_megabytes() -> float:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return float("nan")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Compiles all variants, times them in turns, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", action="store_true", help="a small UNet and 128² pictures")
    parser.add_argument("--batch", type=int, default=2, help="pictures a step (guidance takes 2)")
    parser.add_argument("--repeats", type=int, default=2, help="timed turns after the warm-up")
    parser.add_argument(
        "--references", type=int, nargs="*", default=[1, 2, 4], help="how many cached references"
    )
    parser.add_argument("--reference-pass", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/unet.json"))
    args = parser.parse_args()

    config = SMALL if args.small else {"cross_attention_dim": 768}
    pixels = 128 if args.small else 512
    unet = FlaxUNet2DConditionModel(dtype=jnp.dtype(args.dtype), **config)
    rows = {}
    programs = variants(
        unet,
        args.batch,
        pixels,
        config["cross_attention_dim"],
        args.references,
        args.reference_pass,
    )
    for name, (function, arguments) in programs.items():
        rows[name] = compile_program(function, arguments) | {"seconds": []}
        print(f"compiled: {name}, {rows[name]['compile_seconds']:.0f} s", flush=True)
    for turn in range(args.repeats + 1):
        for name, (_, arguments) in programs.items():
            start = time.perf_counter()
            with ResidentPeak() as peak:
                jax.block_until_ready(rows[name]["program"](*arguments))
            rows[name]["resident_mb"] = peak.megabytes
            if turn:
                rows[name]["seconds"].append(time.perf_counter() - start)
        print(f"turn {turn} of {args.repeats} done", flush=True)

    for row in rows.values():
        del row["program"]
        row["seconds_a_step"] = statistics.median(row.pop("seconds"))
    print_table(rows)
    report = {"device": jax.devices()[0].device_kind, **vars(args), "rows": rows}
    args.output.write_text(json.dumps(report, indent=2, default=str) + "\n")


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    """A Markdown table; ratios are to diffusers' UNet and to ours without faces."""
    theirs, ours = list(rows.values())[:2]
    print("\n| program | s a step | of diffusers' | of ours without faces | temporaries MB "
          "| of diffusers' | resident MB | of diffusers' | GFLOP | compile s |")  # fmt: skip
    print("| --- " * 10 + "|")
    for name, row in rows.items():
        print(
            f"| {name} | {row['seconds_a_step']:.2f} "
            f"| {row['seconds_a_step'] / theirs['seconds_a_step']:.2f} "
            f"| {row['seconds_a_step'] / ours['seconds_a_step']:.2f} "
            f"| {row['temporary_mb']:.0f} | {row['temporary_mb'] / theirs['temporary_mb']:.2f} "
            f"| {row['resident_mb']:.0f} | {row['resident_mb'] / theirs['resident_mb']:.2f} "
            f"| {row['gflops']:.0f} | {row['compile_seconds']:.0f} |"
        )


if __name__ == "__main__":
    main()
