"""The autoencoder of the mini base model: 96-px drawings to 12×12×8 latents.

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
    steps=1100,
    batch_size=16,
    block_out_channels=(16, 32, 64, 128),
    layers_per_block=1,
    latent_channels=8,
    norm_num_groups=16,
    crop_px=48,
    kl_weight=1e-4,
    data=DataConfig(folder="data/mini_faces"),
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=50, ema_decay=0.995),
    checkpoint=CheckpointConfig(every_steps=200),
    validation=ValidationConfig(every_steps=200, examples=64, grid_rows=4),
)
