"""Guidance against PyTorch diffusers' own formulae."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from fusionjax.diffusion.guidance import branch_weights, guided

SCALES, SHARES = np.array([3.0, 9.0]), np.array([0.0, 0.7], np.float32)


@pytest.mark.parametrize("faces", [None, np.array([2.0, 5.0])])
def test_rescaling_is_that_of_diffusers(faces):
    """Of each image by its own scale and share; a share of 0 changes nothing."""
    weights = branch_weights(SCALES, faces)
    branches = weights.shape[1]
    answers = np.random.default_rng(0).normal(0, 2, (branches, 2, 4, 4, 3)).astype(np.float32)
    latents, timesteps = jnp.zeros((2, 4, 4, 3)), jnp.zeros(2)

    def predict(inputs, _):
        return jnp.asarray(answers).reshape(inputs.shape)

    plain = np.asarray(guided(predict, weights)(latents, timesteps))
    rescaled = np.asarray(guided(predict, weights, SHARES)(latents, timesteps))
    theirs = [
        rescale_noise_cfg(torch.tensor(plain[i : i + 1]), torch.tensor(answers[-1, i : i + 1]),
                          guidance_rescale=float(share)).numpy()[0]
        for i, share in enumerate(SHARES)
    ]  # fmt: skip
    np.testing.assert_allclose(rescaled, theirs, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(rescaled[0], plain[0])
