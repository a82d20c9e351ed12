"""An adapter for the embedded mini base model: the whole method, on a CPU.

    python -m train

Draws pictures of 1,200 people of the mini world, encodes them, and trains kf and vf for 400 steps.
"""

from train.config import (
    AdapterRun,
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    ValidationConfig,
)

config = AdapterRun(
    name="mini",
    base="mini",
    steps=400,
    batch_size=32,
    data=DataConfig(folder="data/mini_faces_small", build_people=1200),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=20, ema_decay=0.98),
    checkpoint=CheckpointConfig(every_steps=100),
    validation=ValidationConfig(every_steps=200, examples=64, grid_rows=2),
)
