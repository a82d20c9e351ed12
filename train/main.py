"""The command line of `python -m train`."""

import contextlib
import difflib
import importlib.util
import io
import logging
import os
import sys
from pathlib import Path

CPU_SETTINGS = {
    # Measured on 2 cores: 0.85 s a step with these, 1.3 s without.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "XLA_FLAGS": "--xla_force_host_platform_device_count={cores} "
    "--xla_cpu_multi_thread_eigen=false",
}


def main(arguments: list[str]) -> int:
    """Reads the config file and the overrides, and trains.

    Args:
        arguments: the command line without the program's name.

    Returns:
        The exit status: 0, or 2 after an error that the user can mend.
    """
    _use_cpu_settings(arguments)
    # Orbax reports its every file there.
    logging.getLogger("absl").setLevel(logging.ERROR)
    from fusionjax.errors import UserError

    try:
        trial = "--dry-run" in arguments
        config = read_config([a for a in arguments if a != "--dry-run"])
        if trial:
            from train.dry_run import dry_run, report

            print(report(config, dry_run(config)))
            return 0
        _join(config)
        from train.loop import run

        run(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def read_config(arguments: list[str]):  # type: ignore[no-untyped-def]
    """The config file that the command line names, with its overrides.

    Args:
        arguments: an optional config (a path, or a name in configs/) and `--field value` pairs.

    Returns:
        The run.

    Raises:
        UserError: if there is no such config, or a value is out of range.
    """
    import tyro

    from fusionjax.errors import UserError

    named = bool(arguments) and not arguments[0].startswith("-")
    path = _config_path(arguments[0] if named else "mini")
    spec = importlib.util.spec_from_file_location(f"configs.{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    default = module.config
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                type(default),
                default=default,
                args=arguments[1:] if named else arguments,
                prog=f"python -m train {path}",
                description=module.__doc__,
                config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
            )
    except SystemExit as stopped:
        if isinstance(stopped.__context__, UserError):  # a value that the configuration refuses
            raise stopped.__context__ from None
        sys.stderr.write(said.getvalue())
        raise


def _join(config) -> None:  # type: ignore[no-untyped-def]
    """Meets the other processes of a run on several hosts."""
    d = config.distributed
    if not (d.enabled or d.coordinator):
        return
    import jax

    # CPU processes need a library for their collectives; others ignore this.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        d.coordinator, d.processes, d.process, heartbeat_timeout_seconds=d.heartbeat_timeout_s
    )


def _config_path(name: str) -> Path:
    """Finds a config by path, or by its name in configs/."""
    from fusionjax.errors import UserError

    shelf = Path(__file__).parent.parent / "configs"
    for path in (Path(name), shelf / f"{name}.py", shelf / name):
        if path.is_file():
            return path
    known = sorted(path.stem for path in shelf.glob("*.py"))
    near = difflib.get_close_matches(Path(name).stem, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    raise UserError(f"there is no config {name!r}; {hint}")


def _use_cpu_settings(arguments: list[str]) -> None:
    """On a machine without an accelerator, starts again with the settings that train fastest.

    They must be in the environment before the process starts. Whoever has set any of them, or
    JAX_PLATFORMS, is left alone.
    """
    if any(name in os.environ for name in (*CPU_SETTINGS, "JAX_PLATFORMS")):
        return
    if any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/accel0", "/dev/vfio")):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    settings = {name: value.format(cores=min(cores, 4)) for name, value in CPU_SETTINGS.items()}
    os.environ.update(settings, JAX_PLATFORMS="cpu")
    os.execv(sys.executable, [sys.executable, "-m", "train", *arguments])
