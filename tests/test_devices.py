"""What is chosen for which hardware, asked of devices that do not exist; 16 bits and their ends."""

import dataclasses
import logging
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.experimental.layout import Format, Layout
from jax.sharding import SingleDeviceSharding

from fusionjax.backend import sharding
from fusionjax.backend.compilation import compiler_options
from fusionjax.backend.devices import (
    check_dtype,
    check_implementation,
    default_dtype,
    default_implementation,
    weight_format,
)
from fusionjax.embedded import MINI_BASE
from fusionjax.errors import NotFiniteWarning, UserError
from fusionjax.generation import runner
from fusionjax.models.base import BaseModel
from fusionjax.pipeline import FusionPipeline
from fusionjax.unet import FusionUNet
from tests import tiny


def device(platform, kind, capability=None):
    return SimpleNamespace(platform=platform, device_kind=kind, compute_capability=capability)


CPU = device("cpu", "cpu")
V100 = device("gpu", "Tesla V100-SXM2-32GB", "7.0")
A100 = device("gpu", "NVIDIA A100-SXM4-40GB", "8.0")
H100 = device("gpu", "NVIDIA H100 80GB HBM3", "9.0")
MI250 = device("gpu", "AMD Instinct MI250X", "gfx90a")
V5E = device("tpu", "TPU v5 lite")


@pytest.mark.parametrize(
    ("devices", "dtype", "in_16_bits", "in_32_bits"),
    [
        ([CPU] * 2, "float32", "xla", "xla"),
        ([V100] * 2, "float16", "xla", "xla"),
        ([A100], "bfloat16", "cudnn", "xla"),
        ([H100] * 8, "bfloat16", "cudnn", "xla"),
        ([MI250], "bfloat16", "xla", "xla"),
        ([V5E], "bfloat16", "tpu", "tpu"),
        ([V5E] * 8, "bfloat16", "tpu", "tpu"),
    ],
)
def test_type_and_attention_follow_the_device(devices, dtype, in_16_bits, in_32_bits):
    assert default_dtype(devices) == dtype
    assert default_implementation("bfloat16", devices) == in_16_bits
    assert default_implementation("float32", devices) == in_32_bits
    check_dtype(dtype, devices)
    check_implementation(in_16_bits, "bfloat16", devices)


@pytest.mark.parametrize(
    ("check", "arguments", "message"),
    [
        (check_dtype, ("bfloat16", [V100]), "dtype is bfloat16, which a Tesla V100-SXM2-32GB "
         "cannot do: it has compute capability 7.0, and bfloat16 begins with 8.0; use float16 or"),
        (check_dtype, ("float16", [V5E]), "cannot do: its 16-bit type is bfloat16; use bfloat16"),
        (check_implementation, ("cudnn", "float16", [V100]), "attention is cudnn, which needs an "
         "NVIDIA GPU of compute capability 8.0 or more (Ampere and newer), and this is a Tesla "
         "V100-SXM2-32GB; use xla, or leave it out"),
        (check_implementation, ("cudnn", "float32", [CPU]), "and this is a cpu; use xla"),
        (check_implementation, ("cudnn", "float32", [A100]), "16-bit inputs, and the type is "
         "float32; use bfloat16 or float16, or attention xla"),
        (check_implementation, ("tpu", "bfloat16", [H100]), "needs a TPU, and this is a NVIDIA H1"),
        (check_implementation, ("cudn", "bfloat16", [H100]), "attention is 'cudn'; did you mean "
         "'cudnn'?"),
    ],
)  # fmt: skip
def test_what_a_device_cannot_do_is_told(check, arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check(*arguments)


def test_a_pipeline_and_a_run_refuse_it_before_anything_is_loaded():
    with pytest.raises(UserError, match="attention is cudnn"):
        FusionPipeline.from_pretrained("no such base", attention="cudnn")
    with pytest.raises(UserError, match="attention is tpu"):
        FusionPipeline(tiny.tiny_base(), attention="tpu")


def test_kernels_lie_as_cudnn_wants_them():
    here = SingleDeviceSharding(jax.devices()[0])
    kernel = jax.ShapeDtypeStruct((3, 3, 4, 8), jnp.bfloat16)
    assert weight_format(kernel, here, A100) == Format(Layout((3, 0, 1, 2)), here)
    for weight, where in (
        (kernel, CPU),
        (kernel, V5E),
        (jax.ShapeDtypeStruct((3, 3, 4, 8), jnp.float32), A100),
        (jax.ShapeDtypeStruct((4, 8), jnp.bfloat16), A100),
    ):
        assert weight_format(weight, here, where) is here
    assert compiler_options(A100) == {"xla_gpu_dot_merger_threshold_mb": 0}
    assert compiler_options(CPU) == compiler_options(MI250) == compiler_options(V5E) == {}


def cast(base, dtype):
    """A base model in another type."""
    modules = {
        name: getattr(base, name).clone(dtype=jnp.dtype(dtype))
        for name in ("unet", "vae", "text_encoder")
    }
    params = jax.tree.map(lambda x: x.astype(dtype), base.params)
    return dataclasses.replace(base, params=params, **modules)


def make_pipe(base):
    params, options = tiny.tiny_fusion()
    params = jax.tree.map(lambda x: x.astype(jnp.dtype(base.unet.dtype)), params)
    return FusionPipeline(base, params, options, devices=jax.devices()[:1])


def paint(pipe, **options):
    person = pipe.encode_identity(tiny.photo(1), crop="none")
    return pipe("a garden", [person], num_inference_steps=3, **options)


@pytest.fixture(scope="module")
def in_float32():
    return paint(tiny.tiny_pipe())


# Twice what was measured on this net of random weights: rounding to 8 and to 11 bits.
@pytest.mark.parametrize(
    ("dtype", "bound"),
    [("bfloat16", 0.15), pytest.param("float16", 0.02, marks=pytest.mark.slow)],
)
def test_sixteen_bits_paint_the_same_picture(in_float32, dtype, bound):
    out = paint(make_pipe(cast(tiny.tiny_base(), dtype)))
    apart = np.square(out.latents - in_float32.latents).mean() ** 0.5
    assert apart < bound * in_float32.latents.std()
    levels = np.abs(np.asarray(out.images[0], int) - np.asarray(in_float32.images[0], int))
    assert levels.mean() < 255 * bound


@pytest.mark.slow
def test_another_order_in_memory_paints_the_same_picture(in_float32, monkeypatch):
    def as_on_a_gpu(weight, sharding, _):
        is_kernel = len(weight.shape) == 4
        return Format(Layout((3, 0, 1, 2)), sharding) if is_kernel else sharding

    monkeypatch.setattr(runner, "weight_format", as_on_a_gpu)
    pipe = make_pipe(tiny.tiny_base())
    out = paint(pipe)
    np.testing.assert_allclose(out.latents, in_float32.latents, rtol=1e-4, atol=1e-4)
    kernel = pipe.runner._params(1)["base"]["unet"]["conv_in"]["kernel"]
    assert kernel.format.layout.major_to_minor == (3, 0, 1, 2)


def compiled(caplog, function, *arguments):
    """What a call returns, and the names of the programs that it compiled."""
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        returned = function(*arguments)
    told = [record.getMessage() for record in caplog.records]
    return returned, [line.split()[1] for line in told if line.startswith("Compiling")]


def test_weights_are_reordered_by_one_program(caplog):
    here = SingleDeviceSharding(jax.devices()[0])
    rng = np.random.default_rng(0)
    shapes = [(3, 3, 4, 8), (3, 3, 8, 8), (1, 1, 8, 4), (5, 4), (7,)]
    tree = [jax.device_put(rng.standard_normal(shape, np.float32)) for shape in shapes]
    formats = [Format(Layout((3, 0, 1, 2)), here) if len(s) == 4 else here for s in shapes]
    placed, programs = compiled(caplog, sharding.place, tree, formats)
    assert len(programs) == 1
    for before, after, wanted in zip(tree, placed, formats, strict=True):
        np.testing.assert_array_equal(before, after)
        if isinstance(wanted, Format):
            assert after.format.layout.major_to_minor == wanted.layout.major_to_minor
    again, programs = compiled(caplog, sharding.place, placed, formats)
    assert not programs
    assert all(a is b or a.unsafe_buffer_pointer() == b.unsafe_buffer_pointer()
               for a, b in zip(placed, again, strict=True))  # fmt: skip


def test_reading_weights_compiles_nothing(caplog):
    base, programs = compiled(caplog, BaseModel.from_pretrained, MINI_BASE)
    assert set(programs) <= {"jit(stage)", "jit(_threefry_seed)"}  # a key, for shapes
    assert len(programs) <= 2
    assert len(jax.tree.leaves(base.params)) > 300


def spoilt(base, factor):
    """A base whose decoder's first convolution is multiplied."""
    params = jax.tree.map(lambda x: x, base.params)
    conv = params["vae"]["decoder"]["conv_in"]
    conv["kernel"] = conv["kernel"] * jnp.asarray(factor, conv["kernel"].dtype)
    return dataclasses.replace(base, params=params)


@pytest.mark.slow
def test_a_decoder_that_overflows_decodes_again_in_float32():
    pipe = make_pipe(spoilt(cast(tiny.tiny_base(), "float16"), 3e4))
    with pytest.warns(NotFiniteWarning, match="the image of seed 7 is not finite in float16: "):
        out = paint(pipe, seed=7)
    assert np.asarray(out.images[0]).std() > 0


@pytest.mark.slow
def test_a_picture_that_is_not_finite_is_left_out_alone(monkeypatch):
    pipe = make_pipe(tiny.tiny_base())
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype(np.float32)
    noise[1, 0, 0] = 3e38  # finite, but no sum of them is
    with pytest.warns(NotFiniteWarning, match="the image of seed 4 is not finite, and left out"):
        out = paint(pipe, seed=3, num_images_per_prompt=2, latents=noise)
    assert out.images[0] is not None
    assert out.images[1] is None


def test_the_decoder_ends_in_float32():
    """The last norm and convolution of a 16-bit decoder are float32's, and so is the picture."""
    base = cast(tiny.tiny_base(), "bfloat16")
    latents = jax.random.normal(jax.random.key(0), (1, 8, 8, 4))
    text = jax.jit(base.decode).lower(base.params, latents).as_text()
    last = [line for line in text.splitlines() if "stablehlo.convolution" in line][-1]
    assert last.count("xf32>") == 3, last
    assert jax.eval_shape(base.decode, base.params, latents).dtype == jnp.float32


def test_attention_is_chosen_for_the_pipelines_devices(monkeypatch):
    chosen = []

    def record(unet, options=None, *, attention=None, **rest):
        chosen.append(attention)
        return FusionUNet(unet, options, attention="xla", **rest)

    monkeypatch.setattr("fusionjax.pipeline.FusionUNet", record)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # they are no real devices
    FusionPipeline(cast(tiny.tiny_base(), "bfloat16"), devices=[H100])
    FusionPipeline(tiny.tiny_base(), devices=[H100])
    FusionPipeline(cast(tiny.tiny_base(), "bfloat16"), devices=[V5E] * 8)
    assert chosen == ["cudnn", "xla", "tpu"]
