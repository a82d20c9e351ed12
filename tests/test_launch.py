"""The scripts that start a run on many machines."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from fusionjax.data import mini_faces
from tests.test_train_processes import environment, lines, losses
from tests.tiny import tiny_base
from train.main import read_config

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "docs" / "launch"
# What SLURM's command does for two tasks on one machine.
SRUN = """#!/bin/bash
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=0 SLURM_NTASKS=2 SLURM_STEP_NODELIST=localhost "$@" &
    echo $! >> "$PIDS"
done
status=0
for pid in $(jobs -p); do wait "$pid" || status=$?; done
exit $status
"""
RUN = [
    "--data.build-people", "0", "--batch-size", "4", "--log-every-steps", "1",
    "--validation.every-steps", "30", "--validation.examples", "4", "--validation.grid-rows", "1",
    "--steps", "30",
]  # fmt: skip


@pytest.mark.slow
def test_slurm(tmp_path):
    tiny_base().save_pretrained(tmp_path / "base", dtype=np.float32)
    mini_faces.build(tmp_path / "faces", people=8, pictures_per_person=2, scenes=4, processes=1)
    tools = tmp_path / "environment" / "bin"
    tools.mkdir(parents=True)
    (tools / "activate").write_text(f'PATH="{tools}:{Path(sys.executable).parent}:$PATH"\n')
    for name, text in (("srun", SRUN), ("scontrol", '#!/bin/bash\necho "$@" >> "$ASKED"\n')):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    pids, asked, run = tmp_path / "pids", tmp_path / "asked", tmp_path / "runs" / "fusionjax"
    given = {
        "BASE": tmp_path / "base", "DATA": tmp_path / "faces", "RUNS": tmp_path / "runs",
        "ENVIRONMENT": tmp_path / "environment", "CONFIG": "mini", "PIDS": pids, "ASKED": asked,
        "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NAME": "fusionjax",
    }  # fmt: skip
    about = environment(tmp_path) | {name: str(value) for name, value in given.items()}

    def turn():
        words = ["bash", str(LAUNCH / "train.slurm"), *RUN]
        return subprocess.Popen(words, cwd=ROOT, env=about)

    first = turn()
    end = time.monotonic() + 600
    while len(lines(run)) < 5:
        assert time.monotonic() < end
        assert first.poll() is None
        time.sleep(0.02)
    for pid in pids.read_text().split():
        os.kill(int(pid), signal.SIGTERM)
    assert first.wait(300) == 0
    assert asked.read_text() == f"requeue {os.getpid()}\n"
    done = len(losses(run))
    assert 5 <= done < 30
    assert turn().wait(600) == 0
    assert (run / "adapter.safetensors").is_file()
    assert [step for step, _ in losses(run)] == list(range(1, 31))
    assert asked.read_text() == f"requeue {os.getpid()}\n"  # no third turn


def test_what_the_scripts_ask_of_a_run():
    """Their options exist, and processes and devices fit."""
    service, job = yaml.safe_load_all((LAUNCH / "train.k8s.yaml").read_text())
    spec = job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    words = [word.replace("$(JOB_COMPLETION_INDEX)", "3") for word in container["args"]]
    config = read_config([container["command"][3], *words])
    assert config.distributed.processes == spec["completions"] == spec["parallelism"]
    devices = spec["completions"] * container["resources"]["limits"]["nvidia.com/gpu"]
    config.check_batch(devices)
    name = service["metadata"]["name"]
    assert config.distributed.coordinator.startswith(f"{job['metadata']['name']}-0.{name}:")
    assert spec["template"]["spec"]["subdomain"] == name
    for script in ("train.slurm", "train.tpu.sh"):
        text = (LAUNCH / script).read_text()
        subprocess.run(["bash", "-n", str(LAUNCH / script)], check=True)
        assert "--distributed.enabled True" in text
    assert read_config(["sd15_tpu_v5e", "--distributed.enabled", "True"]).distributed.enabled
