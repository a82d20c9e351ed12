"""Pictures on disk to batches: order, positions, caches, bad data."""

import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

from fusionjax.data import build_cache, cache, face_pairs, prepared
from fusionjax.data.augment import augment, face_square
from fusionjax.data.batches import Batches
from fusionjax.data.encoders import Encoders
from fusionjax.data.records import open_records
from fusionjax.errors import UserError
from fusionjax.face_detection import Face
from fusionjax.pixels import decode_image, to_bytes, to_unit
from tests.tiny import photo


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def example(seed: int, references: int = 1, **changed):
    return {
        "image": png(photo(seed, 16)),
        "caption": f"picture {seed}",
        "references": [png(photo(1000 + seed, 16)) for _ in range(references)],
        "face_box": np.array([0.2, 0.2, 0.8, 0.8], np.float32),
        **changed,
    }


def encode(images):
    """Latents that tell pictures apart: the mean colour of quarters."""
    assert images.shape[0] == 4  # always a full batch
    return images.reshape(4, 2, 8, 2, 8, 3).mean((2, 4))


def tokenize(captions):
    return np.array([[len(c), ord(c[-1])] for c in captions], np.int32)


def write(folder, source, encode_text=None, **options):
    encoders = Encoders(encode, tokenize, encode_text)
    options = {"about": {"base": "b"}, "batch_size": 4, **options}
    return build_cache.write_cache(folder, source, encoders, **options)


def test_a_cache_gives_back_every_example(tmp_path):
    source = [example(i, references=1 + i % 2) for i in range(5)]
    assert not write(tmp_path / "c", source)
    cached = cache.CachedLatents(tmp_path / "c", {"base": "b"})
    assert len(cached) == 5
    for i in range(5):
        got = cached[i]
        expected = to_unit(photo(i, 16)).reshape(2, 8, 2, 8, 3).mean((1, 3))
        np.testing.assert_allclose(got["latents"], expected, atol=1e-3)
        assert got["references"].shape == (1 + i % 2, 2, 2, 3)
        np.testing.assert_array_equal(got["tokens"], [9, ord(str(i))])
    # A photo that several examples share is encoded once.
    assert np.load(tmp_path / "c" / "latents.npy").shape[0] == 10


def test_a_cache_holds_text_states_if_asked(tmp_path):
    """Those of every caption, though captions are encoded in full batches."""
    calls = []

    def encode_text(tokens):
        calls.append(len(tokens))
        return np.stack([tokens, 2 * tokens, 3 * tokens], axis=-1) / 8

    write(tmp_path / "c", [example(i) for i in range(6)], encode_text=encode_text)
    assert calls == [4, 4]
    cached = cache.CachedLatents(tmp_path / "c")
    for i in range(6):
        states = cached[i]["text_states"]
        assert states.dtype == np.float16
        np.testing.assert_array_equal(states, np.outer([9, ord(str(i))], [1, 2, 3]) / 8)
    write(tmp_path / "without", [example(0)])
    assert "text_states" not in cache.CachedLatents(tmp_path / "without")[0]


def test_a_face_without_other_pictures_becomes_its_own_reference(tmp_path):
    write(tmp_path / "c", [example(0, references=0), example(1)], views=3)
    cached = cache.CachedLatents(tmp_path / "c")
    views = cached[0]["references"]
    assert views.shape == (3, 2, 2, 3)
    assert not np.array_equal(views[0], views[1])
    write(tmp_path / "again", [example(0, references=0), example(1)], views=3)
    np.testing.assert_array_equal(cache.CachedLatents(tmp_path / "again")[0]["references"], views)


def scene(seed: int, **changed):
    """Two people, the second with two photos."""
    boxes = np.array([[0.2, 0.1, 0.6, 0.4], [0.2, 0.6, 0.6, 0.9]], np.float32)
    together = {"face_boxes": boxes, "owners": np.array([1, 0, 1])}
    del (one := example(seed, references=3))["face_box"]
    return one | together | changed


def test_a_picture_of_several_people_keeps_whose_photos_are_whose(tmp_path):
    alone = scene(2, references=[], owners=np.array([], np.int32))
    reasons = write(tmp_path / "c", [example(0), scene(1), alone, example(3)], views=2)
    assert not reasons
    cached = cache.CachedLatents(tmp_path / "c")
    assert cached.most_people == 2
    for index, owners, people in ((0, [0], 1), (1, [1, 0, 1], 2), (2, [0, 0, 1, 1], 2)):
        np.testing.assert_array_equal(cached[index]["owners"], owners)
        assert cached[index]["references"].shape[0] == len(owners)
        assert cached[index]["face_boxes"].shape == (people, 4)
    np.testing.assert_array_equal(cached[1]["face_boxes"], scene(1)["face_boxes"])
    assert len(write(tmp_path / "two", [scene(1)], most_people=2)) == 0
    with pytest.raises(UserError, match=r"shows 2 people, and people is 1; raise --people, or"):
        write(tmp_path / "one", [example(0), scene(1)], most_people=1)


def test_bad_faces_are_told(tmp_path):
    """Those of one example are skipped, and those of a whole dataset end it."""
    pixels = np.array([3.0, 3.0, 12.0, 12.0], np.float32)
    bad = [
        scene(4, owners=np.array([0, 1, 2])),
        scene(5, owners=np.array([0, 1])),
        scene(6, face_boxes=np.zeros((0, 4), np.float32)),
        example(7, face_box=pixels),
        example(8, face_box=np.array([0.2, np.nan, 0.8, 0.8], np.float32)),
        example(9, face_box=np.array([0.2, 0.2, np.inf, 0.8], np.float32)),
    ]
    assert write(tmp_path / "bad", [*bad, scene(7)], most_skipped=0.9) == {
        "a reference of nobody in the picture": 1,
        "not an owner for each reference": 1,
        "no face's box": 1,
        "face's box not in fractions of the picture": 2,
        "face's box of no size": 1,
    }
    over = np.array([-0.1, 0.2, 0.8, 1.1], np.float32)
    write(tmp_path / "over", [example(10, face_box=over)])
    np.testing.assert_array_equal(
        cache.CachedLatents(tmp_path / "over")[0]["face_boxes"], np.clip(over, 0, 1)[None]
    )
    nowhere, ownerless = example(11), scene(12)
    del nowhere["face_box"], ownerless["owners"]
    for broken, message in (
        (nowhere, "has neither face_box nor face_boxes"),
        (example(13, face_box=np.zeros(5)), r"face_box has shape \[5\]; it must be \[4\]"),
        (scene(14, face_boxes=np.zeros((4, 2))), r"face_boxes has shape .* must be \[people, 4\]"),
        (ownerless, "has several face_boxes and no owners"),
    ):
        with pytest.raises(UserError, match=message):
            write(tmp_path / "broken", [example(0), broken])
    with pytest.raises(UserError, match="2 of 2 examples cannot be used"):
        write(tmp_path / "none", bad[:2], most_skipped=1)


def test_bad_examples_are_skipped_counted_and_listed(tmp_path):
    good = [example(i) for i in range(6)]
    bad = [
        example(10, image=b"no picture"),
        example(11, caption="  "),
        example(12, references=0, face_box=np.zeros(4, np.float32)),
        example(13, image=b"neither"),
        example(14, image=b""),
        example(15, face_box=np.array([0.5, 0.5, 0.5, 0.9], np.float32)),
    ]
    reasons = write(tmp_path / "c", good[:3] + bad + good[3:], most_skipped=0.5)
    assert reasons == {
        "unreadable picture": 3,
        "empty caption": 1,
        "face's box of no size": 2,
    }
    cached = cache.CachedLatents(tmp_path / "c")
    assert (len(cached), cached.skipped) == (6, 6)
    assert (tmp_path / "c" / "skipped.tsv").read_text().splitlines()[0] == "3\tunreadable picture"
    with pytest.raises(UserError, match=r"6 of 12 examples cannot be used .*3 × unreadable"):
        write(tmp_path / "strict", good + bad, most_skipped=0.3)
    assert not (tmp_path / "strict").exists()
    listed = (tmp_path / "strict.skipped.tsv").read_text().splitlines()
    assert listed[0] == "6\tunreadable picture"
    assert len(listed) == 6


def test_pictures_of_two_sizes_are_refused(tmp_path):
    other = example(1, image=png(photo(1, 24)))
    with pytest.raises(UserError, match="all must have the same size"):
        write(tmp_path / "c", [example(0), other])
    with pytest.raises(UserError, match="holds no examples"):
        write(tmp_path / "c", [])


def batches(source, seed=0, threads=2):
    return Batches(
        source,
        lambda x, rng: {"x": np.int64(x), "drawn": rng.integers(1000)},
        batch_size=4,
        seed=seed,
        threads=threads,
    )


def test_the_order_depends_on_the_seed_alone():
    first, second, other = batches(range(10)), batches(range(10), threads=5), batches(range(10), 1)
    a = [next(first) for _ in range(6)]
    b = [next(second) for _ in range(6)]
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x["x"], y["x"])
        np.testing.assert_array_equal(x["drawn"], y["drawn"])
    seen = np.concatenate([x["x"] for x in a])
    assert sorted(seen[:10]) == list(range(10)) == sorted(seen[10:20])
    assert list(seen[:10]) != list(seen[10:20])  # shuffled anew
    c = [next(other) for _ in range(6)]
    assert any(not np.array_equal(x["x"], y["x"]) for x, y in zip(a, c, strict=True))
    for each in (first, second, other):
        each.close()


def test_several_processes_share_out_the_batches_of_one(monkeypatch):
    whole = batches(range(10))
    parts = []
    for index in range(2):
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        parts.append(batches(range(10)))
    for _ in range(6):
        expected, shares = next(whole), [next(part) for part in parts]
        for name in ("x", "drawn"):
            got = np.concatenate([share[name] for share in shares])
            np.testing.assert_array_equal(got, expected[name])
    for each in (whole, *parts):
        each.close()


def test_a_position_continues_exactly():
    first = batches(range(10))
    for _ in range(3):
        next(first)
    position = json.loads(json.dumps(first.position()))
    expected = [next(first) for _ in range(3)]
    second = batches(range(10))
    second.seek(position)
    for x in expected:
        y = next(second)
        np.testing.assert_array_equal(x["x"], y["x"])
        np.testing.assert_array_equal(x["drawn"], y["drawn"])
    first.close()
    second.close()


def test_pictures_survive_the_way_to_the_network_and_back():
    picture = photo(0, 16)
    np.testing.assert_array_equal(decode_image(png(picture)), picture)
    np.testing.assert_array_equal(to_bytes(to_unit(picture)), picture)
    assert to_unit(np.array([[[0, 255, 0]]], np.uint8)).tolist() == [[[-1, 1, -1]]]
    with pytest.raises(ValueError, match="not a readable picture"):
        decode_image(b"junk")


def test_the_face_square_is_centred_on_the_face():
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[10:20, 30:40] = 255
    box = np.array([10 / 40, 30 / 60, 20 / 40, 40 / 60], np.float32)
    square = face_square(picture, box, 34).astype(int)
    # 10 pixels of 17 are the face, in the middle; doubled.
    assert square[17, 17, 0] == 255
    assert square[2, 2, 0] == 0
    assert abs((square[..., 0] > 127).sum() - 400) < 60
    with pytest.raises(ValueError, match="no size"):
        face_square(picture, np.array([0.5, 0.5, 0.5, 0.9], np.float32), 34)


def test_augmentation_changes_pictures_a_little_and_repeatably():
    picture = photo(3, 64)
    views = [augment(picture, np.random.default_rng(i)) for i in range(4)]
    again = augment(picture, np.random.default_rng(0))
    np.testing.assert_array_equal(views[0], again)
    assert all(view.shape == picture.shape for view in views)
    for view in views:
        assert not np.array_equal(view, picture)
    assert len({view.tobytes() for view in views}) == 4


@pytest.fixture
def album(tmp_path, monkeypatch):
    """Two people with three and one pictures, and pictures that cannot be used."""

    def middle(image):
        empty = np.asarray(image).std() < 1
        box = (image.width // 4, image.height // 4, 20, 20)
        return [] if empty else [Face(box, np.zeros(15, np.float32))]

    monkeypatch.setattr(prepared, "detect", middle)
    root = tmp_path / "album"
    for person, count in (("ada", 3), ("bo", 1)):
        for i in range(count):
            folder = root / person
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo(i, 64)[:, :48]).save(folder / f"{i}.png")
            (folder / f"{i}.txt").write_text(f"{person} number {i}\n")
    (root / "ada" / "torn.jpg").write_bytes(b"\xff\xd8 torn")
    (root / "ada" / "torn.txt").write_text("torn")
    Image.fromarray(photo(9, 64)).save(root / "ada" / "mute.png")
    Image.fromarray(np.full((64, 64, 3), 7, np.uint8)).save(root / "bo" / "wall.png")
    (root / "bo" / "wall.txt").write_text("a wall")
    Image.fromarray(photo(5, 64)).save(root / "bo" / "latin.png")
    (root / "bo" / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    return root


def test_an_album_becomes_a_dataset(album, tmp_path):
    reasons = face_pairs.build(
        album, tmp_path / "data", size=32, validation_share=0.0, most_skipped=0.5
    )
    assert reasons == {
        "the photo is not a picture that can be read here": 1,
        "no caption": 1,
        "no face of 1 pixels or more was found": 1,
        "a caption that is not UTF-8": 1,
    }
    assert len((tmp_path / "data" / "skipped.tsv").read_text().splitlines()) == 4
    # One person is held out, whatever the share.
    people = [
        {cache.text(r["identity"]) for r in (records[i] for i in range(len(records)))}
        for records in (open_records(tmp_path / "data", split) for split in ("train", "validation"))
    ]
    assert sorted(map(tuple, people)) == [("ada",), ("bo",)]
    records = open_records(tmp_path / "data", "train+validation")
    found = {cache.text(r["caption"]): r for r in (records[i] for i in range(len(records)))}
    assert sorted(found) == ["ada number 0", "ada number 1", "ada number 2", "bo number 0"]
    assert len(found["ada number 1"]["references"]) == 2
    assert len(found["bo number 0"]["references"]) == 0
    assert decode_image(found["bo number 0"]["image"]).shape == (32, 32, 3)
    box = found["bo number 0"]["face_box"]
    assert 0 <= box[0] < box[2] <= 1
    assert 0 <= box[1] < box[3] <= 1
    with pytest.raises(UserError, match="split 'test' is not in"):
        open_records(tmp_path / "data", "test")


def test_albums_that_cannot_be_used_are_refused(album, tmp_path, capsys):
    with pytest.raises(UserError, match="4 of 8 pictures cannot be used"):
        face_pairs.build(album, tmp_path / "data", size=32)
    assert not (tmp_path / "data").exists()
    assert "latin.png\ta caption" in (tmp_path / "data.skipped.tsv").read_text()
    assert face_pairs.main([str(album), str(tmp_path / "data"), "--size", "32"]) == 2
    assert "error: 4 of 8 pictures cannot be used" in capsys.readouterr().err
    with pytest.raises(UserError, match="is no folder of pictures"):
        face_pairs.build(tmp_path / "nowhere", tmp_path / "data")
    with pytest.raises(UserError, match=r"holds no dataset_info\.json"):
        open_records(tmp_path, "train")
