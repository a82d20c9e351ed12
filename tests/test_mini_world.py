"""The mini world: the same seed draws the same, splits are apart, captions tell the truth."""

import json
import subprocess
import sys

import numpy as np
import pytest
from transformers import CLIPTokenizer

from fusionjax.data import mini_faces, mini_tokenizer
from fusionjax.errors import UserError
from fusionjax.mini import captions
from fusionjax.mini import drawing as mini_world
from fusionjax.mini import examples as mini_pictures
from fusionjax.mini import people as mini_people
from fusionjax.mini import places as mini_places
from fusionjax.mini.drawing import PICTURE_PIXELS as PIXELS
from fusionjax.mini.people import Circumstance, Person


def _pair(seed: int, split: str = "train") -> tuple[Person, Circumstance]:
    rng = np.random.default_rng(seed)
    return mini_people.random_person(rng, split), mini_people.random_circumstance(rng)


def test_there_are_more_than_ten_thousand_people_and_each_is_in_one_split():
    everybody = mini_people.everybody()
    assert len(everybody) > 10_000
    assert len({person.identity for person in everybody}) == len(everybody)
    sizes = [sum(person.split == split for person in everybody) for split in mini_people.SPLITS]
    assert sum(sizes) == len(everybody)
    np.testing.assert_allclose(np.array(sizes) / len(everybody), (0.8, 0.1, 0.1), atol=0.02)


def test_drawn_people_are_of_the_split_and_differ():
    drawn = mini_people.people("test", 50, seed=3)
    assert {person.split for person in drawn} == {"test"}
    assert len(set(drawn)) == 50
    assert mini_people.people("test", 20, seed=3) == drawn[:20]
    assert mini_people.people("test", 20, seed=4) != drawn[:20]
    with pytest.raises(ValueError, match="count is 99999, but the split 'test' has"):
        mini_people.people("test", 99999)
    with pytest.raises(ValueError, match="split is 'exam'; choose one of train"):
        mini_people.people("exam", 0)


def test_the_same_seed_draws_the_same_picture_and_another_another():
    first = mini_world.draw(*_pair(5))
    assert first.shape == (PIXELS, PIXELS, 3)
    np.testing.assert_array_equal(first, mini_world.draw(*_pair(5)))
    assert (first != mini_world.draw(*_pair(6))).any()


@pytest.mark.parametrize("trait", list(mini_people.TRAITS))
def test_every_trait_can_be_seen(trait):
    plain = {
        "hair": "short", "hair_color": "brown", "skin": "light", "facial_hair": "none",
        "glasses": "none",
    }  # fmt: skip
    drawn = [
        mini_world.draw(Person(**{**plain, trait: choice}), Circumstance()).astype(int)
        for choice in mini_people.TRAITS[trait]
    ]
    for index, one in enumerate(drawn):
        for other in drawn[:index]:
            assert (np.abs(one - other).max(-1) > 20).sum() >= 20


@pytest.mark.parametrize("style", mini_people.STYLES)
def test_every_expression_can_be_seen_in_every_style(style):
    person = Person("quiff", "black", "brown", "thick moustache", "round")
    drawn = [
        mini_world.draw(person, Circumstance(expression=expression, style=style)).astype(int)
        for expression in mini_world.EXPRESSIONS
    ]
    for index, one in enumerate(drawn):
        for other in drawn[:index]:
            assert (np.abs(one - other).max(-1) > 15).sum() >= 12


def test_bald_people_without_a_beard_have_no_hair_colour_of_their_own():
    assert Person("bald", "red", "pale", "none", "none") == Person(
        "bald", "blue", "pale", "none", "none"
    )
    assert Person("bald", "red", "pale", "long beard", "none") != Person(
        "bald", "blue", "pale", "long beard", "none"
    )


def test_wrong_words_are_named():
    with pytest.raises(ValueError, match="hair is 'long'; choose one of bald, short"):
        Person("long", "red", "pale", "none", "none")
    with pytest.raises(ValueError, match="expression is 'sleepy'; choose one of 'neutral'"):
        Circumstance(expression="sleepy")
    with pytest.raises(ValueError, match="clothes 'astronaut suit' take no colour, not 'red'"):
        Circumstance(clothes="astronaut suit", clothes_color="red")
    with pytest.raises(ValueError, match="clothes 'hoodie' take a colour, not ''"):
        Circumstance(clothes="hoodie", clothes_color="")


def _told(words: dict[str, tuple[str, ...]], text: str) -> set[str]:
    """The choices of which one of the wordings is in the text."""
    return {choice for choice, wordings in words.items() if any(w in text for w in wordings)}


def test_captions_tell_the_truth_and_all_of_the_circumstance():
    clothes = {name: (words.split("{}")[-1].strip(),) for name, (_, words) in mini_world.CLOTHES.items()}  # noqa: E501  # fmt: skip
    places = {place: (place,) for place in ("garden", "beach", "city", "space")}
    places |= {"snow": ("in the snow", "in snowy"), "library": ("library", "bookshelves")}
    plain = {name: (f"{name} background",) for name in mini_places.PLAIN_BACKGROUNDS}
    expressions = {
        "neutral": ("neutral face", "serious face", "looking calm"),
        "smiling": ("smiling", "smile"),
        "laughing": ("laugh",),
        "crying": ("crying", "tears"),
        "angry": ("angry",),
        "surprised": ("surprised",),
        "winking": ("wink",),
        "tongue out": ("tongue",),
    }
    styles = {"line art": ("line",), "faded film": ("faded",), "watercolour": ("watercolour",)}
    for seed in range(300):
        rng = np.random.default_rng(seed)
        person, circumstance = _pair(seed)
        text = captions.caption(person, circumstance, rng, identity_share=0)
        assert _told(expressions, text) == {circumstance.expression}
        assert _told(clothes, text) == {circumstance.clothes}
        assert _told({**places, **plain}, text) == {circumstance.background}
        assert _told(styles, text) == {circumstance.style} - {"plain"}
        if circumstance.clothes_color:
            noun = "overalls" if circumstance.clothes == "overalls" else clothes[circumstance.clothes][0]  # noqa: E501  # fmt: skip
            assert f"{circumstance.clothes_color} {noun}" in text
        # No trait is told: what is left of the text has no word of hair, skin or glasses.
        assert not any(word in text for word in ("hair", "skin", "beard", "moustache", "glasses"))


def test_traits_that_are_told_are_the_persons_own_and_often_left_out():
    told = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        person, circumstance = _pair(seed)
        text = captions.caption(person, circumstance, rng)
        told += "skin" in text or "hair" in text
        own = {
            "skin": f"{person.skin} skin",
            "beard": mini_world.FACIAL_HAIR[person.facial_hair][1],
            "moustache": mini_world.FACIAL_HAIR[person.facial_hair][1],
            "glasses": mini_world.GLASSES[person.glasses][1],
        }
        for word, description in own.items():
            if word in text:
                assert description
                assert description in text
    assert 40 < told < 140


def test_masks_cover_the_faces_and_do_not_overlap():
    for number in (2, 3):
        rng = np.random.default_rng(number)
        people = [mini_people.random_person(rng, "train") for _ in range(number)]
        circumstances = [mini_people.random_circumstance(rng) for _ in range(number)]
        scene = mini_world.draw_scene(people, circumstances, rng)
        assert scene.masks.shape == (number, PIXELS, PIXELS)
        assert scene.masks.sum(axis=0).max() == 1
        assert scene.caption.count("on the left") == 1
        for mask, box in zip(scene.masks, scene.face_boxes, strict=True):
            top, left, bottom, right = (box * PIXELS).round().astype(int)
            middle = mask[
                (3 * top + bottom) // 4 : (top + 3 * bottom) // 4,
                (3 * left + right) // 4 : (left + 3 * right) // 4,
            ]
            assert middle.mean() > 0.97  # a curl of the next person may reach over
        for expected, box in zip(mini_world.scene_boxes(number), scene.face_boxes, strict=True):
            np.testing.assert_allclose(expected.clip(0, 1), box, atol=0.03)
        regions = mini_world.scene_regions(number, PIXELS)
        assert (regions.sum(axis=0) == 1).all()
        for region, mask in zip(regions, scene.masks, strict=True):
            assert (region & mask).sum() > 0.6 * mask.sum()
    with pytest.raises(ValueError, match="got 1 people and 1 circumstances; a scene has two or"):
        mini_world.draw_scene(people[:1], circumstances[:1], rng)


def test_the_face_box_holds_the_head():
    person = Person("bald", "black", "pale", "none", "none")
    circumstance = Circumstance(background="blue", shift_x=4.0, shift_y=-3.0, zoom=230.0)
    drawn = mini_world.draw(person, circumstance).astype(int)
    skin = np.abs(drawn - np.array([0xFF, 0xDF, 0xC4])).max(-1) < 12
    top, left, bottom, right = np.array(mini_world.face_box(circumstance)) * PIXELS
    rows, columns = np.nonzero(skin)
    assert top <= rows.min()
    head = rows < bottom
    assert left <= columns[head].min()
    assert columns[head].max() <= right
    assert head.sum() > 0.9 * len(rows)


def test_the_tokenizer_loads_as_clips(tmp_path):
    captions = mini_tokenizer.mini_captions(300)
    assert captions == mini_tokenizer.mini_captions(300)
    mini_tokenizer.train_tokenizer(captions, tmp_path, vocabulary=700)
    for folder, most in ((tmp_path, 25), ("fusionjax/assets/mini/tokenizer", 13)):
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        text = "a person smiling, wearing a red hoodie in a garden"
        ids = tokenizer(text, padding="max_length", truncation=True)["input_ids"]
        assert len(ids) == tokenizer.model_max_length == 77
        assert ids[0] == tokenizer.bos_token_id == len(tokenizer) - 2
        assert ids[-1] == tokenizer.eos_token_id == tokenizer.pad_token_id == len(tokenizer) - 1
        words = tokenizer.convert_ids_to_tokens(ids)
        assert words.index("<|endoftext|>") <= most
        decoded = tokenizer.decode(ids, skip_special_tokens=True)
        assert decoded.replace(" ", "") == text.replace(" ", "")
        assert tokenizer.unk_token_id not in tokenizer("Zürich 9!")["input_ids"][1:-1]
    with pytest.raises(ValueError, match="vocabulary is 100; the bytes alone need 514"):
        mini_tokenizer.train_tokenizer(captions, tmp_path, vocabulary=100)


_ROUND_TRIP = """
import json, sys
import numpy as np
import tensorflow_datasets as tfds
from fusionjax.data import mini_faces
from fusionjax.mini import drawing as mini_world
from fusionjax.mini import people as mini_people

if __name__ == "__main__":
    told = []
    folder = mini_faces.build(
        sys.argv[1], people=9, pictures_per_person=2, scenes=3, processes=1,
        progress=lambda done, total: told.append((done, total)),
    )
    builder = tfds.builder_from_directory(str(folder))
    people = {}
    for split in mini_people.SPLITS:
        source = builder.as_data_source(split)
        for example in source:
            true = json.loads(example["attributes"])
            person = mini_people.Person(**{trait: true[trait] for trait in mini_people.TRAITS})
            assert person.identity == example["identity"].decode() and person.split == split
            names = [*mini_people.CIRCUMSTANCES, "zoom", "shift_x", "shift_y"]
            circumstance = mini_people.Circumstance(**{name: true[name] for name in names})
            np.testing.assert_array_equal(example["image"], mini_world.draw(person, circumstance))
            (box,) = example["face_boxes"]
            np.testing.assert_allclose(box, mini_world.face_box(circumstance), 1e-5)
            assert len(example["references"]) == 2
            assert (example["references"][0] != example["image"]).any()
            people.setdefault(split, set()).add(person.identity)
    assert [len(people[split]) for split in mini_people.SPLITS] == [9, 8, 8]
    both = builder.as_data_source("train+scenes")
    assert len(both) == 21
    scenes = list(builder.as_data_source("scenes"))
    for scene in scenes:
        count = scene["identity"].decode().count("+") + 1
        assert list(scene["owners"]) == list(range(count))
        assert len(scene["references"]) == len(scene["face_boxes"]) == count
        assert (np.diff(scene["face_boxes"][:, 1]) > 0).all()
    assert told[-1] == (53, 53)
    print("tensorflow" in sys.modules, flush=True)
"""


def test_the_dataset_is_what_was_drawn_and_needs_no_tensorflow(tmp_path):
    script = tmp_path / "round_trip.py"
    script.write_text(_ROUND_TRIP)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "faces")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["False"]  # nothing else is printed
    assert "examples" not in done.stderr


def test_captions_tell_who_it_is_as_often_as_asked():
    for share, least, most in ((0.0, 0, 0), (1.0, 12, 24)):  # a told person's skin: 3 of 4 times
        plan = mini_pictures.Plan(people=4, pictures_per_person=6, identity_share=share)
        drawn = mini_pictures.draw_part(("train", 0, 4), plan)
        assert len(drawn) == 24
        assert least <= sum(" skin" in example["caption"] for _, example in drawn) <= most


def test_wrong_counts_and_full_folders_are_refused(tmp_path):
    (tmp_path / "something").touch()
    with pytest.raises(UserError, match="is not empty; remove it or name another"):
        mini_faces.build(tmp_path)
    with pytest.raises(UserError, match="people is 0; it must be at least 1"):
        mini_faces.build(tmp_path / "new", people=0)
    with pytest.raises(UserError, match=r"people is 20000; there are \d+ training people"):
        mini_faces.build(tmp_path / "new", people=20000)
    with pytest.raises(UserError, match=r"identity_share is 1.5; it must be in \[0, 1\]"):
        mini_faces.build(tmp_path / "new", identity_share=1.5)
    with pytest.raises(UserError, match="processes is 0; it must be at least 1, or not given"):
        mini_faces.build(tmp_path / "new", processes=0)
    with pytest.raises(UserError, match="seed is -1; it must be at least 0"):
        mini_faces.build(tmp_path / "new", seed=-1)
    for folder in (tmp_path / "something", tmp_path / "something" / "in-it"):
        with pytest.raises(UserError, match="cannot be made"):
            mini_faces.build(folder)
    assert not (tmp_path / "new").exists()


def test_attributes_are_json():
    person, circumstance = _pair(1)
    told = json.loads(json.dumps(mini_people.attributes(person, circumstance)))
    assert told["hair"] == person.hair
    assert told["expression"] == circumstance.expression
