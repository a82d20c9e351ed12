"""The pipeline on a tiny real model: equal to a plain loop, repeatable, and compiled once."""

import contextlib
import functools
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusionjax.backend import compilation
from fusionjax.diffusion import samplers as schedulers
from fusionjax.errors import UserError
from fusionjax.generation import programs
from fusionjax.generation.renewed import renewed
from fusionjax.generation.request import Request, box_mask
from fusionjax.generation.runner import MOST_PROGRAMS, Runner
from fusionjax.identity import Identity
from fusionjax.options import Settings
from fusionjax.pipeline import FusionPipeline
from tests import tiny

STEPS = 3


def make_pipe(devices=1, fusion=True):
    params, fusion_options = tiny.tiny_fusion() if fusion else (None, None)
    return FusionPipeline(tiny.tiny_base(), params, fusion_options, devices=jax.devices()[:devices])


@pytest.fixture(scope="module")
def pipe():
    return tiny.tiny_pipe()


@pytest.fixture(scope="module")
def matched():
    return tiny.tiny_pipe(reference="matched")


@pytest.fixture(scope="module")
def people():
    return list(tiny.tiny_people())


@pytest.fixture(scope="module")
def paint(pipe, people):
    """One person, three steps, unless told otherwise."""

    def call(prompt="a person in a garden", identities=None, **options):
        options = {"num_inference_steps": STEPS, "seed": 5, **options}
        return pipe(prompt, people[:1] if identities is None else identities, **options)

    return call


@contextlib.contextmanager
def nothing_compiles():
    """Fails if XLA compiles anything inside."""
    compiled = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled


def test_compilation_is_noticed():
    with pytest.raises(AssertionError), nothing_compiles():
        jax.jit(lambda x: x + 1)(1.0)


def levels_apart(one, other):
    """The largest difference of two pictures in grey levels."""
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())


# --- the same as a plain loop ---------------------------------------------------------------------


class PlainLoop:
    """The pipeline in its simplest words: a Python loop, one branch at a time, no padding."""

    def __init__(self, pipe):
        self.pipe, self.params = pipe, pipe.base.params
        base, fusion = pipe.base, pipe.fusion
        self.encode_text = jax.jit(lambda ids: base.encode_text(self.params, ids))
        self.decode = jax.jit(lambda latents: base.decode(self.params, latents))
        self.states = jax.jit(
            lambda photos, t, text: fusion.reference_states(self.params["unet"], photos, text, t)
        )
        self.faces = jax.jit(functools.partial(fusion.faces, height=8, width=8))
        self.answer = jax.jit(
            lambda x, t, text, faces: fusion(self.params["unet"], x, t, text, faces)
        )
        self.advance = jax.jit(schedulers.advance)

    def __call__(self, people, strengths, *, prompt, seed, guidance, faces=None, masks=None,
                 scheduler="dpmpp_2m", from_step=0, rescale=0.0, pipe=None):  # fmt: skip
        pipe = pipe or self.pipe  # of the same base and layers
        base = pipe.base
        text, negative = (self.encode_text(base.tokenize([words])) for words in (prompt, ""))
        photos = np.concatenate([person.latents for person in people])[None]
        owner = np.array([[i for i, person in enumerate(people) for _ in range(len(person))]])
        strength = np.array(
            [[s * w for s, p in zip(strengths, people, strict=True) for w in p.weights]], np.float32
        )
        plan = schedulers.plan(base.schedule, scheduler, STEPS)
        key = jax.random.key(seed)
        noise = jax.random.normal(jax.random.fold_in(key, 0), (8, 8, 4))[None]
        carry = schedulers.Carry.start(plan.start_noise * noise)
        for i in range(len(plan)):
            row = jax.tree.map(lambda column, i=i: jnp.asarray(column[i]), plan.rows)
            t = jnp.full(1, row.timesteps)
            if pipe.fusion.options.reference == "matched":
                a = np.interp(row.timesteps, np.arange(1000), base.schedule.alphas_cumprod)
                fresh = np.asarray(jax.random.normal(jax.random.key(0), photos.shape[1:]))[None]
                noised = (np.sqrt(a) * photos + np.sqrt(1 - a) * fresh).astype(np.float32)
                states = self.states(noised, t, negative)
            else:
                states = self.states(photos, jnp.zeros(1), negative)
                states = {layer: h.astype(jnp.bfloat16) for layer, h in states.items()}
            acting = strength * (1.0 if i >= from_step else 0.0)
            seen = self.faces(
                pipe.fusion_params, states, acting, owner=owner,
                masks=None if masks is None else masks[None],
            )  # fmt: skip
            x = carry.latents * row.input_scale
            u, f = self.answer(x, t, negative, None), self.answer(x, t, text, seen)
            if faces is None:
                out = u + guidance * (f - u)
            else:
                plain = self.answer(x, t, text, None)
                out = u + guidance * (plain - u) + faces * (f - plain)
            out = (1 - rescale) * out + rescale * out * np.std(f) / np.std(out)
            fresh = jax.random.normal(jax.random.fold_in(key, i + 1), (8, 8, 4))[None]
            carry = self.advance(row, carry, out, fresh)
        image = np.asarray(self.decode(carry.latents)[0])
        return np.asarray(carry.latents), np.round((np.clip(image, -1, 1) + 1) * 127.5)


@pytest.fixture(scope="module")
def plain_loop(pipe):
    return PlainLoop(pipe)


@pytest.mark.parametrize("scheduler", schedulers.SCHEDULERS)
def test_equals_a_plain_loop(plain_loop, people, paint, scheduler):
    out = paint(guidance_scale=4.0, face_strength=1.5, scheduler=scheduler)
    latents, image = plain_loop(
        people[:1], [1.5], prompt="a person in a garden", seed=5, guidance=4.0,
        scheduler=scheduler,
    )  # fmt: skip
    np.testing.assert_allclose(out.latents, latents, atol=1e-4 * np.abs(latents).max())
    assert levels_apart(out.images[0], image) <= 1


def test_several_people_with_masks_and_their_own_guidance_equal_a_plain_loop(
    plain_loop, people, paint
):
    """Two people, one of two photos: three references padded to four."""
    double = Identity.mix([people[1], people[0]], [1.0, 0.5])
    masks = np.stack([box_mask((0, 0, 0.5, 1), 64, 64), box_mask((0.5, 0, 1, 1), 64, 64)])
    both = [people[0], double]
    out = paint(
        identities=both, guidance_scale=3.0, face_guidance_scale=2.0, face_strength=[0.7, 1.2],
        masks=masks, face_steps=(1 / STEPS, 1.0),
    )  # fmt: skip
    latents, image = plain_loop(
        both, [0.7, 1.2], prompt="a person in a garden", seed=5, guidance=3.0, faces=2.0,
        masks=masks, from_step=1,
    )  # fmt: skip
    np.testing.assert_allclose(out.latents, latents, atol=1e-4 * np.abs(latents).max())
    assert levels_apart(out.images[0], image) <= 1


def test_rescaled_guidance_equals_a_plain_loop(plain_loop, people, paint):
    """Each of two images for itself, as if it were alone."""
    out = paint(num_images_per_prompt=2, guidance_scale=9.0, guidance_rescale=0.7)
    for seed in (5, 6):
        latents, image = plain_loop(
            people[:1], [1.0], prompt="a person in a garden", seed=seed, guidance=9.0, rescale=0.7
        )
        found = out.latents[seed - 5][None]
        np.testing.assert_allclose(found, latents, atol=1e-4 * np.abs(latents).max())
        assert levels_apart(out.images[seed - 5], image) <= 1
    assert levels_apart(paint(guidance_scale=9.0).images[0], out.images[0]) > 1


def test_matched_references_equal_a_plain_loop(matched, plain_loop):
    person = matched.encode_identity(tiny.photo(1), crop="none")
    assert not person.states
    out = matched("a person", [person], num_inference_steps=STEPS, seed=5, guidance_scale=4.0)
    latents, _ = plain_loop([person], [1.0], prompt="a person", seed=5, guidance=4.0, pipe=matched)
    np.testing.assert_allclose(out.latents, latents, atol=1e-4 * np.abs(latents).max())


# --- repeatable -----------------------------------------------------------------------------------


EVERYWHERE = {"masks": np.ones((1, 64, 64), np.float32)}


def test_the_same_seed_is_the_same_picture_alone_and_in_any_batch(paint):
    """Alone without a mask, together with one that is no restriction."""
    alone = [paint(seed=seed).images[0] for seed in (5, 6, 7, 8)]
    together = paint(num_images_per_prompt=4, **EVERYWHERE)
    assert together.seeds == [5, 6, 7, 8]
    in_threes = paint(num_images_per_prompt=4, batch_size=3, **EVERYWHERE)
    for one, four, three in zip(alone, together.images, in_threes.images, strict=True):
        assert levels_apart(one, four) <= 1
        assert levels_apart(one, three) <= 1
    assert levels_apart(alone[0], alone[1]) > 10


@pytest.mark.parametrize(
    ("devices", "images"), [(2, 4), pytest.param(8, 8, marks=pytest.mark.slow)]
)
def test_the_same_pictures_on_several_devices(people, paint, devices, images):
    options = {"scheduler": "euler_ancestral", "num_images_per_prompt": images, **EVERYWHERE}
    spread = make_pipe(devices)(
        "a person in a garden", people[:1], num_inference_steps=STEPS, seed=5, **options
    )
    for a, b in zip(paint(**options).images, spread.images, strict=True):
        assert levels_apart(a, b) <= 1


@pytest.mark.slow
def test_devices_that_do_not_divide_the_batch(pipe, people):
    """Pictures with people of their own, three of them on two devices."""
    settings = Settings(height=64, width=64, num_inference_steps=STEPS)
    pictures = [
        Request("one", identities=[people[0]], seed=1),
        Request("two", identities=[people[1]], seed=2),
        Request("nobody", seed=3),
    ]
    spread = make_pipe(2).generate(pictures, settings)
    for picture, image in zip(pictures, spread.images, strict=True):
        assert levels_apart(pipe.generate([picture], settings).images[0], image) <= 1


def test_a_saved_identity_gives_the_same_picture(people, paint, tmp_path):
    people[0].save(tmp_path / "someone.safetensors")
    again = Identity.load(tmp_path / "someone.safetensors")
    assert levels_apart(paint().images[0], paint(identities=[again]).images[0]) == 0


def test_one_person_needs_no_list(people, paint):
    assert levels_apart(paint().images[0], paint(identities=people[0]).images[0]) == 0


def test_an_identity_serves_every_adapter_of_its_base(people):
    """What is kept is what the frozen UNet saw, so it does not depend on the adapter."""
    other = FusionPipeline(tiny.tiny_base(), *tiny.tiny_fusion(seed=9), devices=jax.devices()[:1])
    for layer, states in other.encode_identity(tiny.photo(1), crop="none").states.items():
        assert np.array_equal(states, people[0].states[layer])
    other.check(Request("x", identities=people), Settings(height=64, width=64))


def test_a_fresh_person_is_the_same_for_the_same_number(pipe):
    one, same, other = (pipe.fresh_identity(seed) for seed in (7, 7, 8))
    assert np.array_equal(one.latents, same.latents)
    assert np.array_equal(one.thumbnails, same.thumbnails)
    assert np.abs(one.latents - other.latents).max() > 0.1
    assert set(one.states) == set(pipe.fusion.layers)


def test_given_latents_are_the_starting_noise(paint):
    noise = np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(5), 0), (8, 8, 4)))
    # One level is rounding: the noise was drawn here by a program of its own.
    assert levels_apart(paint().images[0], paint(seed=99, latents=noise[None]).images[0]) <= 1
    assert levels_apart(paint().images[0], paint(seed=99).images[0]) > 20


# --- compiled once --------------------------------------------------------------------------------


def test_programs_are_compiled_once_by_whichever_thread_and_not_kept_for_ever(pipe):
    def times(model, params, x, *, n):
        return x * n

    runner = Runner(pipe.runner.model, {}, pipe.runner.devices[:1])
    ones = np.ones((1, 2), np.float32)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda n: runner.run(times, 1, ones, n=n % 2), range(32)))
    assert [float(answer[0, 0]) for answer in answers] == [0, 1] * 16
    assert runner.compilations == 2
    for n in range(MOST_PROGRAMS + 5):
        runner.run(times, 1, ones, n=n)
    assert len(runner._compiled) == MOST_PROGRAMS
    before = runner.compilations
    runner.run(times, 1, ones, n=MOST_PROGRAMS)
    assert runner.compilations == before
    runner.run(times, 1, ones, n=0)
    assert runner.compilations == before + 1


def test_only_shapes_compile(pipe, people, paint):
    """Three photos in a padded four; then other people, words, numbers, and samplers."""
    paint(identities=[people[0], people[1].weighted(0.5), people[0]])
    with nothing_compiles():
        paint(identities=[people[0], people[1].weighted(0.5), people[0]])
        paint("somebody else at the beach", [people[1]] * 3, seed=77, negative_prompt="rain")
        paint(identities=[people[1], people[0]] * 2, guidance_scale=2.0, face_strength=0.3)
        paint(identities=[people[1], people[0]] * 2, face_steps=(0.2, 0.9), scheduler="lms")
        paint(identities=[people[1], people[0]] * 2, num_inference_steps=STEPS + 2)
        paint(
            identities=[Identity.mix(people, [0.3, 0.7]), people[0]], scheduler="euler_ancestral",
            layer_strength={next(iter(pipe.fusion.layers)): 0.5},
        )  # fmt: skip


def count_convolutions(function, *arguments):
    """`conv_general_dilated` anywhere in a traced function."""

    def count(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            total += equation.primitive.name == "conv_general_dilated"
            for value in equation.params.values():
                for inner in value if isinstance(value, tuple | list) else [value]:
                    inner = getattr(inner, "jaxpr", inner)
                    total += count(inner) if hasattr(inner, "eqns") else 0
        return total

    return count(jax.make_jaxpr(function)(*arguments).jaxpr)


def test_a_cached_identity_leaves_no_reference_pass(pipe, matched, monkeypatch):
    """The compiled steps hold the UNet's convolutions once; those of `matched` twice."""
    unet, params = pipe.fusion, pipe.base.params
    text = jnp.zeros((2, 77, 32))
    once = count_convolutions(
        lambda x: unet(params["unet"], x, jnp.zeros(2), text), jnp.zeros((2, 8, 8, 4))
    )
    for pipeline, passes in ((pipe, 1), (matched, 2)):
        person = pipeline.encode_identity(tiny.photo(1), crop="none")
        inputs = {}
        run = pipeline.runner.run

        def spy(program, devices, *x, run=run, inputs=inputs, **static):
            inputs[program] = (x, static)
            return run(program, devices, *x, **static)

        monkeypatch.setattr(pipeline.runner, "run", spy)
        pipeline("a person in a garden", [person], num_inference_steps=STEPS)
        x, static = inputs[programs.denoise]
        steps = functools.partial(programs.denoise, pipeline.model, **static)
        weights = {"base": params, "fusion": pipeline.fusion_params}
        assert count_convolutions(steps, weights, *x) == passes * once
        monkeypatch.undo()


def test_progress_tells_steps_and_compilation(pipe, people):
    """Any number of rows in few parts by one program: PNDM's 6 steps are 7 rows, which no number
    but 7 divides."""
    heard, compiled, done = [], [], []
    fresh = make_pipe()
    fresh.runner.before_compiling = compiled.append
    fresh("a person", people[:1], num_inference_steps=STEPS, progress=lambda *a: heard.append(a))
    assert [(stage, done, of) for stage, done, of, _ in heard if stage != "compile"] == [
        ("steps", 1, STEPS), ("steps", 2, STEPS), ("steps", 3, STEPS), ("decode", 1, 1),
    ]  # fmt: skip
    assert sum(seconds for stage, *_, seconds in heard if stage == "compile") == pytest.approx(
        fresh.runner.compile_seconds
    )
    whole = pipe("a person", people[:1], num_inference_steps=STEPS)
    parts = fresh("a person", people[:1], num_inference_steps=STEPS, progress=lambda *a: None)
    assert levels_apart(whole.images[0], parts.images[0]) <= 1

    def progress(stage, now, of, seconds):
        if stage == "steps":
            done.append((now, of))

    fresh("x", people[:1], num_inference_steps=6, scheduler="pndm", progress=progress)
    assert done == [(2, 7), (4, 7), (6, 7), (7, 7)]
    assert compiled.count("denoise") == 1


def test_what_does_not_fit_is_told_before_the_steps(people, monkeypatch):
    pipe = make_pipe()
    monkeypatch.setattr(compilation, "free_bytes", lambda device: 10_000)
    with pytest.raises(
        UserError, match=r"image of 64×64 at once; use .* \(condition needs 0\.\d GB"
    ):
        pipe("x", people[:1])
    free = iter([10**10, 10_000])
    monkeypatch.setattr(compilation, "free_bytes", lambda device: next(free))
    with pytest.raises(UserError, match=r"\(decode needs"):  # and no step was compiled
        pipe("x", people[:1])
    monkeypatch.undo()
    assert 10**8 < compilation.free_bytes(jax.devices()[0]) < 10**13


# --- what the arguments do ------------------------------------------------------------------------


def test_strength_zero_is_the_base_model(paint):
    nobody = paint(identities=[])
    assert levels_apart(nobody.images[0], paint(face_strength=0.0).images[0]) <= 1
    assert levels_apart(nobody.images[0], paint(face_steps=(0.0, 0.0)).images[0]) <= 1
    assert levels_apart(nobody.images[0], paint().images[0]) > 5


@pytest.fixture(scope="module")
def latents_of(pipe):
    """An image's latents, by the program that is there already."""
    return lambda image: pipe.encode_identity(image, crop="none").latents


def test_an_unseen_region_stays(latents_of, paint):
    """Inpainting keeps the latents where the mask is black, and paints where it is white."""
    image = tiny.photo(9)
    where = np.zeros((64, 64, 3), np.uint8)
    where[:, 32:] = 255
    out = paint(image=image, strength=1.0, mask_image=where)
    known = latents_of(image)
    np.testing.assert_allclose(out.latents[0, :, :4], known[0, :, :4], atol=2e-3)
    assert np.abs(out.latents[0, :, 4:] - known[0, :, 4:]).max() > 0.1
    painted = np.asarray(out.images[0])
    np.testing.assert_array_equal(painted[:, :32], image[:, :32])  # to the last grey level
    assert np.abs(painted[:, 32:].astype(int) - image[:, 32:]).mean() > 3


def test_between_black_and_white_the_given_image_shines_through(paint):
    image = tiny.photo(9)
    where = np.full((64, 64, 3), 255, np.uint8)
    where[:8] = 51  # a fifth
    out = np.asarray(paint(image=image, strength=1.0, mask_image=where).images[0], int)
    apart = np.abs(out - image)
    assert 10 < apart[:8].max() <= 52
    assert apart[8:].max() > 60


def test_strength_decides_how_far_the_picture_is_left(latents_of, paint):
    image = tiny.photo(9)
    near, far = (
        paint(image=image, strength=s, num_inference_steps=6, guidance_scale=1.01)
        for s in (0.17, 1.0)
    )
    known = latents_of(image)
    assert np.abs(near.latents - known).mean() < 0.5 * np.abs(far.latents - known).mean()


def test_attention_shares_are_shares(paint, people):
    out = paint(identities=people, attention_share=True, face_strength=[1.0, 0.0])
    assert out.attention_share.shape == (1, 8, 8, 3)
    np.testing.assert_allclose(out.attention_share.sum(-1), 1, rtol=1e-4)
    assert out.attention_share[..., 1].mean() > 0.01
    assert out.attention_share[..., 2].max() == 0


def test_faces_in_the_negative_branch_change_the_picture(paint):
    apart = levels_apart(paint().images[0], paint(faces_in_negative=True).images[0])
    assert apart > 1
    with pytest.raises(UserError, match="face_guidance_scale guides away from an image without"):
        paint(faces_in_negative=True, face_guidance_scale=2.0)


def test_fewer_layers_of_the_text_encoder_read_the_prompt_otherwise(paint):
    assert levels_apart(paint().images[0], paint(clip_skip=1).images[0]) > 1
    assert levels_apart(paint().images[0], paint(clip_skip=0).images[0]) == 0


def test_a_pipeline_without_an_adapter_paints_from_text(people, paint):
    plain = make_pipe(fusion=False)
    picture = plain("a person in a garden", num_inference_steps=STEPS, seed=5).images[0]
    assert levels_apart(picture, paint(identities=[]).images[0]) <= 1
    with pytest.raises(UserError, match="no adapter is loaded; pass fusion"):
        plain("a garden", people[:1])


# --- what can be wrong ----------------------------------------------------------------------------

MASKS = np.ones((2, 64, 64), np.float32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 60}, "height is 60; it must be a multiple of 8, for example 56 or 64"),
        ({"width": 0}, r"width is 0; it must be in 8\.\.8192"),
        ({"scheduler": "none"}, "scheduler is 'none'; choose one of ddim"),
        ({"scheduler": "DPM++ 2M"}, "did you mean 'dpmpp_2m'[?] Choose one of ddim"),
        ({"num_inference_steps": 0}, r"num_inference_steps is 0; it must be in 1\.\.999"),
        ({"seed": -1}, r"seed is -1; it must be in 0\.\."),
        ({"guidance_scale": 0.5}, "guidance_scale is 0.5; it must be in 1..1000"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"face_strength": -1.0}, "face_strength is -1; it must be a finite number ≥ 0"),
        ({"face_strength": [1.0, 1.0]}, "face_strength has 2 numbers for 1 identities"),
        ({"face_steps": (0.9, 0.1)}, "face_steps is 0.9 0.1; it must be two numbers"),
        ({"layer_strength": {"attn9": 1.0}}, "layer_strength names 'attn9'; the layers are"),
        ({"masks": MASKS}, "masks holds 2 masks for 1 identities; give one for each"),
        ({"masks": MASKS[:1] * 0}, "mask 0 is empty: its person would have no place"),
        ({"masks": MASKS[:1, :32]}, r"masks are 32×64 .* must have the picture's size"),
        ({"masks": MASKS[:1] * 3}, "masks hold values from 3 to 3"),
        ({"prompt": []}, "no prompt is given"),
        (
            {"num_images_per_prompt": 0},
            "num_images_per_prompt is 0; it must be a whole number >= 1",
        ),
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number >= 1"),
        ({"latents": np.zeros((1, 8, 8, 3))}, r"latents have shape \(1, 8, 8, 3\); they must be"),
        ({"mask_image": tiny.photo(1)}, "mask_image is given without an image"),
        ({"image": tiny.photo(1), "strength": 2.0}, r"strength is 2; it must be in \(0, 1\]"),
        (
            {"image": tiny.photo(1), "mask_image": np.zeros((64, 64, 3), np.uint8)},
            "mask_image is black everywhere",
        ),
        ({"image": tiny.photo(1, 96)[:, :64]}, "another shape than 64×64"),
        ({"control_image": tiny.photo(1)}, "no ControlNet is loaded"),
        ({"clip_skip": 2}, r"clip_skip is 2; the text encoder has 2 layers, so .* 0\.\.1"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_compiled(pipe, paint, options, message):
    before = pipe.runner.compilations
    with pytest.raises(UserError, match=message):
        paint(**options)
    assert pipe.runner.compilations == before


def test_an_identity_of_another_base_or_option_is_refused(pipe, matched, people):
    other = FusionPipeline(tiny.tiny_base(seed=7), *tiny.tiny_fusion())
    with pytest.warns(UserWarning, match="is computed again from its latents"):
        again = renewed(other.runner, people[0])
    assert again.base_fingerprint == other.base.identity_fingerprint
    assert renewed(other.runner, people[0]) is again  # once
    layer = next(iter(again.states))
    assert again.states[layer].shape == people[0].states[layer].shape
    assert not np.array_equal(again.states[layer], people[0].states[layer])
    with pytest.raises(UserError, match="encoded for reference='clean', and the adapter"):
        matched("a person", people[:1])
    with pytest.raises(UserError, match="no photos are given"):
        pipe.encode_identity([])


def test_more_people_than_masks(people, paint):
    with pytest.raises(UserError, match="masks holds 1 masks for 2 identities"):
        paint(identities=people, masks=MASKS[:1])


def test_a_mask_within_another_is_warned_of(pipe, people):
    """Equation 7: a place in two masks sees nobody."""
    masks = MASKS.copy()
    masks[0, :32] = 0
    with pytest.warns(UserWarning, match="mask 0 lies within the others' masks"):
        pipe.check(Request("x", identities=people, masks=masks), Settings(height=64, width=64))


def test_pictures_that_cannot_be_painted_together(pipe, people):
    pictures = [Request("a", identities=people[:1], masks=MASKS[:1]), Request("b")]
    with pytest.raises(UserError, match="some images have masks and some do not"):
        pipe.generate(pictures, Settings(height=64, width=64))
    with pytest.raises(UserError, match="attention shares are asked for, but an image shows no"):
        pipe.generate(pictures[1:], Settings(height=64, width=64), attention_share=True)


def test_a_long_prompt_is_cut_and_says_what_is_left_out(paint):
    words = "b" * 70 + " and a cat"
    with pytest.warns(UserWarning, match="the prompt is longer than 75 tokens; left out: “at”"):
        paint(words)


def test_boxes():
    mask = box_mask((0.25, 0.5, 0.5, 1.0), 8, 8)
    assert mask[4:, 2:4].all()
    assert mask.sum() == 8
    with pytest.raises(UserError, match=r"the box is \[0.5, 0, 0.2, 1\]; it must be left, top"):
        box_mask([0.5, 0, 0.2, 1], 8, 8)
