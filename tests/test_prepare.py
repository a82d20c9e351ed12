"""Pictures from folders, shards and tables become one dataset: the same from each of them."""

import csv
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps
from skimage import data

from fusionjax import files, photos
from fusionjax.__main__ import main
from fusionjax.data import clusters as clusters_module
from fusionjax.data import prepare, prepared, sources
from fusionjax.data.cache import CachedLatents, text
from fusionjax.data.clusters import clusters
from fusionjax.data.picture import Picture, Unread
from fusionjax.data.prepared import Dropped, Wishes, prepare_picture
from fusionjax.data.records import open_records
from fusionjax.data.sources import parts_of, read_part
from fusionjax.errors import UserError
from fusionjax.face_detection import Face
from fusionjax.interop.adapter_file import load_adapter_file
from fusionjax.pixels import decode_image
from tests.tiny import tiny_base

SMALL = Wishes(size=64, smallest_picture=128, smallest_face=32)
ROOT = Path(__file__).parent.parent


def looks():
    """Nine pictures of one face that do not look alike, as JPEG."""
    astronaut = Image.fromarray(data.astronaut())
    for number in range(9):
        x, y = 60 + 15 * (number % 3), 20 * (number // 3)
        window = astronaut.crop((x, y, x + 260 + 20 * (number % 2), y + 260)).resize((260, 260))
        picture = ImageOps.mirror(window) if number % 2 else window
        file = io.BytesIO()
        picture.rotate(3 * (number - 4), fillcolor=(20 * number,) * 3).save(file, "JPEG")
        yield file.getvalue()


PICTURES = list(looks())
PEOPLE = [f"p{number % 3}" for number in range(9)]
WORDS = [f"picture {number} of {person}" for number, person in enumerate(PEOPLE)]


def as_folders(root):
    for number, (picture, person, words) in enumerate(zip(PICTURES, PEOPLE, WORDS, strict=True)):
        (root / person).mkdir(parents=True, exist_ok=True)
        (root / person / f"{number}.jpg").write_bytes(picture)
        (root / person / f"{number}.txt").write_text(words)
    return [root]


def as_shards(root):
    root.mkdir()
    for shard in range(2):
        with tarfile.open(root / f"{shard:05d}.tar", "w") as file:
            for number in range(shard, len(PICTURES), 2):
                about = {"caption": WORDS[number], "person": PEOPLE[number], "status": "success"}
                for ending, content in (("jpg", PICTURES[number]),
                                        ("json", json.dumps(about).encode())):  # fmt: skip
                    info = tarfile.TarInfo(f"{number:09d}.{ending}")
                    info.size = len(content)
                    file.addfile(info, io.BytesIO(content))
    return sorted(root.iterdir())


def as_parquet(root):
    root.mkdir()
    table = pa.table({"jpg": PICTURES, "caption": WORDS, "who": PEOPLE})
    pq.write_table(table, root / "a.parquet")
    return [root]


def as_arrow(root):
    """As `datasets` saves it."""
    root.mkdir()
    images = [{"bytes": picture, "path": None} for picture in PICTURES]
    table = pa.table({"image": images, "text": WORDS, "person": PEOPLE})
    with pa.ipc.new_stream(root / "data-00000-of-00001.arrow", table.schema) as writer:
        writer.write_table(table)
    return [root]


def as_table(root, write):
    as_folders(root / "files")
    rows = [
        {"file_name": f"files/{person}/{number}.jpg", "text": words, "person": person}
        for number, (person, words) in enumerate(zip(PEOPLE, WORDS, strict=True))
    ]
    return [write(root, rows)]


def as_jsonl(root, rows):
    path = root / "metadata.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path.parent


def as_csv(root, rows):
    path = root / "metadata.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path.parent


def as_ip_adapter(root, rows):
    path = root / "data.json"
    rows = [{"image_file": row["file_name"], **row} for row in rows]
    path.write_text(json.dumps([{k: v for k, v in r.items() if k != "file_name"} for r in rows]))
    return path


def content(folder):
    """Everything that can be trained on, whatever the order in which it was found."""
    found = []
    for split in ("train", "validation"):
        records = open_records(folder, split)
        for number in range(len(records)):
            example = records[number]
            references = sorted(bytes(photo) for photo in example["references"])
            who, words = text(example["identity"]), text(example["caption"])
            found.append((split, who, words, bytes(example["image"]), references,
                          example["face_boxes"].tolist(), example["owners"]))  # fmt: skip
    return sorted(found)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepare")
    dropped = prepare.prepare(as_folders(folder / "in"), folder / "out", SMALL, processes=1)
    assert not dropped
    return folder / "out"


def test_a_folder_for_each_person(expected):
    found = content(expected)
    assert len(found) == 9
    assert {split for split, *_ in found} == {"train", "validation"}
    assert {who for split, who, *_ in found if split == "train"}.isdisjoint(
        who for split, who, *_ in found if split == "validation"
    )
    faces = {who: set() for who in PEOPLE}
    for _, who, words, image, references, boxes, owners in found:
        assert words in WORDS
        assert who in words
        assert decode_image(image).shape == (64, 64, 3)
        assert len(references) == 2
        assert owners == [0, 0]
        assert len(boxes) == 1
        faces[who] |= set(references)
    assert all(len(photos_) == 3 for photos_ in faces.values())  # each is stored once
    assert len(set().union(*faces.values())) == 9
    # Slices and sums count as in any dataset.
    train, both = open_records(expected, "train"), open_records(expected, "validation+train[1:]")
    assert len(both) == 8
    assert bytes(both[3]["image"]) == bytes(train[1]["image"])
    assert len(both[7]["references"]) == 2
    with pytest.raises(IndexError):
        both[8]
    with pytest.raises(UserError, match="split 'test' is not in"):
        open_records(expected, "test")


@pytest.mark.parametrize(
    "write",
    [
        as_shards,
        as_arrow,
        lambda root: as_table(root, as_jsonl),
        lambda root: as_table(root, as_csv),
        lambda root: as_table(root, as_ip_adapter),
    ],
)
def test_other_sources_give_the_same_records(expected, tmp_path, write):
    found = write(tmp_path / "in")
    assert not prepare.prepare(found, tmp_path / "out", SMALL, processes=1)
    assert content(tmp_path / "out") == content(expected)


@pytest.mark.slow
def test_two_hundred_pictures_from_everywhere(tmp_path, monkeypatch):
    """More than a part of each kind, by several processes."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(200):
        image = Image.open(io.BytesIO(PICTURES[number % 9])).rotate(rng.uniform(-8, 8))
        light = 1 - number % 7 / 20
        image = image.resize((rng.integers(160, 260),) * 2).point(lambda v, by=light: v * by)
        image.save(file := io.BytesIO(), "JPEG")
        files.append(file.getvalue())
    here = sys.modules[__name__]
    for name, value in (
        ("PICTURES", files),
        ("PEOPLE", [f"p{number % 40}" for number in range(200)]),
        ("WORDS", [f"picture {number} of p{number % 40}" for number in range(200)]),
    ):
        monkeypatch.setattr(here, name, value, raising=False)
    monkeypatch.setattr(sources, "PART", 50)
    found = {
        write.__name__ + str(number): write(tmp_path / str(number))
        for number, write in enumerate([
            as_folders, as_shards, as_parquet, as_arrow,
            lambda root: as_table(root, as_jsonl), lambda root: as_table(root, as_ip_adapter),
        ])
    }  # fmt: skip
    records = []
    for name, source in found.items():
        out = tmp_path / f"out {name}"
        column = {"column": "who"} if "parquet" in name else {}
        prepare.prepare(source, out, SMALL, keep_duplicates=True, processes=2, **column)
        records.append(content(out))
        shutil.rmtree(out)
    assert len(records[0]) > 190
    assert all(each == records[0] for each in records[1:])


def test_a_column_says_whose_a_picture_is(expected, tmp_path):
    found = as_parquet(tmp_path / "in")
    prepare.prepare(found, tmp_path / "out", SMALL, column="who", processes=1)
    assert content(tmp_path / "out") == content(expected)


def test_what_img2dataset_writes_unpacked_are_no_people(tmp_path):
    """Folders named 00000 and 00001 hold strangers: each picture is its own person."""
    for number, (picture, words) in enumerate(zip(PICTURES, WORDS, strict=True)):
        folder = tmp_path / "in" / f"{number % 2:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(picture)
        (folder / f"{number}.json").write_text(json.dumps({"caption": words}))
    prepare.prepare([tmp_path / "in"], tmp_path / "out", SMALL, processes=1)
    found = content(tmp_path / "out")
    assert len({who for _, who, *_ in found}) == 9
    assert all(not references for *_, references, _, _ in found)


def test_each_face_may_be_a_person_of_its_own(tmp_path):
    wishes = Wishes(size=64, smallest_picture=128, smallest_face=32, people="own")
    prepare.prepare(as_folders(tmp_path / "in"), tmp_path / "out", wishes, processes=1)
    assert all(not references for *_, references, _, _ in content(tmp_path / "out"))


def test_alike_faces_are_one_persons(tmp_path):
    """Whatever the folders say; pictures of several people stay by themselves."""
    root = tmp_path / "in"
    root.mkdir()
    for number, picture in enumerate(PICTURES[:4]):
        (root / f"{number}.jpg").write_bytes(picture)
        (root / f"{number}.txt").write_text(f"picture {number}")
    wide = Image.new("RGB", (520, 260))
    for number in range(2):
        wide.paste(Image.open(io.BytesIO(PICTURES[4 + number])), (260 * number, 0))
    wide.save(root / "4.png")
    (root / "4.txt").write_text("two people")
    wishes = dataclasses.replace(SMALL, people="cluster")
    prepare.prepare([root], tmp_path / "out", wishes, processes=1)
    found = content(tmp_path / "out")
    assert sorted(len(references) for *_, references, _, _ in found) == [0, 3, 3, 3, 3]
    strict = prepare.prepare([root], tmp_path / "strict", wishes, processes=1, same_person=0.9999)
    assert not strict
    assert all(not references for *_, references, _, _ in content(tmp_path / "strict"))


def test_clusters_are_by_the_mean():
    """A chain of pairs does not make one of two; each group is numbered by its first."""
    angles = np.deg2rad([0, 300, 5, 60, 303, 10, 30, 62])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    labels = clusters(vectors, np.cos(np.deg2rad(29)))
    np.testing.assert_array_equal(labels, [0, 1, 0, 2, 1, 0, 0, 2])
    np.testing.assert_array_equal(clusters(vectors, 1.0), range(8))
    np.testing.assert_array_equal(clusters(vectors, -1.0), [0] * 8)
    assert clusters(np.zeros((1, 128), np.float16), 0.5).tolist() == [0]


def test_too_many_alike_are_divided_first(monkeypatch):
    """Into what more alike faces link; the same groups here."""
    rng = np.random.default_rng(0)
    people = rng.standard_normal((40, 128))
    faces = np.repeat(people, 10, axis=0) + 0.8 * rng.standard_normal((400, 128))
    faces = faces[rng.permutation(400)]
    faces /= np.linalg.norm(faces, axis=1, keepdims=True)
    expected = clusters(faces, 0.22)
    assert len(np.unique(expected)) == 40
    linked = clusters_module._linked(faces, np.arange(400), 0.22)
    assert max(map(len, linked)) > 100  # strangers' pairs chain people together
    monkeypatch.setattr(clusters_module, "_MOST", 100)
    monkeypatch.setattr(clusters_module, "_BLOCK", 64)
    np.testing.assert_array_equal(clusters(faces, 0.22), expected)


def test_a_stopped_run_goes_on(expected, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PART", 2)
    found = as_folders(tmp_path / "in")
    seen, cut = [], prepare.prepare_picture

    def stop_at_the_sixth(picture, wishes):
        seen.append(picture.name)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return cut(picture, wishes)

    monkeypatch.setattr(prepare, "prepare_picture", stop_at_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(found, tmp_path / "out", SMALL, processes=1)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="done with other options"):
        prepare.prepare(found, tmp_path / "out", Wishes(size=96), processes=1)
    prepare.prepare(found, tmp_path / "out", SMALL, processes=1)
    sizes = [len(part.names) for part in parts_of(found)]
    whole = next(n for n in range(len(sizes)) if sum(sizes[: n + 1]) > 5)  # parts before the sixth
    assert 0 < sum(sizes[:whole]) <= 5
    assert len(seen) == 6 + 9 - sum(sizes[:whole])  # they are not done again
    assert content(tmp_path / "out") == content(expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def bytes_of(folder):
    """All that training reads, and what tells of the pictures; shards' names hold their number."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_sources_that_grew_cost_what_is_new(expected, tmp_path, monkeypatch):
    """To the bytes of a dataset made at once; what was dropped as alike comes back when it may."""
    monkeypatch.setattr(sources, "PART", 2)
    folder, out = as_folders(tmp_path / "in"), tmp_path / "out"
    later = {path: path.read_bytes() for path in sorted((tmp_path / "in" / "p1").iterdir())[:2]}
    for path in later:
        path.unlink()
    alike = Image.open(io.BytesIO(PICTURES[0])).resize((250, 250))
    alike.save(tmp_path / "in" / "p2" / "zz.png")
    (tmp_path / "in" / "p2" / "zz.txt").write_text("as picture 0, of another person")
    alike.save(tmp_path / "in" / "p0" / "zz.png")
    (tmp_path / "in" / "p0" / "zz.txt").write_text("as picture 0")
    said, seen, cut = [], [], prepare.prepare_picture
    options = {"processes": 1, "most_skipped": 0.9, "tell": said.append}
    dropped = prepare.prepare(folder, out, SMALL, **options)
    assert dropped == {"looks like an earlier picture": 1}
    before = bytes_of(out)

    def counted(picture, wishes):
        seen.append(Path(picture.name).name)
        return cut(picture, wishes)

    monkeypatch.setattr(prepare, "prepare_picture", counted)
    assert prepare.prepare(folder, out, SMALL, **options) == dropped
    assert (seen, bytes_of(out)) == ([], before)
    assert said[-1].endswith(" 0 new, 0 gone")
    for path, content_of in later.items():
        path.write_bytes(content_of)
    prepare.prepare(folder, out, SMALL, **options)
    assert "1.jpg" in seen
    assert len(seen) < 11
    prepare.prepare(folder, tmp_path / "at once", SMALL, **options)
    assert bytes_of(out) == bytes_of(tmp_path / "at once")
    # A caption that was edited; and the picture that another looked like is gone.
    (tmp_path / "in" / "p0" / "3.txt").write_text("another caption")
    (tmp_path / "in" / "p0" / "0.jpg").unlink()
    seen.clear()
    assert not prepare.prepare(folder, out, SMALL, **options)
    assert {"3.jpg", "zz.png"} <= set(seen)
    assert len(seen) < 10
    prepare.prepare(folder, tmp_path / "again", SMALL, **options)
    assert bytes_of(out) == bytes_of(tmp_path / "again")
    assert "another caption" in str(content(out))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "at once", "in", "out"]


def test_a_dataset_from_before_a_wish(tmp_path, monkeypatch):
    found, folder = as_folders(tmp_path / "in"), tmp_path / "out"
    prepare.prepare(found, folder, SMALL, processes=1)
    plan = json.loads((folder / "prepare.json").read_text())
    del plan["wishes"]["crop"]
    (folder / "prepare.json").write_text(json.dumps(plan))
    prepare.prepare(found, folder, SMALL, processes=1)
    assert json.loads((folder / "prepare.json").read_text())["wishes"]["crop"] == "auto"
    with pytest.raises(UserError, match="prepared with crop 'auto', not 'none'"):
        prepare.prepare(found, folder, dataclasses.replace(SMALL, crop="none"), processes=1)


def test_a_dataset_is_not_replaced_by_less(tmp_path):
    """Of other options or of fewer sources it is refused, and stays; a gone source may leave."""
    first, second = as_folders(tmp_path / "a"), as_shards(tmp_path / "b")
    out = tmp_path / "out"
    prepare.prepare([*first, *second], out, SMALL, processes=1, most_skipped=0.9)
    before = bytes_of(out)
    with pytest.raises(UserError, match=r"was prepared from .*b/00000.tar too, which is not named"):
        prepare.prepare(first, out, SMALL, processes=1)
    with pytest.raises(UserError, match="was prepared with size 64, not 96; remove it or name"):
        prepare.prepare([*first, *second], out, Wishes(size=96), processes=1)
    assert bytes_of(out) == before
    shutil.rmtree(tmp_path / "b")
    with pytest.raises(UserError, match="or add --forget to leave its pictures out"):
        prepare.prepare(first, out, SMALL, processes=1)  # a disk may be missing
    prepare.prepare(first, out, SMALL, processes=1, forget=True)
    prepare.prepare(first, tmp_path / "fresh", SMALL, processes=1)
    assert bytes_of(out) == bytes_of(tmp_path / "fresh")
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="mine' already exists; remove it or name another"):
        prepare.prepare(first, tmp_path / "mine", SMALL, processes=1)


def test_a_dataset_that_was_being_replaced_is_put_back(tmp_path):
    """As a kill between two renamings leaves it."""
    folder, out = as_folders(tmp_path / "in"), tmp_path / "out"
    prepare.prepare(folder, out, SMALL, processes=1)
    before = bytes_of(out)
    shutil.copytree(out, tmp_path / "out.unfinished" / "whole")
    out.rename(tmp_path / "out.unfinished" / "replaced")
    said = []
    prepare.prepare(folder, out, SMALL, processes=1, tell=said.append)
    assert (said, bytes_of(out)) == (["1 part of its sources as before, 0 new, 0 gone"], before)


def test_places_are_compared_and_not_their_names(tmp_path, monkeypatch):
    """A folder of the same name elsewhere is another; a source named twice counts once."""
    for place in ("A", "B"):
        as_folders(tmp_path / place / "s")
    monkeypatch.chdir(tmp_path / "A")
    prepare.prepare(["s", tmp_path / "A" / "s"], tmp_path / "out", SMALL, processes=1)
    assert len(content(tmp_path / "out")) == 9
    said = []
    monkeypatch.chdir(tmp_path)
    prepare.prepare(["A/s"], tmp_path / "out", SMALL, processes=1, tell=said.append)
    assert said == ["1 part of its sources as before, 0 new, 0 gone"]
    monkeypatch.chdir(tmp_path / "B")
    with pytest.raises(UserError, match="A/s too, which is not named now"):
        prepare.prepare(["s"], tmp_path / "out", SMALL, processes=1)
    with pytest.raises(UserError, match=r"lies in the source .*; name a dataset outside of it"):
        prepare.prepare(["."], tmp_path / "B" / "out", SMALL, processes=1)
    with pytest.raises(UserError, match="which is no name of its own"):
        prepare.prepare(["s"], ".", SMALL, processes=1)
    with pytest.raises(UserError, match="is a file; the dataset's folder is named last"):
        prepare.prepare(["s"], tmp_path / "A" / "s" / "p0" / "0.txt", SMALL, processes=1)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    prepare.prepare(["s"], tmp_path / "link", SMALL, processes=1)
    assert (tmp_path / "link").is_symlink()
    assert len(content(tmp_path / "real")) == 9


def test_names_that_are_no_text(tmp_path):
    """Bytes of another encoding; they are escaped."""
    folder = as_folders(tmp_path / "in")
    odd = os.fsencode(tmp_path / "in") + b"/\xff"
    os.rename(tmp_path / "in" / "p2", odd)
    prepare.prepare(folder, tmp_path / "out", SMALL, processes=1)
    assert "\\udcff" in {who for _, who, *_ in content(tmp_path / "out")}


def test_sigterm_ends_all_processes_without_a_word(tmp_path):
    root = tmp_path / "in"
    for copy in range(12):
        as_folders(root / str(copy))
    words = [sys.executable, "-m", "fusionjax", "prepare", *map(str, sorted(root.iterdir()))]
    process = subprocess.Popen(
        [*words, str(tmp_path / "out"), "--processes", "2", "--size", "512"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    work = tmp_path / "out.unfinished"
    while not (work.is_dir() and any(path.is_dir() for path in work.iterdir())):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in said
    assert set(said.replace("\r", "\n").split("\n")) <= {"", *re.findall("preparing:.*", said)}


def test_a_part_that_somebody_else_finished_will_do(expected, tmp_path, monkeypatch):
    """Shares may overlap with the command that ends them, which waits for who is at work."""
    cut = prepare.prepare_picture

    def first_by_another(picture, wishes):
        monkeypatch.setattr(prepare, "prepare_picture", cut)
        prepare.prepare(folder, tmp_path / "out", SMALL, share=(1, 1), processes=1)
        return cut(picture, wishes)

    folder = as_folders(tmp_path / "in")
    monkeypatch.setattr(prepare, "prepare_picture", first_by_another)
    prepare.prepare(folder, tmp_path / "out", SMALL, processes=1)
    assert content(tmp_path / "out") == content(expected)
    (tmp_path / "w" / "share-1-of-2").mkdir(parents=True)
    files.wait_for_shares(tmp_path / "w")
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import time; from pathlib import Path\n"
         f"from fusionjax.files import locked\n"
         f"with locked(Path({str(tmp_path / 'w' / 'share-1-of-2')!r})):\n"
         f"    print(flush=True); time.sleep(60)"],
        cwd=ROOT, stdout=subprocess.PIPE,
    )  # fmt: skip
    with holder.stdout as said:
        said.readline()
    with pytest.raises(UserError, match=f"is being written by process {holder.pid} on"):
        files.wait_for_shares(tmp_path / "w", 0.3)
    holder.kill()
    holder.wait()
    files.wait_for_shares(tmp_path / "w", 5)


def test_tables_as_programs_write_them(expected, tmp_path):
    """Excel's mark, line breaks inside a field, line separators that JSON need not escape."""
    rows = [
        {
            "file_name": f"files/{person}/{n}.jpg",
            "text": f"{words}\nand\u2028more",
            "person": person,
        }
        for n, (person, words) in enumerate(zip(PEOPLE, WORDS, strict=True))
    ]
    as_folders(tmp_path / "files")
    with (tmp_path / "metadata.csv").open("w", newline="", encoding="utf-8-sig") as file:
        (writer := csv.DictWriter(file, rows[0])).writeheader()
        writer.writerows(rows)
    lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    (tmp_path / "metadata.jsonl").write_text(lines, encoding="utf-8")
    for name in ("metadata.csv", "metadata.jsonl"):
        found = read(tmp_path / name)
        assert [picture.caption for picture in found] == [row["text"] for row in rows]
        assert [picture.person for picture in found] == PEOPLE
        with pytest.raises(UserError, match=r"has no column 'nosuch', but \['file_name"):
            list(read_part(parts_of([tmp_path / name], "nosuch")[0]))
    table = pa.table({"jpg": PICTURES, "caption": WORDS, "person": [1.0, None, 3.0] * 3})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [picture.person for picture in read(tmp_path / "a.parquet")][:3] == ["1", None, "3"]


def test_the_same_pictures_are_the_same_bytes(tmp_path):
    """In another process too: fields of a record have no order of their own."""
    script = (
        "import sys, hashlib, numpy as np\n"
        "from fusionjax.data.prepare import _serializer\n"
        "from fusionjax.data.prepared import Prepared\n"
        "found = Prepared(b'image', b'face', np.ones((1, 4), np.float32), 'x', 'y', 3, 5)\n"
        "print(hashlib.sha256(_serializer()(found)).hexdigest())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout.splitlines()[-1]
        for _ in range(3)
    }  # fmt: skip
    assert len(said) == 1


def test_the_page_shows_what_is_kept_and_dropped(tmp_path):
    found = as_folders(tmp_path / "in")
    Image.new("RGB", (300, 300), "red").save(tmp_path / "in" / "p0" / "wall <b>.png")
    (tmp_path / "in" / "p0" / "wall <b>.txt").write_text("a wall")
    prepare.prepare(found, tmp_path / "out", SMALL, processes=1)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<h1>9 pictures of 3 people</h1>" in page
    assert "<h3>1 × no face of 32 pixels or more was found</h3><img" in page
    assert page.count("<img") == 3 + 1
    assert "<tr><td>3<td>3<td" in page  # three people have three pictures


def test_machines_that_share_the_work(expected, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PART", 2)
    done = []
    monkeypatch.setattr(prepare, "_do_part", lambda job, wishes: done.append(job[0]) or 0)
    for index in (1, 2, 3):
        prepare.prepare(as_folders(tmp_path / "in"), tmp_path / "x", share=(index, 3), processes=1)
    assert sorted(done, key=str) == sorted(parts_of([tmp_path / "in"]), key=str)
    assert len(done) > 3
    monkeypatch.undo()
    found, out = as_shards(tmp_path / "shards"), tmp_path / "out"
    for index in (2, 1):
        assert prepare.prepare(found, out, SMALL, share=(index, 2), processes=1) is None
        assert not out.exists()
    prepare.prepare(found, out, SMALL, processes=1)
    assert content(out) == content(expected)
    with pytest.raises(UserError, match="the share is 3/2; it must be I/N"):
        prepare.prepare(found, tmp_path / "y", share=(3, 2))


def test_what_looks_like_an_earlier_picture_is_dropped(tmp_path):
    found = as_folders(tmp_path / "in")
    again = Image.open(io.BytesIO(PICTURES[0])).resize((200, 200))
    again.save(tmp_path / "in" / "p0" / "again.png")
    (tmp_path / "in" / "p0" / "again.txt").write_text("smaller")
    dropped = prepare.prepare(found, tmp_path / "out", SMALL, processes=1)
    assert dropped == {"looks like an earlier picture": 1}
    kept = prepare.prepare(found, tmp_path / "all", SMALL, processes=1, keep_duplicates=True)
    assert not kept
    assert len(content(tmp_path / "all")) == 10


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"caption": " \n "}, "no caption"),
        ({"caption": "x" * 10_000}, "a caption of more than 2,000 characters"),
        ({"content": b"GIF89a"}, "the photo is not a picture that can be read here"),
        ({"content": PICTURES[0][:3000]}, "the photo is damaged or cut off"),
    ],
)
def test_pictures_that_are_dropped(change, words):
    picture = Picture("a", PICTURES[0], "words")
    with pytest.raises(Dropped, match=words):
        prepare_picture(Picture(**{**vars(picture), **change}), SMALL)


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"smallest_picture": 300}, "smaller than 300 pixels"),
        ({"smallest_face": 200}, "no face of 200 pixels or more was found"),
        ({"shortest_caption": 9}, "a caption that is too short"),
        ({"least_sharpness": 1e6}, "a blurred face"),
        ({"language": "de"}, "a caption in another language than de"),
    ],
)
def test_wishes(wishes, words):
    with pytest.raises(Dropped, match=words):
        prepare_picture(Picture("a", PICTURES[0], "words"), Wishes(**wishes))


def test_a_caption_in_the_language_wished_for():
    picture = Picture("a", PICTURES[0], "Ein Mann mit Hut sitzt im Garten")
    assert prepare_picture(picture, dataclasses.replace(SMALL, language="de"))
    with pytest.raises(UserError, match="language is 'xx'; did you mean 'zxx'"):
        Wishes(language="xx")


def test_a_disk_that_will_be_full_is_told_early(tmp_path, monkeypatch):
    """After the first parts; what is done is kept, and the same command goes on."""
    monkeypatch.setattr(sources, "PART", 2)
    found, usage = as_folders(tmp_path / "in"), shutil.disk_usage
    small = usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: small)
    with pytest.raises(
        UserError, match=r"out\.unfinished would take .* GB more, of which 1e-07 GB"
    ):
        prepare.prepare(found, tmp_path / "out", SMALL, processes=1)
    parts = [path for path in (tmp_path / "out.unfinished").iterdir() if path.is_dir()]
    assert len(parts) == 3  # of which the size of the others is guessed
    monkeypatch.setattr(shutil, "disk_usage", usage)
    prepare.prepare(found, tmp_path / "out", SMALL, processes=1)
    assert len(content(tmp_path / "out")) == 9


@pytest.mark.parametrize("size", [(400, 260), (260, 400)])
def test_a_picture_that_is_kept_whole(size):
    picture = Image.fromarray(data.astronaut()).crop((60, 0, 60 + size[0], size[1]))
    file = io.BytesIO()
    picture.save(file, "PNG")
    given = Picture("a", file.getvalue(), "an astronaut", "ann")
    wishes = dataclasses.replace(SMALL, size=400)
    cut = prepare_picture(given, wishes)
    whole = prepare_picture(given, dataclasses.replace(wishes, crop="none"))
    pixels = decode_image(whole.image)
    x, y = (400 - size[0]) // 2, (400 - size[1]) // 2
    inside = pixels[y : y + size[1], x : x + size[0]]
    assert np.abs(inside.astype(int) - np.asarray(picture)).mean() < 4  # what JPEG changes
    bars = np.ones((400, 400), bool)
    bars[y : y + size[1], x : x + size[0]] = False
    assert pixels[bars].mean() > 250
    assert whole.face == cut.face
    # The same face in both squares: the whole one's is smaller, by the sides' ratio.
    ((_, left, _, right),) = cut.boxes
    ((ymin, xmin, ymax, xmax),) = whole.boxes
    np.testing.assert_allclose(xmax - xmin, (right - left) * 260 / 400, rtol=1e-5)
    ((a, b, w, h),) = photos.find_faces(picture)
    np.testing.assert_allclose(
        [ymin, xmin, ymax, xmax],
        np.array([b + y, a + x, b + y + h, a + x + w]) / 400,
        atol=1e-6,
    )


def test_several_faces(monkeypatch):
    """Each a person of its own, or dropped where one person is meant."""
    boxes = [(40, 60, 60, 60), (160, 60, 55, 55), (100, 200, 20, 20)]
    faces = [Face(box, np.zeros(15, np.float32)) for box in boxes]
    monkeypatch.setattr(prepared, "detect", lambda image: faces)
    picture = Picture("a", PICTURES[0], "two people", "p0")
    with pytest.raises(Dropped, match="several faces, and which of them is the person's"):
        prepare_picture(picture, SMALL)
    both = prepare_picture(picture, Wishes(size=64, smallest_face=32, people="own"))
    assert both.boxes.shape == (2, 4)
    assert both.face is None
    np.testing.assert_allclose(both.boxes[0], np.array([60, 40, 120, 100]) / 260, atol=1e-6)
    with pytest.raises(Dropped, match="more than 1 faces"):
        prepare_picture(picture, Wishes(smallest_face=32, most_faces=1))
    monkeypatch.setattr(prepared, "detect", lambda image: [faces[0], faces[2]])
    assert len(prepare_picture(picture, Wishes(smallest_face=8)).boxes) == 1


# --- sources that are broken ----------------------------------------------------------------------


def read(*found):
    return [picture for part in parts_of(found) for picture in read_part(part)]


def test_broken_shards(tmp_path):
    shard = as_shards(tmp_path / "in")[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: whole.index(PICTURES[4]) + 600])
    *good, last = read(shard)
    assert isinstance(last, Unread)
    assert "cut off or damaged" in last.reason
    assert len([picture for picture in good if isinstance(picture, Picture)]) >= 1
    with tarfile.open(shard, "w") as file:
        for name, content_ in (("a.json", b'{"status": "failed_to_download"}'), ("b.txt", b"x"),
                               ("c.jpg", PICTURES[0]), ("c.txt", b"caf\xe9"), ("d.jpg", b"x"),
                               ("d.json", b"[")):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(content_)
            file.addfile(info, io.BytesIO(content_))
    assert [each.reason for each in read(shard)] == [
        "a link that was dead", "no picture in the sample", "a caption that is not UTF-8",
        "a .json that is none"]  # fmt: skip


def test_broken_tables(tmp_path):
    path = tmp_path / "metadata.jsonl"
    path.write_text('{"file_name": "x.jpg"}\n[]\n{"text": "x"}\n{\n')
    assert [each.reason for each in read(tmp_path)] == [
        "a row whose file does not exist", "a row that is no object",
        "a row without file_name or image_file", "a row that is no JSON"]  # fmt: skip
    pq.write_table(pa.table({"URL": ["http://x"], "TEXT": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"holds links .URL. and no pictures; .* img2dataset"):
        read(tmp_path / "a.parquet")
    pq.write_table(pa.table({"pixels": [b""]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"has the columns .'pixels'., and none of file_name"):
        read(tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"c\.parquet cannot be read"):
        read(tmp_path / "c.parquet")
    (tmp_path / "d.json").write_text("{}")
    with pytest.raises(UserError, match="holds no list"):
        read(tmp_path / "d.json")


def test_no_pictures_at_all(tmp_path, capsys):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("x")
    for source, words in (("nowhere", "does not exist"), ("notes", "holds no pictures; it may be")):
        assert main(["prepare", str(tmp_path / source), str(tmp_path / "out")]) == 2
        assert words in capsys.readouterr().err
    (tmp_path / "walls" / "w").mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (300, 300)).save(tmp_path / "walls" / "w" / f"{number}.png")
        (tmp_path / "walls" / "w" / f"{number}.txt").write_text("a wall")
    words = ["prepare", str(tmp_path / "walls"), str(tmp_path / "out"), "--processes", "1"]
    assert main(words) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "4 of 4 pictures cannot be used (4 × no face of 64 pixels or more was found)" in told
    assert (tmp_path / "out.skipped.tsv").read_text().count("no face") == 4
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_from_shards_to_an_adapter(tmp_path):
    """As a user types it: prepare, train, export; each a process of its own."""
    as_shards(tmp_path / "shards")
    tiny_base().save_pretrained(tmp_path / "base", dtype=np.float32)
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"),
        "PYTHONPATH": str(ROOT),
    }
    small = "--size 64 --smallest-picture 128 --smallest-face 32"
    run = "--data.folder data/faces --data.train-split train --data.build-people 0 --steps 2"
    validation = "--validation.every-steps 2 --validation.examples 2 --validation.grid-rows 1"
    for command in (
        f"fusionjax prepare shards data/faces --processes 1 {small}",
        f"train mini --base base --batch-size 2 {run} {validation} --output run",
        "fusionjax export run adapter.safetensors",
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command.split()],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert len(load_adapter_file(tmp_path / "adapter.safetensors").params) == 4


def test_pictures_of_another_size_than_the_bases(expected, tmp_path, capsys):
    tiny_base().save_pretrained(tmp_path / "base", dtype=np.float32)
    prepare.prepare(as_folders(tmp_path / "in"), tmp_path / "32", Wishes(size=32), processes=1)
    words = ["cache", "--base", str(tmp_path / "base"), "--output", str(tmp_path / "cache")]
    assert main([*words, "--data", str(tmp_path / "32")]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "pictures have 32×32 pixels, the base's own 64×64; prepare them anew" in told
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["dataset.json"]
    assert main([*words, "--data", str(expected), "--splits", "train"]) == 0
    cached = CachedLatents(tmp_path / "cache" / "train")
    assert len(cached[0]["references"]) == 2
