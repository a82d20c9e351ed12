"""Whose is a coarse token that lies in two people's masks? Measured on drawn groups of three.

    python -m benchmarks.neighbours --output neighbours.json        # ten minutes on two cores

A token of a coarse layer stands for many pixels. Equation 7 takes a token for a mask's if any of
its pixels is (`any`), so one on the border of two masks is both's, and sees nobody. Here that is
held against the masks' mean over the token, which closes it to each by the other's share (`mean`),
and against giving it to whoever covers most of it (`most`). The people are the validation split's.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from jaxtyping import Array, Float

from fusionjax import masks as masking
from fusionjax.backend.compilation import use_compilation_cache
from fusionjax.command import run_command
from fusionjax.embedded import MINI_FUSION
from fusionjax.evaluation.evaluate import open_pipeline
from fusionjax.evaluation.measure import TYPICAL_BOX
from fusionjax.evaluation.painting import Painting, generate
from fusionjax.evaluation.recogniser import Recogniser
from fusionjax.files import write_whole
from fusionjax.generation.request import Request
from fusionjax.mini import drawing, people
from train.main import use_cpu_settings

GROUP = 3
ARMS = ("any", "mean", "most")
_reduce_by_any = masking.reduce_masks


def reduced(
    arm: str, masks: Float[Array, "b i H W"], grid: tuple[int, int], cell: Any = None
) -> Float[Array, "b i q"]:
    """Masks at a layer's grid, as `fusionjax.masks.reduce_masks`, by one of `ARMS`."""
    any_of_it = _reduce_by_any(masks, grid, cell)
    if arm == "any":
        return any_of_it
    means = reduce(masks, "b i (h y) (w x) -> b i h w", "mean", h=grid[0], w=grid[1])
    means = rearrange(means, "b i h w -> b i (h w)")
    if arm == "mean":
        return means
    return jnp.where(means == means.max(1, keepdims=True), any_of_it, 0)


def measure(fusion: Path, groups: int) -> dict[str, Any]:
    """Paints the groups by each arm.

    Args:
        fusion: the adapter.
        groups: how many.

    Returns:
        By arm, and for the drawn groups: the share of faces that are nearest to who belongs there
        (of three), and their distance to them.
    """
    judge = Recogniser.from_pretrained(None)
    everybody = people.people("validation", groups * GROUP, 0)
    side = open_pipeline(None, fusion).photo_side

    def circumstance(rng: np.random.Generator) -> people.Circumstance:
        return people.random_circumstance(rng, style="plain")

    photos = [
        drawing.draw(person, circumstance(np.random.default_rng([0, 1, number])), side)
        for number, person in enumerate(everybody)
    ]
    known = judge.embed(photos, [TYPICAL_BOX] * len(photos)).reshape(groups, GROUP, -1)
    scenes = []
    for number in range(groups):
        who = tuple(everybody[GROUP * number : GROUP * (number + 1)])
        rng = np.random.default_rng([0, 2, number])
        scenes.append(
            drawing.draw_scene(who, [circumstance(rng) for _ in who], rng, side, identity_share=0)
        )

    def scores(images: list[Any]) -> dict[str, float]:
        boxes = [tuple(map(float, box)) for box in drawing.scene_boxes(GROUP)]
        heads = [image for image in images for _ in boxes], boxes * len(images)
        found = judge.embed(*heads).reshape(groups, GROUP, -1)
        distances = 1 - np.einsum("gid,gjd->gij", found, known)
        right = distances.argmin(2) == np.arange(GROUP)
        own = np.einsum("gii->gi", distances)
        return {"right": float(right.mean()), "distance": float(own.mean())}

    results = {"drawn": scores([scene.image for scene in scenes])}
    regions = drawing.scene_regions(GROUP, side).astype(np.float32)
    for arm in ARMS:
        masking.reduce_masks = lambda *args, arm=arm, **kw: reduced(arm, *args, **kw)
        pipe = open_pipeline(None, fusion)
        persons = [pipe.encode_identity([photo], crop="none") for photo in photos]
        requests = [
            Request(
                prompt=scene.caption,
                identities=tuple(persons[GROUP * number : GROUP * (number + 1)]),
                masks=regions,
                seed=500_000 + number,
                guidance_scale=3.0,
            )
            for number, scene in enumerate(scenes)
        ]
        done = generate(pipe, requests, Painting(steps=20, guidance_scale=3.0), batch_size=4)
        results[arm] = scores([each.pixels for each in done])
        print(arm, results[arm], flush=True)
    return results


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fusion", type=Path, default=MINI_FUSION)
    parser.add_argument("--groups", type=int, default=32, help="of three people")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file")
    args = parser.parse_args()

    def body() -> None:
        use_cpu_settings()
        use_compilation_cache()
        write_whole(args.output, json.dumps(measure(args.fusion, args.groups), indent=1))

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
