"""Every command and every Python snippet of the README and the docs is run, as a reader would.

Each is a process of its own in a folder of its own, away from the checkout, where the files lie
that the pages name: the miniature model stands for `sd15/`, its adapter for `runs/mine`, its drawn
people for the photos. What cannot be run here is listed in `CANNOT`, with the reason.
"""

import re
import shutil
import sys
import tarfile
from typing import NamedTuple

import pytest
from PIL import Image

from fusionjax.embedded import ASSETS, MINI_BASE, MINI_FUSION
from fusionjax.models.adapter import export_adapter, import_adapter
from tests.typed import ROOT, typed

FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?<=\n\n)((?:    .*\n|\n(?=    ))+)")
PIPE = 'import fusionjax\n\npipe = fusionjax.FusionPipeline.from_pretrained("mini")\n'
# What a reader types begins so; other texts without a language show a file or a layout.
TYPED = re.compile(
    r"#!|(?:[A-Z]+=\S+ )*(?:fusionjax|python3?|pip|mkdocs|bash|img2dataset|for|\. ) ?"
)

# Page, how the snippet begins (nothing: all of the page), and why it is not run.
CANNOT = [
    ("README.md", "python3 -m venv", "makes an environment; .ci/run does, and runs these lines"),
    ("README.md", "python -m sample --base DIR|FILE", "tells the form, in capitals"),
    ("README.md", "python -m train   ", "trains for 12 minutes; tests/test_train_cli.py"),
    ("README.md", "python -m fusionjax prepare PICTURES", "trains Stable Diffusion 1.5"),
    ("README.md", "python -m train sd15_a100 --dry-run", "needs CUDA's compiler"),
    ("docs/data.md", "img2dataset", "fetches millions of pictures"),
    ("docs/data.md", "fusionjax prepare laion-face/*.tar data/laion_face --size 512 --share",
     "is for sixteen machines; tests/test_prepare.py runs shares"),
    ("docs/data.md", "#!/bin/bash", "is SLURM's"),
    ("docs/data.md", "fusionjax cache", "needs the dataset of the whole way"),
    ("docs/data.md", "python -m train sd15_a100", "needs CUDA's compiler"),
    ("docs/evaluation.md", "", "needs the recognisers' and CLIP's weights, and people with photos"),
    ("docs/figures.md", "", "draws for minutes; tests/test_figures.py"),
    ("docs/index.md", "pip install -e .", "is what .ci/run does"),
    ("docs/launch/README.md", "srun", "is SLURM's; tests/test_sample.py runs shares"),
    ("docs/method.md", "", "trains for hours"),
    ("docs/models.md", "pipe.load_lora_weights", "needs two LoRAs; tests/test_pipeline_loras.py"),
    ("docs/tutorials/tpu-pod.md", "fusionjax train sd15_tpu_v5e", "needs the TPU's compiler"),
    ("docs/tutorials/tpu-pod.md", "NAME=my-slice", "needs a TPU pod"),
    ("docs/web.md", "", "serves until it is stopped; tests/test_web.py"),
    ("docs/watching.md", "fusionjax train --log-to wandb", "trains for 12 minutes"),
    ("docs/watching.md", "fusionjax train --validation.prompts", "trains for 12 minutes"),
]  # fmt: skip


class Snippet(NamedTuple):
    """A piece of a page that is to be typed or run.

    Attributes:
        page: from the checkout.
        is_python: else it is for a shell.
        text: it.
        files: what the page says that files hold, by name.
    """

    page: str
    is_python: bool
    text: str
    files: dict[str, str]

    def reason(self):
        """Why it is not run, or None."""
        for page, start, reason in CANNOT:
            if page == self.page and self.text.startswith(start):
                return reason
        return None


def snippets_of(page, text):
    """All of a page, in its order."""
    fences = list(FENCE.finditer(text))
    files = {
        name[1]: match[3] for match in fences if (name := re.search(r'title="([^"]+)"', match[2]))
    }
    found = []
    for match in fences:
        language, _, body = match.groups()
        if language == "python":
            found.append(Snippet(page, True, body, files))
        elif language in ("bash", "sh") or (not language and TYPED.match(body)):
            found.append(Snippet(page, False, body, files))
    for match in INDENTED.finditer(FENCE.sub("", text)):
        body = re.sub(r"^    ", "", match[1].strip("\n"), flags=re.MULTILINE)
        if re.match(r"import |from |\w+ = ", body):
            found.append(Snippet(page, True, body, files))
        elif TYPED.match(body):
            found.append(Snippet(page, False, body, files))
    return found


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SNIPPETS = [
    snippet
    for path in PAGES
    for snippet in snippets_of(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
]
RUN = [snippet for snippet in SNIPPETS if snippet.reason() is None]


def test_every_reason_is_of_a_snippet():
    used = {
        (page, start)
        for snippet in SNIPPETS
        for page, start, _ in CANNOT
        if page == snippet.page and snippet.text.startswith(start)
    }
    assert not [rule[:2] for rule in CANNOT if rule[:2] not in used]
    assert len(RUN) > 20
    assert len([snippet for snippet in RUN if snippet.is_python]) > 4


def test_snippets_are_found():
    page = (
        "Words.\n\n```python\nx = 1\n```\n\n```\nfusionjax sample\n```\n\n```\na layout\n```\n\n"
        "    y = 2\n    z = y\n\n    fusionjax train\n\n- a list\n\n"
        '```yaml title="scene.yaml"\nprompt: a\n```\n'
    )
    texts = [(s.is_python, s.text.strip()) for s in snippets_of("page", page)]
    assert texts == [
        (True, "x = 1"),
        (False, "fusionjax sample"),
        (True, "y = 2\nz = y\n\nfusionjax train"),
    ]
    assert snippets_of("page", page)[0].files == {"scene.yaml": "prompt: a\n"}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """What all snippets may name."""
    folder = tmp_path_factory.mktemp("shelf")
    (folder / "runs").mkdir()
    for run in ("mine", "sd15_v100-20260101"):
        import_adapter(MINI_FUSION, folder / "runs" / run)
    export_adapter(folder / "runs" / "mine", folder / "shared")
    shutil.copyfile(folder / "shared" / "adapter.safetensors", folder / "adapter.safetensors")
    (folder / "sd15").symlink_to(MINI_BASE)
    (folder / "RUN_DIR").symlink_to(folder / "runs" / "mine")
    names = {"ann": ("ann.png", "ann2.png", "a.jpg"), "ben": ("ben.png", "b.jpg")}
    for face, files in names.items():
        for name in files:
            Image.open(ASSETS / "faces" / f"{face}.png").convert("RGB").save(folder / name)
    (folder / "laion-face").mkdir()
    with tarfile.open(folder / "laion-face" / "00000.tar", "w") as shard:
        photos = [
            *sorted((ROOT / "tests" / "photos").glob("*.jpg")),
            ROOT / "tests/data/astronaut.jpg",
        ]
        for number, photo in enumerate(photos):
            caption = folder / "caption.txt"
            caption.write_text("a person who smiles and looks at the camera")
            shard.add(photo, f"{number:09d}.jpg")
            shard.add(caption, f"{number:09d}.txt")
    tools = folder / "bin"
    tools.mkdir()
    for name, words in (("fusionjax", "-m fusionjax "), ("python", ""), ("python3", "")):
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}"$@"\n')
        (tools / name).chmod(0o755)
    return folder


def prepared(snippet, shelf, folder):
    """The files that a snippet needs; not those that it shall write."""
    (folder / "runs").mkdir()
    for path in [*shelf.iterdir(), *(shelf / "runs").iterdir()]:
        if path.name in ("runs", "bin") or (path.name == "shared" and not snippet.is_python):
            continue
        if path.name == "adapter.safetensors" and " export " in snippet.text:
            continue
        (folder / path.relative_to(shelf)).symlink_to(path)
    for name, text in snippet.files.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("snippet", RUN, ids=[f"{s.page}-{number}" for number, s in enumerate(RUN)])
def test_a_snippet_runs(snippet, shelf, tmp_path):
    if "diffusers" in snippet.text and snippet.is_python:
        pytest.importorskip("torch")
    folder = prepared(snippet, shelf, tmp_path)
    if snippet.is_python:
        text = snippet.text if "pipe = " in snippet.text else PIPE + snippet.text
        words = [sys.executable, "-c", text]
    else:
        words = ["bash", "-euo", "pipefail", "-c", snippet.text]
    done = typed(words, folder, shelf, tools=shelf / "bin")
    assert done.returncode == 0, f"{snippet.text}\n{done.stdout}\n{done.stderr}"
    if not snippet.is_python:
        before = {path.name for path in shelf.iterdir()} | snippet.files.keys()
        made = [path for path in folder.iterdir() if path.name not in before]
        assert made or done.stdout.strip(), f"{snippet.text}\nneither says nor makes anything"
