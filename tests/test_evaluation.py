"""Metrics against numbers worked out by hand, the recogniser, the suite on a tiny real model."""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from transformers import CLIPTokenizer

from fusionjax.data import mini_faces
from fusionjax.embedded import ASSETS
from fusionjax.errors import UserError
from fusionjax.evaluation import (
    evaluate,
    measure,
    metrics,
    recogniser,
    recogniser_training,
    report,
    suite,
    verification,
)
from fusionjax.evaluation.__main__ import main
from fusionjax.evaluation.recogniser import FaceNet, ReaderNet, Recogniser
from fusionjax.interop import configs
from fusionjax.mini import drawing as mini_world
from fusionjax.mini import people as mini_people
from fusionjax.mini.people import Circumstance, Person
from fusionjax.pipeline import FusionPipeline
from tests.tiny import TEXT, random_params, tiny_base, tiny_fusion

PERSON = Person("bob", "red", "pale", "none", "round")


@functools.cache
def _judge() -> Recogniser:
    """A recogniser with random weights."""
    nets = {"face": (FaceNet(), 64), "reader": (ReaderNet(), recogniser.READER_PIXELS)}
    params = {}
    for name, (net, side) in nets.items():
        image = jnp.zeros((1, side, side, 3))
        shapes = jax.eval_shape(net.init, jax.random.key(0), image)["params"]
        params[name] = random_params(shapes, 0)
    return Recogniser(params["face"], params["reader"], 0.5, {"verification_accuracy": 0.995})


@functools.cache
def _base():
    """The tiny base with the mini world's tokenizer."""
    base = tiny_base()
    tokenizer = CLIPTokenizer.from_pretrained("fusionjax/assets/mini/tokenizer")
    size = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    text_encoder = configs.text_encoder_from_config({**TEXT, **size}, "the tiny text encoder")
    ids = jnp.zeros((1, 77), jnp.int32)
    shapes = jax.eval_shape(text_encoder.init, jax.random.key(0), ids, ids, ids)["params"]
    params = {**base.params, "text_encoder": random_params(shapes, 0)}
    return dataclasses.replace(base, tokenizer=tokenizer, text_encoder=text_encoder, params=params)


@functools.cache
def _pipe(**options) -> FusionPipeline:
    return FusionPipeline(_base(), *tiny_fusion(**options), devices=jax.devices()[:1])


TINY = suite.Suite(people=2, prompts=2, pairs=0, photos=1, steps=2, batch_size=2)


# --- metrics ---------------------------------------------------------------------------------


def test_cosine_distance_by_hand():
    a = np.array([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0]])
    b = np.array([[2.0, 0.0], [4.0, 3.0], [0.0, -5.0]])
    np.testing.assert_allclose(metrics.cosine_distance(a, b), [0, 1 - 24 / 25, 2], atol=1e-12)
    with pytest.raises(ValueError, match="a vector of length zero has no direction"):
        metrics.cosine_distance(a, np.zeros_like(a))


def test_bootstrap_of_equal_values_has_no_width_and_otherwise_holds_the_mean():
    assert metrics.bootstrap(np.full((5, 3), 0.25)) == (0.25, 0.25, 0.25)
    values = np.random.default_rng(0).normal(2, 1, (400, 1))
    mean, low, high = metrics.bootstrap(values)
    assert low < mean < high
    # 1.96 standard errors of the mean of 400 values to either side.
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert metrics.bootstrap(values) == (mean, low, high)


def test_bootstrap_keeps_a_persons_cases_together():
    people = np.repeat(np.array([[0.0], [1.0]]), 50, axis=1)  # all of a person's cases are alike
    _, low, high = metrics.bootstrap(people)
    assert (low, high) == (0, 1)


def test_means_of_all_draws_at_once_are_those_of_each():
    """With what is missing, one axis or more."""
    rng = np.random.default_rng(3)
    ours, theirs = rng.normal(2, 1, (2, 9, 4, 2))
    ours[rng.random(ours.shape) < 0.3] = np.nan
    one = metrics.bootstrap(ours, np.nanmean, seed=5)
    assert metrics.bootstrap_mean(ours, seed=5) == pytest.approx(one, rel=1e-12)
    assert metrics.bootstrap_mean(theirs[:, 0, 0]) == pytest.approx(
        metrics.bootstrap(theirs[:, 0, 0]), rel=1e-12
    )
    pairs = metrics.bootstrap(
        np.stack([ours, theirs], axis=1),
        lambda rows: np.nanmean(rows[:, 0]) / np.nanmean(rows[:, 1]),
    )
    assert metrics.ratio_of_means(ours, theirs) == pytest.approx(pairs, rel=1e-12)


def test_ratio_of_means_by_hand():
    ours, theirs = np.array([[1.0, 3.0], [2.0, 2.0]]), np.array([[4.0, 6.0], [5.0, 5.0]])
    assert metrics.ratio_of_means(ours, theirs).mean == pytest.approx(0.4)
    pairs = metrics.ratio_of_means(theirs / 2, theirs)
    assert pairs == pytest.approx((0.5, 0.5, 0.5))


def test_face_likeness_by_hand():
    truth = np.zeros((40, 40, 3), np.uint8)
    truth[10:30, 10:30] = 100
    box = (0.1, 0.1, 0.9, 0.9)
    assert metrics.face_likeness(truth, truth, box) == (100.0, 1.0)
    brighter = truth + np.uint8(10)
    psnr, ssim = metrics.face_likeness(brighter, truth, box, shift=0)
    assert psnr == pytest.approx(10 * np.log10(255**2 / 10**2))
    assert 0.5 < ssim < 1
    # What is outside the box does not count.
    outside = truth.copy()
    outside[:3] = 255
    assert metrics.face_likeness(outside, truth, box, shift=0) == (100.0, 1.0)
    # A picture that is some pixels off is shifted back.
    moved = np.roll(truth, (3, -2), axis=(0, 1))
    assert metrics.face_likeness(moved, truth, box, shift=4).psnr == 100
    assert metrics.face_likeness(moved, truth, box, shift=1).psnr < 30
    with pytest.raises(ValueError, match=r"the picture is \(20, 40, 3\) and the truth"):
        metrics.face_likeness(truth[:20], truth, box)


def test_assignment_by_hand():
    people = np.array([[[1.0, 0.0], [0.0, 1.0]]] * 3)
    faces = np.array(
        [
            [[0.8, 0.6], [0.6, 0.8]],  # both right
            [[0.6, 0.8], [0.8, 0.6]],  # exchanged
            [[0.8, 0.6], [0.8, 0.6]],  # the first person twice
        ]
    )
    right = metrics.assigned(faces, people)
    np.testing.assert_array_equal(right, [[True, True], [False, False], [True, False]])


# --- the recogniser --------------------------------------------------------------------------


def test_a_crop_is_the_box_and_goes_on_at_the_edge():
    image = np.zeros((80, 80, 3), np.uint8)
    image[20:60, 20:60] = (200, 10, 30)
    inside = recogniser.crop_face(image, (0.25, 0.25, 0.75, 0.75), 32)
    assert (inside == np.array([200, 10, 30])).all()
    whole = recogniser.crop_face(image, (0, 0, 1, 1), 80)
    np.testing.assert_array_equal(whole, image)
    beyond = recogniser.crop_face(image[20:60, 20:60], (-0.5, -0.5, 1.5, 1.5), 32)
    assert (beyond == np.array([200, 10, 30])).all()


def test_embeddings_are_unit_vectors_whatever_the_number_of_pictures():
    judge = _judge()
    rng = np.random.default_rng(0)
    images = [
        mini_world.draw(
            mini_people.random_person(rng, "train"), mini_people.random_circumstance(rng)
        )
        for _ in range(35)
    ]
    box = recogniser.TYPICAL_BOX
    together = judge.embed(images, [box] * 35)
    assert together.shape == (35, 64)
    np.testing.assert_allclose(np.linalg.norm(together, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(judge.embed(images[34:], [box])[0], together[34], atol=1e-5)
    read = judge.read(images[:2])
    assert len(read) == 2
    assert all(read[0][name] in choices for name, choices in recogniser.ATTRIBUTES.items())


def test_a_saved_recogniser_is_the_same(tmp_path):
    judge = _judge()
    judge.save(tmp_path / "a" / "recogniser.safetensors")
    again = Recogniser.from_pretrained(tmp_path / "a" / "recogniser.safetensors")
    assert (again.threshold, again.report) == (judge.threshold, judge.report)
    image = mini_world.draw(PERSON, Circumstance())
    box = recogniser.TYPICAL_BOX
    np.testing.assert_allclose(again.embed([image], [box]), judge.embed([image], [box]), atol=5e-3)
    assert Recogniser.from_pretrained(tmp_path / "a").threshold == judge.threshold  # its folder
    with pytest.raises(UserError, match=r"nowhere.safetensors' is not there; train one with"):
        Recogniser.from_pretrained(tmp_path / "nowhere.safetensors")
    with pytest.raises(UserError, match=r"mini_fusion.safetensors' holds no recogniser"):
        Recogniser.from_pretrained(ASSETS / "mini_fusion.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"12345678901234567890")
    with pytest.raises(UserError, match=r"broken.safetensors"):
        Recogniser.from_pretrained(tmp_path / "broken.safetensors")


def test_the_shipped_recogniser_knows_people_and_reads_pictures():
    judge = Recogniser.from_pretrained()
    assert judge.report["verification_accuracy"] >= 0.99
    rng = np.random.default_rng(11)
    people = mini_people.people("test", 30, seed=11)
    circumstances = [mini_people.random_circumstance(rng, style="plain") for _ in range(60)]
    images = [
        mini_world.draw(people[index // 2], circumstance)
        for index, circumstance in enumerate(circumstances)
    ]
    vectors = judge.embed(images, [recogniser.TYPICAL_BOX] * 60).reshape(30, 2, -1)
    same = 1 - np.sum(vectors[:, 0] * vectors[:, 1], axis=-1)
    different = 1 - np.sum(vectors[:, 0] * np.roll(vectors[:, 1], 1, axis=0), axis=-1)
    assert (same < judge.threshold).mean() >= 0.95
    assert (different > judge.threshold).mean() >= 0.95
    read = judge.read(images)
    for name in ("expression", "clothes", "background"):
        right = [
            told[name] == getattr(circumstance, name)
            for told, circumstance in zip(read, circumstances, strict=True)
        ]
        assert np.mean(right) >= 0.95


def test_the_margin_loss_by_hand():
    # Two people at right angles; a picture of the first, 60 degrees away from them.
    embeddings = jnp.array([[0.5, 0.75**0.5]])
    centres = jnp.array([[2.0, 0.0], [0.0, 3.0]])
    own, other = np.cos(np.pi / 3 + 0.3), np.cos(np.pi / 6)
    expected = np.log(1 + np.exp(10 * (other - own)))
    loss = recogniser_training.margin_loss(embeddings, centres, jnp.array([0]), 0.3, 10.0)
    np.testing.assert_allclose(loss, [expected], rtol=1e-5)


def test_verification_accuracy_by_hand():
    pairs = verification.Pairs(
        same=np.array([0.1, 0.2, 0.6, 0.3]),
        different=np.array([0.5, 0.9, 0.8, 0.7]),
        alike=np.array([0.5]),
    )
    assert verification.accuracy(pairs, 0.4) == pytest.approx((0.75 + 1) / 2)
    assert verification.best_threshold(pairs) in (0.5, 0.7)
    assert verification.accuracy(pairs, 0.5) == pytest.approx(0.875)


@pytest.mark.slow
def test_a_recogniser_can_be_trained_on_a_few_people(tmp_path):
    mini_faces.build(tmp_path / "faces", people=8, pictures_per_person=1, scenes=0, processes=1)
    told = []
    measured = recogniser_training.train_recogniser(
        tmp_path / "faces", tmp_path / "out", steps=3, batch=6,
        report=lambda *each: told.append(each),
    )  # fmt: skip
    assert (measured["training_people"], measured["test_people"]) == (8, 8)
    assert 0 <= measured["verification_accuracy"] <= 1
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == measured
    judge = Recogniser.from_pretrained(tmp_path / "out" / "recogniser.safetensors")
    assert judge.threshold == measured["threshold"]
    with pytest.raises(UserError, match=r"holds no dataset_info.json; build it with"):
        recogniser_training.train_recogniser(tmp_path, tmp_path / "out")


def test_the_face_network_does_not_go_on_from_a_file(tmp_path):
    with pytest.raises(UserError, match="add --networks reader, or leave --go-on out"):
        recogniser_training.train_recogniser(tmp_path, tmp_path / "out", go_on=True)


# --- the suite -------------------------------------------------------------------------------


def test_cases_are_of_test_people_and_grow_at_the_end():
    few = suite.make_cases(TINY, 64)
    many = suite.make_cases(dataclasses.replace(TINY, people=3, prompts=4), 64)
    assert {person.split for person in many.people} == {"test"}
    assert many.people[:2] == few.people
    case, same = few.cases[0][1], many.cases[0][1]
    assert (case.prompt, case.seed) == (same.prompt, same.seed)
    np.testing.assert_array_equal(case.truth, same.truth)
    assert (case.truth != case.stranger).any()
    assert many.cases[0][3].circumstance.style != "plain"
    assert not any(word in case.prompt for word in ("hair", "skin", "beard", "glasses"))
    for person in few.people:  # more photos add to those of fewer, and change nothing else
        np.testing.assert_array_equal(many.photos[person][0], few.photos[person][0])
    photos = suite.make_cases(dataclasses.replace(TINY, photos=3), 64)
    assert photos.cases[1][1].prompt == few.cases[1][1].prompt
    np.testing.assert_array_equal(photos.photos[few.people[1]][0], few.photos[few.people[1]][0])
    other = suite.make_cases(dataclasses.replace(TINY, split="validation"), 64)
    assert {person.split for person in other.people} == {"validation"}


def test_nobody_is_in_two_pairs():
    cases = suite.make_cases(dataclasses.replace(TINY, pairs=3), 64)
    paired = [person for pair in cases.pairs for person in pair.people]
    assert len(set(paired)) == 6
    assert set(paired) <= set(cases.photos)
    assert len(cases.people) == 2


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"people": 1}, "people is 1; it must be at least 2"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"split": "train"}, "split is 'train'; choose one of validation, test"),
        ({"people": 20000}, "people is 20000, for which the split 'test' with its .* too small"),
        ({"pairs": 2000}, "pairs is 2000, for which the split 'test' with its .* too small"),
    ],
)
def test_an_impossible_suite_is_refused(wrong, told):
    with pytest.raises(UserError, match=told):
        suite.Suite(**wrong)


def test_line_art_counts_for_the_prompt_only():
    """The true pictures, but for wrong ones in line art: what is measured of people is unmoved."""
    judge = Recogniser.from_pretrained()
    cases = suite.make_cases(dataclasses.replace(TINY, people=2, prompts=4), 64)
    flat = cases.flat()
    line_art = [case.circumstance.style == "line art" for case in flat]
    assert sum(line_art) == 1
    truth = [case.truth for case in flat]
    wrong = [case.stranger if ink else case.truth for case, ink in zip(flat, line_art, strict=True)]
    measured, same = measure.measure(judge, cases, truth), measure.measure(judge, cases, wrong)
    assert np.isnan(measured.distances).sum() == 1
    assert (measured.distance, measured.recognised) == (same.distance, same.recognised)
    assert measured.traits == same.traits
    assert measured.distance.mean == pytest.approx(np.nanmean(measured.distances))
    assert measured.psnr > same.psnr
    # Clothes without a colour of their own are not asked for one.
    dyed = [c.circumstance.clothes_color != "" for c in flat]
    assert 0 < sum(dyed) < len(dyed)
    grey = [np.full_like(each, 127) for each in truth]
    assert measure.measure(judge, cases, grey).prompt["clothes_color"] <= 1 / 2


@pytest.mark.slow
def test_the_suite_paints_measures_and_reports_the_same_twice(tmp_path):
    told = []
    results, sheets = evaluate.run(
        TINY, _pipe(), _judge(), progress=lambda *each: told.append(each)
    )
    assert list(results.ways) == [report.TRUTH, report.TEXT_ONLY, report.OURS, report.STRANGER]
    assert ("pictures", 4, 4) in told
    truth = results.ways[report.TRUTH]
    assert (truth.psnr, truth.ssim) == (100.0, pytest.approx(1.0))
    ours, text = results.ways[report.OURS], results.ways[report.TEXT_ONLY]
    assert not np.allclose(ours.distances, text.distances)
    assert results.ratios()[report.OURS].mean == pytest.approx(
        ours.distances.mean() / text.distances.mean()
    )
    report.write(results, sheets, tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert f"| {report.OURS} | {ours.distance.mean:.3f} (" in table
    numbers = json.loads((tmp_path / "results.json").read_text())
    assert numbers["ways"][report.OURS]["distance"]["mean"] == round(ours.distance.mean, 5)
    assert numbers["suite"]["people"] == 2
    assert numbers["fusion"]["options"] == _pipe().fusion.options.to_json()
    assert numbers["fusion"]["fingerprint"] == _pipe().fingerprints["fusion"]
    assert numbers["table"] == table
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.width > 4 * 128
    again, _ = evaluate.run(TINY, _pipe(), _judge())
    np.testing.assert_array_equal(again.ways[report.OURS].distances, ours.distances)


@pytest.mark.slow
def test_the_suite_compares_photos_pairs_and_decoupled(tmp_path):
    whole = dataclasses.replace(TINY, pairs=2, photos=2)
    results, sheets = evaluate.run(whole, _pipe(), _judge(), other=_pipe(fusion="decoupled"))
    more = report.OURS_MORE.format(2)
    assert set(results.ratios()) == {report.OURS, more, report.DECOUPLED}
    distances = [results.ways[name].distances for name in results.ratios()]
    assert not np.allclose(distances[0], distances[1])
    assert not np.allclose(distances[0], distances[2])
    assert set(results.pairs) == {"drawn (floor)", "with masks", "without masks"}
    with_masks, without = results.pairs["with masks"], results.pairs["without masks"]
    assert with_masks.distance != without.distance
    gain = results.gain_by_masks()
    assert gain.mean == pytest.approx(with_masks.right - without.right)
    assert set(results.ratios(report.OURS)) == {more, report.DECOUPLED}
    assert results.ratios(report.OURS)[more].mean == pytest.approx(
        np.nanmean(distances[1]) / np.nanmean(distances[0])
    )
    report.write(results, sheets, tmp_path)
    assert "| with masks |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "pairs.png").is_file()


@pytest.mark.slow
def test_the_base_alone_can_be_measured(tmp_path):
    pipe = FusionPipeline(_base(), devices=jax.devices()[:1])
    results, sheets = evaluate.run(TINY, pipe, _judge())
    assert list(results.ways) == [report.TRUTH, report.TEXT_ONLY, report.STRANGER]
    assert results.fusion is None
    assert results.ratios() == {}
    report.write(results, sheets, tmp_path)
    assert "Identity distance over" not in (tmp_path / "table.md").read_text()


def test_pairs_are_measured_where_their_heads_are():
    few = dataclasses.replace(TINY, people=6, pairs=5)
    cases = suite.make_cases(few, mini_world.PICTURE_PIXELS)
    judge = Recogniser.from_pretrained()
    exchanged = []
    for index, pair in enumerate(cases.pairs):
        rng = np.random.default_rng(index)
        circumstances = [mini_people.random_circumstance(rng, style="plain") for _ in range(2)]
        exchanged.append(mini_world.draw_scene(pair.people[::-1], circumstances, rng).image)
    drawn = [pair.truth for pair in cases.pairs]
    assert measure.measure_pairs(judge, cases, drawn).right >= 0.9
    assert measure.measure_pairs(judge, cases, exchanged).right <= 0.1


def test_a_wrong_adapter_is_one_line(tmp_path, capsys):
    arguments = ["--output", str(tmp_path), "--fusion", "none", "--base", str(tmp_path / "no")]
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert main(["--output", str(tmp_path), "--people", "1"]) == 2
    assert "people is 1; it must be at least 2" in capsys.readouterr().err
    assert main(["--output", str(tmp_path), "--base", str(tmp_path)]) == 2
    assert "name an adapter with --fusion, or measure the base alone" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["--output", str(tmp_path / "file")]) == 2
    assert "file', where nothing can be written" in capsys.readouterr().err


def test_the_readme_has_the_figures_of_the_shipped_weights():
    """What was measured is of these very weights, and the README says it as it was measured."""
    measured = json.loads(Path("docs/mini_results.json").read_text())
    pipe = FusionPipeline.from_pretrained()
    assert measured["base"] == pipe.fingerprints["base"]
    assert measured["fusion"]["fingerprint"] == pipe.fingerprints["fusion"]
    other = evaluate._other(pipe, str(evaluate.MINI_DECOUPLED))
    assert measured["decoupled"]["fingerprint"] == other.fingerprints["fusion"]
    verified = Recogniser.from_pretrained().report["verification_accuracy"]
    assert measured["recogniser"]["verification_accuracy"] == pytest.approx(verified, abs=1e-5)
    defaults = {field.name: field.default for field in dataclasses.fields(suite.Suite)}
    assert measured["suite"] == defaults
    assert measured["table"] in Path("README.md").read_text()


def test_help_is_printed_by_the_module():
    done = subprocess.run(
        [sys.executable, "-m", "fusionjax.evaluation", "--help"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "--decoupled" in done.stdout
