"""The noise schedule of a base model, what training predicts from it, and how a loss is weighted.

Legend: b batch, h w latent grid, c channels; t a timestep in [0, num_train_timesteps).
A noised latent is x_t = sqrt(a_t) x + sqrt(1 - a_t) ε with a_t the schedule's `alphas_cumprod`
(Ho et al. 2020, eq. 4). The two targets are ε itself and v = sqrt(a_t) ε - sqrt(1 - a_t) x
(Salimans & Ho 2022, appendix D).
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fusionjax.errors import UserError, told
from fusionjax.schema import typed

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
PredictionType = Literal["epsilon", "v_prediction"]
_MOST_TIMESTEPS = 100_000
_LAST_SIGNAL = 2.0**-24  # in place of 0
_LEAST_SIGNAL = 1e-9  # Stable Diffusion 1.5 has 0.0047 left; less than this, and σ overflows


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """How much noise each timestep holds and what the model predicts from it.

    The fields and defaults are those of Stable Diffusion 1.5's `scheduler_config.json`.

    Attributes:
        num_train_timesteps: number of noise levels.
        beta_start: variance added by the first step.
        beta_end: variance added by the last step.
        beta_schedule: how the variance grows in between; "scaled_linear" is linear in sqrt(beta).
        prediction_type: what the UNet's output means.
        rescale_betas_zero_snr: whether nothing of the image is left at the last timestep (Lin et
            al. 2023, arXiv 2305.08891); as in diffusers' samplers, so little that σ is finite.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: BetaSchedule = "scaled_linear"
    prediction_type: PredictionType = "epsilon"
    rescale_betas_zero_snr: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.num_train_timesteps <= _MOST_TIMESTEPS:
            raise UserError(
                f"num_train_timesteps is {told(self.num_train_timesteps)}; it must be in "
                f"1..{_MOST_TIMESTEPS}"
            )
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise UserError(
                f"beta_start is {self.beta_start} and beta_end {self.beta_end}; "
                "they must satisfy 0 < beta_start ≤ beta_end < 1"
            )
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise UserError(
                "rescale_betas_zero_snr is true and prediction_type 'epsilon': from noise alone no "
                "noise can be told; such a model predicts v (prediction_type 'v_prediction')"
            )
        if not self.alphas_cumprod[-1] > _LEAST_SIGNAL:
            raise UserError(
                f"beta_end is {self.beta_end} with {self.num_train_timesteps} timesteps: of the "
                f"image, {self.alphas_cumprod[-1]:.3g} of the variance would be left at the last "
                "one, too little for any sampler; Stable Diffusion 1.5 has 0.012 and 1000"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "NoiseSchedule":
        """Reads the schedule from a diffusers `scheduler_config.json`; other keys are ignored.

        Args:
            config: the parsed file. Missing keys have diffusers' `DDPMScheduler` defaults for
                Stable Diffusion.

        Returns:
            The schedule.

        Raises:
            UserError: if the file asks for a schedule that is not known here.
        """
        if config.get("trained_betas") is not None:
            raise UserError("trained_betas is set in the scheduler's config; it is not supported")
        for name, kinds in (("beta_schedule", BetaSchedule), ("prediction_type", PredictionType)):
            if name in config and config[name] not in (choices := get_args(kinds)):
                raise UserError(f"{name} is {told(config[name])}; known are {', '.join(choices)}")
        return typed(config, cls)

    def to_config(self) -> dict[str, Any]:
        """Writes the schedule as the contents of a diffusers `scheduler_config.json`."""
        return {
            "_class_name": "DDPMScheduler",
            **dataclasses.asdict(self),
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
            "timestep_spacing": "leading",
            "trained_betas": None,
        }

    @property
    def alphas_cumprod(self) -> Float[np.ndarray, " t"]:
        """The share of the clean latent's variance left at each timestep, float32."""
        return _alphas_cumprod(self)


@functools.lru_cache(maxsize=16)
def _alphas_cumprod(schedule: NoiseSchedule) -> np.ndarray:
    count = schedule.num_train_timesteps
    if schedule.beta_schedule == "linear":
        betas = np.linspace(schedule.beta_start, schedule.beta_end, count)
    elif schedule.beta_schedule == "scaled_linear":
        betas = np.linspace(schedule.beta_start**0.5, schedule.beta_end**0.5, count) ** 2
    else:

        def left(s: float) -> float:
            return math.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2

        betas = np.array([min(1 - left((i + 1) / count) / left(i / count), 0.999)
                          for i in range(count)])  # fmt: skip
    result = np.cumprod(1 - betas)
    if schedule.rescale_betas_zero_snr:  # algorithm 1: sqrt(a) from its first value to 0
        root = np.sqrt(result)
        result = np.square((root - root[-1]) * root[0] / (root[0] - root[-1]))
        result[-1] = _LAST_SIGNAL
    result = result.astype(np.float32)
    result.flags.writeable = False
    return result


def _coefficients(
    schedule: NoiseSchedule, t: Int[Array, " b"], like: Float[Array, "b ..."]
) -> tuple[Array, Array]:
    """sqrt(a_t) and sqrt(1 - a_t), float32, shaped to multiply `like`."""
    a = jnp.asarray(schedule.alphas_cumprod)[t].reshape(t.shape + (1,) * (like.ndim - 1))
    return jnp.sqrt(a), jnp.sqrt(1 - a)


def random_timesteps(schedule: NoiseSchedule, key: Array, count: int) -> Int[Array, " b"]:
    """Draws timesteps, each uniform, which together share the schedule out evenly.

    One lies in each of `count` equal parts, all shifted by the same random number: the loss of a
    batch varies less than with independent draws (Kingma et al. 2021, appendix I.1).

    Args:
        schedule: the base model's schedule.
        key: random key.
        count: how many.

    Returns:
        Timesteps in [0, num_train_timesteps).
    """
    share = (jnp.arange(count) + jax.random.uniform(key)) / count
    steps = (share * schedule.num_train_timesteps).astype(jnp.int32)
    return jnp.minimum(steps, schedule.num_train_timesteps - 1)


def add_noise(
    schedule: NoiseSchedule,
    clean: Float[Array, "b ..."],
    noise: Float[Array, "b ..."],
    t: Int[Array, " b"],
) -> Float[Array, "b ..."]:
    """Noises clean latents to timestep t: x_t = sqrt(a_t) x + sqrt(1 - a_t) ε.

    Args:
        schedule: the base model's schedule.
        clean: scaled latents x.
        noise: unit normal noise ε, same shape.
        t: timesteps in [0, num_train_timesteps).

    Returns:
        x_t in the dtype of `clean`.
    """
    signal, sigma = _coefficients(schedule, t, clean)
    return (signal * clean + sigma * noise).astype(clean.dtype)


def target(
    schedule: NoiseSchedule,
    clean: Float[Array, "b ..."],
    noise: Float[Array, "b ..."],
    t: Int[Array, " b"],
) -> Float[Array, "b ..."]:
    """What the UNet should answer at x_t: ε, or v = sqrt(a_t) ε - sqrt(1 - a_t) x.

    Args:
        schedule: the base model's schedule; its `prediction_type` decides.
        clean: scaled latents x.
        noise: the noise ε that was added.
        t: timesteps.

    Returns:
        The target in the dtype of `clean`.
    """
    if schedule.prediction_type == "epsilon":
        return noise.astype(clean.dtype)
    signal, sigma = _coefficients(schedule, t, clean)
    return (signal * noise - sigma * clean).astype(clean.dtype)


def snr(schedule: NoiseSchedule, t: Int[Array, " b"]) -> Float[Array, " b"]:
    """Signal-to-noise ratio a_t / (1 - a_t) at each timestep, float32."""
    a = jnp.asarray(schedule.alphas_cumprod)[t]
    return a / (1 - a)


def min_snr_weight(
    schedule: NoiseSchedule, t: Int[Array, " b"], gamma: float | None
) -> Float[Array, " b"]:
    """Loss weight by timestep (Hang et al. 2023, "Efficient diffusion training via Min-SNR").

    Args:
        schedule: the base model's schedule.
        t: timesteps.
        gamma: the ceiling of the signal-to-noise ratio, 5 in the paper; None weights all alike.

    Returns:
        min(snr, γ) / snr for ε targets, min(snr, γ) / (snr + 1) for v targets.
    """
    if gamma is None:
        return jnp.ones(t.shape, jnp.float32)
    ratio = snr(schedule, t)
    divisor = ratio if schedule.prediction_type == "epsilon" else ratio + 1
    return jnp.minimum(ratio, gamma) / divisor
