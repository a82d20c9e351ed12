"""The paper's sheets by the command that draws them, with the embedded model and a tiny one."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from fusionjax.embedded import ASSETS
from fusionjax.evaluation.people import read_prompts
from fusionjax.evaluation.recogniser import Recogniser
from fusionjax.mini import drawing as mini_world
from fusionjax.mini.people import Circumstance
from fusionjax.sheet import labelled_sheet, stacked
from sample import figures
from sample.__main__ import main as sample
from sample.figure_command import main
from tests import tiny
from tests.test_sample_mini import FACES

PEOPLE = ASSETS / "people"
LOOKS = {
    "ann": (
        Circumstance("neutral", "t-shirt", "green", "grey"),
        Circumstance("smiling", "hoodie", "red", "beach"),
        Circumstance("laughing", "suit and tie", "", "pink"),
    ),
    "ben": (
        Circumstance("smiling", "hoodie", "yellow", "white"),
        Circumstance("neutral", "sailor shirt", "", "snow"),
        Circumstance("winking", "t-shirt", "black", "blue"),
    ),
    "cleo": (
        Circumstance("neutral", "t-shirt", "blue", "yellow"),
        Circumstance("smiling", "overalls", "green", "city"),
        Circumstance("surprised", "chef's jacket", "", "grey"),
    ),
    "dan": (
        Circumstance("smiling", "t-shirt", "purple", "green"),
        Circumstance("neutral", "sweater", "orange", "library"),
        Circumstance("laughing", "hoodie", "white", "blue"),
    ),
}
SIDE, GAP, HEAD, WORDS = 128, 4, 20, 150  # of a sheet of small pictures
STEPS = ("--steps", "2", "--seed", "3")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base, an adapter, three people with three photos each, and a prompt."""
    folder = tmp_path_factory.mktemp("figures")
    tiny.write_tiny(folder)
    for number, name in enumerate(("ada", "bo", "cy")):
        (folder / "people" / name).mkdir(parents=True)
        for photo in range(3):
            image = Image.fromarray(tiny.photo(10 * number + photo))
            image.save(folder / "people" / name / f"{photo}.png")
    (folder / "prompts.txt").write_text("a photo of {person}\n")
    return folder


@pytest.fixture(scope="module")
def figure(world):
    """Draws a figure by a process of its own, and gives the sheet."""

    def call(name, *words):
        command = [
            "figure", name, "--output", world / f"{name}.png", "--people", world / "people",
            "--prompts", world / "prompts.txt", "--fusion", world / "fusion.safetensors",
            "--batch-size", "4", "--quiet", "--cache", "", *STEPS, *words,
        ]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "fusionjax", *map(str, command)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [str(world / f"{name}.png")]
        return Image.open(world / f"{name}.png")

    return call


def cell(sheet, row, column, *, top=0):
    """A picture of a sheet's part that begins at `top`, as numbers."""
    at = WORDS + column * (SIDE + GAP), top + HEAD + row * (SIDE + GAP)
    return np.asarray(sheet.crop((*at, at[0] + SIDE, at[1] + SIDE))).astype(int)


def photo(world, name, number=0):
    image = Image.open(world / "people" / name / f"{number}.png")
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)).astype(int)


def is_written(sheet, at, words):
    """Whether the sheet has these words, and no others, at a place."""
    font, drawn = ImageFont.load_default(11), Image.new("RGB", sheet.size, "white")
    box = ImageDraw.Draw(drawn).multiline_textbbox(at, words, font=font)
    ImageDraw.Draw(drawn).multiline_text(at, words, fill="black", font=font)
    box = tuple(round(x) for x in (box[0], box[1], box[2] + 3, box[3] + 3))
    return bool((np.asarray(sheet.crop(box)) == np.asarray(drawn.crop(box))).all())


def heads(sheet, names, top=0):
    places = [(WORDS + n * (SIDE + GAP), top + 3) for n in range(len(names))]
    return all(is_written(sheet, at, name) for at, name in zip(places, names, strict=True))


def sampled(world, tmp_path, *words):
    """What `python -m sample` paints, as it stands on a sheet."""
    command = ["--fusion", world / "fusion.safetensors", "--prompt", "a photo of a person", *STEPS,
               "--output", tmp_path, "--quiet", "--cache", "", *words]  # fmt: skip
    assert sample([str(word) for word in command]) == 0
    image = Image.open(next(tmp_path.glob("*_seed3.png"))).resize((SIDE, SIDE), 1)
    return np.asarray(image).astype(int)


def differ(*pictures):
    return all(np.abs(a - b).max() > 8 for a, b in itertools.combinations(pictures, 2))


@pytest.mark.slow
def test_references(world, figure, tmp_path):
    """One photo gives what `sample` paints; mixtures begin with one person, end with the other."""
    sheet = figure("references")
    assert sheet.size == (WORDS + 7 * (SIDE + GAP), 2 * HEAD + 3 * (SIDE + GAP))
    assert heads(sheet, ["first photo", "second", "third"])
    assert is_written(sheet, (3, HEAD + 3), "ada: a photo of a person")
    assert is_written(sheet, (3, HEAD + 3 + SIDE + GAP), "bo: a photo of a person")
    for row, name in enumerate(("ada", "bo")):
        for number in range(3):
            assert np.array_equal(cell(sheet, row, number), photo(world, name, number))
        assert differ(*(cell(sheet, row, column) for column in (3, 4, 5)))
    assert differ(*(cell(sheet, row, 3) for row in (0, 1)))
    alone = sampled(world, tmp_path / "a", "--face", world / "people" / "ada" / "0.png")
    assert np.abs(cell(sheet, 0, 3) - alone).max() <= 2
    top = HEAD + 2 * (SIDE + GAP)
    assert heads(sheet, ["ada", "100 : 0", "75 : 25", "50 : 50", "25 : 75", "0 : 100", "bo"], top)
    mixed = [cell(sheet, 0, column, top=top) for column in range(1, 6)]
    assert differ(*mixed)
    # All of one person and nothing of the other is the person alone.
    assert np.abs(mixed[0] - cell(sheet, 0, 4)).max() <= 2
    assert np.abs(mixed[4] - cell(sheet, 1, 4)).max() <= 2
    assert np.array_equal(cell(sheet, 0, 6, top=top), photo(world, "bo"))


@pytest.mark.slow
def test_people(world, figure, tmp_path):
    """Masks give what `sample` paints of a scene with boxes; another order is another picture."""
    sheet = figure("people")
    assert sheet.size == (WORDS + 6 * (SIDE + GAP), HEAD + 2 * (SIDE + GAP))
    assert heads(sheet, ["left", "middle", "right", "without masks", "masks", "with masks"])
    assert is_written(sheet, (3, HEAD + 3), "ada, bo, cy: a photo of a\nperson")
    assert is_written(sheet, (3, HEAD + 3 + SIDE + GAP), "cy, bo, ada: a photo of a\nperson")
    for row, names in enumerate((("ada", "bo", "cy"), ("cy", "bo", "ada"))):
        for column, name in enumerate(names):
            assert np.array_equal(cell(sheet, row, column), photo(world, name))
    assert differ(cell(sheet, 0, 3), cell(sheet, 0, 5), cell(sheet, 1, 5))
    # Without masks the order of people is nothing (equation 6).
    assert np.abs(cell(sheet, 0, 3) - cell(sheet, 1, 3)).max() <= 2
    colors = cell(sheet, 0, 4)[64, [10, 64, 118]]
    assert [int(color.argmax()) for color in colors] == [0, 1, 2]  # red, green, blue
    scene = tmp_path / "scene.yaml"
    boxes = [f"[{i / 3}, 0, {(i + 1) / 3}, 1]" for i in range(3)]
    people = [
        f"{{faces: {world}/people/{name}/0.png, box: {box}}}"
        for name, box in zip(("cy", "bo", "ada"), boxes, strict=True)
    ]
    scene.write_text(f"{{prompt: a photo of a person, people: [{', '.join(people)}]}}")
    alone = sampled(world, tmp_path / "a", "--scene", scene)
    assert np.abs(cell(sheet, 1, 5) - alone).max() <= 2


@pytest.mark.slow
def test_styles(world, figure):
    (world / "two.txt").write_text("a photo of {person}\n\nline art\n")
    sheet = figure("styles", "--prompts", world / "two.txt")
    assert sheet.size == (WORDS + 3 * (SIDE + GAP), HEAD + 3 * (SIDE + GAP))
    assert heads(sheet, ["ada", "bo", "cy"])
    for row, words in enumerate(("photo", "a photo of a person", "line art")):
        assert is_written(sheet, (3, HEAD + 3 + row * (SIDE + GAP)), words)
    for column, name in enumerate(("ada", "bo", "cy")):
        assert np.array_equal(cell(sheet, 0, column), photo(world, name))
        assert differ(cell(sheet, 1, column), cell(sheet, 2, column))
    for row in (1, 2):
        assert differ(*(cell(sheet, row, column) for column in range(3)))


@pytest.mark.slow
def test_a_depth(world, tmp_path):
    """Two columns more: the depth, and the picture that keeps to it; the others do without."""
    torch = pytest.importorskip("torch")
    from diffusers import ControlNetModel

    from tests.test_controlnet import CONFIG
    from tests.torch_reference import randomise

    with torch.no_grad():
        randomise(ControlNetModel(**CONFIG), 3).save_pretrained(world / "controlnet")
    Image.fromarray(tiny.photo(77)).save(world / "depth.png")
    words = ["people", "--people", world / "people", "--prompts", world / "prompts.txt", "--fusion",
             world / "fusion.safetensors", "--batch-size", "4", "--quiet", "--cache", "", *STEPS,
             "--controlnet", world / "controlnet", "--control-image", world / "depth.png",
             "--control-strength", "0.1",  # random weights would drown the people
             "--output", tmp_path / "depth.png"]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    sheet = Image.open(tmp_path / "depth.png")
    assert sheet.size == (WORDS + 8 * (SIDE + GAP), HEAD + 2 * (SIDE + GAP))
    names = ["left", "middle", "right", "without masks", "masks", "with masks", "depth"]
    assert heads(sheet, [*names, "masks and depth"])
    depth = Image.open(world / "depth.png").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    assert np.array_equal(cell(sheet, 0, 6), np.asarray(depth).astype(int))
    assert differ(cell(sheet, 0, 5), cell(sheet, 0, 7))
    assert np.abs(cell(sheet, 0, 7) - cell(sheet, 1, 7)).max() > 2
    if (world / "people.png").is_file():  # of the test above: a ControlNet of no weight is none
        free = Image.open(world / "people.png")
        assert np.abs(cell(sheet, 1, 5) - cell(free, 1, 5)).max() <= 2


def test_the_example_people_are_of_the_embedded_ones(tmp_path):
    """Three drawings of each whom no training sees, the first the embedded photo."""
    assert sorted(path.name for path in PEOPLE.iterdir()) == sorted(FACES)
    for name, person in FACES.items():
        photos = sorted((PEOPLE / name).iterdir())
        assert len(photos) == len(LOOKS[name])
        assert photos[0].read_bytes() == (ASSETS / "faces" / f"{name}.png").read_bytes()
        for path, look in zip(photos, LOOKS[name], strict=True):
            drawn = mini_world.draw(person, look).astype(int)
            assert np.abs(np.asarray(Image.open(path)).astype(int) - drawn).mean() < 1


@pytest.mark.slow
def test_the_embedded_models_people(tmp_path):
    """Without a word of a model: four people by one prompt, nearest to their own photos."""
    (tmp_path / "prompts.txt").write_text("{person} laughing, in an astronaut suit, in a garden\n")
    words = ["styles", "--output", tmp_path / "s.png", "--prompts", tmp_path / "prompts.txt",
             "--batch-size", "1", "--quiet", "--cache", tmp_path / "cache"]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    sheet = Image.open(tmp_path / "s.png")
    assert sheet.size == (WORDS + 4 * (SIDE + GAP), HEAD + 2 * (SIDE + GAP))
    assert heads(sheet, sorted(FACES))
    shown = [[cell(sheet, row, column).astype(np.uint8) for column in range(4)] for row in (0, 1)]
    small = [np.asarray(Image.fromarray(x).resize((64, 64))) for row in shown for x in row]
    vectors = Recogniser.from_pretrained().embed(
        small, [mini_world.face_box(Circumstance())] * len(small)
    )
    assert (vectors[4:] @ vectors[:4].T).argmax(1).tolist() == [0, 1, 2, 3]


def test_what_suits_the_base():
    """Every figure has prompts for both kinds of base; other bases' are of the package's list."""
    known = read_prompts(None)
    for name, about in figures.FIGURES.items():
        assert figures.prompts_of(name, None, mini=True) == list(about.mini)
        assert len(about.mini) == len(about.others) >= 2
        assert name == "people" or not set(about.others) - set(known)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["styles", "--output", "a.jpg"], "--output is a.jpg; it must end in .png"),
        (["styles", "--prompt", "x"], "--prompt is nothing of a figure; use --prompts FILE"),
        (["styles", "--face", "{file}"], "--face is nothing of a figure; use --people FOLDER"),
        (["styles", "--no-face"], "--no-face is nothing of a figure; use --people FOLDER"),
        (["styles", "--watermark", "x"], "--watermark is nothing of a figure; use python -m"),
        (["styles", "--requests", "{file}"], "--requests is nothing of a figure; use python -m"),
        (["styles", "--controlnet", "x"], "--controlnet is nothing of the figure styles"),
        (["people", "--controlnet", "x"], "given without --control-image (or --depth-from)"),
        (["styles", "--promts", "x"], "--promts is not known; did you mean --prompt?"),
        (["styles", "--steps", "0"], "num_inference_steps is 0"),
        (["styles", "--people", "{tmp}/none"], "is no folder"),
        (["people", "--people", "{tmp}/two"], "holds 2 people; people needs 3, a folder of"),
        (["references", "--people", "{tmp}/two"], "holds 1 photo (.png, .jpg, .jpeg, .webp); ref"),
        (["styles", "--prompts", "{tmp}/wrong.txt"], "has '{name}'; the only placeholder is"),
        (["styles", "--base", "{world}/base", "--fusion", "{world}/fusion.safetensors"],
         "the example people are drawings of the mini world"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_first(world, tmp_path, capsys, words, told):
    (tmp_path / "wrong.txt").write_text("a {name}\n")
    for name in ("ada", "bo"):
        (tmp_path / "two" / name).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / "two" / name / "1.png")
    filled = {"{tmp}": tmp_path, "{world}": world, "{file}": PEOPLE / "ann" / "1.png"}
    for key, value in filled.items():
        words = [word.replace(key, str(value)) for word in words]
    if "--output" not in words:
        words += ["--output", str(tmp_path / "s.png")]
    assert main(words) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert told in errors[0]
    assert not (tmp_path / "s.png").exists()


def test_a_sheet_of_unlike_pictures():
    """Columns are as wide as their widest picture; what is missing stays white."""
    red, green, blue = (Image.new("RGB", size, color) for size, color in
                        (((64, 32), "red"), ((32, 64), "lime"), ((32, 32), "blue")))  # fmt: skip
    sheet = labelled_sheet(["a", "b"], [("x", [red, None]), ("", [blue, green])], side=64)
    left, head, gap = 75, 10, 2  # half of those of 128
    assert sheet.size == (left + 128 + gap + 32 + gap, head + 2 * (64 + gap))
    at = {
        (left + 127, head + 63): (255, 0, 0), (left + 130, head + 5): (255, 255, 255),
        (left + 63, head + 70): (0, 0, 255), (left + 64, head + 70): (255, 255, 255),
        (left + 130, head + 70): (0, 255, 0), (left + 161, head + 129): (0, 255, 0),
    }  # fmt: skip
    assert {place: sheet.getpixel(place) for place in at} == at
    bare = labelled_sheet(["a"], [("", [red])])
    assert bare.size == (256 + 4, 20 + 128 + 4)
    both = stacked([sheet, bare])
    assert both.size == (bare.width, sheet.height + bare.height)
    assert both.getpixel((3, sheet.height + 30)) == (255, 0, 0)
