"""Stable Diffusion 1.5 on a TPU v5e of 8 chips (16 GB each), bfloat16, 4 pictures a chip.

    python -m train configs/sd15_tpu_v5e.py --base PATH_OF_SD15

On several hosts add `--distributed.enabled True`: the pod's processes find each other.
"""

from fusionjax.unet import FusionOptions
from train.config import (
    AdapterRun,
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    ValidationConfig,
)

config = AdapterRun(
    name="sd15_tpu_v5e",
    base="stable-diffusion-v1-5/stable-diffusion-v1-5",
    fusion=FusionOptions(),
    steps=50_000,
    batch_size=32,
    precision="bfloat16",
    remat=True,
    data=DataConfig(folder="data/face_pairs", threads=16),
    optimizer=OptimizerConfig(
        learning_rate=2e-5, schedule="constant", warmup_steps=500, ema_decay=0.9999
    ),
    checkpoint=CheckpointConfig(every_steps=1000, keep_last=3),
    validation=ValidationConfig(every_steps=1000, examples=64, grid_rows=1),
)
