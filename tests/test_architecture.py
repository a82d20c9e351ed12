"""docs/architecture.md draws the rooms and their arrows; the code keeps to them."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
TOPS = ("fusionjax", "train", "sample")
FILES = sorted(path for top in TOPS for path in (ROOT / top).rglob("*.py"))
DRAWING_TABLES = {"fusionjax/mini/people.py", "fusionjax/mini/places.py"}


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def layers():
    """The page's layers from top to bottom: each a list of modules or packages."""
    block = re.search(r"```layers\n(.*?)```", PAGE, re.DOTALL)
    assert block, "the page has a block of layers"
    return [line.split() for line in block[1].splitlines() if line.strip()]


def layer_of(module):
    """The number of the layer with the longest name that the module belongs to."""
    found = [
        (len(name), number)
        for number, names in enumerate(layers())
        for name in names
        if module == name or module.startswith(f"{name}.")
    ]
    assert found, f"docs/architecture.md has no layer for {module}"
    return max(found)[1]


def is_for_types(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in (
        "TYPE_CHECKING",
        "typing.TYPE_CHECKING",
    )


def source_of(node, path):
    """The module that a `from … import` names, in full where it is relative."""
    if not node.level:
        return node.module
    package = path.parent.relative_to(ROOT).parts
    above = package[: len(package) - node.level + 1]
    return ".".join([*above, *([node.module] if node.module else [])])


def imports(path, *, lazy):
    """The modules that a file imports, with their lines; `lazy` also those within functions."""
    found = []

    def walk(children):
        for child in children:
            if is_for_types(child):
                walk(child.orelse)
            elif isinstance(child, ast.Import):
                found.extend((alias.name, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                source = source_of(child, path)
                for alias in child.names:
                    whole = f"{source}.{alias.name}"
                    found.append((whole if whole in MODULES else source, child.lineno))
            elif lazy or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                walk(ast.iter_child_nodes(child))

    walk(ast.parse(path.read_text(encoding="utf-8")).body)
    return found


def test_every_layer_is_of_modules():
    names = [name for line in layers() for name in line]
    assert len(names) == len(set(names))
    assert not [name for name in names if name not in MODULES]


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_of(path))
def test_imports_point_down(path):
    module = module_of(path)
    if module == "fusionjax":  # names are imported from everywhere when they are first used
        return
    own = layer_of(module)
    for other, line in imports(path, lazy=True):
        top = other.partition(".")[0]
        if top not in TOPS:
            continue
        where = f"{module}:{line} imports {other}"
        assert other != "fusionjax", f"{where}, whose names come from every layer; name the module"
        assert layer_of(other) >= own, f"{where}, which lies above it"
        if {module.partition(".")[0], top} == {"train", "sample"}:
            raise AssertionError(f"{where}; programs do not know each other")


def test_no_module_imports_itself_in_a_circle():
    graph = {
        module: {other for other, _ in imports(path, lazy=False) if other in MODULES} - {module}
        for module, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(module, way):
        assert module not in way, " → ".join([*way[way.index(module) :], module])
        if module in done:
            return
        for other in sorted(graph[module]):
            visit(other, [*way, module])
        done.add(module)

    for module in graph:
        if module != "fusionjax":
            visit(module, [])


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("fusionjax.options", {"jax", "numpy"}),
        ("fusionjax.embedded", {"jax", "numpy"}),
        ("fusionjax.mini.examples", {"jax", "diffusers"}),
        ("fusionjax.interop.torch_diffusers", {"jax", "flax"}),
        ("fusionjax.interop.torch_depth", {"jax", "flax"}),
    ],
)
def test_what_needs_no_jax_imports_none(module, absent):
    if ".torch_" in module:
        pytest.importorskip("torch")
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert not absent & set(done.stdout.split())


WITHOUT_JAX = [
    path
    for module, path in MODULES.items()
    if module.startswith(("fusionjax.mini", "fusionjax.interop.torch_"))
    or module in ("fusionjax.options", "fusionjax.embedded")
]


@pytest.mark.parametrize("path", WITHOUT_JAX, ids=lambda path: module_of(path))
def test_what_needs_no_jax_imports_none_later_either(path):
    for other, line in imports(path, lazy=True):
        top = other.partition(".")[0]
        assert top not in ("jax", "flax", "optax", "orbax"), f"line {line} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_of(path))
def test_files_are_read_in_one_sitting(path):
    name = str(path.relative_to(ROOT))
    assert name in DRAWING_TABLES or len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_what_the_page_names_is_there():
    names = set(re.findall(r"`((?:[\w.]+/)+[\w.]*|[\w/]+\.(?:py|md|yaml|toml))`", PAGE))
    assert len(names) > 20
    missing = [
        name
        for name in names
        if not any((ROOT / top / name).exists() for top in (".", "fusionjax"))
    ]
    assert not missing


def test_every_room_is_on_the_page():
    rooms = {str(p.parent.relative_to(ROOT)) for p in FILES if p.parent != ROOT}
    assert not [room for room in rooms if f"`{room}/`" not in PAGE]


def test_functions_and_classes_that_the_page_names_are_there():
    defined = {
        node.name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    names = set(re.findall(r"`(\w+(?:\.\w+)?)`", PAGE)) - MODULES.keys()
    names = {name for name in names if not name.endswith(".py")}
    assert len(names) > 5
    assert not [name for name in names if not set(name.split(".")) <= defined]
