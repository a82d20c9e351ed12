"""The mini base model: UNet and text encoder on the mini world's latents.

    python -m fusionjax.data.mini_faces data/mini_faces
    python -m train mini_base --autoencoder runs/mini_vae --output runs/mini_base

About an hour on two idle cores (0.92 s a step). The embedded model had one such run without
`features_weight` and `words_weight`, after which it drew backgrounds and clothes as told and every
face alike, and then 4,200 steps with them at a learning rate of 1e-3 (`--init-from`). With the two,
900 steps were enough for expressions and glasses to begin to depend on the caption: a mouth is a
few cells of the latents, and most of what attention looks at are the places after a caption's end,
which told of its place and style only.
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
    features_weight=4.0,
    words_weight=0.03,
    data=DataConfig(folder="data/mini_faces", train_split="train+scenes"),
    optimizer=OptimizerConfig(learning_rate=1.2e-3, warmup_steps=100, beta2=0.99, ema_decay=0.998),
    checkpoint=CheckpointConfig(every_steps=100),
    validation=ValidationConfig(every_steps=500, examples=128, grid_rows=2),
)
