"""Pictures of several people: measures worked out by hand, true photos side by side, folders."""

import dataclasses
import itertools
import json
import shutil
import zlib

import numpy as np
import pytest
from PIL import Image

from fusionjax.embedded import MINI
from fusionjax.errors import UserError
from fusionjax.evaluation import evaluate, faces, faces_suite, groups, recognisers
from fusionjax.evaluation.__main__ import main
from fusionjax.evaluation.bounds import COPIES, STRANGERS, SWAPPED, TRUTHS
from fusionjax.evaluation.faces import assign
from fusionjax.evaluation.faces_suite import FacesSuite
from fusionjax.evaluation.judges import Family, Judges, Recogniser, Seen
from fusionjax.evaluation.people import Subject, read_people
from tests.people_folder import PHOTOS, beside


@pytest.fixture(scope="module")
def few(people, tmp_path_factory):
    """The same people with two photos each: of each bound there is one picture a group."""
    folder = shutil.copytree(people, tmp_path_factory.mktemp("few") / "people")
    for path in folder.glob("*/3.jpg"):
        path.unlink()
    return folder


def nobody(*names):
    return [Subject(name, ()) for name in names]


def unit(*values):
    """A unit vector whose first parts are given."""
    return np.array([*values, np.sqrt(1 - np.sum(np.square(values)))])


def method(folder, people, size, prompts, choose, seed=0):
    """Pictures of all groups by each prompt: photos side by side."""
    for group in groups.choose_groups(read_people(people), size, seed=seed):
        for number in range(prompts):
            beside(choose(group, number), folder / group.name / f"{number + 1:04d}.png")
    return folder


def suite_of(people, prompts, **folders):
    methods = {name: str(folder) for name, folder in folders.items()}
    return FacesSuite(str(people), str(prompts), methods=methods, group_size=2)


def test_assignment_by_hand():
    """Against the best of all permutations, too."""
    assert assign(np.array([[0.6, 0.5], [0.5, 0.1]])).tolist() == [1, 0]
    assert assign(np.array([[0.2, 0.9, 0.3]])).tolist() == [-1, 0, -1]
    assert assign(np.array([[0.1], [0.7], [0.4]])).tolist() == [1]
    assert assign(np.zeros((0, 2))).tolist() == [-1, -1]
    for cosines in np.random.default_rng(0).uniform(-1, 1, (20, 4, 4)):
        best = max(
            itertools.permutations(range(4)),
            key=lambda faces: sum(cosines[face, person] for person, face in enumerate(faces)),
        )
        assert assign(cosines).tolist() == list(best)


def person(reference, *others, name="SFace"):
    return tuple(Seen({name: np.array([each], np.float64)}) for each in (reference, *others))


def measure(vectors, centres, people, *, placed):
    seen = Seen({"SFace": vectors}, np.array(centres))
    return faces.of_several(Judges(closely=False), placed, seen, people)


def test_measures_by_hand():
    """Two people at right angles; the first one's face is on the right."""
    ann, ben = (person([1, 0, 0], [0, 0, 1]), person([0, 1, 0]))
    pair = np.array([[0.8, 0.6, 0], [0.0, 0.8, 0.6]])
    found = measure(pair, [0.7, 0.2], [ann, ben], placed=True)
    assert found["distance"] == pytest.approx([0.2, 0.2])
    assert found["recognised"].tolist() == [1, 1]
    assert found["in_place"].tolist() == [0, 0]
    assert found["to_rest"] == pytest.approx([0.6, 0])
    assert found["confused"].tolist() == [0, 0]
    assert found["to_others"] == pytest.approx([1, np.nan], nan_ok=True)
    # 90° to the other photo, acos 0.8 to the one shown, which are 90° apart.
    copied = (90 - np.rad2deg(np.arccos(0.8))) / 90
    assert found["copied"] == pytest.approx([copied, np.nan], nan_ok=True)
    assert found["twice"] == 0
    found = measure(pair[[1, 0, 0]], [0.6, 0.1, 0.9], [ann, ben], placed=True)
    assert found["in_place"].tolist() == [1, 1]
    assert found["twice"] == 1
    # Both faces are nearer to ann; ben gets what is left, and is taken for her.
    pair = np.stack([unit(0.6, 0.5), unit(0.5, 0.1)])
    found = measure(pair, [0.2, 0.7], [ann, ben], placed=False)
    assert found["distance"] == pytest.approx([0.5, 0.5])
    assert found["to_rest"] == pytest.approx([0.1, 0.6])
    assert found["confused"].tolist() == [0, 1]
    assert np.isnan(found["in_place"]).all()
    assert found["twice"] == 1
    # One face for two people: the other has none, and is not recognised.
    found = measure(pair[1:], [0.2], [ann, ben], placed=True)
    assert found["distance"] == pytest.approx([0.5, np.nan], nan_ok=True)
    assert found["recognised"].tolist() == [1, 0]
    assert found["in_place"] == pytest.approx([1, np.nan], nan_ok=True)


def test_each_recogniser_assigns_by_itself():
    """By Euclidean distance, of faces of its own number; who is in no photo of it is not judged."""
    judge = Recogniser("own", 0.6, euclidean=True)
    family = Family((judge,), "", lambda image, faces: {})
    judges = Judges((family,), closely=False)
    people = [
        tuple(Seen({**a.vectors, **b.vectors}) for a, b in zip(one, two, strict=True))
        for one, two in (
            (person([1, 0]), person([0, 0], name="own")),
            (person([0, 1]), person([3, 4], name="own")),
        )
    ]
    seen = Seen(
        {"SFace": np.array([[0.0, 1]]), "own": np.array([[3, 3.5], [0, 0.25], [0, 1]])},
        np.array([0.75]),
    )
    found = faces.of_several(judges, True, seen, people)
    assert found["own_distance"] == pytest.approx([0.25, 0.5])
    assert found["own_recognised"].tolist() == [1, 1]
    # Each one's face is as far from the other's photo as the hypotenuses say.
    assert found["own_from_rest"] == pytest.approx([np.hypot(3, 3.75), np.hypot(3, 3.5)])
    assert found["own_confused"].tolist() == [0, 0]
    assert found["own_twice"] == 0
    assert np.isnan(found["own_to_others"]).all()
    assert found["distance"] == pytest.approx([np.nan, 0], nan_ok=True)
    assert found["in_place"] == pytest.approx([np.nan, 1], nan_ok=True)
    people[1] = (Seen({"SFace": people[1][0].vectors["SFace"]}),)
    found = faces.of_several(judges, True, seen, people)
    assert found["own_distance"] == pytest.approx([0.25, np.nan], nan_ok=True)
    assert found["own_recognised"] == pytest.approx([1, np.nan], nan_ok=True)
    nothing = faces.of_several(judges, True, None, people)
    assert nothing.keys() == found.keys()
    assert nothing["recognised"].tolist() == [0, 0]
    assert nothing["own_recognised"] == pytest.approx([0, np.nan], nan_ok=True)
    assert np.isnan(nothing["distance"]).all()


def test_places_by_hand():
    masks = groups.places(3, 2, 6)
    assert masks[:, 0].tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]]
    assert (masks[:, 0] == masks[:, 1]).all()
    places = [groups.place_at(x, 2) for x in (-0.1, 0, 0.49, 0.5, 0.7, 1, 1.2)]
    assert places == [0, 0, 0, 1, 1, 1, 1]
    assert groups.place_at(0.7, 4) == 2


def test_groups_are_chosen_by_the_seed():
    everybody = nobody(*"abcdefg")
    chosen = groups.choose_groups(everybody, 3, seed=1)
    assert len(chosen) == len({group.name for group in chosen}) == 7
    assert [g.name for g in chosen] == [g.name for g in groups.choose_groups(everybody, 3, seed=1)]
    assert [g.name for g in chosen] != [g.name for g in groups.choose_groups(everybody, 3, seed=2)]
    for group in chosen:
        assert group.name.split("+") == sorted(group.name.split("+"))
    often = [sum(name in group.name for group in chosen) for name in "abcdefg"]
    assert min(often) >= 2
    # All pairs of four people, and no more than there are.
    assert len(groups.choose_groups(nobody(*"abcd"), 2, 99)) == 6
    assert [g.name for g in groups.choose_groups(nobody(*"ab"), 2)] == ["a+b"]
    assert [groups.in_words(n) for n in (1, 2, 4, 12)] == [
        "a person", "two people", "four people", "12 people"
    ]  # fmt: skip


@pytest.mark.parametrize("size", [2, 3])
def test_who_stands_where_is_seen_in_true_photos(people, size):
    """Photos pasted side by side: everybody is found, in their place, and nobody mistaken; by
    every recogniser that is there, of three people each once by dlib."""
    subjects = read_people(people)
    judges = Judges(closely=False)
    if size == 3:
        judges, subjects = recognisers.open_judges(False, closely=False), subjects[:3]
    known = {person.name: faces.know(person, judges) for person in subjects}
    for chosen in itertools.combinations(subjects, size):
        picture = beside([person.photos[1] for person in chosen], people.parent / "together.png")
        with Image.open(picture) as image:
            seen = judges.see(image, everybody=True)
        wanted = [known[person.name] for person in chosen]
        found = faces.of_several(judges, True, seen, wanted)
        assert len(seen.centres) == size
        assert found["in_place"].tolist() == [1] * size
        for each in judges.recognisers:
            assert found[f"{each.prefix}recognised"].tolist() == [1] * size
            assert not found[f"{each.prefix}confused"].any()
            assert not found[f"{each.prefix}twice"]
        found = faces.of_several(judges, True, seen, wanted[1:] + wanted[:1])
        assert found["in_place"].tolist() == [0] * size
        assert found["recognised"].tolist() == [1] * size


@pytest.mark.slow
def test_true_photos_swapped_people_and_strangers_come_out_in_order(people, prompts, tmp_path):
    """And so do folders that hold them, but for places, which nobody told those methods."""
    subjects = read_people(people)

    def others(group, number):
        return [s.photos[0] for s in subjects if s not in group.people]

    def true(group, number):
        return [person.photos[1 + number] for person in group.people]

    folders = {
        "true": method(tmp_path / "t", people, 2, 1, true),
        "swapped": method(tmp_path / "w", people, 2, 1, lambda g, n: true(g, n)[::-1]),
        "strangers": method(tmp_path / "s", people, 2, 1, others),
    }
    suite = dataclasses.replace(suite_of(people, prompts, **folders), most_prompts=1)
    results = faces_suite.run(suite, tmp_path, None)

    def mean(name, measure):
        interval = results.summary(name, measure)
        return None if interval is None else interval.mean

    for each in results.judges.further:  # dlib, if it is installed
        for names in (folders, (TRUTHS, SWAPPED, STRANGERS)):
            floor, swapped, ceiling = names
            assert mean(floor, f"{each.prefix}distance") < 0.5 < each.bound
            assert mean(ceiling, f"{each.prefix}distance") > each.bound + 0.05
            assert [mean(n, f"{each.prefix}recognised") for n in names] == [1, 1, 0]
            assert [mean(n, f"{each.prefix}confused") for n in (floor, swapped)] == [0, 0]
            assert mean(floor, f"{each.prefix}from_rest") > each.bound
    for floor, swapped, ceiling in (("true", "swapped", "strangers"), (TRUTHS, SWAPPED, STRANGERS)):
        assert mean(floor, "distance") < 0.5 < 0.7 < mean(ceiling, "distance")
        assert mean(swapped, "distance") == pytest.approx(mean(floor, "distance"), abs=0.05)
        assert [mean(n, "recognised") for n in (floor, swapped, ceiling)] == [1, 1, 0]
        assert [mean(n, "confused") for n in (floor, swapped)] == [0, 0]
        assert mean(ceiling, "confused") > 0
        assert mean(floor, "to_rest") == pytest.approx(mean(swapped, "to_rest"), abs=0.05)
    assert [mean(n, "in_place") for n in (TRUTHS, COPIES, SWAPPED)] == [1, 1, 0]
    assert [mean(n, "in_place") for n in folders] == [None] * 3
    assert mean(COPIES, "distance") < 0.1
    assert mean(COPIES, "copied") > mean("true", "copied")
    assert results.rows == (tmp_path / "groups.txt").read_text().split()
    assert results.prompts == ["a photo of two people"]
    table = (tmp_path / "table.md").read_text()
    assert f"| {SWAPPED} | 0 % (0 % to 0 %) |" in table
    assert "| true | – |" in table
    assert "| true | 4 | 4 | 0 | 0 | 0 | 0 | 0 | 0 | 0 | 0 of 8 |" in table
    assert "Distance to the photo less that of true" in table
    numbers = json.loads((tmp_path / "results.json").read_text())
    assert np.shape(numbers["methods"]["true"]["distance"]) == (4, 1, 2)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (150 + 4 * 132, 20 + 4 * 132)


@pytest.mark.usefixtures("sface_alone")
def test_the_bootstrap_draws_groups(few, prompts, tmp_path):
    """Of two groups, one alike and one not, the interval reaches from one to the other."""
    folder = method(tmp_path / "m", few, 3, 1, lambda g, n: [p.photos[0] for p in g.people])
    shutil.copytree(folder, tmp_path / "n")
    chosen = groups.choose_groups(read_people(few), 3)
    wrong = chosen[0].people[0].photos[0]
    beside([wrong], tmp_path / "n" / chosen[0].name / "0001.png")
    suite = FacesSuite(
        str(few), str(prompts), most_prompts=1, group_size=3, most_groups=2,
        methods={"m": str(folder), "n": str(tmp_path / "n")},
    )  # fmt: skip
    results = faces_suite.run(suite, tmp_path, None)
    assert results.scores["n"]["recognised"][:, 0].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert results.summary("n", "recognised") == pytest.approx((4 / 6, 1 / 3, 1))
    assert results.scores["n"].counts()["too few"] == 1
    assert results.scores["n"].without_face() == (2, 6)


@pytest.mark.usefixtures("sface_alone")
def test_what_is_wrong_with_pictures_is_counted(few, prompts, tmp_path):
    folder = method(tmp_path / "m", few, 2, 2, lambda g, n: [p.photos[0] for p in g.people])
    names = groups.choose_groups(read_people(few), 2)
    first, second, third, fourth = (folder / group.name for group in names)
    (first / "0001.png").unlink()
    (second / "0001.png").write_bytes(b"no picture")
    Image.new("RGB", (200, 200), "red").save(third / "0001.png")
    ann, ben = names[3].people
    beside([ann.photos[0]], fourth / "0001.png")
    beside([ann.photos[0], ben.photos[0], ann.photos[1]], fourth / "0002.png")
    (first / "0003.png").write_bytes(b"x")
    scores = faces_suite.run(suite_of(few, prompts, m=folder), tmp_path, None).scores["m"]
    assert scores.counts() == {
        "pictures": 8, "as many faces as people": 3, "too few": 1, "too many": 1, "missing": 1,
        "unreadable": 1, "no face": 1, "with a person twice": 1, "not looked for": 1,
    }  # fmt: skip
    assert scores.without_face() == (7, 16)
    assert np.isnan(scores["distance"]).sum() == 7
    assert np.nansum(scores["recognised"]) == 9
    assert scores["recognised"][:, 0].tolist() == [[0, 0], [0, 0], [0, 0], [1, 0]]
    line = "| m | 8 | 3 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 7 of 16 |"
    assert line in (tmp_path / "table.md").read_text()


@pytest.mark.slow
def test_people_are_painted_side_by_side(people, prompts, tmp_path):
    """The same picture as the pipeline's with a mask for each half; and a second call none."""
    pipe = evaluate.open_pipeline(MINI, None)
    suite = FacesSuite(
        str(people), str(prompts), group_size=2, most_groups=2, steps=1, guidance_scale=3,
        batch_size=1, share=(2, 2),
    )  # fmt: skip
    assert faces_suite.run(suite, tmp_path, lambda: pipe) is None
    painted = sorted((tmp_path / "pictures").glob("*/*.png"))
    other, name = (tmp_path / "groups.txt").read_text().split()
    assert [(path.parent.name, path.name) for path in painted] == [
        (name, "0001.png"), (name, "0002.png")
    ]  # fmt: skip
    dates = {path: path.stat().st_mtime_ns for path in painted}
    results = faces_suite.run(dataclasses.replace(suite, share=None), tmp_path, lambda: pipe)
    assert results.about.startswith("2 groups of 2 of 4 people × 2 prompts. Painted here: 1 steps")
    assert {path: path.stat().st_mtime_ns for path in dates} == dates
    assert len(list((tmp_path / "pictures" / other).iterdir())) == 2
    shown = [pipe.encode_identity(str(people / who / "1.png")) for who in name.split("+")]
    halves = np.zeros((2, pipe.photo_side, pipe.photo_side), np.float32)
    halves[0, :, : pipe.photo_side // 2] = halves[1, :, pipe.photo_side // 2 :] = 1
    with Image.open(tmp_path / "pictures" / name / "0002.png") as image:
        theirs = np.asarray(image, np.float32) / 255
    off = [
        np.abs(theirs - pipe(
            "a watercolour of two people", identities=faces, masks=halves, num_inference_steps=1,
            guidance_scale=3, seed=(zlib.crc32(name.encode()) + 1) % 2**31, output_type="np",
            scheduler="dpmpp_2m",
        ).images[0]).mean()
        for faces in (shown, shown[::-1])
    ]  # fmt: skip
    assert off[0] < 0.6 / 255 < off[1]
    with pytest.raises(UserError, match="of another seed; name another --output"):
        faces_suite.run(dataclasses.replace(suite, seed=3), tmp_path, lambda: pipe)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["--group-size", "5"], "group_size is 5, and there are 4 people; add folders of people"),
        (["--group-size", "0"], "group_size is 0; it must be at least"),
        (["--most-groups", "0"], "most_groups is 0; it must be at least 1"),
        (["--group-size", "1", "--most-groups", "3"], "--most-groups is given without --group"),
        ([], "nothing is to be measured; name an adapter, or methods with --method. The groups"),
        (["--method", "a={tmp}/none"], "method a: "),
        (["--method", "a={tmp}/alone"], "holds pictures of a person ('barack_obama'), not of two"),
        (["--method", "a={tmp}/three"], "holds pictures of three people ('a+b+c'), not of two"),
        (["--method", "a={tmp}/others"], "holds pictures of 'a+b', and no group of groups.txt"),
        (["--method", "a={tmp}/empty"], "holds no picture that is looked for; the first that is"),
        (["--method", "a={tmp}/bench"], "has MultiID-Bench's layout and other cases than these"),
        (["--method", f"{TRUTHS}={{tmp}}"], "cannot be named so; choose another name"),
        (["--people", "{tmp}/plus"], "the folder 'a+b' has a +, which stands between the names"),
        (["--layout", "multiid"], "layout is multiid, and nothing is painted here; name --base"),
        (["--group-size", "5", "--layout", "multiid"], "reads 4 references at most; make"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_first(people, tmp_path, capsys, change, told):
    for place in ("alone/barack_obama", "three/a+b+c", "others/a+b"):
        (tmp_path / place).mkdir(parents=True)
        shutil.copy(PHOTOS / "barack_obama.jpg", tmp_path / place / "0001.jpg")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bench" / "id7").mkdir(parents=True)
    (tmp_path / "bench" / "id7" / "meta.json").write_text("{}")
    for name in ("a+b", "c"):
        shutil.copytree(people / "barack_obama", tmp_path / "plus" / name)
    words = ["--suite", "faces", "--people", str(people), "--group-size", "2",
             "--output", str(tmp_path / "out")]  # fmt: skip
    assert main([*words, *(word.replace("{tmp}", str(tmp_path)) for word in change)]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert told in said
    assert len(said) < 520
    assert not list((tmp_path / "out").rglob("*.png"))


def test_wrong_values():
    with pytest.raises(UserError, match="layout is 'bench'"):
        FacesSuite("x", layout="bench")
