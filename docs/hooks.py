"""What the site makes of the code when it is built: commands, the Python API, configs, messages.

MkDocs calls `on_files` before it reads the pages, and `on_page_markdown` for each of them.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fusionjax", "train", "sample")
# What the package itself lists (`fusionjax.__all__`), and where to look next.
MODULES = {
    "The paper": ["attention", "masks", "faces", "unet"],
    "People and photos": ["identity", "photos", "regions"],
    "What an image is asked for": ["generation.request", "options"],
    "Adapters": ["models.adapter", "interop.torch_diffusers"],
}
# Command lines beside `fusionjax COMMAND`.
OTHERS = ["fusionjax.data.mini_faces", "fusionjax.data.mini_tokenizer"]


class Message(NamedTuple):
    """What an error says, with … for values, and where."""

    text: str
    module: str
    line: int


def messages() -> Iterator[Message]:
    """All messages of `raise UserError(…)`, read from the code."""
    for top in PACKAGES:
        for path in sorted((ROOT / top).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            module = module.removesuffix(".__init__")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not (isinstance(node, ast.Call) and _name(node.func) == "UserError"):
                    continue
                text = words_of(node.args[0]) if node.args else ""
                if re.search(r"\w", text):
                    yield Message(text, module, node.lineno)


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")


def words_of(node: ast.AST) -> str:
    """A string expression's own words."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return re.sub("…+", "…", "".join(map(words_of, node.values)))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return re.sub("…+", "…", words_of(node.left) + words_of(node.right))
    return "…"


def help_of(words: list[str]) -> str:
    """What a command's `--help` prints.

    Raises:
        RuntimeError: if it prints none.
    """
    done = subprocess.run(
        [sys.executable, "-m", *words, "--help"], cwd=ROOT, capture_output=True, text=True,
        check=False,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb",
             "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} --help ended with {done.returncode}: {done.stderr}")
    return done.stdout.replace(str(ROOT) + "/", "")


def commands() -> str:
    """The page of all command lines, in the words of their `--help`."""
    from fusionjax.__main__ import _ELSEWHERE

    lines = ["# Commands", "", "What `--help` of each prints.", ""]
    words = [
        ["fusionjax"],
        *(["fusionjax", name] for name in sorted([*_ELSEWHERE, "export", "import"])),
    ]
    for command in [*words, *([name] for name in OTHERS)]:
        typed = command if command[0] == "fusionjax" else ["python", "-m", *command]
        lines += [f"## {' '.join(typed)}", "", "```text", help_of(command).strip(), "```", ""]
    return "\n".join(lines)


def python() -> str:
    """The page of the Python API; mkdocstrings fills it from the docstrings."""
    lines = [
        "# Python", "", "`import fusionjax` gives the names below, each imported when it is first "
        "used. What follows them are the modules to read next.", "", "## fusionjax", "",
    ]  # fmt: skip
    tree = ast.parse((ROOT / "fusionjax" / "__init__.py").read_text(encoding="utf-8"))
    (home,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and _name(node.targets[0]) == "_HOME"
    )
    public = {f"fusionjax.{module}.{name}" for name, module in home.items()}
    # Those first that everybody needs.
    begins = ("FusionPipeline", "Identity")
    names = sorted(
        public, key=lambda name: (name.split(".")[-1] not in begins, name.split(".")[-1])
    )
    lines += [f"::: {name}\n" for name in names]
    for title, modules in MODULES.items():
        lines += [f"## {title}", ""]
        for module in modules:
            here = [name for name in public if name.rpartition(".")[0] == f"fusionjax.{module}"]
            # What stands above already is left out here.
            left_out = [f"!^{name.rpartition('.')[2]}$" for name in here] + ["!^_"]
            lines += [f"::: fusionjax.{module}", "    options:", f"      filters: {left_out}", ""]
    return "\n".join(lines)


def settings() -> str:
    """The page of a run's fields."""
    lines = [
        "# A run's settings", "", "Each is a field of the run that a file in `configs/` builds, "
        "and an option of `fusionjax train`: `optimizer.learning_rate` is "
        "`--optimizer.learning-rate`.", "", "::: train.config", "::: train.validation_config",
    ]  # fmt: skip
    return "\n".join(lines)


def configs() -> str:
    """The page of `configs/`: what each says of itself, and what it sets."""
    lines = ["# Configs", "", "`fusionjax train NAME` runs one; its fields can be overridden.", ""]
    for path in sorted((ROOT / "configs").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        lines += [f"## {path.stem}", "", "```python", text.strip(), "```", ""]
    return "\n".join(lines)


def all_messages() -> str:
    """The page of all messages, by where they come from."""
    lines = [
        "# Messages", "", "What a command says after `error:`, and Python as `UserError`, with "
        "… for names and values. Each names its remedy; [Mend an error](../troubleshooting.md) "
        "tells more of those that are met most. A few are put together elsewhere, and "
        "are not listed.", "",
    ]  # fmt: skip
    by_module: dict[str, dict[str, None]] = {}  # each once, in the code's order
    for message in messages():
        by_module.setdefault(message.module, {})[message.text] = None
    for module, texts in by_module.items():
        lines += [f"## {module}", "", *(f"- `` {text} ``" for text in texts), ""]
    return "\n".join(lines)


PAGES = {
    "reference/commands.md": commands,
    "reference/python.md": python,
    "reference/settings.md": settings,
    "reference/configs.md": configs,
    "reference/messages.md": all_messages,
}


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are made from the code."""
    from mkdocs.structure.files import File

    for name, make in PAGES.items():
        files.append(File.generated(config, name, content=make()))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """A config beside docs/ is shown on the page of configs."""
    way = "../" * page.file.src_uri.count("/")
    return re.sub(
        r"\]\(\s*(?:\.\./)+configs/(\w+)\.py\)", rf"]({way}reference/configs.md#\1)", markdown
    )
