"""Stable Diffusion 1.5 on eight A100s of 40 GB, bfloat16, 8 pictures a device.

python -m train configs/sd15_a100.py --base PATH_OF_SD15
"""

import dataclasses

from train.presets import STABLE_DIFFUSION_15

config = dataclasses.replace(
    STABLE_DIFFUSION_15,
    name="sd15_a100",
    batch_size=64,
    optimizer=dataclasses.replace(STABLE_DIFFUSION_15.optimizer, learning_rate=3e-5),
)
