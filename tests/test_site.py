"""What the pages say is what the code says; the site is built from them without a warning."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
_SPEC = importlib.util.spec_from_file_location("site_hooks", DOCS / "hooks.py")
hooks = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(hooks)
PAGE = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def code():
    """All texts of the code, with … for each value."""
    trees = [
        ast.parse(path.read_text(encoding="utf-8"))
        for top in hooks.PACKAGES
        for path in (ROOT / top).rglob("*.py")
    ]
    return {message.text for message in hooks.messages()} | {
        hooks.words_of(node)
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant | ast.JoinedStr)
    }


@pytest.mark.parametrize("told", re.findall(r"^### `(.*)`$", PAGE, re.MULTILINE))
def test_a_message_of_the_page_is_one_of_the_code(told, code):
    """Some of the code's begin with a value, or go on with a further sentence."""
    assert any(told == text or text.startswith(f"{told}. ") for text in code), told


def test_every_message_has_a_cause_and_a_remedy():
    parts = re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]
    assert len(parts) > 25
    assert not [part for part in parts if "**Cause.**" not in part or "**Remedy.**" not in part]


def test_messages_are_read_from_the_code():
    texts = {message.text for message in hooks.messages()}
    assert len(texts) > 400
    assert "there is no config …; …" in texts  # of an f-string
    assert "no images are asked for" in texts  # of a plain one


def test_a_config_beside_the_pages_is_shown_on_theirs():
    class Page:
        class file:
            src_uri = "tutorials/two.md"

    told = hooks.on_page_markdown("[a run](../../configs/mini.py)", page=Page)
    assert told == "[a run](../reference/configs.md#mini)"


def test_all_commands_are_on_their_page(monkeypatch):
    monkeypatch.setattr(hooks, "help_of", lambda words: f"usage: {' '.join(words)}")
    page = hooks.commands()
    known = subprocess.run(
        [sys.executable, "-m", "fusionjax", "--help"], cwd=ROOT, capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip
    names = {line.split()[1] for line in known.splitlines() if line.startswith("    fusionjax ")}
    assert len(names) > 8
    assert not [name for name in names if f"\n## fusionjax {name}\n" not in page]


@pytest.mark.slow
def test_the_site(tmp_path):
    """Strictly: a broken link is an error, and so is a page that the menu lacks."""
    pytest.importorskip("mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(tmp_path / "site").as_posix(): path.read_text(encoding="utf-8")
             for path in (tmp_path / "site").rglob("*.html")}  # fmt: skip
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert len(pages) >= len(re.findall(r"\.md$", nav, re.MULTILINE))
    for name, text in pages.items():
        fetched = re.findall(
            r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="(\w+:?//[^"]*)"', text
        )
        assert not fetched, (name, fetched)
    # Docstrings, --help, configs and messages are there.
    for page, words in (
        ("reference/python.html", ("encode_identity", "callback_on_step_end", "Equation 7")),
        ("reference/commands.html", ("--guidance-rescale", "--optimizer.learning-rate", "--share")),
        ("reference/settings.html", ("Peak learning rate", "log_to")),
        ("reference/configs.html", ('id="sd15_ablation"',)),
        ("reference/messages.html", ("no images are asked for",)),
        ("evaluation.html", ("reference/configs.html#sd15_ablation",)),
    ):
        missing = [each for each in words if each not in pages[page]]
        assert not missing, (page, missing)


def test_the_menu_names_what_is_there():
    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        inside = entry.values() if isinstance(entry, dict) else entry
        return [page for each in inside for page in pages(each)]

    named = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    there = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert set(named) == there | hooks.PAGES.keys()
