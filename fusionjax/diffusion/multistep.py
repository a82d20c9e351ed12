"""DPM-Solver++ and UniPC: solvers of the ODE in λ, the half logarithm of the signal-to-noise ratio.

Their latents are variance preserving, see `rows`.
"""

import numpy as np

from fusionjax.diffusion.noise_schedule import NoiseSchedule
from fusionjax.diffusion.rows import (
    HISTORY,
    Built,
    clean_from_output,
    exploding_sigmas,
    karras_sigmas,
    levels_after,
    make_rows,
    timestep_of,
)


def _multistep_levels(
    schedule: NoiseSchedule, steps: int, first: int, karras: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Timesteps, and α and σ of them and of the clean end."""
    ve_sigmas = exploding_sigmas(schedule)
    if karras:
        ve = karras_sigmas(ve_sigmas[0], ve_sigmas[-1], steps)
        t = timestep_of(ve, ve_sigmas).round()
    else:
        t = np.linspace(0, len(ve_sigmas) - 1, steps + 1).round()[:0:-1]
        ve = ve_sigmas[t.astype(int)]
    t, ve = t[first:], np.append(ve[first:], 0.0)
    alpha = 1 / np.sqrt(ve**2 + 1)
    return t, alpha, ve * alpha


def _half_log_snr(alpha: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):  # λ = +∞ at the clean end
        return np.log(alpha) - np.log(sigma)  # type: ignore[no-any-return]


def dpmpp_2m(schedule: NoiseSchedule, steps: int, first: int, karras: bool, *, sde: bool) -> Built:
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2, midpoint; the last step is first order.

    With `sde` it is their SDE-DPM-Solver++(2M): more of the old noise is forgotten, and fresh noise
    takes its place.
    """
    t, alpha, sigma = _multistep_levels(schedule, steps, first, karras)
    count = len(t)
    take_latents, take_output = clean_from_output(schedule, alpha[:-1], sigma[:-1])
    h = np.diff(_half_log_snr(alpha, sigma))
    speed = 2 if sde else 1
    gain = -alpha[1:] * np.expm1(-speed * h)
    weights = np.zeros((count, HISTORY + 1))
    weights[:, 0] = gain
    for i in range(1, count - 1):
        half = 0.5 * gain[i] * h[i] / h[i - 1]
        weights[i, :2] += [half, -half]
    rows = make_rows(
        count,
        timesteps=t,
        take_latents=take_latents,
        take_output=take_output,
        keep=sigma[1:] / sigma[:-1] * (np.exp(-h) if sde else 1),
        weights=weights,
        noise=sigma[1:] * np.sqrt(-np.expm1(-2 * h)) * sde,
        **levels_after(alpha[1:], sigma[1:]),
    )
    return rows, alpha[0], sigma[0], 1.0


def unipc(schedule: NoiseSchedule, steps: int, first: int) -> Built:
    """UniPC, Zhao et al. 2023, algorithms 1 and 2 of order 2 with B(h) = e^h - 1.

    A row first corrects the latents that the row before predicted, now that the answer there is
    known, and predicts the next from them. What the row before left from is no longer there, but
    follows from what it predicted: everything is linear.
    """
    t, alpha, sigma = _multistep_levels(schedule, steps, first, karras=False)
    count = len(t)
    take_latents, take_output = clean_from_output(schedule, alpha[:-1], sigma[:-1])
    h = np.diff(_half_log_snr(alpha, sigma))
    ratio, gain = sigma[1:] / sigma[:-1], -alpha[1:] * np.expm1(-h)

    def lagged(i: int) -> float:
        """Where the answer before the newest lies, in steps."""
        return float(-h[i - 1] / h[i])

    # From corrected latents: x' = ratio x + Σ predict_j m_j
    predict = np.zeros((count, HISTORY + 1))
    predict[:, 0] = gain
    for i in range(1, count - 1):
        predict[i, :2] += 0.5 * gain[i] / lagged(i) * np.array([-1, 1])
    keep, weights = ratio.copy(), predict.copy()
    for i in range(1, count):
        j = i - 1  # the step that is corrected, from level j to level i
        correct = np.zeros(HISTORY + 1)  # of m_i, m_j, m_{j-1}
        correct[1] = gain[j]
        if j == 0:
            correct[:2] += 0.5 * gain[j] * np.array([1, -1])
        else:
            back = lagged(j)
            phi = np.expm1(-h[j]) / -h[j] - 1  # φ_2, then φ_3
            moments = np.array([phi, 2 * (phi / -h[j] - 0.5)]) / np.expm1(-h[j])
            early, late = np.linalg.solve(np.array([[1, 1], [back, 1]]), moments)
            correct[:3] += gain[j] * (
                late * np.array([1, -1, 0]) + early / back * np.array([0, -1, 1])
            )
        # x_j = (x - Σ predict_j m) / ratio_j, so that x_i = x + what was predicted otherwise.
        change = correct.copy()
        change[1:] -= predict[j, :-1]
        weights[i] += ratio[i] * change
    rows = make_rows(
        count,
        timesteps=t,
        take_latents=take_latents,
        take_output=take_output,
        keep=keep,
        weights=weights,
        **levels_after(alpha[1:], sigma[1:]),
    )
    return rows, alpha[0], sigma[0], 1.0
