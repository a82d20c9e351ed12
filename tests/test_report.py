"""A run's page: its curves read back from the pixels are the numbers of metrics.jsonl."""

import base64
import html.parser
import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from fusionjax.errors import UserError
from train.main import read_config
from train.report import draw, spread, write_report

ROOT = Path(__file__).parents[1]
GRIDS = 11


def loss(step):
    return 0.2 + 1 / (1 + step)


def rate(step):
    return 5e-3 * math.cos(step / 40)


@pytest.fixture
def run(tmp_path):
    """A run's folder as it lies there after a kill."""
    folder = tmp_path / "run"
    (folder / "grids").mkdir(parents=True)
    read_config(["mini", "--name", "<b>mine</b>"]).write(
        folder / "config.json", base_fingerprint="abc123", train_examples=2000
    )
    lines = []
    for step in range(1, 61):
        row = {"step": step, "group": "train", "loss": loss(step), "learning_rate": rate(step)}
        lines.append({**row, "images_seen": 32 * step, "epochs": 32 * step / 2000, "skipped": 2})
        if step == 30:
            lines.append({"step": step, "group": "train", "loss": math.nan})
        if step % 20 == 0:
            lines.append(
                {"step": step, "group": "validation", "loss": loss(step) + 0.1, "mse": 0.3}
            )
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 61, "gro')
    for number in range(GRIDS):
        picture = np.full((40, 60, 3), 20 * number, np.uint8)
        Image.fromarray(picture).save(folder / "grids" / f"{number * 20:06d}.png")
    return folder


class Page(html.parser.HTMLParser):
    """What the page holds, and every attribute that could fetch something."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.pictures, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data", "poster"):
                (self.pictures if value.startswith("data:image/") else self.fetched).append(value)


def test_curves_are_the_numbers(run):
    page = write_report(run).read_text()
    title = re.escape("<h3>Loss</h3>")
    (svg,) = re.findall(rf"{title}\s*(<svg.*?</svg>)", page, re.DOTALL)
    chart = ElementTree.fromstring(svg)
    texts = chart.findall("text")

    def axis(kind, place):
        """From pixels to numbers, by what is written at the axis."""
        ticks = [t for t in texts if t.get("class") == kind]
        assert len(ticks) > 2
        pixels = [float(t.get(place)) for t in ticks]
        numbers = [float(t.text) for t in ticks]
        slope, start = np.polyfit(pixels, numbers, 1)
        np.testing.assert_allclose(np.polyval([slope, start], pixels), numbers, atol=1e-3)
        return lambda pixel: slope * pixel + start

    to_step, to_value = axis("column", "x"), axis("row", "y")
    training, validation = chart.findall("polyline")

    def numbers(line):
        points = [point.split(",") for point in line.get("points").split()]
        return [(to_step(float(x)), to_value(float(y))) for x, y in points]

    wanted = [
        (step, loss(step)) for step in range(1, 61)
    ]  # the loss that is not finite is no point
    np.testing.assert_allclose(numbers(training), wanted, atol=0.05, rtol=0)
    # A pixel is a tenth of a step, and a 400th of the loss; the drawing keeps a hundredth of it.
    values = [value for _, value in numbers(training)]
    np.testing.assert_allclose(values, [loss(step) for step in range(1, 61)], atol=1e-4)
    wanted = [(step, loss(step) + 0.1) for step in (20, 40, 60)]
    np.testing.assert_allclose(numbers(validation), wanted, atol=0.05, rtol=0)
    assert "training: 0.21639" in page
    assert f"validation: {loss(60) + 0.1:.5g} (least: {loss(60) + 0.1:.5g} after step 60)" in page
    assert "<h3>Learning rate</h3>" in page
    assert "decibels" not in page  # this run has measured none


def test_the_page_is_alone_and_says_what_was_trained(run):
    path = write_report(run)
    assert path == run / "report.html"
    text = path.read_text()
    page = Page(text)
    assert page.fetched == []
    assert "http" not in re.sub(r'src="data:[^"]*"', "", text)
    assert not {"script", "link", "iframe", "b"} & set(page.tags)  # a name is a text
    assert "&lt;b&gt;mine&lt;/b&gt;" in text
    for told in (
        "60 of 500", "1,920 (0.96 epochs)", "2,000 pictures", "data/mini_faces_small", "abc123",
        "optimizer.learning_rate", "0.005", "after step 60",
        "steps whose gradient was not finite</td><td>2<", f"8 of {GRIDS} are shown",
    ):  # fmt: skip
        assert told in text, told
    # The newest grid first, and the first one last; the pictures are those of the files.
    assert len(page.pictures) == 8
    for source, level in ((page.pictures[0], 20 * (GRIDS - 1)), (page.pictures[-1], 0)):
        content = base64.b64decode(source.partition("base64,")[2])
        picture = np.asarray(Image.open(io.BytesIO(content)))
        assert picture.shape == (40, 60, 3)
        np.testing.assert_allclose(picture, level, atol=2)
    assert not list(run.glob(".*"))  # nothing half written


def test_odd_runs(run, tmp_path):
    """One that has just begun, one of an older version, and one with a damaged grid."""
    (run / "grids" / "000000.png").write_bytes(b"\x89PNG and no more")
    assert "This file is damaged" in write_report(run).read_text()
    (run / "metrics.jsonl").unlink()
    for grid in (run / "grids").iterdir():
        grid.unlink()
    (run / "config.json").write_text('{"kind": "imported", "base": "mini"}')
    text = write_report(run).read_text()
    assert "<h1>A run</h1>" in text
    assert "Nothing has been measured yet" in text
    assert "None yet" in text
    with pytest.raises(UserError, match=r"holds no run \(it has no config.json\)"):
        write_report(tmp_path)


def test_what_others_wrote_into_a_run_stops_no_page(run):
    rows = [
        {"step": 3, "group": "train", "images_seen": 96},
        {"step": 4, "group": "train", "images_seen": "x", "epochs": None, "skipped": "y"},
        {"step": 4, "group": "validation", "loss": "low"},
    ]
    lines = [json.dumps(row).encode() for row in rows] + [
        b'{"step": 5, "group": "\xff"}',
        b"[" * 99,
    ]
    (run / "metrics.jsonl").write_bytes(b"\n".join(lines))
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"steps": "x", "train_examples": "y"}))
    assert "5 of 0" in write_report(run).read_text()


def test_a_page_takes_no_other_files_place(run, tmp_path):
    before = (run / "config.json").read_bytes()
    for output in (run / "config.json", tmp_path, run / "metrics.jsonl"):
        with pytest.raises(UserError, match="which is no page's name; end it in"):
            write_report(run, output)
    assert (run / "config.json").read_bytes() == before


def test_many_steps_are_means_of_neighbours():
    rows = [{"step": n, "group": "train", "loss": float(n % 2)} for n in range(1, 10_001)]
    (curve,) = draw("Loss", rows).curves
    points = [tuple(map(float, p.split(","))) for p in curve.points.split()]
    assert len(points) == 400
    heights = {y for _, y in points[:-1]}
    assert max(heights) - min(heights) < 10  # of 200: 25 neighbours, of which 12 or 13 are 1
    assert curve.last == 0.0
    assert draw("Learning rate", rows) is None


def test_what_does_not_change_has_an_axis_too():
    for value in (0.0, 3e-5, -2.0):
        rows = [{"step": 7, "group": "train", "loss": value}]
        (curve,) = draw("Loss", rows).curves
        x, y = map(float, curve.points.split(","))
        assert 64 <= x <= 628
        assert 12 <= y <= 212


def test_spread():
    assert spread(list(range(11)), 3) == [0, 5, 10]
    assert spread([4], 8) == [4]
    assert spread([], 8) == []


def test_the_command(run, tmp_path):
    def typed(*words):
        return subprocess.run(
            [sys.executable, "-m", "fusionjax", "report", *map(str, words)],
            cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    done = typed(run, "--output", "page.html")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "page.html\n"
    assert (tmp_path / "page.html").read_text() == write_report(run).read_text()
    done = typed("nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: nowhere holds no run (it has no config.json); name a run's folder\n"
    )
