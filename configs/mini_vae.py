"""The autoencoder of the mini base model: 64-px drawings to 16×16×12 latents.

    python -m train mini_vae --output runs/mini_vae_crops
    python -m train mini_vae --output runs/mini_vae --init-from runs/mini_vae_crops \
        --crop-px 64 --batch-size 4 --steps 500 --optimizer.learning-rate 4e-4
"""

from train.config import (
    AutoencoderRun,
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    ValidationConfig,
)

config = AutoencoderRun(
    name="mini_vae",
    steps=2400,
    batch_size=8,
    block_out_channels=(32, 64, 128),
    layers_per_block=1,
    latent_channels=12,
    norm_num_groups=1,  # more would take the colours out of levels of few channels
    crop_px=32,
    data=DataConfig(folder="data/mini_faces", train_split="train+scenes"),
    optimizer=OptimizerConfig(learning_rate=8e-4, warmup_steps=50, ema_decay=0.995),
    checkpoint=CheckpointConfig(every_steps=400),
    validation=ValidationConfig(every_steps=800, examples=64, grid_rows=4),
)
