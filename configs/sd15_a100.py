"""Stable Diffusion 1.5 on eight A100s of 40 GB, bfloat16, 8 pictures a device.

python -m train configs/sd15_a100.py --base PATH_OF_SD15
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
    name="sd15_a100",
    base="stable-diffusion-v1-5/stable-diffusion-v1-5",
    fusion=FusionOptions(),
    steps=50_000,
    batch_size=64,
    precision="bfloat16",
    remat=True,
    data=DataConfig(folder="data/face_pairs", threads=16),
    optimizer=OptimizerConfig(
        learning_rate=3e-5, schedule="constant", warmup_steps=500, ema_decay=0.9999
    ),
    checkpoint=CheckpointConfig(every_steps=1000, keep_last=3),
    validation=ValidationConfig(every_steps=1000, examples=64, grid_rows=1),
)
