"""Modules of ours as one file that needs none of them.

What `torch_alone.py` needs of this package is taken from it, definition by definition, so that
people who have PyTorch diffusers alone run the very code that runs here.
"""

import ast
import dataclasses
from pathlib import Path

ROOT = "fusionjax.interop.torch_alone"
_FOLDER = Path(__file__).parents[2]
_OURS = "fusionjax."
_FOR_TYPES = "jaxtyping"  # named in annotations alone, which the file does not evaluate


@dataclasses.dataclass
class _Module:
    """A module's top level.

    Attributes:
        lines: its text.
        doc: its docstring.
        defined: the statements that make each of its names.
        ours: names that it imports from modules of ours, with the module.
        outside: the line that imports each other name.
        whole: modules of ours that it names whole, which cannot be taken apart.
    """

    lines: list[str]
    doc: str
    defined: dict[str, list[ast.stmt]] = dataclasses.field(default_factory=dict)
    ours: dict[str, str] = dataclasses.field(default_factory=dict)
    outside: dict[str, str] = dataclasses.field(default_factory=dict)
    whole: set[str] = dataclasses.field(default_factory=set)


def one_file(root: str = ROOT) -> str:
    """The text of a module and of all that it needs of ours.

    Args:
        root: the module, all of whose names are kept.

    Returns:
        A Python file.

    Raises:
        ValueError: if two modules have different things of one name; that is for us to mend.
    """
    modules: dict[str, _Module] = {}
    wanted: dict[str, set[str]] = {}
    order: list[str] = []

    def want(module: str, name: str) -> None:
        if name in wanted.setdefault(module, set()):
            return
        wanted[module].add(name)
        its = modules.setdefault(module, _parsed(module))
        for statement in its.defined[name]:
            for other in _names(statement):
                if other in its.whole:
                    raise ValueError(f"{module}: {name} needs the whole module {other}")
                if other in its.ours:
                    want(its.ours[other], other)
                elif other in its.defined:
                    want(module, other)

    def put_in_order(module: str) -> None:
        for other in modules[module].ours.values():
            if other in wanted and other not in order:
                put_in_order(other)
        if module not in order:
            order.append(module)

    modules[root] = _parsed(root)
    for name in modules[root].defined:
        want(root, name)
    for name, module in modules[root].ours.items():
        want(module, name)
    put_in_order(root)
    names = [name for module in order for name in sorted(wanted[module])]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)}: of several modules; rename one")
    return _written(modules[root].doc, [(m, modules[m], wanted[m]) for m in order])


def _parsed(name: str) -> _Module:
    text = (_FOLDER / (name.replace(".", "/") + ".py")).read_text(encoding="utf-8")
    tree = ast.parse(text)
    module = _Module(text.splitlines(), ast.get_docstring(tree) or "")
    for node in tree.body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                here = alias.asname or alias.name.partition(".")[0]
                module.outside[here] = f"import {ast.unparse(alias)}"
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if node.module == _OURS.rstrip("."):
                    module.whole.add(alias.asname or alias.name)
                elif (node.module or "").startswith(_OURS):
                    module.ours[alias.asname or alias.name] = str(node.module)
                else:
                    line = f"from {node.module} import {ast.unparse(alias)}"
                    module.outside[alias.asname or alias.name] = line
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            module.defined[node.name] = [node]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for made in {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}:
                    module.defined.setdefault(made, []).append(node)
    return module


def _names(statement: ast.stmt) -> set[str]:
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}


def _written(doc: str, parts: list[tuple[str, _Module, set[str]]]) -> str:
    imports: dict[str, str] = {}
    text = ""
    for name, module, wanted in parts:
        statements = {s.lineno: s for one in wanted for s in module.defined[one]}
        if not statements:
            continue
        text += f"\n\n# {name}: {module.doc.partition(chr(10))[0]}\n"
        before: ast.stmt | None = None
        for _, statement in sorted(statements.items()):
            for here in _names(statement) & module.outside.keys():
                if imports.setdefault(here, module.outside[here]) != module.outside[here]:
                    raise ValueError(f"{here} is imported from two places; rename one")
            values = all(isinstance(s, ast.Assign | ast.AnnAssign) for s in (before, statement))
            text += "" if values else "\n\n" if before else "\n"
            text += _text(module.lines, statement) + "\n"
            before = statement
    lines = sorted({*imports.values(), "from typing import TYPE_CHECKING"})
    for_types = [line for line in lines if f"from {_FOR_TYPES}" in line]
    head = [
        f'"""{doc}\n\nMade by `fusionjax export`, under the licence of fusionjax, Apache-2.0.\n"""',
        "from __future__ import annotations",
        "\n".join(line for line in lines if line.startswith("import ")),
        "\n".join(line for line in lines if line.startswith("from ") and line not in for_types),
        "\n    ".join(["if TYPE_CHECKING:", *(for_types or ["pass"])]),
    ]
    return "\n\n".join(head) + "\n" + text


def _text(lines: list[str], statement: ast.stmt) -> str:
    """A statement with its decorators and the comment above it."""
    decorators = getattr(statement, "decorator_list", [])
    first = min([statement.lineno, *(node.lineno for node in decorators)]) - 1
    while first and lines[first - 1].startswith("#"):
        first -= 1
    return "\n".join(lines[first : statement.end_lineno])
