"""The noise schedule against diffusers' PyTorch DDPMScheduler, and the identities it must obey."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers import DDPMScheduler

from fusionjax.diffusion.noise_schedule import (
    NoiseSchedule,
    add_noise,
    min_snr_weight,
    random_timesteps,
    snr,
    target,
)
from fusionjax.errors import UserError

SCHEDULES = [
    NoiseSchedule(beta_schedule=kind, prediction_type=prediction, num_train_timesteps=count)
    for kind in ("linear", "scaled_linear", "squaredcos_cap_v2")
    for prediction, count in (("epsilon", 1000), ("v_prediction", 250))
]


@pytest.fixture
def latents():
    rng = np.random.default_rng(0)
    clean, noise = rng.normal(size=(2, 5, 4, 6, 3)).astype(np.float32)
    return clean, noise


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_matches_the_pytorch_scheduler(schedule, latents):
    torch = pytest.importorskip("torch")
    reference = DDPMScheduler.from_config(schedule.to_config())
    clean, noise = latents
    last = schedule.num_train_timesteps - 1
    t = np.array([0, 1, last // 2, last - 1, last])
    np.testing.assert_allclose(
        schedule.alphas_cumprod, reference.alphas_cumprod.numpy(), rtol=1e-4, atol=1e-7
    )
    expected = reference.add_noise(torch.tensor(clean), torch.tensor(noise), torch.tensor(t))
    got = jax.jit(add_noise, static_argnums=0)(schedule, clean, noise, t)
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-4)
    expected = torch.tensor(noise)
    if schedule.prediction_type == "v_prediction":
        expected = reference.get_velocity(torch.tensor(clean), expected, torch.tensor(t))
    got = target(schedule, jnp.asarray(clean), jnp.asarray(noise), jnp.asarray(t))
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-4)


def test_config_round_trip_ignores_other_keys():
    schedule = NoiseSchedule(prediction_type="v_prediction", beta_end=0.02)
    assert NoiseSchedule.from_config({**schedule.to_config(), "skip_prk_steps": True}) == schedule


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"prediction_type": "sample"}, "prediction_type is 'sample'; known are epsilon"),
        ({"beta_schedule": "cubic"}, "beta_schedule is 'cubic'"),
        ({"beta_start": 0.5, "beta_end": 0.1}, "beta_start is 0.5 and beta_end 0.1"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({"trained_betas": [0.1]}, "trained_betas"),
    ],
)
def test_unknown_schedules_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        NoiseSchedule.from_config(config)


def test_min_snr_weight_by_hand():
    schedule = NoiseSchedule()
    t = jnp.array([0, 999])
    ratio = np.asarray(snr(schedule, t))
    assert ratio[0] > 1000
    assert ratio[1] < 0.01
    np.testing.assert_allclose(min_snr_weight(schedule, t, 5.0), [5 / ratio[0], 1.0], rtol=1e-6)
    v = NoiseSchedule(prediction_type="v_prediction")
    np.testing.assert_allclose(
        min_snr_weight(v, t, 5.0), [5 / (ratio[0] + 1), ratio[1] / (ratio[1] + 1)], rtol=1e-6
    )
    np.testing.assert_array_equal(min_snr_weight(schedule, t, None), [1, 1])


def test_the_timesteps_of_a_batch_share_the_schedule_out_evenly():
    schedule = NoiseSchedule(num_train_timesteps=100)
    drawn = np.stack(
        [random_timesteps(schedule, key, 8) for key in jax.random.split(jax.random.key(0), 300)]
    )
    first = np.arange(8) * 12.5
    assert (drawn > first - 1).all()
    assert (drawn < first + 12.5).all()
    assert set(drawn.ravel()) == set(range(100))
    assert drawn.mean() == pytest.approx(49.5, abs=1)
