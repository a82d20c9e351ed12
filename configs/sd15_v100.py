"""The paper's run: kf and vf for Stable Diffusion 1.5 on two V100s of 32 GB, batch 1 each.

    python -m fusionjax.data.face_pairs PICTURES data/face_pairs --size 512
    python -m train configs/sd15_v100.py --base PATH_OF_SD15

A V100 has no bfloat16: float16 with dynamic loss scaling. `--dry-run` prints what it needs;
24,780,800 parameters are trained. Eight steps are accumulated, so a step sees 16 pictures.
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
    name="sd15_v100",
    base="stable-diffusion-v1-5/stable-diffusion-v1-5",
    fusion=FusionOptions(),
    steps=100_000,
    batch_size=16,
    precision="float16",
    data=DataConfig(folder="data/face_pairs", threads=8),
    optimizer=OptimizerConfig(
        learning_rate=1e-5,
        schedule="constant",
        warmup_steps=500,
        accumulate_steps=8,
        ema_decay=0.9999,
    ),
    checkpoint=CheckpointConfig(every_steps=1000, keep_last=3),
    validation=ValidationConfig(every_steps=1000, examples=64, grid_rows=1),
)
