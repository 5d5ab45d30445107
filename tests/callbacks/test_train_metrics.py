"""Metrics of a training step: what counts as time of training."""

import csv
import time

from jobs import run

from consistency_models.callbacks.samples import SampleGrids
from consistency_models.errors import Exit


def test_pictures_do_not_slow_the_training(tmp_path, monkeypatch):
    """A picture between two rows, or at a row, is not in images/s."""
    monkeypatch.setattr(SampleGrids, "draw", lambda *_: time.sleep(2))
    arguments = ("trainer=cpu", "logger=csv", "callbacks.validation=null", "callbacks.progress=null", "data=mixture")
    arguments += ("data.batch_size=8", "trainer.max_steps=30", "callbacks.metrics.every_n_steps=10")
    assert run(tmp_path, *arguments, "callbacks.samples.every_n_steps=15") == Exit.DONE
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = [float(row["train/images_per_second"]) for row in csv.DictReader(file) if row["train/images_per_second"]]
    assert len(rows) == 3
    assert min(rows[1:]) > 80 / 1.5  # ten steps of 8 images; with the pause at most 40
