"""slurm/train.sbatch and the submitit launcher on a real Slurm: how each end of a job ends."""

import csv

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


@pytest.mark.parametrize("logger", ["csv", "default"])
def test_a_preempted_job_ends_as_one_that_was_not(logger, slurm):
    jobs = [
        slurm.submit(f"logger={logger}", "trainer.max_steps=3000", options=[f"--nodelist={n}"]) for n in ("n1", "n2")
    ]
    slurm.trains(jobs[0])
    slurm.preempt("n1")
    slurm.restarted(jobs[0], 1)
    folder = slurm.folder_of(jobs[0])
    assert (folder / "STOPPED").read_text().startswith("stopped by SIGTERM after step ")
    assert read(folder / "checkpoints/last.ckpt")["step"] < 3000
    for job in jobs:
        slurm.wait(job, "COMPLETED")
        assert (slurm.folder_of(job) / "DONE").exists()
        assert steps_of(slurm.folder_of(job)) == list(range(1, 3001))
    ends = [read(slurm.folder_of(job) / "checkpoints/last.ckpt") for job in jobs]
    for part in ("step", "model", "ema", "target", "optimizer"):
        assert_same(*(end[part] for end in ends))
    if logger == "default":
        identity = (folder / "wandb_id").read_text()
        assert len(list(folder.glob(f"wandb/offline-run-*-{identity}"))) == 2
