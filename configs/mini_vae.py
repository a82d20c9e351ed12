"""The autoencoder of the mini base model: 96-px drawings to 12×12×16 latents.

    python -m train mini_vae --output runs/mini_vae_crops
    python -m train mini_vae --output runs/mini_vae --init-from runs/mini_vae_crops \
        --crop-px 96 --batch-size 8 --steps 300 --optimizer.learning-rate 5e-4
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
    steps=4500,
    batch_size=4,
    block_out_channels=(16, 32, 64, 128),
    layers_per_block=1,
    latent_channels=16,
    norm_num_groups=1,  # more would take the colours out of levels of few channels
    crop_px=48,
    data=DataConfig(folder="data/mini_faces", train_split="train+scenes"),
    optimizer=OptimizerConfig(learning_rate=8e-4, warmup_steps=50, ema_decay=0.995),
    checkpoint=CheckpointConfig(every_steps=500),
    validation=ValidationConfig(every_steps=500, examples=64, grid_rows=4),
)
