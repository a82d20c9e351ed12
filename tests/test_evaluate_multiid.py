"""MultiID-Bench's folders: read as their script reads them, measured, and written."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fusionjax.embedded import MINI
from fusionjax.errors import UserError
from fusionjax.evaluation import bench_suite, evaluate, faces_suite, groups, multiid
from fusionjax.evaluation.__main__ import main
from fusionjax.evaluation.bench_suite import ORIGINAL, STRANGERS, BenchSuite
from fusionjax.evaluation.bounds import COPIES
from fusionjax.evaluation.faces_suite import FacesSuite
from fusionjax.evaluation.judges import Judges
from fusionjax.evaluation.people import read_people
from tests.people_folder import beside


def write_case(folder, people, out, first=1, key="prompt"):
    """A case as their README draws it: people, and which photos of theirs are painted."""
    folder.mkdir(parents=True)
    for number, person in enumerate(people, first):
        Image.open(person.photos[0]).convert("RGB").save(folder / f"ref_{number}.jpg")
    beside([person.photos[2] for person in people], folder / "ori.jpg")
    for name, photos in out.items():
        beside(photos, folder / name)
    (folder / "meta.json").write_text(json.dumps({key: "two people reading"}))


@pytest.fixture(scope="module")
def bench(people, tmp_path_factory):
    """Three cases: true photos; the same people by copies, twice; strangers."""
    root = tmp_path_factory.mktemp("bench")
    a, b, c, d = read_people(people)
    write_case(root / "id1", [a, b], {"out.jpg": [a.photos[1], b.photos[1]]})
    write_case(root / "id2", [a, b], {
        "out_1.jpg": [b.photos[0], a.photos[0]], "out_2.jpg": [a.photos[0]],
    })  # fmt: skip
    write_case(root / "id3", [c, d], {"output_0.jpg": [a.photos[0], b.photos[0]]}, 0, "caption_en")
    (root / "eval").mkdir()  # their script's own results, no case
    shutil.copy(root / "id1" / "out.jpg", root / "eval" / "id1.jpg")
    return root


def test_cases_are_read_as_their_script_reads_them(bench):
    cases = multiid.read_cases(bench)
    assert [case.name for case in cases] == ["id1", "id2", "id3"]
    assert [path.name for path in cases[0].references] == ["ref_1.jpg", "ref_2.jpg"]
    assert [path.name for path in cases[2].references] == ["ref_0.jpg", "ref_1.jpg"]
    assert {case.prompt for case in cases} == {"two people reading"}
    assert [case.original.name for case in cases] == ["ori.jpg"] * 3
    assert cases[0].shows() == cases[1].shows() != cases[2].shows()
    assert [path.name for path in multiid.outputs(bench, "id2")] == ["out_1.jpg", "out_2.jpg"]
    assert [path.name for path in multiid.outputs(bench, "id3")] == ["output_0.jpg"]


@pytest.mark.usefixtures("sface_alone")
def test_cases_are_measured(bench, tmp_path, capsys):
    """By the command, without --people; a second method lacks a case and has one too many."""
    other = shutil.copytree(bench, tmp_path / "other")
    shutil.rmtree(other / "id1")
    (other / "id2" / "out_2.jpg").write_bytes(b"no picture")
    shutil.copytree(other / "id3", other / "id4")
    words = ["--suite", "faces", "--method", f"a={bench}", "--method", f"b={other}"]
    assert main([*words, "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("3 cases of MultiID-Bench's layout, with 6 people.")
    numbers = json.loads((tmp_path / "results.json").read_text())
    assert numbers["groups"] == ["id1", "id3"]
    a, b = (numbers["methods"][name] for name in "ab")
    assert a["wanted"] == [[2, 2, 2], [2, 0, 0]]
    assert a["faces"] == [[2, 2, 1], [2, -1, -1]]
    distance = np.array(a["distance"], float)
    assert (distance[0, 0] < 0.5).all()
    assert (distance[0, 1] < 0.1).all()
    assert distance[0, 2] == pytest.approx([0, np.nan], abs=0.1, nan_ok=True)
    assert (distance[1, 0] > 0.6).all()
    assert a["recognised"] == [[[1, 1], [1, 1], [1, 0]], [[0, 0], [None] * 2, [None] * 2]]
    copied = np.array(a["copied"], float)[0]
    assert np.isfinite(copied[:2]).all()
    assert np.isnan(np.array(a["in_place"], float)).all()
    assert a["counts"] == {
        "pictures": 4, "as many faces as people": 3, "too few": 1, "too many": 0, "missing": 0,
        "unreadable": 0, "no face": 0, "with a person twice": 0, "not looked for": 1,
    }  # fmt: skip
    assert [b["counts"][kind] for kind in ("missing", "unreadable", "not looked for")] == [1, 1, 2]
    means = {
        name: numbers["methods"][name]["summary"]["distance"]["mean"]
        for name in (COPIES, ORIGINAL, STRANGERS)
    }
    assert means[COPIES] < 0.1
    assert means[ORIGINAL] < 0.5 < 0.6 < means[STRANGERS]
    assert "to_others" not in numbers["methods"][ORIGINAL]["summary"]
    assert (tmp_path / "sheet.png").exists()


def test_cases_whose_people_are_not_known_are_told(bench, tmp_path):
    root = shutil.copytree(bench, tmp_path / "bench")
    Image.new("RGB", (64, 64)).save(root / "id1" / "ref_2.jpg")
    (root / "id2" / "ref_1.jpg").write_bytes(b"no picture")
    (root / "id3" / "ori.jpg").unlink()
    results = bench_suite.run(BenchSuite({"m": str(root)}), tmp_path)
    assert (
        "2 cases of 3 are left out, for it is not known who is wanted there: id1 (no face in "
        "ref_2.jpg); id2 (ref_1.jpg cannot be read)."
    ) in (tmp_path / "table.md").read_text()
    assert list(results.scores) == ["m", COPIES]
    assert results.scores["m"].counts()["pictures"] == 1
    for each in results.judges.recognisers:  # dlib, if it is installed: strangers were painted
        assert results.summary("m", f"{each.prefix}recognised").mean == 0
        assert results.summary("m", f"{each.prefix}distance").mean > each.bound
        assert results.summary(COPIES, f"{each.prefix}recognised").mean == 1
    (root / "id3" / "ref_0.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"no case can be measured: id1 \(no face"):
        bench_suite.run(BenchSuite({"m": str(root)}), tmp_path)


def test_a_face_that_fills_its_reference_is_found(people, tmp_path):
    """Their references are cut out closely; their script lays black around them, as is done."""
    photo = read_people(people)[0].photos[0]
    image = Image.open(photo)
    left, top, width, height = groups.detect(image)[0].box
    image.crop((left, top, left + width, top + height)).save(tmp_path / "face.png")
    own, whole = (
        bench_suite._who(path, Judges(closely=False)).vectors["SFace"][0]
        for path in (tmp_path / "face.png", photo)
    )
    assert own @ whole > 0.5


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["--method", "a={tmp}/none"], "is no folder"),
        (["--method", "a={tmp}/plain"], "has no case of MultiID-Bench's layout (a folder with"),
        (["--method", "a={tmp}/bare"], "id1 has meta.json and no ref_1.jpg; add the people's"),
        (["--method", "a={tmp}/torn"], "is not JSON"),
        (["--method", "a={tmp}/odd"], "meta.json: prompt is no text"),
        (["--method", "a={tmp}/twice"], "has ori.jpg and ori.png; keep one"),
        (["--method", "a={bench}", "--method", "b={tmp}/far"], "a and b have no case in common"),
        (
            ["--method", "a={bench}", "--method", "b={tmp}/changed"],
            "id1 of method b has other ref_ pictures",
        ),
        (["--method", "a={bench}", "--steps", "3"], "--steps is given without --people; only"),
        (["--method", "a={bench}", "--group-size", "2"], "--group-size is given without --people"),
        (["--method", f"{COPIES}={{bench}}"], "cannot be named so"),
        (["--method", "a={bench}", "--pairs", "2"], "--pairs is nothing of --suite faces"),
        (["--people", "{people}", "--method", "a={bench}"], "measure it without --people, --base"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(people, bench, tmp_path, capsys, change, told):
    (tmp_path / "plain" / "ann").mkdir(parents=True)
    for name in ("bare", "torn", "odd", "twice", "changed"):
        shutil.copytree(bench / "id1", tmp_path / name / "id1")
    shutil.copytree(bench / "id1", tmp_path / "far" / "id9")
    for path in (tmp_path / "bare" / "id1").glob("ref_*"):
        path.unlink()
    (tmp_path / "torn" / "id1" / "meta.json").write_text('{"prompt": ')
    (tmp_path / "odd" / "id1" / "meta.json").write_text('{"prompt": 3}')
    shutil.copy(bench / "id1" / "ori.jpg", tmp_path / "twice" / "id1" / "ori.png")
    shutil.copy(bench / "id3" / "ref_1.jpg", tmp_path / "changed" / "id1" / "ref_1.jpg")
    places = {"{tmp}": str(tmp_path), "{bench}": str(bench), "{people}": str(people)}
    for name, place in places.items():
        change = [word.replace(name, place) for word in change]
    assert main(["--suite", "faces", "--output", str(tmp_path / "out"), *change]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert told in said
    assert len(said) < 520


def read_as_their_script(root, people):
    """What eval.py opens, with the file names of their README."""
    for name in sorted(path.name for path in root.iterdir() if path.is_dir()):
        images = []
        for stem in ("out", "ori", *(f"ref_{n}" for n in range(1, people + 1))):
            with Image.open(root / name / f"{stem}.jpg") as image:
                image.load()
                images.append(image)
        assert {image.format for image in images} == {"JPEG"}
        assert {image.mode for image in images} == {"RGB"}
        with open(root / name / "meta.json", encoding="utf-8") as file:
            yield name, json.load(file)["prompt"], images


@pytest.mark.slow
def test_what_is_painted_is_written_for_their_script(people, tmp_path):
    """And measured again from there it is as near to the people, but for JPEG."""
    (tmp_path / "prompts.txt").write_text("a photo of {person}\n")
    subjects = read_people(people)
    size = 2
    chosen = groups.choose_groups(subjects, size, 2)
    for group in chosen:  # painted already, so that nothing is
        photos = [person.photos[1] for person in group.people]
        beside(photos, tmp_path / "pictures" / group.name / "0001.png")
    multiid.write(tmp_path / "multiid", chosen, ["a photo of two people"], tmp_path / "pictures")
    written = list(read_as_their_script(tmp_path / "multiid", size))
    assert [name for name, *_ in written] == sorted(f"{group.name}_0001" for group in chosen)
    assert {prompt for _, prompt, _ in written} == {"a photo of two people"}
    again = bench_suite.run(BenchSuite({"m": str(tmp_path / "multiid")}), tmp_path)
    suite = FacesSuite(
        str(people), str(tmp_path / "prompts.txt"), group_size=2, most_groups=2,
        methods={"png": str(tmp_path / "pictures"), "jpg": str(tmp_path / "multiid")},
    )  # fmt: skip
    scores = faces_suite.run(suite, tmp_path, None).scores
    assert scores["jpg"].counts() == scores["png"].counts()
    jpg = scores["jpg"]["distance"]
    assert jpg == pytest.approx(scores["png"]["distance"], abs=0.05)
    rows = [again.rows.index(f"{group.name}_0001") for group in chosen]
    assert again.scores["m"]["distance"][rows] == pytest.approx(jpg, abs=0.05)
    # Written anew, a picture that is gone is gone there too.
    (tmp_path / "pictures" / chosen[0].name / "0001.png").unlink()
    multiid.write(tmp_path / "multiid", chosen, ["a photo of two people"], tmp_path / "pictures")
    names = {path.name for path in (tmp_path / "multiid" / f"{chosen[0].name}_0001").iterdir()}
    assert names == {"ref_1.jpg", "ref_2.jpg", "ori.jpg", "meta.json"}


@pytest.mark.slow
def test_one_person_alone_is_written_too(people, tmp_path):
    """Their `v200_single`: by the suite of one person, whose pictures are painted already."""
    (tmp_path / "prompts.txt").write_text("a photo of {person}\n")
    for subject in read_people(people, 2):
        beside([subject.photos[1]], tmp_path / "pictures" / subject.name / "0001.png")
    suite = FacesSuite(str(people), str(tmp_path / "prompts.txt"), most_people=2, layout="multiid")
    faces_suite.run(suite, tmp_path, lambda: evaluate.open_pipeline(MINI, None))
    written = list(read_as_their_script(tmp_path / "multiid", 1))
    names = [subject.name for subject in read_people(people, 2)]
    assert [name for name, *_ in written] == [f"{name}_0001" for name in names]
    for name, (_, prompt, (out, *_)) in zip(names, written, strict=True):
        assert prompt == "a photo of a person"
        with Image.open(tmp_path / "pictures" / name / "0001.png") as image:
            assert np.abs(np.asarray(out, float) - np.asarray(image)).mean() < 3
