"""The ablation's command lines, as its config's own docstring tells them."""

import ast
import functools
import shlex
from pathlib import Path

import pytest

from train.main import read_config

CONFIG = Path(__file__).parents[1] / "configs" / "sd15_ablation.py"
TEXT = ast.get_docstring(ast.parse(CONFIG.read_text(encoding="utf-8")))


def flat(values, before=""):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


@functools.cache
def arms(name):
    """The runs whose command lines name a config, by their folders."""
    lines = TEXT.splitlines()  # Python has joined those that end in a backslash
    words = [shlex.split(line) for line in lines if line.strip().startswith("python -m train")]
    runs = [read_config(each[3:]) for each in words if each[3].endswith(name)]
    return {run.output.rpartition("/")[2].rpartition("_")[2]: run for run in runs}


@pytest.mark.parametrize("name", ["sd15_ablation.py", "mini"])
def test_arms_differ_in_what_is_compared_and_in_nothing_else(name):
    runs = arms(name)
    assert {arm: (run.fusion.fusion, run.fusion.reference) for arm, run in runs.items()} == {
        "concat": ("concat", "clean"),
        "decoupled": ("decoupled", "clean"),
        "matched": ("concat", "matched"),
    }
    first = dict(flat(runs["concat"].to_json()))
    different = {
        arm: {key for key, value in flat(run.to_json()) if first[key] != value}
        for arm, run in runs.items()
    }
    assert different == {
        "concat": set(),
        "decoupled": {"output", "fusion.fusion", "fusion.face_logit_bias"},
        "matched": {"output", "fusion.reference"},
    }
    assert len({run.output for run in runs.values()}) == 3
    assert runs["concat"].fusion.init == "query"  # vf begins at zero


def test_the_budget_is_told():
    run = arms("sd15_ablation.py")["concat"]
    assert f"{run.steps:,} steps of {run.batch_size} pictures" in " ".join(TEXT.split())
