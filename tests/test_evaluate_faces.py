"""The suite of real people: measures against numbers worked out by hand, folders of every state."""

import dataclasses
import io
import json
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessor, CLIPTokenizer, FlaxCLIPModel
from transformers.models.clip.configuration_clip import CLIPConfig

from fusionjax.data.sources import parts_of
from fusionjax.data.tar_shards import read_tar
from fusionjax.errors import UserError
from fusionjax.evaluation import faces, faces_report, faces_suite
from fusionjax.evaluation.__main__ import main
from fusionjax.evaluation.bounds import COPY, STRANGER, TRUTH
from fusionjax.evaluation.clip_score import clip_score
from fusionjax.evaluation.faces_suite import FacesSuite
from fusionjax.evaluation.judges import SFACE, Judges
from fusionjax.evaluation.people import (
    extra_files,
    photos_in,
    place_of,
    read_people,
    read_prompts,
)
from tests import tiny
from tests.people_folder import PHOTOS


def method(folder, people, prompts, choose):
    """Pictures of everybody by each prompt: copies of the photos that are chosen."""
    for subject in read_people(people):
        for number in range(prompts):
            source = choose(subject, number)
            place = place_of(folder, subject, number, source.suffix)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, place)
    return folder


def test_the_packages_prompts():
    prompts = read_prompts(None)
    assert len(prompts) == len(set(prompts)) == 100
    assert prompts[0] == "a person as an astronaut in a garden"
    for word in ("crying", "laughing", "angry", "line art", "faded film", "watercolour"):
        assert any(word in prompt for prompt in prompts)


def test_recognised_without_an_error(people):
    """Every photo is nearer to its own person's than the bound, every other's farther."""
    judges = Judges(closely=False)
    known = [faces.know(subject, judges) for subject in read_people(people)]
    vectors = np.stack([[photo.vectors["SFace"][0] for photo in each] for each in known])
    distances = 1 - np.einsum("pnd,qmd->pqnm", vectors, vectors)
    own = np.eye(len(known), dtype=bool)
    assert distances[own].max() < SFACE.bound - 0.1
    assert distances[~own].min() > SFACE.bound + 0.1


def test_true_photos_strangers_and_copies_come_out_in_order(people, prompts, tmp_path):
    """And so do folders that hold them: by every measure that can tell."""
    subjects = read_people(people)
    after = dict(zip(subjects, [*subjects[1:], subjects[0]], strict=True))
    folders = {
        "true": method(tmp_path / "t", people, 1, lambda s, n: s.photos[1 + n]),
        "pasted": method(tmp_path / "c", people, 1, lambda s, n: s.photos[0]),
        "strangers": method(tmp_path / "s", people, 1, lambda s, n: after[s].photos[0]),
    }
    suite = FacesSuite(
        str(people), str(prompts), most_people=3, most_prompts=1,
        methods={k: str(v) for k, v in folders.items()},
    )  # fmt: skip
    results = faces_suite.run(suite, tmp_path, None)
    for low, middle, high in (("pasted", "true", "strangers"), (COPY, TRUTH, STRANGER)):
        values = {m: [results.summary(n, m).mean for n in (low, middle, high)]
                  for m in ("distance", "verified", "copied", "psnr")}  # fmt: skip
        assert values["distance"] == sorted(values["distance"])
        assert values["distance"][0] < 0.01
        assert values["distance"][2] > 0.7
        assert values["verified"] == [1, 1, 0]
        assert values["copied"][0] > 0.9 > 0.1 > values["copied"][1]
        assert values["psnr"] == sorted(values["psnr"], reverse=True)
        others = [results.summary(n, "to_others").mean for n in (middle, low, high)]
        assert others[2] > 0.7 > 0.4 > max(others[:2])
        for angle in ("yaw", "pitch", "roll"):
            assert results.summary(low, angle).mean == 0
        assert results.summary(middle, "roll").mean > 3
        for each in results.judges.further:  # dlib, if it is installed
            apart = [results.summary(n, f"{each.prefix}distance").mean for n in (low, middle, high)]
            assert apart == sorted(apart)
            assert apart[2] > each.bound > apart[1]
    table = (tmp_path / "table.md").read_text()
    assert "| pasted | 3 | 0 | 0 | 0 | 0 | 1 |" in table
    assert "| true |" in table
    assert "Distance to the photo less that of true" in table
    numbers = json.loads((tmp_path / "results.json").read_text())
    assert numbers["methods"]["pasted"]["summary"]["verified"]["mean"] == 1
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (150 + 3 * 132, 20 + 4 * 132)


@pytest.mark.usefixtures("sface_alone")
def test_what_is_wrong_with_pictures_is_counted(people, prompts, tmp_path):
    folder = method(tmp_path / "m", people, 2, lambda s, n: s.photos[0])
    names = sorted(path.name for path in folder.iterdir())
    (folder / names[0] / "0001.png").unlink()
    (folder / names[1] / "0001.png").write_bytes(b"no picture")
    Image.new("RGB", (200, 200), "red").save(folder / names[2] / "0001.png")
    both = Image.new("RGB", (720, 360))
    for number, name in enumerate(names[:2]):
        both.paste(Image.open(people / name / "1.png").resize((360 - 80 * number,) * 2),
                   (360 * number, 0))  # fmt: skip
    both.save(folder / names[0] / "0002.png")
    (folder / names[0] / "0003.png").write_bytes(b"x")
    (folder / "nobody").mkdir()
    (folder / "nobody" / "0001.jpg").write_bytes(b"x")
    suite = FacesSuite(str(people), str(prompts), methods={"m": str(folder)})
    scores = faces_suite.run(suite, tmp_path, None).scores["m"]
    assert scores.failures == {"missing": 1, "unreadable": 1, "no face": 1}
    assert scores.extra == 2
    assert (scores.faces > 1).sum() == 1
    assert np.isnan(scores["distance"]).sum() == 3
    assert "| m | 5 | 1 | 1 | 1 | 1 | 2 |" in (tmp_path / "table.md").read_text()


@pytest.mark.slow
def test_a_true_photo_is_not_compared_with_itself(people, prompts, tmp_path):
    """Of two photos a person there is nothing else to compare with."""
    for folder in sorted(shutil.copytree(people, tmp_path / "people").iterdir()):
        (folder / "3.jpg").unlink()
    folder = method(tmp_path / "m (mine)", people, 1, lambda s, n: s.photos[0])
    for place in (people, tmp_path / "people"):
        suite = FacesSuite(str(place), str(prompts), methods={"m (mine)": str(folder)})
        results = faces_suite.run(suite, tmp_path, None)
        floor = results.scores[TRUTH]
        assert np.isnan(floor["to_others"]).all() == (place != people)
        assert floor["distance"].min() > 0.01
        assert "| m (mine) | 4 | 0 | 4 |" in (tmp_path / "table.md").read_text()
    assert results.summary(TRUTH, "copied") is None


def test_what_a_mac_puts_beside_photos_is_none(tmp_path):
    for name in ("ann/1.png", "ann/._1.png", "ann/2.JPG", "ann/._2.JPG", "m/ann/._0001.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in photos_in(tmp_path / "ann")] == ["1.png", "2.JPG"]
    assert extra_files(tmp_path / "m", [], 0) == 0
    found = [name for part in parts_of([tmp_path]) for name in part.names]
    assert sorted(found) == ["ann/1.png", "ann/2.JPG"]
    (tmp_path / ".Trashes").mkdir()
    (tmp_path / ".Trashes" / "ben.png").write_bytes(b"")
    assert [name for part in parts_of([tmp_path]) for name in part.names] == found
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        for name, content in (("._0.png", "x"), ("0.png", "y"), ("._0.txt", "z"), ("0.txt", "ann")):
            member = tarfile.TarInfo(name)
            member.size = 1 if len(content) == 1 else 3
            shard.addfile(member, io.BytesIO(content.encode()))
    (picture,) = read_tar(tmp_path / "0.tar", None)
    assert (picture.content, picture.caption) == (b"y", "ann")


def test_formulae():
    """Angles of 30, 60 and 90 degrees; bytes that wrap."""
    cosines = [np.cos(np.deg2rad(angle)) for angle in (30, 90, 60, 60)]
    expected = np.mean([(90 - 30) / 60, (60 - 30) / 60])
    found = faces.copying(cosines[0], np.array(cosines[1:3]), np.array([cosines[3]] * 2))
    assert found == pytest.approx(expected)
    one, two = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 20, np.uint8)
    assert faces.wrapped_psnr(one, two) == pytest.approx(10 * np.log10(255**2 / (400 - 256)))
    assert faces.wrapped_psnr(one, one) == 100
    rng = np.random.default_rng(0)
    for _ in range(5):
        pair = rng.integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)
        assert faces.wrapped_psnr(*pair) == pytest.approx(27.9, abs=0.4)
    assert faces_report.mean_over_rows(np.full((3, 2), np.nan)) is None
    values = np.array([[1.0, np.nan], [3.0, 5.0], [np.nan, np.nan]])
    assert faces_report.mean_over_rows(values).mean == pytest.approx(3)


def test_what_is_missing_is_painted(people, prompts, tmp_path):
    """A second call paints nothing, and a share only its own people."""
    pipe = tiny.tiny_pipe()
    suite = FacesSuite(str(people), str(prompts), most_people=2, steps=2, batch_size=1)
    share = dataclasses.replace(suite, share=(2, 2))
    assert faces_suite.run(share, tmp_path, lambda: pipe) is None
    painted = sorted((tmp_path / "pictures").glob("*/*.png"))
    names = [(path.parent.name, path.name) for path in painted]
    assert names == [("eileen_collins", "0001.png"), ("eileen_collins", "0002.png")]
    dates = {path: path.stat().st_mtime_ns for path in painted}
    assert faces_suite.run(dataclasses.replace(suite, share=(1, 2)), tmp_path, lambda: pipe) is None
    painted = sorted((tmp_path / "pictures").glob("*/*.png"))
    assert len(painted) == 4
    assert {path: path.stat().st_mtime_ns for path in dates} == dates
    with pytest.raises(UserError, match="holds pictures of another seed; name another --output"):
        faces_suite.run(dataclasses.replace(share, seed=3), tmp_path, lambda: pipe)
    other = shutil.copytree(people, tmp_path / "people")
    shutil.copy(other / "jacinda_ardern" / "1.png", other / "barack_obama" / "1.png")
    with pytest.raises(UserError, match="another photo of 'barack_obama'; remove that person's"):
        faces_suite.run(dataclasses.replace(share, people=str(other)), tmp_path, lambda: pipe)


@pytest.mark.slow
def test_the_command_paints_what_is_missing(people, prompts, tmp_path, capsys):
    """With the embedded model; a second call paints nothing, and a share only its own people."""
    words = ["--suite", "faces", "--people", str(people), "--prompts", str(prompts),
             "--base", "mini", "--steps", "2", "--most-people", "2",
             "--output", str(tmp_path / "out")]  # fmt: skip
    assert main([*words, "--share", "2/2"]) == 0
    assert "its share is painted" in capsys.readouterr().out
    painted = sorted((tmp_path / "out" / "pictures").glob("*/*.png"))
    assert [path.name for path in painted] == ["0001.png", "0002.png"]
    dates = {path: path.stat().st_mtime_ns for path in painted}
    assert main(words) == 0
    assert "| fusionjax |" in capsys.readouterr().out
    painted = sorted((tmp_path / "out" / "pictures").glob("*/*.png"))
    assert len(painted) == 4
    assert {path: path.stat().st_mtime_ns for path in dates} == dates
    assert main([*words, "--seed", "3"]) == 2
    assert "holds pictures of another seed; name another --output" in capsys.readouterr().err
    other = shutil.copytree(people, tmp_path / "people")
    shutil.copy(other / "jacinda_ardern" / "1.png", other / "barack_obama" / "1.png")
    words[words.index(str(people))] = str(other)
    assert main(words) == 2
    assert "of another photo of 'barack_obama'; remove that person's" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["--people", "{tmp}/none"], "is no folder"),
        ([], "nothing is to be measured; name an adapter, or methods with --method"),
        (["--prompts", "{tmp}/empty.txt"], "holds no prompts; write one a line"),
        (["--prompts", "{tmp}/wrong.txt"], "prompt 2, has '{name}'; the only placeholder is"),
        (["--prompts", "{tmp}/half.txt"], "prompt 1, has '{person'; the only placeholder is"),
        (["--method", "a={tmp}/none"], "method a: "),
        (["--method", "a={tmp}"], "holds no picture that is looked for; the first that is"),
        (["--method", "fusionjax={tmp}"], "cannot be named so"),
        (["--people", "{tmp}/one"], "holds 1 photo (.png, .jpg, .jpeg, .webp); two are needed"),
        (["--people", "{tmp}/walls", "--method", "a={tmp}/m"], "no face was found in"),
        (["--people", "{tmp}/torn", "--method", "a={tmp}/m"], "2.png"),
        (["--people", "{tmp}/alone"], "holds 1 people; at least two folders"),
        (["--clip", "{tmp}", "--method", "a={tmp}/m"], "lacks config.json, flax_model.msgpack"),
        (["--pairs", "3"], "--pairs is nothing of --suite faces"),
        (["--most-people", "1"], "most_people is 1"),
    ],
)
def test_what_is_wrong_is_told_first(people, tmp_path, capsys, change, told):
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "wrong.txt").write_text("a {person}\na {name}\n")
    (tmp_path / "half.txt").write_text("a {person\n")
    shutil.copytree(people, tmp_path / "one")
    for path in ("2.png", "3.jpg"):
        (tmp_path / "one" / "barack_obama" / path).unlink()
    shutil.copytree(people, tmp_path / "walls")
    Image.new("RGB", (99, 99)).save(tmp_path / "walls" / "barack_obama" / "1.png")
    shutil.copytree(people, tmp_path / "torn")
    (tmp_path / "torn" / "barack_obama" / "2.png").write_bytes(b"no picture")
    (tmp_path / "m" / "barack_obama").mkdir(parents=True)
    shutil.copy(people / "barack_obama" / "1.png", tmp_path / "m" / "barack_obama" / "0001.png")
    shutil.copytree(people / "barack_obama", tmp_path / "alone" / "barack_obama")
    change = [word.replace("{tmp}", str(tmp_path)) for word in change]
    words = ["--suite", "faces", "--people", str(people), "--output", str(tmp_path / "out")]
    assert main([*words, *change]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert told in said
    assert len(said) < 520
    assert not list((tmp_path / "out").rglob("*.png"))


def test_the_other_suites_words_are_refused(tmp_path, capsys):
    words = ["--output", str(tmp_path / "out")]
    assert main([*words, "--clip", "x"]) == 2
    assert "--clip is nothing of --suite mini" in capsys.readouterr().err
    assert main([*words, "--people", "some"]) == 2
    assert "--people is 'some'; of --suite mini it is a whole number" in capsys.readouterr().err
    assert main([*words, "--suite", "faces"]) == 2
    assert "--suite faces needs --people FOLDER" in capsys.readouterr().err


@pytest.mark.slow
def test_clip_of_a_folder(people, prompts, tmp_path):
    """Random weights where a CLIP's lie: 100 × the cosine of its own features."""
    part = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2}  # fmt: skip
    config = CLIPConfig(
        text_config={**part, "vocab_size": 600, "max_position_embeddings": 77,
                     "eos_token_id": 513, "bos_token_id": 512},
        vision_config={**part, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )  # fmt: skip
    model = FlaxCLIPModel(config)
    model.save_pretrained(tmp_path / "clip")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path / "clip")
    letters = [chr(number) for number in range(33, 127)]
    vocabulary = letters + [f"{letter}</w>" for letter in letters]
    vocabulary = {word: number for number, word in enumerate(vocabulary)}
    vocabulary |= {"<|startoftext|>": 512, "<|endoftext|>": 513}
    (tmp_path / "clip" / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "clip" / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "clip" / "tokenizer_config.json").write_text('{"model_max_length": 77}')
    score = clip_score(tmp_path / "clip")
    photo = Image.open(PHOTOS / "barack_obama.jpg")
    ids = CLIPTokenizer.from_pretrained(tmp_path / "clip")(
        ["a man"], padding="max_length", return_tensors="np"
    )
    pixels = CLIPImageProcessor.from_pretrained(tmp_path / "clip")(photo, return_tensors="np")
    features = model.get_text_features(**ids), model.get_image_features(pixels["pixel_values"])
    text, image = (np.asarray(each)[0] for each in features)
    cosine = text @ image / np.linalg.norm(text) / np.linalg.norm(image)
    assert score(photo, "a man") == pytest.approx(100 * cosine, abs=1e-3)
    folder = method(tmp_path / "m", people, 2, lambda s, n: s.photos[0])
    suite = FacesSuite(
        str(people), str(prompts), methods={"m": str(folder)}, clip=str(tmp_path / "clip")
    )
    results = faces_suite.run(suite, tmp_path, None)
    assert results.scores["m"]["text"].shape == (4, 2)
    assert "CLIP score ↑" in (tmp_path / "table.md").read_text()


def test_wrong_values():
    with pytest.raises(UserError, match="batch_size is 0"):
        FacesSuite("x", batch_size=0)
