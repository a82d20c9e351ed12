"""What runs of one kind have in common; the files in `configs/` say what is different."""

from train.config import (
    AdapterRun,
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    ValidationConfig,
)

STABLE_DIFFUSION_15 = AdapterRun(
    base="stable-diffusion-v1-5/stable-diffusion-v1-5",
    steps=50_000,
    precision="bfloat16",
    data=DataConfig(folder="data/face_pairs", threads=8, buffered_batches=8),
    optimizer=OptimizerConfig(
        learning_rate=2e-5, schedule="constant", warmup_steps=500, ema_decay=0.9999
    ),
    checkpoint=CheckpointConfig(every_steps=1000, keep_last=3),
    validation=ValidationConfig(every_steps=1000, examples=64, grid_rows=1),
)
"""An adapter for Stable Diffusion 1.5; it lacks a name and a batch size that suits the hardware."""
