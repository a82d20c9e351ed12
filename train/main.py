"""The command line of `python -m train`."""

import contextlib
import difflib
import importlib.util
import io
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from fusionjax.command import run_command, typed_as, versions
from fusionjax.errors import UserError

CPU_SETTINGS = {
    # Measured on 2 cores: 0.85 s a step with these, 1.3 s without.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "XLA_FLAGS": "--xla_force_host_platform_device_count={devices} "
    "--xla_cpu_multi_thread_eigen=false",
}

# NVIDIA's GPUs (in WSL too), AMD's, and TPUs.
ACCELERATORS = ("nvidia[0-9]*", "dxg", "kfd", "accel*", "vfio")

TRIAL = """--dry-run compiles the step, tells what it needs, and stops; with --target NAME it does
so for hardware that is not here: v100, a100, h100, v5e, v5p, v6e, with :COUNT for several.
--version tells the versions of this and of what it rests on."""


def main(arguments: list[str]) -> int:
    """Reads the config file and the overrides, and trains.

    Args:
        arguments: the command line without the program's name.

    Returns:
        The exit status: 0, or 2 after an error that the user can mend.
    """

    def body() -> int:
        if "--version" in arguments:
            print(versions())
            return 0
        rest, trial, hardware = _trial(arguments)
        config = read_config(rest)
        use_cpu_settings()
        if not trial:
            return _train(config)
        from fusionjax.backend.targets import target
        from train.dry_run import dry_run, report

        chosen = target(hardware) if hardware else None
        print(report(config, dry_run(config, chosen), chosen))
        return 0

    return run_command(body)


def read_config(arguments: list[str]) -> Any:
    """The config file that the command line names, with its overrides.

    Args:
        arguments: an optional config (a path, or a name in configs/) and `--field value` pairs.

    Returns:
        The run.

    Raises:
        UserError: if there is no such config, or a value is out of range.
    """
    import tyro

    named = bool(arguments) and not arguments[0].startswith("-")
    default, about = _default(arguments[0] if named else None, arguments)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                type(default),
                default=default,
                args=arguments[1:] if named else arguments,
                prog=f"{typed_as('train')} {arguments[0] if named else 'mini'}",
                description=f"{about}\n\n{TRIAL}",
                config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
            )
    except SystemExit as stopped:
        if isinstance(stopped.__context__, UserError):  # a value that the configuration refuses
            raise stopped.__context__ from None
        if not stopped.code:  # --help
            raise
        raise UserError(_in_a_line(said.getvalue())) from None


def _default(name: str | None, arguments: list[str]) -> tuple[Any, str]:
    """The run before what the command line says, and what its help begins with."""
    output = next((w.partition("=")[2] for w in arguments if w.startswith("--output=")), None)
    if "--output" in arguments[:-1]:
        output = arguments[arguments.index("--output") + 1]
    if name is None and output is not None and Path(output, "config.json").is_file():
        from train.resume import own_config

        return own_config(Path(output)), f"The run in {output} goes on."
    path = _config_path(name or "mini")
    spec = importlib.util.spec_from_file_location(f"configs.{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.config, str(module.__doc__)


def _in_a_line(boxed: str) -> str:
    """What tyro says in a box of many lines: what is wrong, and what may have been meant."""
    parts: list[list[str]] = [[]]
    for line in boxed.splitlines():
        text = line.strip("│╭╮╰╯─ ")  # some terminals have a frame, others dashes
        if text.strip("- "):
            parts[-1].append(text)
        if line.startswith("╭") or not text.strip("- "):
            parts.append([])
    _title, told, *rest = (part for part in parts if part)
    wrong = " ".join(told)
    if wrong.startswith("Unrecognized"):
        wrong = f"{wrong.partition(': ')[2].partition(', ')[0]} is not known"
        close = next((text.split()[0] for part in rest for text in part if text[:2] == "--"), "")
        return f"{wrong}; did you mean {close}?" if close else f"{wrong}; --help lists all options"
    return f"{wrong}; --help tells of every option"


def _train(config: Any) -> int:
    """Trains, alone or with other processes; returns the exit status."""
    import jax

    from fusionjax.backend.compilation import full_memory_told, use_compilation_cache
    from fusionjax.files import full_disk_told
    from train.loop import run
    from train.processes import join, leave_the_others
    from train.step import LESS_MEMORY

    join(config.distributed)
    too_much = (
        f"batch_size {config.batch_size} does not fit the memory of {jax.device_count()} × "
        f"{jax.devices()[0].device_kind}; {LESS_MEMORY}"
    )
    if jax.process_count() == 1:
        # Of several processes only the first would write there, and the next time wait for the
        # others, which compile.
        use_compilation_cache()
        with full_disk_told(), full_memory_told(too_much, with_reason=True):
            run(config)
        return 0
    try:
        with full_disk_told(), full_memory_told(too_much, with_reason=True):
            run(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        leave_the_others(2)
    except jax.errors.JaxRuntimeError as error:
        print(
            f"error: process {jax.process_index()} of {jax.process_count()} cannot go on, most "
            "likely because another one ended; start them all again, and the run continues from "
            f"its newest checkpoint. {str(error).splitlines()[0]}",
            file=sys.stderr,
        )
        leave_the_others(1)
    except Exception:  # whatever it is, the others must not wait for this process
        traceback.print_exc()
        leave_the_others(1)
    return 0


def _trial(arguments: list[str]) -> tuple[list[str], bool, str | None]:
    """Takes `--dry-run` and `--target NAME` out of the command line.

    Returns:
        The rest, whether it is a dry run, and the target.
    """
    rest: list[str] = []
    hardware: str | None = None
    words = iter(arguments)
    for word in words:
        if word == "--target" or word.startswith("--target="):
            hardware = word.partition("=")[2] or next(words, "")
            if not hardware:
                raise UserError("--target names no hardware; write h100, v100:2 or v5e:2x4")
        elif word != "--dry-run":
            rest.append(word)
    trial = "--dry-run" in arguments
    if hardware is not None and not trial:
        raise UserError(f"--target is {hardware!r}; it goes with --dry-run, which trains nothing")
    return rest, trial, hardware


def _config_path(name: str) -> Path:
    """Finds a config by path, or by its name: here, in the checkout, in the package."""
    above = Path(__file__).parent.parent
    shelves = (Path("configs"), above / "configs", above / "fusionjax" / "configs")
    for path in (Path(name), *(shelf / each for shelf in shelves for each in (f"{name}.py", name))):
        if path.is_file():
            return path
    known = sorted({path.stem for shelf in shelves for path in shelf.glob("*.py")})
    near = difflib.get_close_matches(Path(name).stem, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    raise UserError(f"there is no config {name!r}; {hint}")


def use_cpu_settings() -> None:
    """On a machine without an accelerator, starts again with the settings that train fastest.

    They must be in the environment before the process starts. Whoever has set any of them, or
    JAX_PLATFORMS, is left alone.
    """
    if any(name in os.environ for name in (*CPU_SETTINGS, "JAX_PLATFORMS")):
        return
    if any(any(Path("/dev").glob(pattern)) for pattern in ACCELERATORS):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    # A power of two, which divides every usual batch.
    devices = 4 if cores >= 4 else 2 if cores >= 2 else 1
    settings = {name: value.format(devices=devices) for name, value in CPU_SETTINGS.items()}
    os.environ.update(settings, JAX_PLATFORMS="cpu")
    # As it was started: a module of that name in the current folder is not ours.
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
