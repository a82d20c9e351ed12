"""Dry runs for hardware that is not here: names, arithmetic, what devices say to each other."""

import importlib.util
import json
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks import compiled, train_memory
from fusionjax.backend.hlo import Collective, collectives
from fusionjax.backend.program import matrix_flops
from fusionjax.backend.targets import target
from fusionjax.errors import UserError
from train.main import main


def is_installed(package):
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e:2x3", r"is 'v5e:2x3'; did you mean v5e:2x\d.*\? there are v100, a100, h100 with"),
        ("v10:2", r"did you mean v100:2"),
        ("v100:0", "did you mean v100"),
        ("v100:x", "v100, a100, h100 with :COUNT, and v5e, v5p, v6e with :COUNT or :LAYOUT"),
        ("h200", "is 'h200'; did you mean h100"),
        ("v5e:3", "did you mean v5e:.* with a layout of 2x2, 2x4, "),
        ("tpu" * 50, r"is '.{40}'; there are"),
    ],
)
def test_an_unknown_target_suggests_the_right_ones(name, message):
    with pytest.raises(UserError, match=message):
        target(name)


@pytest.mark.parametrize(
    ("name", "package", "extra", "devices"),
    [
        ("v5e:2x4", "libtpu", "tpu", 8),
        ("v5e", "libtpu", "tpu", 1),
        ("v5p:4", "libtpu", "tpu", 4),
        ("v6e:8", "libtpu", "tpu", 8),
        ("v100:2", "jax_plugins.xla_cuda12", "cuda12-v100", 2),
        ("a100", "jax_plugins.xla_cuda12", "cuda12", 1),
        ("h100:8", "jax_plugins.xla_cuda12", "cuda12", 8),
    ],
)
def test_a_target_is_devices_or_says_what_to_install(name, package, extra, devices):
    if is_installed(package):
        assert len(target(name).devices) == devices
    else:
        with pytest.raises(UserError, match=rf"{name} needs .*; pip install -e '.\[{extra}\]'"):
            target(name)


def test_a_target_goes_with_a_dry_run(capsys):
    assert main(["sd15_v100", "--target", "v100:2"]) == 2
    assert "--target is 'v100:2'; it goes with --dry-run" in capsys.readouterr().err
    assert main(["sd15_v100", "--dry-run", "--target=v99:2"]) == 2
    assert "error: --target is 'v99:2'; did you mean" in capsys.readouterr().err


def counted(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return matrix_flops(jax.jit(function).trace(*arguments).jaxpr)


def test_arithmetic_by_hand():
    product = 2 * 5 * 7 * 3
    assert counted(jnp.dot, (5, 7), (7, 3)) == product
    assert counted(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (4, 5, 7), (4, 7, 3)) == (
        4 * product
    )

    def convolve(x, w):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=layout)

    assert counted(convolve, (1, 8, 8, 6), (3, 3, 6, 5)) == 2 * 4 * 4 * 5 * 3 * 3 * 6


def test_loops_count_as_often_as_they_run_and_conditions_once():
    step = 2 * 4 * 4 * 4

    def loop(x, w):
        return jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=10)[0]

    def choose(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)

    assert counted(loop, (4, 4), (4, 4)) == 10 * step
    assert counted(choose, (4, 4), (4, 4)) == 2 * step
    # Forward, and backward the gradients of both arguments.
    both = jax.grad(lambda x, w: loop(x, w).sum(), argnums=(0, 1))
    assert counted(both, (4, 4), (4, 4)) == 3 * 10 * step
    # With rematerialisation the products inside are worked out once more.
    kept = jax.grad(lambda x, w: jnp.sin(x @ w).sum())
    again = jax.grad(lambda x, w: jax.checkpoint(lambda y: jnp.sin(y @ w))(x).sum())
    assert counted(kept, (4, 4), (4, 4)) == 2 * step
    assert counted(again, (4, 4), (4, 4)) == 3 * step


def test_collectives_are_read_from_a_programs_text():
    text = """
      %sum = (f32[320,320]{1,0:T(8,128)}, f32[]{:T(128)}) all-reduce(%a, %b), channel_id=1
      %begun = (f16[4,8]{1,0}, f16[8,8]{1,0}) all-gather-start(%x), dimensions={0}
      %ended = f16[8,8]{1,0} all-gather-done(%begun)
      ROOT %part = bf16[2,3]{1,0} reduce-scatter(%q), dimensions={0}
      %other = f32[2]{0} fusion(%all-reduce.1), calls=%all-gather_computation
      %flags = pred[4]{0} all-to-all(%p)
    """
    assert collectives(text) == [
        Collective("all-reduce", ((320, 320), ()), 4 * 320 * 320 + 4),
        Collective("all-gather", ((8, 8),), 2 * 64),
        Collective("reduce-scatter", ((2, 3),), 2 * 6),
        Collective("all-to-all", ((4,),), 4),
    ]


def test_the_benchmark_prints_what_it_knows_and_goes_on(tmp_path, monkeypatch, capsys):
    key = {"config": "c", "target": "t"}
    sizes = {"arguments_bytes": 2e9, "temporary_bytes": 3e9, "peak_bytes": None}
    done = {**key, **sizes, "images": 1, "remat": False, "flops": 4e12, "seconds": 61.0}
    failed = {**key, "images": 1, "remat": True, "error": "too | large"}
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (failed, done)))
    command = ["train_memory.py", "c", "t", "--images", "1", "--output", str(file)]
    monkeypatch.setattr(sys, "argv", command)
    train_memory.main()
    *_, first, second = capsys.readouterr().out.splitlines()
    assert first == "| 1 | no | 2.00 GB | 3.00 GB | unknown | 4.0 | 61 s |"
    assert second == "| 1 | yes | too / large | | | | |"
    assert len(file.read_text().splitlines()) == 2


def test_the_readme_shows_what_is_recorded():
    """Its rows are rows of the record, among them a step on every kind of hardware."""
    recorded = json.loads(compiled.RECORD.read_text())
    rows = compiled.table(recorded).splitlines()[2:]
    readme = compiled.RECORD.parent.parent / "README.md"
    shown = [line for line in readme.read_text().splitlines() if line in rows]
    for name in ("v100", "a100", "h100", "v5e"):
        assert any(line.startswith(f"| {name} | a step |") for line in shown)
    assert sum("a training step" in line for line in shown) == 4
    assert not compiled.worse(recorded, recorded)


def test_a_figure_that_grew_is_told():
    row = {"peak_bytes": 100, "temporary_bytes": 50, "moved_bytes": 1000}
    before = {"h100": {"a step": row}}
    assert not compiled.worse({"h100": {"a step": row | {"moved_bytes": 1090}}}, before)
    (told,) = compiled.worse({"h100": {"a step": row | {"moved_bytes": 1110}}}, before)
    assert told == "h100, a step: moved_bytes is 1,110, and 1,000 is recorded (1.11 of it)"
    (told,) = compiled.worse({"h100": {"decode": row}}, before)
    assert told == "h100, decode: nothing is recorded; --record does it"
    (told,) = compiled.worse({"h100": {"all programs": {"error": "ended"}}}, before)
    assert told == "h100, all programs: ended"
