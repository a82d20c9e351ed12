"""An adapter for the embedded mini base model: the whole method, on a CPU.

    python -m train

Draws pictures of 1,200 people of the mini world, encodes them, and trains kf and vf for 700 steps:
13 minutes on two cores. On the way the validation loss reaches 0.2096 after 350 steps and 0.2088
after 700; it falls at high noise, where it is decided who is seen. The embedded adapter comes from
this very command.

`vf` begins at zero and face keys with a seventh of their weight, so that the first step sees the
base's own pictures: with both copied from self-attention and full weight, half of the attention
went to untrained values, and 350 steps were spent on undoing it.
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
    name="mini",
    base="mini",
    steps=700,
    batch_size=32,
    fusion=FusionOptions(init="zeros", face_logit_bias=-2.0),
    data=DataConfig(folder="data/mini_faces_small", build_people=1200),
    optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=20, ema_decay=0.98),
    checkpoint=CheckpointConfig(every_steps=100),
    validation=ValidationConfig(every_steps=350, examples=128, grid_rows=2),
)
