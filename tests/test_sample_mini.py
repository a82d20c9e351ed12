"""The first command of the README, with the embedded model and its faces."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusionjax.embedded import ASSETS, MINI_GUIDANCE, MINI_PROMPT
from fusionjax.evaluation.recogniser import Recogniser
from fusionjax.mini import drawing as mini_world
from sample.__main__ import main
from sample.formats import read_picture, read_scene

FACES = {
    "ann": mini_world.Person("curly", "black", "olive", "none", "white"),
    "ben": mini_world.Person("mohawk", "blue", "light", "thick moustache", "none"),
    "cleo": mini_world.Person("wavy", "pink", "light", "none", "black"),
    "dan": mini_world.Person("bun", "pink", "brown", "curled moustache", "round"),
}


def test_the_embedded_faces_are_of_people_whom_no_training_sees():
    found = sorted(path.stem for path in (ASSETS / "faces").glob("*.png"))
    assert found == sorted(FACES)
    looks = {
        "ann": mini_world.Circumstance("neutral", "t-shirt", "green", "grey"),
        "ben": mini_world.Circumstance("smiling", "hoodie", "yellow", "white"),
        "cleo": mini_world.Circumstance("neutral", "t-shirt", "blue", "yellow"),
        "dan": mini_world.Circumstance("smiling", "t-shirt", "purple", "green"),
    }
    for name, person in FACES.items():
        assert person.split == "test"
        stored = np.asarray(Image.open(ASSETS / "faces" / f"{name}.png")).astype(int)
        drawn = mini_world.draw(person, looks[name]).astype(int)
        assert np.abs(stored - drawn).mean() < 1  # rasterisers may differ in their last bit


@pytest.mark.usefixtures("loaded_once")
def test_the_first_command_paints_a_person(tmp_path, capsys):
    """The person of the photo, not another one of the embedded people, laughing in new clothes."""
    words = ["--quiet", "--cache", str(tmp_path / "cache")]
    assert main([*words, "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [
        str(tmp_path / name) for name in ("0001_seed0.png", "0001_sheet.png")
    ]
    job = read_picture(tmp_path / "0001_seed0.png")
    assert [Path(face).name for person in job.people for face in person.faces] == ["cleo.png"]
    assert (job.base, job.prompt, job.guidance_scale) == (None, MINI_PROMPT, MINI_GUIDANCE)
    pixels = np.asarray(Image.open(tmp_path / "0001_seed0.png"))
    assert pixels.shape == (mini_world.PICTURE_PIXELS, mini_world.PICTURE_PIXELS, 3)
    judge = Recogniser.from_pretrained()
    box = mini_world.face_box(mini_world.Circumstance())
    faces = [np.asarray(Image.open(ASSETS / "faces" / f"{name}.png")) for name in sorted(FACES)]
    own, *people = judge.embed([pixels, *faces], [box] * 5)
    assert sorted(FACES)[int(np.argmax(np.stack(people) @ own))] == "cleo"
    assert (
        judge.read([pixels])[0].items()
        >= {
            "clothes": "astronaut suit",
            "background": "garden",
            "hair_color": "pink",
            "glasses": "black",
        }.items()
    )


def test_the_example_scene_is_two_people_side_by_side():
    job = read_scene(ASSETS / "scenes" / "two_people.yaml")
    assert [Path(person.faces[0]).name for person in job.people] == ["ann.png", "ben.png"]
    assert [person.box for person in job.people] == [(0, 0, 0.5, 1), (0.5, 0, 1, 1)]
