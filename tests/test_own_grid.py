"""A validation's own prompts and photos: what is wrong with them, and what the sheet shows."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from fusionjax.backend.sharding import make_mesh
from fusionjax.data import mini_faces
from fusionjax.errors import UserError
from fusionjax.models.base import BaseModel
from fusionjax.pipeline import FusionPipeline
from tests.tiny import PIXELS, tiny_base
from train.config import AdapterRun, AutoencoderRun, DataConfig, ValidationConfig
from train.loop import run
from train.objectives.adapter import AdapterObjective
from train.own_grid import read_own


@pytest.fixture
def own(tmp_path):
    """Two people, one with three photos, and two prompts."""
    rng = np.random.default_rng(0)
    for name in ("ann/1.png", "ann/2.jpg", "ann/3.png", "ben/photo.png"):
        path = tmp_path / "people" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (PIXELS, PIXELS, 3), np.uint8)).save(path)
    (tmp_path / "people" / "ann" / "notes.txt").write_text("no photo")
    (tmp_path / "prompts.txt").write_text("{person} in a garden\n\na person reading\n")
    return ValidationConfig(
        every_steps=2, examples=4, grid_rows=1,
        prompts=str(tmp_path / "prompts.txt"), photos=str(tmp_path / "people"),
    )  # fmt: skip


def test_what_is_read(own):
    prompts, people = read_own(own, 2)
    assert prompts == ["a person in a garden", "a person reading"]
    names = {who: [photo.name for photo in photos] for who, photos in people.items()}
    assert names == {"ann": ["1.png", "2.jpg"], "ben": ["photo.png"]}
    assert read_own(ValidationConfig(), 2) is None


def test_what_is_wrong_is_told_before_the_run(own, tmp_path):
    def told(match, kind=AdapterRun, **values):
        watched = dataclasses.replace(own, **values)
        with pytest.raises(UserError, match=match):
            run(kind(output=str(tmp_path / "run"), validation=watched))
        assert not (tmp_path / "run").exists()

    told("no folder; name one with a folder of photos", photos=str(tmp_path / "none"))
    told("none does not exist", prompts=str(tmp_path / "none"))
    told(r"people' holds no photo of cleo \(", photos=_with(tmp_path, "cleo"))
    told("is of a run that trains an adapter", kind=AutoencoderRun)
    with pytest.raises(UserError, match=r"validation\.prompts is given without validation\.photos"):
        ValidationConfig(prompts="a")
    (tmp_path / "many.txt").write_text("a\n" * 13)
    (tmp_path / "people" / "cleo").rmdir()
    told("hold 13 prompts, and a grid has room for 12", prompts=str(tmp_path / "many.txt"))


def _with(folder, name):
    (folder / "people" / name).mkdir()
    return str(folder / "people")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:ResourceWarning", "ignore:no face was found")
def test_the_sheet_shows_what_the_pipeline_paints(own, tmp_path):
    tiny_base().save_pretrained(tmp_path / "base", dtype=np.float32)
    mini_faces.build(tmp_path / "faces", people=8, pictures_per_person=2, scenes=0, processes=1)
    config = AdapterRun(
        base=str(tmp_path / "base"), references=2, batch_size=4, validation=own,
        data=DataConfig(folder=str(tmp_path / "faces"), threads=1),
    )  # fmt: skip
    objective = AdapterObjective(config, make_mesh(devices=jax.devices()[:1]))
    params = jax.tree.map(
        lambda x: 3 * x, objective.init(jax.random.key(0), objective.frozen)
    )  # so that people can be seen
    sheet = objective.grid(params)
    plain = AdapterObjective(
        dataclasses.replace(config, validation=ValidationConfig(examples=4, grid_rows=1)),
        make_mesh(devices=jax.devices()[:1]),
    ).grid(params)
    height, width, _ = plain.shape
    np.testing.assert_array_equal(sheet[:height, :width], plain)

    pipe = FusionPipeline(BaseModel.from_pretrained(tmp_path / "base"), params, config.fusion)
    people = {
        "ann": [tmp_path / "people/ann/1.png", tmp_path / "people/ann/2.jpg"],
        "ben": [tmp_path / "people/ben/photo.png"],
    }
    prompts = ["a person in a garden", "a person reading"]
    # Pictures of 128 pixels behind 150 for the words, gaps of 4, and 20 above for the names.
    for row, prompt in enumerate(prompts):
        for column, photos in enumerate([*people.values(), None]):
            left, top = 150 + column * 132, height + 20 + (row + 1) * 132
            cell = sheet[top : top + 128, left : left + 128]
            identities = [pipe.encode_identity(photos)] if photos else []
            out = pipe(
                prompt, identities=identities, seed=row, scheduler="ddim", num_inference_steps=20,
                guidance_scale=config.guidance_scale,
            )  # fmt: skip
            wanted = out.images[0].resize((128, 128), Image.Resampling.LANCZOS)
            difference = np.abs(cell.astype(int) - np.asarray(wanted).astype(int))
            assert difference.mean() < 1, (prompt, column)
    first = np.asarray(Image.open(people["ann"][0]).resize((128, 128), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(sheet[height + 20 : height + 148, 150:278], first)
