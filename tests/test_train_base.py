"""Training an autoencoder and a base model on it: each run's output is the next one's input."""

import dataclasses

import jax
import numpy as np
import pytest

from fusionjax.backend.sharding import make_mesh
from fusionjax.data import mini_faces
from fusionjax.errors import UserError
from fusionjax.mini import drawing as mini_world
from fusionjax.mini import people as mini_people
from fusionjax.models.base import BaseModel
from train.config import (
    AutoencoderRun,
    BaseRun,
    CheckpointConfig,
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    ValidationConfig,
)
from train.faces import box_weight, features_boxes, nearest_face
from train.loop import run
from train.objectives.autoencoder import principal_components, principal_latents
from train.objectives.base_model import BaseModelObjective
from train.resume import initial_params

pytestmark = pytest.mark.filterwarnings("ignore:.*:ResourceWarning")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder with a dataset, a trained autoencoder, and a base model trained on it."""
    folder = tmp_path_factory.mktemp("train-base")
    mini_faces.build(folder / "faces", people=8, pictures_per_person=1, scenes=0, processes=1)
    common = {
        "steps": 2,
        "batch_size": 8,
        "data": DataConfig(folder=str(folder / "faces"), threads=1),
        "optimizer": OptimizerConfig(learning_rate=1e-3, warmup_steps=1),
        "mesh": MeshConfig(data=8),
        "checkpoint": CheckpointConfig(every_steps=2),
        "validation": ValidationConfig(every_steps=2, examples=8, grid_rows=1),
    }
    run(
        AutoencoderRun(
            name="vae",
            output=str(folder / "vae"),
            block_out_channels=(8, 8, 8),
            latent_channels=4,
            norm_num_groups=1,
            crop_px=32,
            **common,
        )
    )
    base = BaseRun(
        name="base",
        output=str(folder / "base"),
        autoencoder=str(folder / "vae"),
        block_out_channels=(32, 32),
        attention_levels=1,
        attention_heads=2,
        text_features=32,
        text_layers=1,
        text_heads=2,
        face_weight=2.0,
        features_weight=3.0,
        words_weight=0.1,
        **common,
    )
    run(base)
    return folder, base


@pytest.mark.slow
def test_a_base_model_comes_out_that_loads_and_paints_its_size(shelf):
    folder, _ = shelf
    base = BaseModel.from_pretrained(str(folder / "base" / "base"))
    assert base.vae_scale_factor == 4
    assert base.schedule.prediction_type == "v_prediction"
    latents = jax.numpy.zeros((1, 16, 16, 4))
    assert base.decode(base.params, latents).shape == (1, 64, 64, 3)
    assert (folder / "base" / "grids" / "000002.png").is_file()
    assert (folder / "vae" / "measured.json").is_file()


@pytest.mark.slow
def test_training_goes_on_from_a_base_model_that_was_written(shelf):
    folder, config = shelf
    written = str(folder / "base" / "base")
    objective = BaseModelObjective(config, make_mesh(devices=jax.devices()[:1]))
    key = jax.random.key(0)
    own = initial_params(str(folder / "base"), objective, key)
    again = initial_params(written, objective, key)
    fresh = initial_params(None, objective, key)
    for mine, theirs in zip(jax.tree.leaves(own), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6, rtol=1e-3)  # float16 on disk
    assert any(
        (np.asarray(mine) != np.asarray(new)).any()
        for mine, new in zip(jax.tree.leaves(own), jax.tree.leaves(fresh), strict=True)
    )
    with pytest.raises(UserError, match=r"init_from is 'mini'; its weights have other shapes"):
        initial_params("mini", objective, key)


@pytest.mark.slow
def test_the_text_states_are_asked_for_the_words_of_their_caption(shelf):
    """States near the words' embeddings lose less; a dropped caption and its start lose nothing."""
    _, config = shelf
    objective = BaseModelObjective(config, make_mesh(devices=jax.devices()[:1]))
    params = objective.init(jax.random.key(0), {})["text_encoder"]
    tokens = objective.base.tokenize(["a person in a red hoodie", "someone in the snow"])
    embedding = params["text_model"]["embeddings"]["token_embedding"]["embedding"]
    own = [embedding[row[1 : list(row).index(row[-1])]].sum(0) for row in tokens]

    def loss(summaries, dropped=(False, False)):
        states = np.repeat(np.stack(summaries)[:, None], tokens.shape[1], axis=1) * 1e3
        return float(objective._words_loss(params, tokens, states, np.array(dropped)))

    assert loss(own) < loss(own[::-1]) - 1
    assert loss(own, (True, True)) == 0
    assert loss(own, (False, True)) + loss(own, (True, False)) == pytest.approx(loss(own))


def test_the_face_box_covers_the_cells_it_touches():
    boxes = np.array([[0.25, 0.5, 0.6, 1.0], [0.0, 0.1, 0.3, 0.2]])
    weight = box_weight(boxes, (4, 4), 3.0)
    np.testing.assert_array_equal(weight[:, 0], [3, 3, 1, 1])
    np.testing.assert_array_equal(weight[:, 1], [1, 1, 1, 1])
    np.testing.assert_array_equal(weight[:, 3], [1, 3, 3, 1])


@pytest.mark.parametrize("count", [2, 3])
def test_everybody_owns_what_is_nearest_to_their_face(count):
    """In a scene that is the stripes by which its people are told apart, but for small shifts."""
    boxes = mini_world.scene_boxes(count)
    masks = nearest_face(boxes, (64, 64), 3)
    assert masks[:count].sum(0).min() == masks.sum(0).max() == 1
    stripes = mini_world.scene_regions(count, 64)
    assert (masks[:count] == stripes).mean() > 0.95
    assert not nearest_face(boxes[:1], (64, 64), 3).any()


def test_the_features_box_holds_eyes_and_mouth():
    """Another expression changes next to nothing outside of it."""
    person = mini_people.people("train", 1)[0]
    person = dataclasses.replace(person, facial_hair="none", glasses="none")
    changed = []
    for expression in ("neutral", "laughing", "surprised", "angry"):
        circumstance = mini_world.Circumstance(expression=expression)
        boxes = np.array([mini_world.face_box(circumstance)], np.float32)
        changed.append(mini_world.draw(person, circumstance).astype(int))
    difference = np.abs(np.stack(changed) - changed[0]).max((0, 3)) > 8
    inside = box_weight(features_boxes(boxes), difference.shape, 2.0) == 2
    assert (difference & inside).sum() > 0.95 * difference.sum() > 0
    assert inside.mean() < 0.2


@pytest.mark.slow
def test_the_loss_counts_more_in_the_head_and_most_at_eyes_and_mouth(shelf):
    _, config = shelf
    objective = BaseModelObjective(config, make_mesh(devices=jax.devices()[:1]))
    example = {
        "latents": np.zeros((20, 20, 4), np.float32),
        "tokens": np.zeros(77, np.int32),
        "face_boxes": np.array([[0.0, 0.0, 1.0, 0.5]], np.float32),
    }
    weight = objective.make(example, np.random.default_rng(0))["weight"]
    assert set(weight[8:17, 2:8].flat) == {6.0}
    assert (weight == 6).sum() == 9 * 6
    assert (weight == 2).sum() == 20 * 10 - 9 * 6
    assert (weight == 1).sum() == 20 * 10


def test_principal_components_are_the_best_linear_latents():
    """All components give the picture back; fewer keep the most variance; scales are as said."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(6, 8, 8, 3)).cumsum(1).cumsum(2).astype(np.float32)
    parts = principal_components(mixed, 2, 12)
    latents = np.asarray(principal_latents(parts, mixed))
    assert latents.shape == (6, 4, 4, 12)
    assert latents.var((0, 1, 2)).mean() == pytest.approx(1, rel=1e-3)
    assert (np.diff(latents.std((0, 1, 2))) < 1e-4).all()
    covariance = np.cov(latents.reshape(-1, 12).T)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-3)
