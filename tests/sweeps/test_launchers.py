"""Every way to run the jobs of a multirun gives one folder and one W&B run a job, and one jobs.csv."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from omegaconf import OmegaConf

from consistency_models.app.sweep_folder import SweepFolder
from hydra_plugins.consistency_models.processes import Processes

ROOT = Path(__file__).parents[2]
TINY = (
    *("data=mixture", "data.batch_size=16", "trainer=cpu", "trainer.max_steps=4", "callbacks.samples=null"),
    *("callbacks.validation=null", "callbacks.progress=null", "callbacks.checkpoint.every_n_steps=2", "logger=csv"),
)
TWO_PROCESSES = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "logger=default")


def start(folder, *arguments, launcher=(sys.executable,)):
    return subprocess.Popen(
        [*launcher, str(ROOT / "train.py"), *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def train(folder, *arguments, launcher=(sys.executable,)):
    process = start(folder, *arguments, launcher=launcher)
    output = process.communicate(timeout=300)[0]
    return process.returncode, output


def sweep_of(folder):
    (file,) = folder.glob("runs/*/*/jobs.csv")
    return file.parent


def rows_of(sweep):
    with open(sweep / "jobs.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_one_run_a_job(sweep, jobs):
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == [str(i) for i in range(jobs)]
    assert [row["status"] for row in rows_of(sweep)] == ["DONE"] * jobs
    for job in map(str, range(jobs)):
        assert (sweep / job / "DONE").exists()
        assert len(list((sweep / job / "wandb").glob("offline-run-*"))) == 1


@pytest.mark.slow  # 45 s of both cores; tests/test_ddp.py has two processes, the tests above have the launcher
def test_two_processes_train_each_job_of_a_multirun(tmp_path):
    code, output = train(tmp_path, "-m", "seed=0,1", *TINY, *TWO_PROCESSES)
    assert code == 0, output
    assert_one_run_a_job(sweep_of(tmp_path), 2)


@pytest.mark.slow
def test_a_multirun_under_torchrun(tmp_path):
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    code, output = train(tmp_path, "-m", "seed=0,1", *TINY, *TWO_PROCESSES, launcher=launcher)
    assert code == 0, output
    assert_one_run_a_job(sweep_of(tmp_path), 2)


@pytest.mark.slow
def test_jobs_as_processes(tmp_path):
    """Two at a time; one of the three is refused by the teacher's network and fails, which harms no other."""
    axes = ("-m", "optimizer.lr=1e-3,1e30", "seed=0", "hydra/launcher=processes", "hydra.launcher.jobs=2")
    code, output = train(tmp_path, *axes, *TINY)
    sweep = sweep_of(tmp_path)
    assert code == 3, output
    assert [(row["status"], row["exit_code"]) for row in rows_of(sweep)] == [("DONE", "0"), ("FAILED", "3")]
    assert "NaN or Inf" in (sweep / "1/FAILED").read_text()
    assert "1 DONE, 1 FAILED" in (sweep / "summary.md").read_text()
    before = (sweep / "0/DONE").stat().st_mtime_ns
    assert train(tmp_path, *axes, *TINY)[0] == 3  # the same command: the failed one again, in the same folder
    assert sweep_of(tmp_path) == sweep
    assert (sweep / "0/DONE").stat().st_mtime_ns == before


def test_gpus_are_named_as_the_environment_wants_them():
    places = Processes(jobs=3, gpus=[0, 2]).places()
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places] == ["0", "2", "0"]


def test_a_job_that_cannot_be_started_keeps_no_place(tmp_path, monkeypatch):
    """The next one would wait for it for ever."""
    launcher, full = Processes(jobs=1), OSError("No space left on device")
    launcher.config = OmegaConf.create({"hydra": {"job": {"num": 0}, "sweep": {"dir": str(tmp_path)}}})
    launcher.config.hydra.sweep.subdir = "${hydra.job.num}"
    monkeypatch.setattr(launcher, "_wait_for", Mock(side_effect=full))
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(OSError, match="No space left"):
        launcher.launch([["seed=0"], ["seed=1"]], 0)


@pytest.mark.slow
def test_a_test_after_a_killed_launcher(tmp_path):
    """The training is done, its test is not, and nobody has noted either."""
    axes = ("-m", "seed=0,1", "hydra/launcher=processes", "hydra.launcher.jobs=2", *TINY, "test=true", "evaluation.n=8")
    code, output = train(tmp_path, *axes, "evaluation.ode_points=0")
    assert code == 0, output
    sweep = sweep_of(tmp_path)
    SweepFolder(sweep).note("1", rows_of(sweep)[1]["overrides"].split())
    before = (sweep / "1/checkpoints/last.ckpt").stat().st_mtime_ns
    (sweep / "1/evaluation/evaluation.json").unlink()
    code, output = train(tmp_path, *axes, "evaluation.ode_points=0")
    assert code == 0, output
    assert sweep_of(tmp_path) == sweep
    assert [row["status"] for row in rows_of(sweep)] == ["DONE"] * 2
    assert (sweep / "1/evaluation/evaluation.json").exists()
    assert (sweep / "1/checkpoints/last.ckpt").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGHUP, signal.SIGHUP]])  # a closed terminal sends two
def test_a_signal_stops_all_processes_and_the_same_command_goes_on(numbers, tmp_path):
    arguments = (
        "-m",
        "seed=0,1,2",
        "hydra/launcher=processes",
        "hydra.launcher.jobs=2",
        *TINY,
        "trainer.max_steps=600",
    )
    process = start(tmp_path, *arguments)
    while len(list(tmp_path.glob("runs/*/*/*/checkpoints/last.ckpt"))) < 2 and process.poll() is None:
        time.sleep(0.05)
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.1)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 75, output
    sweep = sweep_of(tmp_path)
    assert [row["status"] for row in rows_of(sweep)] == ["STOPPED", "STOPPED", "WAITING"]
    code, output = train(tmp_path, *arguments)
    assert code == 0, output
    assert sweep_of(tmp_path) == sweep
    assert [row["status"] for row in rows_of(sweep)] == ["DONE"] * 3
    assert (sweep / "1/summary.json").read_text().count('"parent": null') == 0  # it went on


@pytest.mark.slow
def test_slurm_s_launcher_with_its_local_executor(tmp_path):
    code, output = train(tmp_path, "-m", "seed=0,1", "hydra/launcher=submitit_local", *TINY, "logger=default")
    assert code == 0, output
    sweep = sweep_of(tmp_path)
    assert [row["status"] for row in rows_of(sweep)] == ["DONE"] * 2
    assert all(len(list((sweep / job / "wandb").glob("offline-run-*"))) == 1 for job in "01")


@pytest.mark.slow
def test_the_memory_of_a_job_is_given_back(tmp_path):
    code = """
import gc, sys
from pathlib import Path
from lightning import LightningModule
from consistency_models.app.main import main
root = Path(sys.argv.pop(1))
assert main("train", root) == 0
print("left:", sum(isinstance(thing, LightningModule) for thing in gc.get_objects()))
"""
    axes = ("-m", "seed=0,1,2", *TINY)
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT), *axes], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.splitlines()[-1] == "left: 0", done.stdout + done.stderr


@pytest.mark.slow
def test_ray_with_two_local_workers(tmp_path):
    """Two jobs at a time; the one that fails harms no other, and its exit code is that of the multirun."""
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason='pip install -e ".[ray]"')
    workers = ("+hydra.launcher.ray.init.num_cpus=2", "+hydra.launcher.ray.init.include_dashboard=false")
    axes = ("-m", "optimizer.lr=1e-3,1e30", "hydra/launcher=ray", *workers, "+hydra.launcher.ray.remote.num_cpus=1")
    code, output = train(tmp_path, *axes, *TINY, "logger=default")
    sweep = sweep_of(tmp_path)
    assert code == 3, output
    assert "Started a local Ray instance" in output
    assert [(row["status"], row["exit_code"]) for row in rows_of(sweep)] == [("DONE", "0"), ("FAILED", "3")]
    assert all(len(list((sweep / job / "wandb").glob("offline-run-*"))) == 1 for job in "01")
