"""Stable Diffusion 1.5 on a TPU v5e of 8 chips (16 GB each), bfloat16, 4 pictures a chip.

    python -m train configs/sd15_tpu_v5e.py --base PATH_OF_SD15

By the compiler's plan a step takes 8.0 GB of a chip, and 0.16 s are to be expected; no TPU has run
it yet. On several hosts add `--distributed.enabled True`: the pod's processes find each other. The
run's folder, the dataset and the cache must lie on a disk that all hosts share.
"""

import dataclasses

from train.presets import STABLE_DIFFUSION_15

config = dataclasses.replace(STABLE_DIFFUSION_15, name="sd15_tpu_v5e", batch_size=32)
