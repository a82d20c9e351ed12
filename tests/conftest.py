"""Strict runtime for every test: a surprise is a failure."""

import contextlib
import importlib
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

# Before jax is imported: tests that shard need devices, and all share compiled programs.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and compute little: the optimisations cost more than they win.
# The last flag halves compiling; later versions do not know it, and abort.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    " --xla_llvm_disable_expensive_passes=true"
    + (" --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""),
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A worker a core: further threads of PyTorch's, NumPy's and OpenCV's would wait for each other,
# and keep a core busy with it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")
# What one test compiled is there for all that come after it, also in the other worker and in
# processes that tests start; the first process, which starts the workers, makes and removes it.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="fusionjax-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
    os.environ["XDG_CACHE_HOME"] = _CACHE.name
    os.environ["JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    os.environ["JAX_PERSISTENT_COMPILATION_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import jaxtyping
import pytest

# Shapes and types are checked as they are met. Before anything of ours is imported.
assert not {"fusionjax", "train", "sample"} & sys.modules.keys()
jaxtyping.install_import_hook(
    ["fusionjax", "train", "sample"],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)


def pytest_sessionstart(session):
    """Imports the large packages beforehand: met first within our modules, whose import is hooked,
    each of their files would be compiled anew."""
    if hasattr(session.config, "workerinput") or not session.config.getoption("numprocesses", 0):
        for name in ("torch", "diffusers.models.vae_flax", "orbax.checkpoint", "tensorboardX"):
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module(name)


@pytest.fixture(autouse=True, scope="session")
def _strict_jax():
    jax.config.update("jax_numpy_rank_promotion", "raise")
    # The first compilation says where all are kept, whatever folder a test names later.
    jax.jit(lambda x: x + 1)(1.0)


@pytest.fixture(scope="session")
def _from_pretrained_once():
    from fusionjax.models.adapter import adapter_base
    from fusionjax.pipeline import FusionPipeline

    load, kept = FusionPipeline.from_pretrained, {}

    def state(source):
        files = sorted(Path(source).rglob("*")) if Path(source).is_dir() else [Path(source)]
        return [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files]

    def from_pretrained(base, fusion, **options):
        base = base or (adapter_base(fusion) if fusion else None)
        key = repr((options, [state(s) for s in (base, fusion) if s and Path(s).exists()]))
        if key not in kept:
            kept[key] = load(base, fusion, **options)
        return kept[key]

    return from_pretrained


@pytest.fixture
def loaded_once(monkeypatch, _from_pretrained_once):
    """Keeps what the commands of a test load and compile for the next, while the files stay."""
    from fusionjax.pipeline import FusionPipeline

    monkeypatch.setattr(FusionPipeline, "from_pretrained", _from_pretrained_once)


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    """A folder of four real people, of each a photo and two that are unlike it."""
    from tests.people_folder import write_people

    return write_people(tmp_path_factory.mktemp("people"))


@pytest.fixture
def prompts(tmp_path):
    """A file of two prompts for them."""
    path = tmp_path / "prompts.txt"
    path.write_text("a photo of {person}\n\na watercolour of {person}\n")
    return path


@pytest.fixture
def sface_alone(monkeypatch):
    """As if dlib's recogniser were not installed, where it is not what a test is about."""
    from fusionjax.evaluation import recognisers

    monkeypatch.setattr(recognisers, "_PACKAGE", "no_such_package")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """Where PyTorch is not installed, a test module that imports it is skipped, and counted.

    `without_torch.py` watches that nothing but tests needs it.
    """
    report = yield
    error = report.call.excinfo and report.call.excinfo.value.__cause__
    if isinstance(error, ModuleNotFoundError) and error.name in ("torch", "peft", "lycoris"):
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, f"Skipped: no module named {error.name!r}")
    return report
