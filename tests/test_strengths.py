"""Identity against prompt over face strength: the suites at several strengths, the drawing."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from fusionjax.errors import UserError
from fusionjax.evaluation import curve, faces_suite, measure, strengths, suite
from fusionjax.evaluation.__main__ import main
from fusionjax.evaluation.faces_suite import FacesSuite
from fusionjax.evaluation.metrics import Interval
from fusionjax.evaluation.people import place_of, read_people
from fusionjax.pipeline import FusionPipeline
from tests.test_evaluation import TINY, _judge, _pipe
from tests.tiny import tiny_base, tiny_pipe

BLUE, RED = (47, 111, 214), (201, 51, 5)


def marks(picture, color):
    """The middles of a drawing's discs of a color, from left to right."""
    same = (np.asarray(picture) == color).all(-1)
    inside = np.lib.stride_tricks.sliding_window_view(same, (7, 7)).all((2, 3))  # no line is
    rows, columns = np.nonzero(inside)
    if not len(rows):
        return []
    groups = np.split(columns, np.nonzero(np.diff(np.sort(columns)) > 3)[0] + 1)
    order = np.argsort(columns)
    ends = np.cumsum([len(group) for group in groups])[:-1]
    return [(columns[part].mean() + 3, rows[part].mean() + 3) for part in np.split(order, ends)]


def test_axes_by_hand():
    assert curve.nice_range([0.13, 0.87]) == pytest.approx((0, 1, 0.2))
    assert curve.nice_range([0, 0.5, 2]) == pytest.approx((0, 2, 0.5))
    assert curve.nice_range([21.3, 26.1]) == pytest.approx((21, 27, 1))
    low, high, _ = curve.nice_range([3.0, 3.0])
    assert low < 3 < high


def test_marks_lie_where_the_axes_say():
    points = [
        curve.Point("a", 0, Interval(1.0, 0.9, 1.0)),
        curve.Point("b", 0.5, Interval(0.5, 0.4, 0.6)),
        curve.Point("c", 2, Interval(0.25, 0.2, 0.3)),
    ]
    other = curve.Point("d", 1, Interval(0.0, 0.0, 0.0))
    picture = curve.draw(points, others=[other], levels={"floor": 0.1}, x_name="x", y_name="y")
    assert picture.size == curve.SIZE
    left, top, right, bottom = curve.AREA  # of x 0 to 2, and of y 0 to 1
    expected = [
        (left + x / 2 * (right - left), bottom - y * (bottom - top))
        for x, y in ((0, 1), (0.5, 0.5), (2, 0.25))
    ]
    np.testing.assert_allclose(marks(picture, BLUE), expected, atol=1)
    np.testing.assert_allclose(marks(picture, RED), [((left + right) / 2, bottom)], atol=1)
    grey = (np.asarray(picture) == (154, 154, 154)).all(-1).sum(1)
    assert grey.argmax() == pytest.approx(bottom - 0.1 * (bottom - top), abs=1)
    middle = round(expected[1][0])
    ink = (np.asarray(picture)[:, middle] == BLUE).all(-1).nonzero()[0]
    assert (ink.min(), ink.max()) == pytest.approx(
        (bottom - 0.6 * (bottom - top), bottom - 0.4 * (bottom - top)), abs=1
    )


def test_against_the_prompt_where_there_is_one(tmp_path):
    """More of the person and less of the prompt: the curve goes to the left and down."""
    rows = [
        strengths.Reached("0", 0.0, Interval(0.9, 0.8, 1.0), 26.0, {"verified": 0.0}),
        strengths.Reached("1", 1.0, Interval(0.5, 0.4, 0.6), 24.0, {"verified": 0.75}),
        strengths.Reached("3", 3.0, None, None, {"verified": None}),
        strengths.Reached("theirs", None, Interval(0.6, 0.5, 0.7), 22.0, {"verified": 0.5}),
    ]
    made = strengths.Curve("Few. ", "CLIP score", False, rows, {"a copy": 0.0})
    strengths.write(made, tmp_path)
    with Image.open(tmp_path / "curve.png") as picture:
        first, second = marks(picture, BLUE)  # from left to right
        assert first[0] < second[0]
        assert first[1] > second[1]
        assert len(marks(picture, RED)) == 1
    table = (tmp_path / "curve.md").read_text()
    assert "| 1 | 0.500 (0.400 to 0.600) | 24.0 | 75 % |" in table
    assert "| 3 | – | – | – |" in table
    assert "| theirs | 0.600 (0.500 to 0.700) | 22.0 | 50 % |" in table
    assert "Identity distance of a copy: 0.000." in table
    about = json.loads((tmp_path / "curve.json").read_text())
    assert [row["name"] for row in about["rows"]] == ["0", "1", "3", "theirs"]
    assert about["rows"][1]["distance"] == {"mean": 0.5, "low": 0.4, "high": 0.6}


@pytest.mark.slow
def test_a_curve_of_real_people(people, prompts, tmp_path):
    """What is painted is not painted again: strangers, true photos and copies at three strengths
    come out in this order, and nothing where no face is.
    """
    subjects = read_people(people, 2)
    chosen = {
        0.0: lambda who, n: subjects[1 - who].photos[0],
        0.5: lambda who, n: subjects[who].photos[1 + n],
        1.0: lambda who, n: subjects[who].photos[0],
    }
    for strength, choose in chosen.items():
        for who, subject in enumerate(subjects):
            for number in range(2):
                source = choose(who, number)
                folder = tmp_path / f"strength_{strength:g}" / "pictures"
                place = place_of(folder, subject, number, source.suffix)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, place)
    theirs = shutil.copytree(tmp_path / "strength_1" / "pictures", tmp_path / "theirs")
    opened = []

    def open_pipeline():
        opened.append(1)
        return tiny_pipe()

    few = FacesSuite(str(people), str(prompts), most_people=2, steps=2, batch_size=2,
                     methods={"theirs": str(theirs)})  # fmt: skip
    made = strengths.run_faces(few, [1.0, 0.0, 0.5, 0.5], tmp_path, open_pipeline)
    assert len(opened) == 1
    assert [row.name for row in made.rows] == ["0", "0.5", "1", "theirs"]
    means = [row.distance.mean for row in made.rows]
    assert means[0] > 0.7 > 0.4 > means[1] > 0.01 > means[2]
    assert means[3] == means[2]
    assert [row.more["verified"] for row in made.rows[:3]] == [0, 1, 1]
    numbers = json.loads((tmp_path / "strength_0.5" / "results.json").read_text())
    assert numbers["suite"]["face_strength"] == 0.5
    summary = numbers["methods"]["fusionjax"]["summary"]["distance"]
    assert summary == made.rows[1].distance._asdict()
    with Image.open(tmp_path / "curve.png") as picture:
        heights = [y for _, y in marks(picture, BLUE)]  # from strength 0 to 1
        assert heights == sorted(heights)
        assert not marks(picture, RED)  # without a CLIP, a method is a line across


@pytest.mark.slow
def test_what_is_painted_at_a_strength(people, prompts, tmp_path):
    """Strength 0 is the base alone, to the pixel's rounding; others are not; a share measures
    nothing, and a second call paints nothing.
    """
    few = FacesSuite(str(people), str(prompts), most_people=2, most_prompts=1, steps=2,
                     batch_size=1, share=(1, 1))  # fmt: skip
    pipe = tiny_pipe()
    assert strengths.run_faces(few, [0, 2], tmp_path, lambda: pipe) is None
    painted = sorted(tmp_path.glob("strength_*/pictures/*/0001.png"))
    assert len(painted) == 4
    dates = [path.stat().st_mtime_ns for path in painted]
    assert strengths.run_faces(few, [2, 0], tmp_path, lambda: pipe) is None
    assert [path.stat().st_mtime_ns for path in painted] == dates
    alone = FusionPipeline(tiny_base(), devices=jax.devices()[:1])
    faces_suite.run(dataclasses.replace(few, face_strength=0.0), tmp_path / "b", lambda: alone)
    for path in painted[:2]:
        base = np.asarray(Image.open(tmp_path / "b" / "pictures" / path.parent.name / "0001.png"))
        none, strong = (
            np.asarray(Image.open(tmp_path / f"strength_{s}" / "pictures" / path.parent.name
                                  / "0001.png")).astype(int) for s in (0, 2)
        )  # fmt: skip
        assert np.abs(none - base).max() <= 1
        assert np.abs(strong - base).max() > 8
    with pytest.raises(UserError, match="face strengths need an adapter"):
        strengths.run_faces(few, [0, 1], tmp_path / "c", lambda: alone)


@pytest.mark.slow
def test_a_curve_of_drawn_people(tmp_path):
    """At strength 0 what is measured is that of text alone."""
    pipe, judge = _pipe(), _judge()
    few = dataclasses.replace(TINY, prompts=1)
    made = strengths.run_mini(few, [0, 1], pipe, judge, tmp_path)
    cases = suite.make_cases(few, pipe.photo_side)
    text = measure.measure(judge, cases, suite.generate_cases(pipe, cases, few, None))
    assert made.rows[0].distance.mean == pytest.approx(text.distance.mean, abs=1e-3)
    assert made.rows[1].distance.mean != pytest.approx(text.distance.mean, abs=1e-3)
    assert made.rows[0].prompt == pytest.approx(np.nanmean(list(text.prompt.values())))
    assert (tmp_path / "curve.png").is_file()
    assert "| 0 | " in (tmp_path / "curve.md").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--face-strengths", "1,1"], "face_strengths has 1 value; a curve needs two or more"),
        (["--face-strengths", "0,-1"], "face_strength is -1; it must be in 0..1000000"),
        (["--face-strengths", "0,1", "--face-strength", "1"], "are both given; use one of them"),
        (["--face-strengths", "0,1", "--fusion", "none"], "need an adapter; name one with"),
        (["--face-strengths", "0,1", "--pairs", "3"], "--pairs does not go with --face-strengths"),
        (["--face-strengths", "0,1", "--suite", "faces", "--people", "{people}"],
         "need an adapter; name one with --fusion"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_first(people, tmp_path, capsys, words, told):
    words = [word.replace("{people}", str(people)) for word in words]
    assert main([*words, "--output", str(tmp_path / "out")]) == 2
    assert told in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list(Path(tmp_path / "out").rglob("*.png"))


def test_what_is_no_list_of_numbers(capsys):
    with pytest.raises(SystemExit):
        main(["--output", "x", "--face-strengths", "0,high"])
    assert "'0,high' is not numbers, as in 0,0.5,1" in capsys.readouterr().err
