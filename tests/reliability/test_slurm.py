"""The shipped sbatch script, with stand-ins for srun and scontrol: a signal, a requeue, the same folder and W&B run."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from jobs import ROOT, TINY

from consistency_models.storage.checkpoints import read

SRUN = """#!/bin/bash
# Two tasks, as srun would start them; a signal to the job step reaches both. The first argument is an option.
shift
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & tasks+=($!)
done
trap 'kill -USR1 "${tasks[@]}" 2>/dev/null' USR1
trap 'kill -TERM "${tasks[@]}" 2>/dev/null' TERM
echo $$ >step
highest=0
for task in "${tasks[@]}"; do
    while kill -0 $task 2>/dev/null; do wait $task; code=$?; done
    wait $task; code=$?
    [ $code -gt $highest ] && highest=$code
done
exit $highest
"""


@pytest.fixture
def cluster(tmp_path):
    """A folder to submit from, and `sbatch()`, which starts the job of number 4242 in it."""
    for name, content in {"srun": SRUN, "scontrol": '#!/bin/bash\necho "$@" >>requeued\n'}.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(content)
        program.chmod(0o755)
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "WANDB_MODE": "offline",
        **{"SLURM_JOB_ID": "4242", "SLURM_JOB_NAME": "consistency", "SLURM_NODELIST": "localhost"},
        **{"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0"},
    }
    tiny = [argument for argument in TINY if argument not in ("trainer=cpu", "logger=csv")]
    job = ["model=ict", "data=mixture", "data.batch_size=32", "trainer.accelerator=cpu", "trainer.max_steps=300"]
    job += ["callbacks.checkpoint.every_n_steps=20", *tiny]

    started = []

    def sbatch():
        command = ["bash", str(ROOT / "slurm/train.sbatch"), *job]
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True))
        return started[-1]

    yield tmp_path, sbatch
    for each in started:
        with suppress(ProcessLookupError):
            os.killpg(each.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGUSR1, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_requeued_job_goes_on_in_its_folder(sent, cluster):
    root, sbatch = cluster
    folder = root / "runs/slurm_4242"
    job = sbatch()
    latest = time.monotonic() + 240
    while job.poll() is None and not (folder / "checkpoints/last.ckpt").exists():
        assert time.monotonic() < latest
        time.sleep(0.05)
    os.kill(int(Path(root / "step").read_text()), sent)
    assert job.wait(120) == 75
    assert (folder / "STOPPED").read_text().startswith(f"stopped by {sent.name} after step ")
    assert (root / "requeued").read_text() == "requeue 4242\n"
    stopped = read(folder / "checkpoints/last.ckpt")["step"]
    assert 20 <= stopped < 300
    assert sbatch().wait(240) == 0
    assert (folder / "DONE").exists()
    assert [path.name for path in (root / "runs").iterdir()] == ["slurm_4242"]
    assert read(folder / "checkpoints/last.ckpt")["step"] == 300
    with open(folder / "metrics.csv") as file:
        assert [line.split(",")[0] for line in file][1:] == [str(k) for k in range(1, 301)]
    identity = (folder / "wandb_id").read_text()
    assert len(list(folder.glob(f"wandb/offline-run-*-{identity}"))) == 2


@pytest.mark.slow  # two processes import torch and Lightning
def test_tasks_without_the_script_share_the_folder_of_the_first(tmp_path):
    """Each task makes up a name of its own, from its clock."""
    port = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NAME": "consistency", "SLURM_NODELIST": "localhost"}
    code = "import sys; from consistency_models.app.multirun import broadcast_from_rank0 as b; print(b(sys.argv[1]))"
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", code, f"folder {rank}"],
            env={**os.environ, **port, "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (1, 0)
    ]
    assert [task.communicate(timeout=200)[0] for task in tasks] == ["folder 0\n"] * 2
