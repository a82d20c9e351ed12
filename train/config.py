"""What a run is: typed, frozen, checked before anything is compiled.

A file in `configs/` builds one of the runs below and calls it `config`. Every field can be
changed on the command line (`--optimizer.learning-rate 3e-5`). The docstring under a field is
what `--help` prints.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from fusionjax.embedded import MINI_BASE
from fusionjax.errors import UserError, a_share, at_least
from fusionjax.files import write_whole
from fusionjax.options import FusionOptions, Implementation
from train.validation_config import LogTo, ValidationConfig

Precision = Literal["float32", "bfloat16", "float16"]


def may_change(default: Any) -> Any:
    """A field whose value a run that goes on may have otherwise than it was begun with."""
    metadata = {"may_change": True}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _check_gamma(gamma: float | None) -> None:
    if gamma is not None and not gamma > 0:
        raise UserError(f"min_snr_gamma is {gamma}; it must be > 0, or None for no weight")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the pictures come from."""

    folder: str = "data/mini_faces"
    """Folder of a TFDS dataset (ArrayRecord): the one that holds `dataset_info.json`."""
    train_split: str = "train"
    """Split that is trained on; TFDS slices such as `train[:1000]` work."""
    validation_split: str = "validation"
    """Split of the validation loss and the picture grids."""
    build_people: int = 0
    """Draw the mini world with so many training people into the folder if there is none yet."""
    build_scenes: int = 0
    """With `build_people`: so many pictures of two and three people too, in a split `scenes`."""
    most_skipped: float = 0.05
    """Largest share of a split that may be unusable (unreadable picture, no caption, no face)."""
    threads: int = may_change(2)
    """Threads that read and decode ahead of the device; the order never depends on them."""
    buffered_batches: int = may_change(4)
    """Batches kept ready."""

    def __post_init__(self) -> None:
        at_least(1, data__threads=self.threads, data__buffered_batches=self.buffered_batches)
        at_least(0, data__build_people=self.build_people, data__build_scenes=self.build_scenes)
        a_share(data__most_skipped=self.most_skipped)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warmup and clipping."""

    learning_rate: float = 1e-4
    """Peak learning rate."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """How the learning rate goes on after the warmup; cosine ends at zero."""
    warmup_steps: int = 50
    """Steps of linear warmup."""
    weight_decay: float = 1e-2
    """Decoupled weight decay, on matrices and kernels only."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    accumulate_steps: int = 1
    """Each batch is worked through in this many parts, one after the other, to save memory."""
    ema_decay: float = 0.999
    """Decay a step of the averaged weights that are validated and exported."""

    def __post_init__(self) -> None:
        at_least(
            0,
            optimizer__learning_rate=self.learning_rate,
            optimizer__warmup_steps=self.warmup_steps,
            optimizer__weight_decay=self.weight_decay,
        )
        at_least(1, optimizer__accumulate_steps=self.accumulate_steps)
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"optimizer.ema_decay is {self.ema_decay}; it must be in [0, 1)")
        for name, beta in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= beta < 1:
                raise UserError(f"optimizer.{name} is {beta}; it must be in [0, 1)")
        if not self.max_grad_norm > 0:
            raise UserError(f"optimizer.max_grad_norm is {self.max_grad_norm}; it must be > 0")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How devices are used."""

    data: int = -1
    """Number of batch shards; -1 takes every device that fsdp leaves."""
    fsdp: int = 1
    """Number of shards of the frozen weights; 1 keeps a whole copy on each device."""


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """Several processes. SLURM, TPU pods, Kubernetes (with `jax[k8s]`): only set `enabled`."""

    enabled: bool = False
    """Join the other processes before anything else."""
    coordinator: str | None = None
    """host:port of process 0, where the cluster does not tell."""
    processes: int | None = None
    """Number of processes; needed with a coordinator."""
    process: int | None = None
    """This process's number, from 0; needed with a coordinator."""
    heartbeat_timeout_s: int = 100
    """A process that is silent for so long is dead, and the others stop with an error."""

    def __post_init__(self) -> None:
        given = [self.coordinator is not None, self.processes is not None, self.process is not None]
        if any(given) and not all(given):
            raise UserError(
                "distributed.coordinator, distributed.processes and distributed.process go "
                "together; give all three or none"
            )
        if self.processes is not None and not 0 <= (self.process or 0) < self.processes:
            raise UserError(
                f"distributed.process is {self.process}; of {self.processes} processes the "
                f"numbers are 0..{self.processes - 1}"
            )
        at_least(1, distributed__heartbeat_timeout_s=self.heartbeat_timeout_s)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is kept to go on from."""

    every_steps: int = 200
    """Steps between checkpoints. SIGTERM saves one more."""
    keep_last: int = 2
    """Newest checkpoints kept, besides the one with the best validation loss."""

    def __post_init__(self) -> None:
        at_least(1, checkpoint__every_steps=self.every_steps, checkpoint__keep_last=self.keep_last)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What every run has, whatever it trains."""

    name: str = may_change("run")
    """Name of the run; its folder is runs/<name>-<time>."""
    output: str | None = may_change(None)
    """The run's folder, if not that. An existing run there is continued."""
    resume: bool = may_change(True)
    """Continue the run found in the output folder; otherwise a run there is an error."""
    init_from: str | None = may_change(None)
    """What a fresh run starts from: another run (its averaged weights), or what such a run writes:
    an adapter's .safetensors, a base model's folder, a folder that holds `vae/`."""
    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 8
    """Pictures a step, over all devices and accumulation parts."""
    seed: int = 0
    """Seed of the order, the noise and the initial weights."""
    precision: Precision = "float32"
    """What the networks compute in; trained weights and their sums are always float32.
    float16 uses dynamic loss scaling (V100); bfloat16 is for TPU and Ampere or later."""
    max_skipped_in_row: int = may_change(20)
    """A step whose gradient is not finite is skipped; so many in a row stop the run."""
    log_every_steps: int = may_change(10)
    """Steps between lines of metrics.jsonl."""
    log_to: LogTo = may_change("tensorboard")
    """Where the numbers and grids go beside the run's folder: TensorBoard's files in it, Weights &
    Biases (`pip install 'fusionjax[wandb]'`), or nowhere."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = may_change(MeshConfig)
    distributed: DistributedConfig = may_change(DistributedConfig)
    checkpoint: CheckpointConfig = may_change(CheckpointConfig)
    validation: ValidationConfig = may_change(ValidationConfig)

    def __post_init__(self) -> None:
        at_least(
            1,
            steps=self.steps,
            batch_size=self.batch_size,
            max_skipped_in_row=self.max_skipped_in_row,
            log_every_steps=self.log_every_steps,
        )
        at_least(0, seed=self.seed)
        if self.seed >= 2**32:
            raise UserError(f"seed is {self.seed}; it must be below {2**32}")
        if self.batch_size % self.optimizer.accumulate_steps:
            raise UserError(
                f"batch_size is {self.batch_size} and optimizer.accumulate_steps "
                f"{self.optimizer.accumulate_steps}; the first must be a multiple of the second"
            )

    def check_batch(self, devices: int) -> None:
        """Whether so many devices can share a batch out evenly.

        Raises:
            UserError: if they cannot.
        """
        parts = self.optimizer.accumulate_steps * devices
        if self.batch_size % parts:
            raise UserError(
                f"batch_size is {self.batch_size}; it must be a multiple of {parts} "
                f"({devices} devices × {self.optimizer.accumulate_steps} accumulated parts)"
            )

    def to_json(self) -> dict[str, Any]:
        """The resolved run as plain JSON values; `kind` names the class."""
        return {"kind": type(self).__name__, **json.loads(json.dumps(dataclasses.asdict(self)))}

    def write(self, path: Path, **more: Any) -> None:
        """Writes the resolved run to a JSON file, with further facts beside it."""
        write_whole(path, json.dumps({**self.to_json(), **more}, indent=2) + "\n")


@dataclasses.dataclass(frozen=True)
class AutoencoderRun(RunConfig):
    """Trains a FlaxAutoencoderKL on pictures."""

    block_out_channels: tuple[int, ...] = (32, 64, 96, 128)
    """Channels by level; each level but the last halves the picture."""
    layers_per_block: int = 1
    """Residual blocks a level."""
    latent_channels: int = 16
    """Channels of the latents."""
    norm_num_groups: int = 16
    """Groups of each GroupNorm; must divide every level's channels."""
    crop_px: int = 48
    """Side of the random square crops that are trained on; the picture's own side takes it
    whole. Crops are cheaper; finish with a short run on whole pictures (`--init-from`)."""
    mse_weight: float = 1.0
    """Weight of the mean squared error, beside L1 of weight 1."""
    edge_weight: float = 0.5
    """Weight of the L1 distance between the pictures' first differences."""
    latent_noise: float = 0.05
    """Standard deviation of the noise on the latents that the decoder learns from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(
            0,
            mse_weight=self.mse_weight,
            edge_weight=self.edge_weight,
            latent_noise=self.latent_noise,
        )
        sizes = ("layers_per_block", "latent_channels", "norm_num_groups")
        at_least(1, **{name: getattr(self, name) for name in sizes})
        reduction = 2 ** (len(self.block_out_channels) - 1)
        if self.crop_px < reduction or self.crop_px % reduction:
            raise UserError(f"crop_px is {self.crop_px}; it must be a multiple of {reduction}")
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise UserError(
                    f"block_out_channels has {channels}, not a multiple of norm_num_groups "
                    f"({self.norm_num_groups})"
                )


@dataclasses.dataclass(frozen=True)
class BaseRun(RunConfig):
    """Trains a whole base model on cached latents: UNet and text encoder together."""

    autoencoder: str = "runs/mini_vae"
    """Run folder of the autoencoder."""
    tokenizer: str = str(MINI_BASE / "tokenizer")
    """Folder of the CLIP tokenizer."""
    block_out_channels: tuple[int, ...] = (64, 128, 192)
    """UNet channels by level, multiples of 32."""
    layers_per_block: int = 1
    """Residual (and transformer) blocks a level."""
    attention_levels: int = 2
    """How many of the upper levels have attention to the text; the middle always has."""
    attention_heads: int = 8
    """Heads of every attention."""
    text_features: int = 160
    """Width of the text encoder and of the UNet's text keys."""
    text_layers: int = 2
    """Transformer layers of the text encoder."""
    text_heads: int = 4
    """Heads of the text encoder."""
    prediction_type: Literal["epsilon", "v_prediction"] = "v_prediction"
    """What the UNet predicts."""
    caption_dropout: float = 0.1
    """Share of pictures trained with an empty caption, for classifier-free guidance."""
    face_weight: float = 1.0
    """Weight of the loss inside each head's box, hair included; outside it is 1."""
    features_weight: float = 1.0
    """A further factor of that weight where the eyes and the mouth are."""
    words_weight: float = 0.0
    """Weight of a second loss: the text states after a caption's end should tell its words."""
    min_snr_gamma: float | None = None
    """Ceiling of the signal-to-noise ratio in the loss weight; None weights all alike."""
    guidance_scale: float = may_change(4.0)
    """Classifier-free guidance in the picture grids."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = (
            "layers_per_block",
            "attention_heads",
            "text_features",
            "text_layers",
            "text_heads",
        )
        at_least(1, **{name: getattr(self, name) for name in sizes})
        for channels in self.block_out_channels:
            if channels < 1 or channels % 32:
                raise UserError(f"block_out_channels has {channels}, not a multiple of 32")
        at_least(
            0,
            face_weight=self.face_weight,
            features_weight=self.features_weight,
            words_weight=self.words_weight,
        )
        _check_gamma(self.min_snr_gamma)
        a_share(caption_dropout=self.caption_dropout)
        if not 1 <= self.attention_levels <= len(self.block_out_channels):
            raise UserError(
                f"attention_levels is {self.attention_levels}; "
                f"it must be between 1 and {len(self.block_out_channels)}"
            )


@dataclasses.dataclass(frozen=True)
class AdapterRun(RunConfig):
    """Trains kf and vf on top of a frozen base model."""

    base: str = "mini"
    """The base model: "mini" is the embedded one, else a diffusers folder, file or hub id."""
    fusion: FusionOptions = dataclasses.field(default_factory=FusionOptions)
    """How faces are seen; recorded with every checkpoint."""
    cache: str | None = may_change(None)
    """Folder of cached latents (`python -m fusionjax cache`). None makes them beside the data."""
    text_states: bool = False
    """Cache the captions' text states too (SD 1.5: 118 kB each): no text encoder on the devices."""
    sample_posterior: bool = False
    """Draw a picture's latents anew from the autoencoder's posterior each time; else its mean."""
    references: int = 1
    """Most photos that an example shows, of all its people; from one of each up to so many."""
    people: int = 1
    """Most people in a picture. In one of several, the part that is nearest to a person's face sees
    that person's photos only, as with masks."""
    text_dropout: float = 0.1
    """Share of examples without text."""
    faces_dropout: float = 0.1
    """Share of examples without faces."""
    both_dropout: float = 0.1
    """Share of examples without either."""
    face_weight: float = 1.0
    """Weight of the loss inside each face's box; outside it is 1."""
    min_snr_gamma: float | None = None
    """Ceiling of the signal-to-noise ratio in the loss weight (5 in the paper); None: no weight."""
    attention: Implementation | None = may_change(None)
    """Attention implementation; None is the platform's fastest."""
    remat: bool = may_change(False)
    """Keep only block outputs for the backward pass: less memory, about a third more time."""
    guidance_scale: float = may_change(4.0)
    """Classifier-free guidance in the picture grids."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, references=self.references, people=self.people)
        at_least(0, face_weight=self.face_weight)
        _check_gamma(self.min_snr_gamma)
        dropouts = (self.text_dropout, self.faces_dropout, self.both_dropout)
        if not (min(dropouts) >= 0 and sum(dropouts) <= 1):
            raise UserError(
                f"text_dropout, faces_dropout and both_dropout are {dropouts}; "
                "each must be at least 0, and their sum at most 1"
            )
