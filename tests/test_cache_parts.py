"""Caches in parts: stopped, shared out, put together, and brought up to date."""

import dataclasses
import shutil

import numpy as np
import pytest

from fusionjax.data import build_cache
from fusionjax.data.build_cache import cached_latents, parts_missing, write_cache
from fusionjax.data.cache import DIGESTS, WHAT, CachedLatents
from fusionjax.data.encoders import Encoders
from fusionjax.data.records import content_digest
from fusionjax.errors import UserError
from tests.test_train_data import encode, example, tokenize

ABOUT = {
    "split": "train",
    "references": True,
    "views": 2,
    "dataset": "d",
    "content": "c",
    "base": "b",
}


class Counting:
    """An encoder that counts the distinct pictures it is given, and may fail."""

    def __init__(self, calls=10**9, channels=1):
        self.calls, self.channels, self.pictures = calls, channels, 0
        self.encoders = Encoders(self, tokenize)

    def __call__(self, images):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        self.pictures += len(np.unique(np.asarray(images), axis=0))
        return np.tile(encode(images), self.channels)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(build_cache, "PART", 3)


def examples(count=8):
    """The first's photo is shown with the last too, in another part."""
    made = [example(i, references=i % 2) for i in range(count)]
    made[2] = example(2, image=b"no picture")
    made[-1]["references"] = made[1]["references"]
    return made


def write(folder, source, counting, about=ABOUT, **options):
    return write_cache(
        folder, source, counting.encoders, about=about, batch_size=4, views=2,
        most_skipped=0.5, **options,
    )  # fmt: skip


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_parts_are_one_cache(tmp_path, monkeypatch):
    """The same examples as in one part, each picture once, and what is skipped by its number."""
    write(tmp_path / "parts", examples(), counting := Counting())
    monkeypatch.setattr(build_cache, "PART", 100)
    write(tmp_path / "one", examples(), Counting())
    parts, one = CachedLatents(tmp_path / "parts"), CachedLatents(tmp_path / "one")
    assert len(parts) == len(one) == 7
    for i in range(7):
        for name, value in one[i].items():
            np.testing.assert_array_equal(parts[i][name], value, err_msg=name)
    assert (tmp_path / "parts/skipped.tsv").read_text() == "2\tunreadable picture\n"
    distinct = len(np.load(tmp_path / "parts/latents.npy"))
    assert distinct == len(np.load(tmp_path / "one/latents.npy")) == counting.pictures - 1
    assert sorted(contents(tmp_path / "parts")) == sorted(contents(tmp_path / "one"))
    assert not (tmp_path / "parts.unfinished").exists()


@pytest.mark.parametrize("calls", [1, 3, 4])
def test_a_stopped_cache_goes_on(calls, tmp_path):
    """To the very bytes of one that was not; what is done is not done again."""
    write(tmp_path / "whole", examples(), whole := Counting())
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "c", examples(), first := Counting(calls))
    assert not (tmp_path / "c").exists()
    write(tmp_path / "c", examples(), second := Counting())
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")
    assert second.pictures <= whole.pictures - (calls > 2) * 4
    assert first.pictures + second.pictures < 2 * whole.pictures


def test_a_disk_that_will_be_full_is_told_early(tmp_path, monkeypatch):
    usage = shutil.disk_usage
    small = usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: small)
    with pytest.raises(UserError, match=r"would take .* GB more, of which 1e-07 GB are free"):
        write(tmp_path / "c", examples(), first := Counting())
    monkeypatch.undo()
    monkeypatch.setattr(build_cache, "PART", 3)
    write(tmp_path / "c", examples(), second := Counting())
    write(tmp_path / "whole", examples(), whole := Counting())
    assert first.pictures > 0
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")
    assert second.pictures == whole.pictures - first.pictures


@pytest.mark.parametrize("left", ["whole", "replaced"])
def test_what_a_killed_run_left_at_the_end_is_no_matter(left, tmp_path):
    (tmp_path / "c.unfinished" / left / "sub").mkdir(parents=True)
    write(tmp_path / "c", examples(), Counting())
    assert len(CachedLatents(tmp_path / "c")) == 7


def test_shares_make_what_one_process_makes(tmp_path):
    write(tmp_path / "whole", examples(), Counting())
    options = {"batch_size": 4, "views": 2}
    for index in (2, 1):
        missing = parts_missing(tmp_path / "c", 8, ABOUT, **options)
        assert len(missing) == {2: 3, 1: 2}[index]
        assert write(tmp_path / "c", examples(), Counting(), share=(index, 2)) is None
    assert not parts_missing(tmp_path / "c", 8, ABOUT, **options)
    write(tmp_path / "c", examples(), last := Counting(0))
    assert last.pictures == 0
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")
    assert write(tmp_path / "c", examples(), last, share=(1, 2)) is None


def opened(folder, source, counting, about=ABOUT):
    return cached_latents(
        folder, lambda: source, counting.encoders, split="train", about=about,
        batch_size=4, views=2, most_skipped=0.5,
    )  # fmt: skip


def test_a_changed_dataset_costs_what_is_new(tmp_path):
    """Told as such; a changed caption costs no encoding, and an older cache all of it."""
    _, how = opened(tmp_path, examples(), first := Counting())
    assert how == "made"
    cache, how = opened(tmp_path, examples(), nothing := Counting())
    assert (how, nothing.pictures) == ("found as it should be", 0)
    *before, last = examples()
    grown = [*before, example(20), example(7, caption="another caption"), last]
    cache, how = opened(tmp_path, grown, more := Counting(), ABOUT | {"content": "e"})
    # The new picture and its photo; the photo of 7, which was shown with none before.
    assert how.startswith("brought up to date with its dataset: ")
    assert how.endswith(f"{more.pictures} are new")
    assert 0 < more.pictures <= 3 < first.pictures
    assert len(cache) == 9
    np.testing.assert_array_equal(cache[7]["tokens"], tokenize(["another caption"])[0])
    write(tmp_path / "fresh", grown, Counting(), ABOUT | {"content": "e"})
    assert contents(tmp_path / "train") == contents(tmp_path / "fresh")
    (tmp_path / "train" / DIGESTS).unlink()
    _, how = opened(tmp_path, examples(), everything := Counting(), ABOUT)
    assert everything.pictures >= first.pictures
    assert (tmp_path / "train" / DIGESTS).is_file()
    with pytest.raises(UserError, match="made from another base"):
        opened(tmp_path, examples(), Counting(), ABOUT | {"base": "x", "content": "e"})


def test_an_older_cache_knows_its_dataset_by_less(tmp_path):
    """Without the content's digest it serves as long as the dataset's sizes are the same."""
    older = {name: value for name, value in ABOUT.items() if name != "content"}
    write(tmp_path / "train", examples(), Counting(), older)
    assert opened(tmp_path, examples(), Counting(0))[1] == "found as it should be"
    _, how = opened(tmp_path, examples(), Counting(), ABOUT | {"dataset": "e"})
    assert how.startswith("brought up to date")


def test_deviations_lie_behind_the_means(tmp_path):
    about = ABOUT | {"posterior": "mean and deviation"}
    write(tmp_path / "train", examples(), Counting(channels=2), about)
    write(tmp_path / "means", examples(), Counting())
    both, means = CachedLatents(tmp_path / "train", about), CachedLatents(tmp_path / "means")
    for i in range(7):
        np.testing.assert_array_equal(both[i]["latents"], means[i]["latents"])
        np.testing.assert_array_equal(both[i]["deviations"], means[i]["latents"])
        np.testing.assert_array_equal(both[i]["references"], means[i]["references"])
    with pytest.raises(UserError, match="holds no deviations of the posterior; remove it"):
        CachedLatents(tmp_path / "means", about)
    with pytest.raises(UserError, match="made from another dataset"):  # it would lose them
        opened(tmp_path, examples(), Counting(), ABOUT | {"content": "e"})


def test_a_dataset_is_known_by_what_is_in_it(tmp_path):
    """Whatever its files are dated; only what changed is read again."""
    data, remembered = tmp_path / "data", tmp_path / "cache" / "dataset.json"
    data.mkdir()
    for name, content in (("a.array_record-0", b"one"), ("references-train.npz", b"two")):
        (data / name).write_bytes(content)
    (data / "report.html").write_text("x")
    digest = content_digest(data, remembered)
    assert content_digest(data, None) == content_digest(data, remembered) == digest
    shutil.copytree(data, tmp_path / "copied", copy_function=shutil.copyfile)
    (tmp_path / "copied" / "report.html").write_text("y")
    assert content_digest(tmp_path / "copied", remembered) == digest
    (data / "a.array_record-0").write_bytes(b"eno")
    assert content_digest(data, remembered) != digest
    lost = tmp_path / "no" / "folder"
    (tmp_path / "no").write_text("a file in its way")
    assert content_digest(tmp_path / "copied", lost) == digest


def test_everything_that_decides_a_part_has_a_place_of_its_own(tmp_path):
    places = {
        parts_missing(tmp_path / "c", 8, about, **options)[0]
        for about in (ABOUT, ABOUT | {"content": "x"})
        for options in ({}, {"views": 2}, {"seed": 1}, {"batch_size": 2}, {"most_skipped": 1.0})
    }
    assert len(places) == 8  # how much may be skipped decides nothing
    assert dataclasses.is_dataclass(build_cache.CacheOptions)
    assert WHAT not in {place.name for place in places}
