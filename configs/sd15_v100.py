"""The paper's run: kf and vf for Stable Diffusion 1.5 on two V100s of 32 GB.

    python -m fusionjax prepare PICTURES data/face_pairs --size 512
    python -m train configs/sd15_v100.py --base PATH_OF_SD15

A V100 has no bfloat16: float16 with dynamic loss scaling. 24,780,800 parameters are trained. A step
sees 16 pictures, eight on each V100 at once. By the compiler's plan it takes 9.1 GB of a device, 25
TFLOP and 629 GB of memory traffic, and 1.5 s are to be expected; `--dry-run --target v100:2` works
it out again. `--optimizer.accumulate-steps 8` takes 3.7 GB. No V100 has run it yet. A run is
healthy if `skipped_in_row` is 0 in nearly every line of metrics.jsonl and the validation loss,
always taken on the same noise, falls.
"""

import dataclasses

from train.presets import STABLE_DIFFUSION_15

config = dataclasses.replace(
    STABLE_DIFFUSION_15,
    name="sd15_v100",
    steps=100_000,
    batch_size=16,
    precision="float16",
    optimizer=dataclasses.replace(STABLE_DIFFUSION_15.optimizer, learning_rate=1e-5),
)
