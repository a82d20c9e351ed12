"""Stable Diffusion 1.5 on eight A100s of 40 GB (or H100s), bfloat16, 8 pictures a device.

python -m train configs/sd15_a100.py --base PATH_OF_SD15

By the compiler's plan a step takes 9.2 GB of an A100, and 0.23 s are to be expected (an H100: 8.1
GB, 0.08 s); no GPU has run it yet.
"""

import dataclasses

from train.presets import STABLE_DIFFUSION_15

config = dataclasses.replace(
    STABLE_DIFFUSION_15,
    name="sd15_a100",
    batch_size=64,
    optimizer=dataclasses.replace(STABLE_DIFFUSION_15.optimizer, learning_rate=3e-5),
)
