"""slurm/train.sbatch and the submitit launcher on a real Slurm: how each end of a job ends."""

import csv
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from consistency_models.storage.checkpoints import read

pytestmark = pytest.mark.cluster


def steps_of(folder):
    """The steps in metrics.csv."""
    with open(folder / "metrics.csv") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def assert_same(one, other):
    """Two checkpoints hold the same numbers to the last bit: weights, averages, target and optimiser."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, list | tuple):
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def process_of(running):
    """The process in the text of RUNNING."""
    return int(running.split()[0])


def test_a_preempted_job_ends_as_one_that_was_not(slurm):
    """With each logger; both jobs of the first node are preempted at once."""
    with_csv, with_wandb, other = jobs = [
        slurm.submit(f"logger={logger}", "trainer.max_steps=2000", options=[f"--nodelist={node}"])
        for logger, node in (("csv", "n1"), ("default", "n1"), ("csv", "n2"))
    ]
    preempted = (with_csv, with_wandb)
    for job in preempted:
        slurm.trains(job)
    slurm.preempt("n1")
    for job in preempted:
        slurm.restarted(job, 1)
        assert (slurm.folder_of(job) / "STOPPED").read_text().startswith("stopped by SIGTERM after step ")
        assert read(slurm.folder_of(job) / "checkpoints/last.ckpt")["step"] < 2000
    for job in jobs:
        slurm.wait(job, "COMPLETED")
        assert (slurm.folder_of(job) / "DONE").exists()
        assert steps_of(slurm.folder_of(job)) == list(range(1, 2001))
    end = read(slurm.folder_of(other) / "checkpoints/last.ckpt")
    for job in preempted:
        same = read(slurm.folder_of(job) / "checkpoints/last.ckpt")
        for part in ("step", "model", "ema", "target", "optimizer"):
            assert_same(same[part], end[part])
    folder = slurm.folder_of(with_wandb)
    identity = (folder / "wandb_id").read_text()
    assert len(list(folder.glob(f"wandb/offline-run-*-{identity}"))) == 2


@pytest.mark.slow
def test_a_signal_while_the_job_starts(slurm):
    """From the moment on at which there is something to send it to."""
    job = slurm.submit("logger=csv", "trainer.max_steps=5")
    for restarts, name in enumerate(("USR1", "TERM"), start=1):
        slurm.wait(job, "RUNNING", restarts - 1)
        slurm.until(lambda name=name: slurm.signal(job, name) or slurm.job(job)["JobState"] != "RUNNING")
        slurm.restarted(job, restarts)
    slurm.wait(job, "COMPLETED")
    assert (slurm.folder_of(job) / "DONE").exists()


@pytest.mark.slow
def test_a_job_near_its_time_limit_is_requeued(slurm):
    options = ["--time=1", "--signal=USR1@30"]  # Slurm looks at the time every half minute
    job = slurm.submit("logger=default", "trainer.max_steps=1000000", options=options)
    slurm.wait(job, "PENDING", 1)
    assert (slurm.folder_of(job) / "STOPPED").read_text().startswith("stopped by SIGUSR1 ")


@pytest.mark.slow
def test_a_cancelled_job_saves_and_is_not_requeued(slurm):
    job = slurm.submit("logger=default", "trainer.max_steps=1000000")
    slurm.trains(job)
    slurm.run("scancel", job)
    slurm.until(lambda: not slurm.run("squeue", "-h", "-j", job).strip())
    folder = slurm.folder_of(job)
    assert (folder / "STOPPED").read_text().startswith("stopped by SIGTERM after step ")
    assert (slurm.job(job)["JobState"], slurm.job(job)["Restarts"]) == ("CANCELLED", "0")
    assert steps_of(folder)[-1] == read(folder / "checkpoints/last.ckpt")["step"]


@pytest.mark.slow
def test_a_process_that_dies_by_a_signal_is_started_again_but_not_without_end(slurm):
    job = slurm.submit("logger=csv", "trainer.max_steps=1000000", options=["--export=ALL,MAX_RESTARTS=1"])
    slurm.trains(job)
    running = slurm.folder_of(job) / "RUNNING"
    first = running.read_text()
    os.kill(process_of(first), signal.SIGKILL)
    slurm.restarted(job, 1)
    slurm.until(lambda: running.read_text() != first)
    os.kill(process_of(running.read_text()), signal.SIGKILL)
    slurm.wait(job, "FAILED", 1)


@pytest.mark.slow
def test_a_job_that_is_stopped_before_each_save_is_not_requeued_without_end(slurm):
    """As where the time limit is shorter than the time of --signal."""
    job = slurm.submit("logger=csv", "trainer.max_steps=5", options=["--export=ALL,MAX_RESTARTS=0"])
    slurm.wait(job, "RUNNING")
    slurm.until(lambda: slurm.signal(job, "USR1") or slurm.job(job)["JobState"] == "FAILED")
    assert "not requeued: 0 restarts without a new checkpoint" in slurm.logs()


def assert_two_processes(folder, steps, parts):
    """Both processes trained each step once, and logged as one run in so many parts."""
    assert steps_of(folder) == list(range(1, steps + 1))
    assert json.loads((folder / "summary.json").read_text())["device"] == "2 x cpu"
    assert len(list(folder.glob("wandb/offline-run-*"))) == parts


@pytest.mark.slow
def test_of_an_array_of_two_processes_each_only_the_stopped_task_is_started_again(slurm):
    """One node with two tasks. The jobs have neighbouring numbers, from which the ports of their processes follow."""
    options = ["--array=0-1", "--ntasks-per-node=2"]
    array = slurm.submit("logger=default", "trainer.max_steps=1000", options=options)
    tasks = [f"{array}_{task}" for task in (0, 1)]
    for task in tasks:
        slurm.trains(task)
    stopped = next(task for task in tasks if slurm.job(task)["JobId"] == array)  # its number is that of the array
    slurm.signal(stopped, "USR1")
    slurm.restarted(stopped, 1)
    assert "after step " in (slurm.folder_of(stopped) / "STOPPED").read_text()
    for task in tasks:
        slurm.wait(task, "COMPLETED")
        assert slurm.job(task)["Restarts"] == str(int(task == stopped))
        assert json.loads((slurm.folder_of(task) / "summary.json").read_text())["seed"] == int(task[-1])
        assert_two_processes(slurm.folder_of(task), 1000, parts=1 + (task == stopped))


def test_two_nodes_stop_and_continue_together(slurm):
    job = slurm.submit("logger=default", "trainer.max_steps=1000", options=["--nodes=2"])
    slurm.trains(job)
    slurm.signal(job, "USR1")
    slurm.restarted(job, 1)
    assert "after step " in (slurm.folder_of(job) / "STOPPED").read_text()
    slurm.wait(job, "COMPLETED")
    assert_two_processes(slurm.folder_of(job), 1000, parts=2)


@pytest.mark.slow
def test_the_job_of_a_node_that_fails_continues_on_another(slurm):
    job = slurm.submit("logger=csv", "trainer.max_steps=1500")
    slurm.trains(job)
    node = slurm.job(job)["NodeList"]
    for word in (f"slurmd -N {node}", "slurmstepd", "train.py"):
        assert slurm.kill(word)
    slurm.restarted(job, 1)
    slurm.wait(job, "COMPLETED")
    assert slurm.job(job)["NodeList"] != node
    assert steps_of(slurm.folder_of(job)) == list(range(1, 1501))


@pytest.mark.slow
def test_a_training_that_outlives_the_daemon_of_its_node_leaves_the_folder_to_the_requeued_job(slurm):
    """Slurm gives up the node; training, step and script live on there, and know nothing of it."""
    job = slurm.submit("logger=csv", "trainer.max_steps=20000")
    slurm.trains(job)
    folder, node = slurm.folder_of(job), slurm.job(job)["NodeList"]
    first = (folder / "RUNNING").read_text()
    assert slurm.kill(f"slurmd -N {node}") == 1
    slurm.restarted(job, 1)
    slurm.until(lambda: (folder / "RUNNING").read_text() != first)
    assert slurm.processes("train.py")
    slurm.until(lambda: not Path(f"/proc/{process_of(first)}").exists())
    step = read(folder / "checkpoints/last.ckpt")["step"]
    slurm.until(lambda: read(folder / "checkpoints/last.ckpt")["step"] > step)
    now = slurm.job(job)
    assert (now["JobState"], now["Restarts"]) == ("RUNNING", "1")
    assert now["NodeList"] != node
    slurm.signal(job, "USR1")
    slurm.wait(job, "PENDING", 2)
    assert steps_of(folder) == list(range(1, 1 + read(folder / "checkpoints/last.ckpt")["step"]))


def test_jobs_of_submitit_resume_after_a_preemption_and_after_submitit_s_own_signal(slurm):
    launcher = ("hydra/launcher=submitit_slurm", "hydra.launcher.partition=low", "hydra.launcher.cpus_per_task=2")
    arguments = ("-m", "seed=0,1", *launcher, *slurm.tiny, "logger=csv", "trainer.max_steps=1500")
    with subprocess.Popen(["python", "train.py", *arguments], cwd=slurm.work, env=slurm.environment) as sweep:
        slurm.until(lambda: len(list(slurm.work.glob("runs/*/*/*/checkpoints/last.ckpt"))) == 2)
        preempted, other = (
            slurm.run("squeue", "-h", "-r", "-o", "%i", f"--nodelist={node}").strip() for node in ("n1", "n2")
        )
        slurm.preempt("n1")
        slurm.signal(other, "USR2")
        for job in (preempted, other):
            slurm.restarted(job, 1)
        assert sweep.wait(timeout=300) == 0
    (rows,) = slurm.work.glob("runs/*/*/jobs.csv")
    with open(rows) as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["DONE", "DONE"]
    for job in (0, 1):
        assert steps_of(rows.parent / f"{job}") == list(range(1, 1501))
