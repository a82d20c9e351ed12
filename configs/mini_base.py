"""The mini base model: UNet and text encoder on the mini world's latents.

    python -m fusionjax.data.mini_faces data/mini_faces
    python -m train mini_base --autoencoder runs/mini_vae --output runs/mini_base

About an hour on two idle cores (1.0 s a step). A run from the beginning without the three weights
ended at a mean squared error of 0.2605 on the validation pictures, with backgrounds and clothes as
told and every face alike; 4,200 further steps with `features_weight` and `words_weight` at 0.2357,
3,800 more with `face_weight` too at 0.2098, clean drawings with the expression that the caption
says, and 2,600 more with twice the pictures of several people, and the weights on everybody's head,
at 0.2015. A mouth is a few cells of the latents, and most of what attention looks at are the places
after a caption's end, which told of its place and style only: hence the weights. The embedded model
is these four runs, one after the other (`fusionjax/assets/mini/README.md`).
"""

from train.config import (
    BaseRun,
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    ValidationConfig,
)

config = BaseRun(
    name="mini_base",
    steps=3600,
    batch_size=32,
    block_out_channels=(64, 128, 192),
    layers_per_block=1,
    attention_levels=2,
    attention_heads=4,
    face_weight=3.0,
    features_weight=3.0,
    words_weight=0.03,
    data=DataConfig(folder="data/mini_faces", train_split="train+scenes"),
    optimizer=OptimizerConfig(learning_rate=1.2e-3, warmup_steps=100, beta2=0.99, ema_decay=0.998),
    checkpoint=CheckpointConfig(every_steps=100),
    validation=ValidationConfig(every_steps=500, examples=128, grid_rows=2),
)
