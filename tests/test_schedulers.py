"""Each sampler against PyTorch diffusers' scheduler of the same name, step by step."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusionjax.diffusion import samplers as schedulers
from fusionjax.diffusion.noise_schedule import NoiseSchedule
from fusionjax.errors import UserError

# scheduler/scheduler_config.json of Stable Diffusion 1.5, as published.
SD15 = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
TORCH = {
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "ddim_trailing": ("DDIMScheduler", {"timestep_spacing": "trailing"}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2m_sde_karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "heun": ("HeunDiscreteScheduler", {}),
    "heun_karras": ("HeunDiscreteScheduler", {"use_karras_sigmas": True}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "lms_karras": ("LMSDiscreteScheduler", {"use_karras_sigmas": True}),
}
DRAWING = {
    "euler_ancestral": "euler_ancestral_discrete",
    "dpmpp_2m_sde": "dpmsolver_multistep",
    "dpmpp_2m_sde_karras": "dpmsolver_multistep",
    "lcm": "lcm",
    "tcd": "tcd",
}
CALLS = {"heun": 2, "heun_karras": 2}  # of the UNet for each step but the last
SHAPE = (2, 6, 5, 4)


def model(xp, x, t):
    """A fixed nonlinear answer that mixes channels and depends on the timestep."""
    mixed = x + 0.3 * xp.roll(x, 1, -1)
    return xp.tanh(0.8 * mixed) + 0.1 * xp.sin(3.0 * x + t / 200.0)


def torch_trajectory(*arguments, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' and torch's own deprecations
        return _torch_trajectory(*arguments, **more)


def _torch_trajectory(name, prediction, steps, start, noises, **more):
    import diffusers

    torch = pytest.importorskip("torch")
    kind, options = TORCH[name]
    config = {**SD15, "prediction_type": prediction, **more}
    scheduler = getattr(diffusers, kind).from_config(config, **options)
    scheduler.set_timesteps(steps)
    fresh = iter(noises)
    if name in DRAWING:  # the scheduler draws inside: give it our noise
        module = f"diffusers.schedulers.scheduling_{DRAWING[name]}.randn_tensor"
        patch = pytest.MonkeyPatch()
        patch.setattr(module, lambda *a, **k: torch.from_numpy(next(fresh)))
    else:
        patch = None

    class Torch:
        tanh, sin = torch.tanh, torch.sin

        @staticmethod
        def roll(x, shift, axis):
            return torch.roll(x, shift, axis)

    try:
        x = torch.from_numpy(start) * scheduler.init_noise_sigma
        path = []
        for t in scheduler.timesteps:
            output = model(Torch, scheduler.scale_model_input(x, t), t)
            x = scheduler.step(output, t, x).prev_sample
            path.append(x.numpy())
    finally:
        if patch:
            patch.undo()
    return np.array([float(t) for t in scheduler.timesteps]), np.stack(path)


def run(plan, answer, start, noises):
    """All latents along the way: [s, ...]."""

    def body(carry, row_noise):
        row, noise = row_noise
        output = answer(row.input_scale * carry.latents, row.timesteps)
        carry = schedulers.advance(row, carry, output, noise)
        return carry, carry.latents

    rows = jax.tree.map(jnp.asarray, plan.rows)
    carry = schedulers.Carry.start(jnp.asarray(start))
    path = jax.jit(lambda c, xs: jax.lax.scan(body, c, xs)[1])(carry, (rows, noises[: len(plan)]))
    return np.asarray(path)


def our_trajectory(name, prediction, steps, start, noises, **more):
    plan = schedulers.plan(NoiseSchedule(prediction_type=prediction, **more), name, steps)
    path = run(plan, functools.partial(model, jnp), plan.start_noise * start, noises)
    return plan.rows.timesteps, path


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_agrees_with_pytorch_at_every_step(name, prediction):
    steps = 25
    rng = np.random.default_rng(0)
    start = rng.normal(size=SHAPE).astype(np.float32)
    noises = rng.normal(size=(2 * steps, *SHAPE)).astype(np.float32)
    times, expected = torch_trajectory(name, prediction, steps, start, noises)
    our_times, path = our_trajectory(name, prediction, steps, start, noises)
    np.testing.assert_allclose(our_times, times, atol=1e-2)
    assert path.shape == expected.shape
    error = np.abs(path - expected).reshape(len(path), -1).max(1)
    scale = np.abs(expected).reshape(len(path), -1).max(1)
    assert (error / scale).max() <= 1e-4


@pytest.mark.parametrize(
    "name", ["ddim", "ddim_trailing", "euler", "euler_ancestral", "dpmpp_2m", "unipc", "tcd"]
)
def test_zero_terminal_snr_agrees_too(name):
    """Those of diffusers' schedulers that know it; DDIM has a true 0, the others 2⁻²⁴ as here."""
    steps, more = 10, {"rescale_betas_zero_snr": True}
    rng = np.random.default_rng(3)
    start = rng.normal(size=SHAPE).astype(np.float32)
    noises = rng.normal(size=(2 * steps, *SHAPE)).astype(np.float32)
    times, expected = torch_trajectory(name, "v_prediction", steps, start, noises, **more)
    our_times, path = our_trajectory(name, "v_prediction", steps, start, noises, **more)
    np.testing.assert_allclose(our_times, times, atol=1e-2)
    error = np.abs(path - expected).reshape(len(path), -1).max(1)
    scale = np.abs(expected).reshape(len(path), -1).max(1)
    assert (error / scale).max() <= 1e-3


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
@pytest.mark.parametrize("steps", [2, 3])
def test_few_steps_agree_too(name, steps):
    rng = np.random.default_rng(1)
    start = rng.normal(size=SHAPE).astype(np.float32)
    noises = rng.normal(size=(2 * steps, *SHAPE)).astype(np.float32)
    _, expected = torch_trajectory(name, "epsilon", steps, start, noises)
    _, path = our_trajectory(name, "epsilon", steps, start, noises)
    np.testing.assert_allclose(path, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_a_model_that_knows_the_answer_leads_to_it(name, prediction):
    """If the UNet always points at one clean picture, the last latents are that picture."""
    schedule = NoiseSchedule(prediction_type=prediction)
    rng = np.random.default_rng(2)
    clean, noise = (rng.normal(size=SHAPE).astype(np.float32) for _ in range(2))

    def answer(x, t):
        a = jnp.interp(t, jnp.arange(1000), jnp.asarray(schedule.alphas_cumprod))
        eps = (x - jnp.sqrt(a) * clean) / jnp.sqrt(1 - a)
        return eps if prediction == "epsilon" else jnp.sqrt(a) * eps - jnp.sqrt(1 - a) * clean

    for strength in (None, 0.6):
        plan = schedulers.plan(schedule, name, 25, strength=strength)
        start = plan.start_clean * clean + plan.start_noise * noise
        path = run(plan, answer, start, np.zeros((50, *SHAPE), np.float32))
        # Samplers that stop at timestep 0 rather than at a clean picture leave 3 % noise; Karras
        # spacing tells the UNet a rounded timestep.
        assert np.abs(path[-1] - clean).mean() < 0.04, strength


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_starting_from_a_picture_runs_the_last_steps(name):
    schedule = NoiseSchedule()
    whole = schedulers.plan(schedule, name, 20)
    part = schedulers.plan(schedule, name, 20, strength=0.5)
    extra = 1 if name == "pndm" else 9 * (CALLS.get(name, 1) - 1)
    assert len(part) == 10 + extra
    np.testing.assert_allclose(part.rows.timesteps[-9:], whole.rows.timesteps[-9:])
    t = part.rows.timesteps[0]
    a = np.interp(t, np.arange(1000), schedule.alphas_cumprod)
    assert part.start_noise / part.start_clean == pytest.approx(np.sqrt((1 - a) / a), rel=2e-3)
    assert part.rows.next_clean[-1] == 1
    assert part.rows.next_noise[-1] == 0


def test_more_levels_than_one_table_can_hold_are_refused():
    with pytest.raises(UserError, match=r"steps is 1000; it must be in 1\.\.999"):
        schedulers.plan(NoiseSchedule(), "ddim", 1000)
    with pytest.raises(UserError, match=r"scheduler is 'dpm2'; did you mean 'dpmpp_2m'\?"):
        schedulers.plan(NoiseSchedule(), "dpm2", 10)
    with pytest.raises(UserError, match=r"strength 0\.01 of 30 steps leaves none.* least 0\.034 "):
        schedulers.plan(NoiseSchedule(), "ddim", 30, strength=0.01)
    assert len(schedulers.plan(NoiseSchedule(), "ddim", 30, strength=0.034)) == 1
    with pytest.raises(UserError, match=r"strength is 1\.5; it must be in"):
        schedulers.plan(NoiseSchedule(), "ddim", 20, strength=1.5)


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_every_table_is_finite(name):
    for steps in (1, 2, 30, 999):
        for column in schedulers.plan(NoiseSchedule(), name, steps).rows:
            assert np.isfinite(column).all()
