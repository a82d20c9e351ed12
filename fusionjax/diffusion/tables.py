"""The samplers' tables: one row for each call of the UNet, worked out in float64 beforehand.

Of the latents' two spaces `rows` tells.

Legend: s rows (calls of the UNet); a_t the schedule's `alphas_cumprod`.
"""

import numpy as np
from numpy.polynomial import polynomial

from fusionjax.diffusion import multistep
from fusionjax.diffusion.noise_schedule import NoiseSchedule
from fusionjax.diffusion.rows import (
    HISTORY,
    Built,
    clean_from_output,
    exploding_sigmas,
    karras_sigmas,
    levels_after,
    make_rows,
    noise_from_output,
    timestep_of,
)

# Stable Diffusion 1.5's scheduler_config.json: the grid of DDIM and PNDM starts at timestep 1,
# and their last step goes to timestep 0 and not to a clean picture of variance 1.
_STEPS_OFFSET = 1


def build(schedule: NoiseSchedule, name: str, steps: int, first: int) -> Built:
    """Works out a sampler's table; a sampler is added here and in `options.SCHEDULERS`.

    Args:
        schedule: the base model's.
        name: one of `SCHEDULERS`.
        steps: noise levels to visit.
        first: how many of them are left out at the beginning.
    """
    method = name.removesuffix("_karras")
    karras = method != name
    if method in ("ddim", "ddim_trailing"):
        return _ddim(schedule, steps, first, trailing=method == "ddim_trailing")
    if method == "pndm":
        return _pndm(schedule, steps, first)
    if method in ("lcm", "tcd"):
        return _consistency(schedule, steps, first, method)
    if method == "unipc":
        return multistep.unipc(schedule, steps, first)
    if method in ("dpmpp_2m", "dpmpp_2m_sde"):
        return multistep.dpmpp_2m(schedule, steps, first, karras, sde=method == "dpmpp_2m_sde")
    return _exploding(schedule, steps, first, karras, method)


def _leading_timesteps(schedule: NoiseSchedule, steps: int) -> np.ndarray:
    """The descending grid of DDIM and PNDM: multiples of T // steps, plus 1."""
    stride = schedule.num_train_timesteps // steps
    return np.arange(steps)[::-1] * stride + _STEPS_OFFSET


def _ddim(schedule: NoiseSchedule, steps: int, first: int, *, trailing: bool) -> Built:
    """Song et al. 2021, eq. 12 with η = 0.

    Trailing timesteps begin at the noisiest level, as distilled models of few steps want it (Lin
    et al. 2024, table 2).
    """
    a = schedule.alphas_cumprod.astype(np.float64)
    t = _leading_timesteps(schedule, steps)[first:]
    if trailing:
        total = schedule.num_train_timesteps
        t = (np.arange(total, 0, -total / steps).round().astype(int) - 1)[:steps][first:]
    t_next = t - schedule.num_train_timesteps // steps
    now, after = a[t], a[np.maximum(t_next, 0)]
    alpha, sigma = np.sqrt(now), np.sqrt(1 - now)
    take_latents, take_output = noise_from_output(schedule, alpha, sigma)
    # x' = α' (x - σ ε) / α + σ' ε
    keep = np.sqrt(after / now)
    weights = np.zeros((len(t), HISTORY + 1))
    weights[:, 0] = np.sqrt(1 - after) - keep * sigma
    rows = make_rows(
        len(t),
        timesteps=t,
        take_latents=take_latents,
        take_output=take_output,
        keep=keep,
        weights=weights,
        **levels_after(np.sqrt(after), np.sqrt(1 - after)),
    )
    return rows, alpha[0], sigma[0], 1.0


# Adams-Bashforth weights of the newest answer and those before it, by how many there are.
_ADAMS_BASHFORTH = (
    np.array([1.0, 0, 0, 0]),
    np.array([3.0, -1, 0, 0]) / 2,
    np.array([23.0, -16, 5, 0]) / 12,
    np.array([55.0, -59, 37, -9]) / 24,
)


def _pndm(schedule: NoiseSchedule, steps: int, first: int) -> Built:
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
    rows = make_rows(
        count,
        timesteps=t,
        keep=np.where(second, 0, keep),
        keep_anchor=np.where(second, keep, 0),
        weights=weights,
        remember=1.0 - second,
        anchor=(np.arange(count) == 0) * 1.0,
        **levels_after(np.sqrt(after), np.sqrt(1 - after)),
    )
    return rows, np.sqrt(a[grid[0]]), np.sqrt(1 - a[grid[0]]), 1.0


_TEACHER_STEPS = 50  # that LCM and TCD were distilled from
_SIGMA_DATA = 0.5
_TIMESTEP_SCALE = 10
_GAMMA = 0.3  # TCD's share of the way that is noised again


def _consistency(schedule: NoiseSchedule, steps: int, first: int, method: str) -> Built:
    """LCM (Luo et al. 2023) and TCD (Zheng et al. 2024): a few far steps, each noised.

    More than the teacher's fifty steps take a finer grid.
    """
    a = schedule.alphas_cumprod.astype(np.float64)
    origin = max(_TEACHER_STEPS, steps)
    grid = (np.arange(1, origin + 1) * (schedule.num_train_timesteps // origin) - 1)[::-1]
    t = grid[np.floor(np.linspace(0, origin, steps, endpoint=False)).astype(int)][first:]
    count = len(t)
    alpha, sigma = np.sqrt(a[t]), np.sqrt(1 - a[t])
    last = np.arange(count) == count - 1
    t_next = np.append(t[1:], 0)
    after = np.where(last & (method == "lcm"), 1.0, a[t_next])
    weights = np.zeros((count, HISTORY + 1))
    if method == "lcm":
        scaled = t * _TIMESTEP_SCALE
        skip = _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2)
        out = scaled / np.sqrt(scaled**2 + _SIGMA_DATA**2)
        take_latents, take_output = clean_from_output(schedule, alpha, sigma)
        keep, noise = np.sqrt(after) * skip, np.sqrt(1 - after)
        weights[:, 0] = np.sqrt(after) * out
    else:
        between = a[np.floor((1 - _GAMMA) * t_next).astype(int)]
        take_latents, take_output = noise_from_output(schedule, alpha, sigma)
        share = np.where(last, 1.0, np.sqrt(after / between))
        noise = np.where(last, 0.0, np.sqrt(1 - after / between))
        keep = share * np.sqrt(between) / alpha
        weights[:, 0] = share * np.sqrt(1 - between) - keep * sigma
    rows = make_rows(
        count,
        timesteps=t,
        take_latents=take_latents,
        take_output=take_output,
        keep=keep,
        weights=weights,
        noise=noise,
        **levels_after(np.sqrt(after), np.sqrt(1 - after)),
    )
    return rows, alpha[0], sigma[0], 1.0


def _exploding(schedule: NoiseSchedule, steps: int, first: int, karras: bool, method: str) -> Built:
    """Euler, its ancestral kind, Heun and LMS (Karras et al. 2022, algorithm 1; k-diffusion).

    All integrate dx = d dσ with d = (x - clean) / σ, which is the noise ε.
    """
    ve_sigmas = exploding_sigmas(schedule)
    t = np.linspace(len(ve_sigmas) - 1, 0, steps)  # a single step leaves from the noisiest level
    ve = np.interp(t, np.arange(len(ve_sigmas)), ve_sigmas)
    if karras:
        ve = karras_sigmas(ve[-1], ve[0], steps)
        t = timestep_of(ve, ve_sigmas)
    t, ve = t[first:], np.append(ve[first:], 0.0)
    now, after = ve[:-1], ve[1:]
    if method == "heun":
        # Each step but the last is taken twice, the second time by the mean of both its ends.
        t, now = np.repeat(t, 2)[1:], np.repeat(now, 2)[1:]
        after = np.append(np.repeat(after[:-1], 2), 0.0)
    count = len(t)
    alpha = 1 / np.sqrt(now**2 + 1)
    if schedule.prediction_type == "epsilon":
        take_latents, take_output = np.zeros(count), np.ones(count)
    else:  # ε = α v + σ x with x the variance preserving latents, α times ours
        take_latents, take_output = now * alpha**2, alpha
    weights = np.zeros((count, HISTORY + 1))
    noise, again = np.zeros(count), np.zeros(count)
    if method == "lms":
        for i in range(count):
            order = min(i + 1, HISTORY + 1)
            weights[i, :order] = _lms_weights(ve[i : i - order if i >= order else None : -1],
                                              after[i])  # fmt: skip
    elif method == "euler_ancestral":
        up = np.sqrt(after**2 * (now**2 - after**2) / now**2)
        weights[:, 0] = np.sqrt(after**2 - up**2) - now
        noise = up
    elif method == "heun":
        again[1::2] = 1
        weights[::2, 0] = (after - now)[::2]
        weights[1::2, :2] = ((now[1::2] - now[:-1:2]) / 2)[:, None]
    else:
        weights[:, 0] = after - now
    rows = make_rows(
        count,
        timesteps=t,
        input_scale=alpha,
        keep=1 - again,
        keep_anchor=again,
        anchor=1 - again,
        take_latents=take_latents,
        take_output=take_output,
        weights=weights,
        noise=noise,
        **levels_after(np.ones(count), after),
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
