"""A call of the pipeline in diffusers' words: generators, outputs, callbacks, what is missing."""

import inspect

import jax
import numpy as np
import pytest

from fusionjax.errors import UserError
from fusionjax.generation.keywords import seeds_of
from fusionjax.options import INSTEAD, OLD_NAMES, Description, Settings
from fusionjax.pipeline import FusionPipeline
from tests import tiny

STEPS = 3


@pytest.fixture(scope="module")
def pipe():
    return tiny.tiny_pipe()


def test_seeds_of_generators_of_all_kinds():
    assert seeds_of(7, 3) == [7, 8, 9]
    assert seeds_of([7, 5], 2) == [7, 5]
    torch = pytest.importorskip("torch")
    assert seeds_of(torch.Generator().manual_seed(3), 2) == [3, 4]
    assert seeds_of(np.random.default_rng(1), 1) == seeds_of(np.random.default_rng(1), 1)
    assert seeds_of(jax.random.key(1), 1) == seeds_of(jax.random.PRNGKey(1), 1)


@pytest.mark.parametrize(
    ("generator", "count", "message"),
    [
        ([1, 2], 3, "generator is a list of 2 for 3 images; give one for each"),
        ("7", 1, "generator is str; it must be a whole number, or a NumPy, PyTorch or JAX"),
        (True, 1, "generator is bool"),
        (2**32 - 1, 2, r"seed is 4294967295; with 2 images it must be in 0\.\.4294967294"),
    ],
)
def test_what_is_no_generator_is_named(generator, count, message):
    with pytest.raises(UserError, match=message):
        seeds_of(generator, count)


def test_outputs_are_as_asked_for(pipe):
    options = {"num_inference_steps": STEPS, "generator": [3, 5], "num_images_per_prompt": 2}
    out = pipe("a garden", **options)
    assert out.seeds == [3, 5]
    arrays = pipe("a garden", **options, output_type="np").images
    assert arrays.shape == (2, 64, 64, 3)
    assert np.array_equal(np.round(arrays[1] * 255), np.asarray(out.images[1]))
    images, unsafe = pipe("a garden", **options, output_type="latent", return_dict=False)
    assert unsafe is None
    assert np.array_equal(images, out.latents)


def test_each_prompt_has_its_own_negative(pipe):
    both = pipe(["a garden", "a dog"], negative_prompt=["rain", "snow"], num_inference_steps=STEPS)
    dog = pipe("a dog", negative_prompt="snow", seed=1, num_inference_steps=STEPS)
    apart = np.asarray(both.images[1]).astype(int) - np.asarray(dog.images[0])
    assert np.abs(apart).max() <= 1


def test_a_callback_sees_every_step_and_may_change_the_latents(pipe):
    heard = []

    def watch(pipeline, step, timestep, given):
        assert pipeline is pipe
        heard.append((step, timestep, given["latents"].shape))

    plain = pipe("a garden", num_inference_steps=STEPS)
    watched = pipe("a garden", num_inference_steps=STEPS, callback_on_step_end=watch)
    assert [step for step, *_ in heard] == [0, 1, 2]
    assert heard[0][1] > heard[1][1] > heard[2][1]
    assert heard[0][2] == (1, 8, 8, 4)
    np.testing.assert_allclose(watched.latents, plain.latents, atol=1e-5)

    def calm(_, step, __, given):
        return {"latents": given["latents"] * 0 if step == STEPS - 1 else given["latents"]}

    assert not pipe("x", num_inference_steps=STEPS, callback_on_step_end=calm).latents.any()


@pytest.mark.parametrize("name", ["ip_adapter_image", "eta", "cross_attention_kwargs", "sigmas"])
def test_what_is_not_served_says_what_is(pipe, name):
    with pytest.raises(UserError, match=rf"'{name}' is not supported; use {INSTEAD[name][:9]}"):
        pipe("x", **{name: None})


def test_old_and_mistyped_names(pipe):
    old = pipe("x", steps=STEPS, control_strength=1.0)
    assert np.array_equal(old.latents, pipe("x", num_inference_steps=STEPS).latents)
    with pytest.raises(UserError, match=r"'num_steps' is not known; did you mean 'num_infer"):
        pipe("x", num_steps=3)
    with pytest.raises(UserError, match="'torch_dtype' is not supported; use dtype"):
        FusionPipeline.from_pretrained(torch_dtype="float32")
    with pytest.raises(UserError, match="choose one of pil, np, latent"):
        pipe("x", output_type="pt")


def test_every_option_is_in_the_signature_and_no_old_name_is_an_option():
    shown = inspect.signature(FusionPipeline.__call__).parameters
    options = [*Description.__dataclass_fields__, *Settings.__dataclass_fields__]
    assert set(options) <= set(shown)
    assert "options" not in shown
    assert not set(OLD_NAMES) & set(options)
    assert not set(INSTEAD) & set(shown)
