"""Strict runtime for every test: a surprise is a failure."""

import os

# Before jax is imported: tests that shard need devices, and all share compiled programs.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and compute little: the optimisations cost more than they win.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    " --xla_llvm_disable_expensive_passes=true",
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import pytest


@pytest.fixture(autouse=True, scope="session")
def _strict_jax():
    jax.config.update("jax_numpy_rank_promotion", "raise")
