"""A row of a sampler's table, and what the tables have in common.

Two spaces are in use, as in diffusers. "Variance preserving" latents are x_t = α x + σ ε with
α² + σ² = 1 (all others); "variance exploding" latents are x + σ ε with
σ = sqrt((1 - a_t) / a_t) (Euler, Heun, LMS) and are scaled before the UNet sees them.

Legend: s rows (calls of the UNet); a_t the schedule's `alphas_cumprod`.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from fusionjax.diffusion.noise_schedule import NoiseSchedule

HISTORY = 3  # earlier answers that the longest method (PNDM, LMS: order 4) looks back on


class Rows(NamedTuple):
    """The sampler's table; each array's first axis is the row.

    With x the latents, x* the remembered latents and o the UNet's answer, a row does

        m  = take_latents · x + take_output · o
        x' = keep · x + keep_anchor · x* + Σ_j weights[j] · m_j + noise · n

    where m_0 = m and m_1, m_2, m_3 are the earlier ones, newest first, and n is unit noise.
    """

    timesteps: Float[Array | np.ndarray, "*s"]
    input_scale: Float[Array | np.ndarray, "*s"]
    take_latents: Float[Array | np.ndarray, "*s"]
    take_output: Float[Array | np.ndarray, "*s"]
    keep: Float[Array | np.ndarray, "*s"]
    keep_anchor: Float[Array | np.ndarray, "*s"]
    weights: Float[Array | np.ndarray, "*s 4"]
    noise: Float[Array | np.ndarray, "*s"]
    remember: Float[Array | np.ndarray, "*s"]  # 1: m joins the history after this row
    anchor: Float[Array | np.ndarray, "*s"]  # 1: x* becomes this row's x
    next_clean: Float[Array | np.ndarray, "*s"]  # after the row: the share of the clean latents
    next_noise: Float[Array | np.ndarray, "*s"]  # … and of the noise


# The rows; start_clean and start_noise, which mix a given image with noise at the first level; and
# init_noise, which scales pure noise.
Built = tuple[Rows, float, float, float]


def make_rows(count: int, **columns: np.ndarray) -> Rows:
    """A table in which whatever is not named does nothing."""
    zeros, ones = np.zeros(count), np.ones(count)
    blank = Rows(
        timesteps=zeros,
        input_scale=ones,
        take_latents=zeros,
        take_output=ones,
        keep=ones,
        keep_anchor=zeros,
        weights=np.zeros((count, HISTORY + 1)),
        noise=zeros,
        remember=ones,
        anchor=zeros,
        next_clean=ones,
        next_noise=zeros,
    )
    return blank._replace(**columns)


def noise_from_output(
    schedule: NoiseSchedule, alpha: np.ndarray, sigma: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(p, q) with ε = p x + q o."""
    if schedule.prediction_type == "epsilon":
        return np.zeros_like(alpha), np.ones_like(alpha)
    return sigma, alpha


def clean_from_output(
    schedule: NoiseSchedule, alpha: np.ndarray, sigma: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(p, q) with clean = p x + q o."""
    if schedule.prediction_type == "epsilon":
        return 1 / alpha, -sigma / alpha
    return alpha, -sigma


def levels_after(clean: np.ndarray, noise: np.ndarray) -> dict[str, np.ndarray]:
    """The levels after each row; after the last one the picture counts as clean."""
    clean, noise = clean.copy(), noise.copy()
    clean[-1], noise[-1] = 1.0, 0.0
    return {"next_clean": clean, "next_noise": noise}


def exploding_sigmas(schedule: NoiseSchedule) -> np.ndarray:
    """Noise over signal at each timestep, rising."""
    a = schedule.alphas_cumprod.astype(np.float64)
    return np.sqrt((1 - a) / a)


def karras_sigmas(low: float, high: float, steps: int, rho: float = 7.0) -> np.ndarray:
    """Karras et al. 2022, eq. 5, without the final zero."""
    ramp = np.linspace(0, 1, steps)
    return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def timestep_of(sigmas: np.ndarray, ve_sigmas: np.ndarray) -> np.ndarray:
    """The (fractional) timestep of a noise level, linear in log σ."""
    return np.interp(np.log(sigmas), np.log(ve_sigmas), np.arange(len(ve_sigmas)))
