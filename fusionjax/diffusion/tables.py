"""The samplers' tables: one row for each call of the UNet, worked out in float64 beforehand.

Two spaces are in use, as in diffusers. "Variance preserving" latents are x_t = α x + σ ε with
α² + σ² = 1 (DDIM, PNDM, DPM-Solver++); "variance exploding" latents are x + σ ε with
σ = sqrt((1 - a_t) / a_t) (Euler, LMS) and are scaled before the UNet sees them.

Legend: s rows (calls of the UNet); a_t the schedule's `alphas_cumprod`.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float
from numpy.polynomial import polynomial

from fusionjax.diffusion.noise_schedule import NoiseSchedule

# Stable Diffusion 1.5's scheduler_config.json: the grid of DDIM and PNDM starts at timestep 1,
# and their last step goes to timestep 0 and not to a clean picture of variance 1.
_STEPS_OFFSET = 1
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
_Built = tuple[Rows, float, float, float]


def build(schedule: NoiseSchedule, name: str, steps: int, first: int) -> _Built:
    """Works out a sampler's table; a sampler is added here and in `options.SCHEDULERS`.

    Args:
        schedule: the base model's.
        name: one of `SCHEDULERS`.
        steps: noise levels to visit.
        first: how many of them are left out at the beginning.
    """
    method = name.removesuffix("_karras")
    karras = method != name
    if method == "ddim":
        return _ddim(schedule, steps, first)
    if method == "pndm":
        return _pndm(schedule, steps, first)
    if method == "dpmpp_2m":
        return _dpmpp_2m(schedule, steps, first, karras)
    return _exploding(schedule, steps, first, karras, method)


def _rows(count: int, **columns: np.ndarray) -> Rows:
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


def _leading_timesteps(schedule: NoiseSchedule, steps: int) -> np.ndarray:
    """The descending grid of DDIM and PNDM: multiples of T // steps, plus 1."""
    stride = schedule.num_train_timesteps // steps
    return np.arange(steps)[::-1] * stride + _STEPS_OFFSET


def _ddim(schedule: NoiseSchedule, steps: int, first: int) -> _Built:
    """Song et al. 2021, eq. 12 with η = 0."""
    a = schedule.alphas_cumprod.astype(np.float64)
    t = _leading_timesteps(schedule, steps)[first:]
    t_next = t - schedule.num_train_timesteps // steps
    now, after = a[t], a[np.maximum(t_next, 0)]
    alpha, sigma = np.sqrt(now), np.sqrt(1 - now)
    take_latents, take_output = _noise_from_output(schedule, alpha, sigma)
    # x' = α' (x - σ ε) / α + σ' ε
    keep = np.sqrt(after / now)
    weights = np.zeros((len(t), HISTORY + 1))
    weights[:, 0] = np.sqrt(1 - after) - keep * sigma
    rows = _rows(
        len(t),
        timesteps=t,
        take_latents=take_latents,
        take_output=take_output,
        keep=keep,
        weights=weights,
        **_levels_after(np.sqrt(after), np.sqrt(1 - after)),
    )
    return rows, alpha[0], sigma[0], 1.0


# Adams-Bashforth weights of the newest answer and those before it, by how many there are.
_ADAMS_BASHFORTH = (
    np.array([1.0, 0, 0, 0]),
    np.array([3.0, -1, 0, 0]) / 2,
    np.array([23.0, -16, 5, 0]) / 12,
    np.array([55.0, -59, 37, -9]) / 24,
)


def _pndm(schedule: NoiseSchedule, steps: int, first: int) -> _Built:
    """Liu et al. 2022, eq. 9 and 12 without Runge-Kutta steps, as Stable Diffusion uses it.

    The second row repeats the first step from its own starting point (the anchor), now with the
    mean of the answers at both of its ends (Heun's method); the table is one row longer for it.
    """
    a = schedule.alphas_cumprod.astype(np.float64)
    stride = schedule.num_train_timesteps // steps
    grid = _leading_timesteps(schedule, steps)[first:]
    t = np.concatenate([grid[:2], grid[1:]])
    count = len(t)
    # Which two levels a row goes between: all rows but the second leave from where they look.
    from_t = t.copy()
    from_t[1:2] += stride
    to_t = from_t - stride
    now, after = a[np.minimum(from_t, len(a) - 1)], a[np.maximum(to_t, 0)]
    keep = np.sqrt(after / now)
    step = -(after - now) / (
        now * np.sqrt(1 - after) + np.sqrt(now * (1 - now) * after)
    )  # eq. 9: x' = keep x + step ε
    combine = np.stack([_ADAMS_BASHFORTH[min(max(i - 1, 0), 3)] for i in range(count)])
    combine[1:2] = [0.5, 0.5, 0, 0]
    if schedule.prediction_type == "epsilon":
        weights = step[:, None] * combine
    else:  # ε = α v + σ x, applied to the combined v
        weights = (step * np.sqrt(now))[:, None] * combine
        keep = keep + step * np.sqrt(1 - now)
    second = np.arange(count) == 1
    rows = _rows(
        count,
        timesteps=t,
        keep=np.where(second, 0, keep),
        keep_anchor=np.where(second, keep, 0),
        weights=weights,
        remember=1.0 - second,
        anchor=(np.arange(count) == 0) * 1.0,
        **_levels_after(np.sqrt(after), np.sqrt(1 - after)),
    )
    return rows, np.sqrt(a[grid[0]]), np.sqrt(1 - a[grid[0]]), 1.0


def _dpmpp_2m(schedule: NoiseSchedule, steps: int, first: int, karras: bool) -> _Built:
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2, midpoint; the last step is first order."""
    ve_sigmas = _exploding_sigmas(schedule)
    if karras:
        ve = _karras(ve_sigmas[0], ve_sigmas[-1], steps)
        t = _timestep_of(ve, ve_sigmas).round()
    else:
        t = np.linspace(0, len(ve_sigmas) - 1, steps + 1).round()[:0:-1]
        ve = ve_sigmas[t.astype(int)]
    t, ve = t[first:], np.append(ve[first:], 0.0)
    count = len(t)
    alpha = 1 / np.sqrt(ve**2 + 1)
    sigma = ve * alpha
    take_latents, take_output = _clean_from_output(schedule, alpha[:-1], sigma[:-1])
    with np.errstate(divide="ignore"):  # λ = +∞ at the clean end
        lam = np.log(alpha) - np.log(sigma)
    h = np.diff(lam)
    gain = -alpha[1:] * np.expm1(-h)
    weights = np.zeros((count, HISTORY + 1))
    weights[:, 0] = gain
    for i in range(1, count - 1):
        half = 0.5 * gain[i] * h[i] / h[i - 1]
        weights[i, :2] += [half, -half]
    rows = _rows(
        count,
        timesteps=t,
        take_latents=take_latents,
        take_output=take_output,
        keep=sigma[1:] / sigma[:-1],
        weights=weights,
        **_levels_after(alpha[1:], sigma[1:]),
    )
    return rows, alpha[0], sigma[0], 1.0


def _exploding(
    schedule: NoiseSchedule, steps: int, first: int, karras: bool, method: str
) -> _Built:
    """Euler, Euler ancestral and LMS (Karras et al. 2022, algorithm 1; Crowson's k-diffusion).

    All integrate dx = d dσ with d = (x - clean) / σ, which is the noise ε.
    """
    ve_sigmas = _exploding_sigmas(schedule)
    t = np.linspace(len(ve_sigmas) - 1, 0, steps)  # a single step leaves from the noisiest level
    ve = np.interp(t, np.arange(len(ve_sigmas)), ve_sigmas)
    if karras:
        ve = _karras(ve[-1], ve[0], steps)
        t = _timestep_of(ve, ve_sigmas)
    t, ve = t[first:], np.append(ve[first:], 0.0)
    count = len(t)
    now, after = ve[:-1], ve[1:]
    alpha = 1 / np.sqrt(now**2 + 1)
    if schedule.prediction_type == "epsilon":
        take_latents, take_output = np.zeros(count), np.ones(count)
    else:  # ε = α v + σ x with x the variance preserving latents, α times ours
        take_latents, take_output = now * alpha**2, alpha
    weights = np.zeros((count, HISTORY + 1))
    noise = np.zeros(count)
    if method == "lms":
        for i in range(count):
            order = min(i + 1, HISTORY + 1)
            weights[i, :order] = _lms_weights(ve[i : i - order if i >= order else None : -1],
                                              after[i])  # fmt: skip
    elif method == "euler_ancestral":
        up = np.sqrt(after**2 * (now**2 - after**2) / now**2)
        weights[:, 0] = np.sqrt(after**2 - up**2) - now
        noise = up
    else:
        weights[:, 0] = after - now
    rows = _rows(
        count,
        timesteps=t,
        input_scale=alpha,
        take_latents=take_latents,
        take_output=take_output,
        weights=weights,
        noise=noise,
        **_levels_after(np.ones(count), after),
    )
    return rows, 1.0, now[0], now[0]


def _lms_weights(sigmas: np.ndarray, end: float) -> np.ndarray:
    """∫ of each Lagrange polynomial through `sigmas` (newest first) from sigmas[0] to `end`."""
    result = np.empty(len(sigmas))
    for j, own in enumerate(sigmas):
        others = np.delete(sigmas, j)
        lagrange = polynomial.polyfromroots(others) / np.prod(own - others)
        integral = polynomial.polyint(lagrange)
        result[j] = polynomial.polyval(end, integral) - polynomial.polyval(sigmas[0], integral)
    return result


def _noise_from_output(
    schedule: NoiseSchedule, alpha: np.ndarray, sigma: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(p, q) with ε = p x + q o."""
    if schedule.prediction_type == "epsilon":
        return np.zeros_like(alpha), np.ones_like(alpha)
    return sigma, alpha


def _clean_from_output(
    schedule: NoiseSchedule, alpha: np.ndarray, sigma: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(p, q) with clean = p x + q o."""
    if schedule.prediction_type == "epsilon":
        return 1 / alpha, -sigma / alpha
    return alpha, -sigma


def _levels_after(clean: np.ndarray, noise: np.ndarray) -> dict[str, np.ndarray]:
    """The levels after each row; after the last one the picture counts as clean."""
    clean, noise = clean.copy(), noise.copy()
    clean[-1], noise[-1] = 1.0, 0.0
    return {"next_clean": clean, "next_noise": noise}


def _exploding_sigmas(schedule: NoiseSchedule) -> np.ndarray:
    a = schedule.alphas_cumprod.astype(np.float64)
    return np.sqrt((1 - a) / a)


def _karras(low: float, high: float, steps: int, rho: float = 7.0) -> np.ndarray:
    """Karras et al. 2022, eq. 5, without the final zero."""
    ramp = np.linspace(0, 1, steps)
    return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def _timestep_of(sigmas: np.ndarray, ve_sigmas: np.ndarray) -> np.ndarray:
    """The (fractional) timestep of a noise level, linear in log σ."""
    return np.interp(np.log(sigmas), np.log(ve_sigmas), np.arange(len(ve_sigmas)))
