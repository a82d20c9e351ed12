"""An adapter for the embedded mini base model: the whole method, on a CPU.

    python -m train

Draws pictures of 1,200 people of the mini world, encodes them, and trains kf and vf for 700 steps:
11 minutes on two cores. On the way the validation error (`mse`) is 0.1821 after 350 steps and
0.1790 after 700. The embedded adapter comes from this very command.

`kf` begins as the cross-attention's own to_q, so that a place in the picture looks at places of its
kind in the photo; `vf` begins at zero, and face keys with e^-4 of their weight, so that the first
steps see nearly the base's own pictures. After 150 steps the validation error was 0.1880, against
0.1938 with kf from self-attention and e^-2, where attention to the photo is even at first. The
difference is at high noise, where it is decided who is seen: 0.290 against 0.310 in the last
quarter.
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
    fusion=FusionOptions(init="query", face_logit_bias=-4.0),
    face_weight=3.0,
    data=DataConfig(folder="data/mini_faces_small", build_people=1200),
    optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=20, ema_decay=0.98),
    checkpoint=CheckpointConfig(every_steps=100),
    validation=ValidationConfig(every_steps=350, examples=128, grid_rows=2),
)
