"""Picture grids: what a person looks at while a run trains."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusionjax.diffusion.samplers import Plan
from fusionjax.generation.model import Model
from fusionjax.generation.programs import condition, denoise
from fusionjax.generation.scene import Scene
from fusionjax.pixels import to_bytes


def tile(rows: Sequence[Any], columns: int, gap: int = 2) -> np.ndarray:
    """Lays groups of pictures out in columns, row under row.

    Args:
        rows: groups of pictures [n, H, W, 3] in -1..1, all of the same n and size. Where a group
            is longer than a row, the groups alternate line by line.
        columns: pictures a line.
        gap: white pixels between.

    Returns:
        uint8 [H', W', 3].
    """
    groups = [to_bytes(group) for group in rows]
    n, height, width, _ = groups[0].shape
    lines = [group[start : start + columns] for start in range(0, n, columns) for group in groups]
    sheet = np.full(
        (
            len(lines) * (height + gap) + gap,
            min(columns, n) * (width + gap) + gap,
            3,
        ),
        255,
        np.uint8,
    )
    for row, line in enumerate(lines):
        for column, picture in enumerate(line):
            top, left = gap + row * (height + gap), gap + column * (width + gap)
            sheet[top : top + height, left : left + width] = picture
    return sheet


def preview_scene(tokens: Any, empty: Any, plan: Plan, guidance_scale: float) -> Scene:
    """Images of nobody, each from its own noise.

    Args:
        tokens: of the prompts, [n, t].
        empty: of the empty prompt, [1, t].
        plan: the sampler's.
        guidance_scale: of the classifier-free guidance.
    """
    return Scene(
        ids=tokens,
        negative_ids=jnp.broadcast_to(empty, tokens.shape),
        empty_ids=empty,
        seeds=jnp.arange(len(tokens), dtype=jnp.uint32),
        guidance=np.array([[1 - guidance_scale, guidance_scale]], np.float32),
        levels=np.array([[plan.start_clean, plan.start_noise]], np.float32),
    )


def preview(model: Model, params: Any, scene: Scene, plan: Plan, grid: Sequence[int]) -> jax.Array:
    """Generates a scene, as one part of a program.

    Args:
        model: structure.
        params: weights, as the programs of `fusionjax.generation` take them.
        scene: what is seen.
        plan: the sampler's.
        grid: rows and columns of the latents.

    Returns:
        Clean latents [n, h, w, c].
    """
    rows, columns = grid
    conditions, carry = condition(model, params, scene, grid=(rows, columns))
    table = plan.table()
    span = jnp.array([[0, len(plan)]])
    return denoise(model, params, conditions, carry, table, span, in_negative=False).latents
