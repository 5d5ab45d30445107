"""A run's folder: made by one run only, and always with one state."""

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

import pytest

from consistency_models.app import folder as module
from consistency_models.app.folder import RunFolder, is_run_of, make_new_folder
from consistency_models.errors import Exit


def test_each_of_many_runs_of_one_second_makes_a_folder_of_its_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: make_new_folder(tmp_path / "runs/2026-01-01_00-00-00"), range(20)))
    assert len(set(made)) == 20
    names = {path.name for path in (tmp_path / "runs").iterdir()}
    assert names == {"2026-01-01_00-00-00", *(f"2026-01-01_00-00-00_{i}" for i in range(2, 21))}


@pytest.mark.parametrize("state", ["DONE", "FAILED", "STOPPED"])
def test_a_state_is_set_on_a_full_disk(state, tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    run.mark("RUNNING", "1\n")

    def full(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(module, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        run.mark(state, "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == [state]


def test_a_folder_that_was_moved_away_is_made_again(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.mark("RUNNING")
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    run.mark("DONE")
    assert [path.name for path in Path(tmp_path / "run").iterdir()] == ["DONE"]


def test_a_folder_is_created_when_it_is_claimed_not_when_it_is_read(tmp_path):
    run = RunFolder(tmp_path / "run")
    assert (run.state, run.read_overrides(), run.monitored) == (None, [], ("", None))
    assert not run.path.exists()
    with run.claimed() as is_free:
        assert is_free
        assert run.path.is_dir()


SUMMARY = '{"monitor": "val/sw", "metrics": {"final": {"val/sw": %s}}}'


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (SUMMARY % 1.5, ("val/sw", 1.5)),
        (SUMMARY % '"1.5"', ("val/sw", None)),
        (SUMMARY % "[1.5]", ("val/sw", None)),
        ('{"monitor": "val/sw", "metrics": {"final": {}}}', ("val/sw", None)),
        ('{"monitor": null, "metrics": {"final": {}}}', ("", None)),
        ('{"monitor": "val/sw", "metrics": 3}', ("", None)),
        ('{"monitor": ["val/sw"], "metrics": {"final": {}}}', ("", None)),
        ("[]", ("", None)),
        ("3", ("", None)),
        ("{cut off", ("", None)),
        ("[" * 100_000, ("", None)),
        ("\udcff", ("", None)),
    ],
)
def test_a_damaged_summary_has_no_monitored_metric(text, found, tmp_path):
    (tmp_path / "summary.json").write_bytes(text.encode(errors="surrogateescape"))
    assert RunFolder(tmp_path).monitored == found


def test_a_run_ends_when_another_process_has_taken_its_folder(tmp_path, monkeypatch):
    """And only then: not by another state, and not where the folder has been moved away."""
    codes = SimpleQueue()
    monkeypatch.setattr(module, "WATCH", 0.01)
    monkeypatch.setattr(os, "_exit", codes.put)
    run = RunFolder(tmp_path / "run")
    run.begin()
    with run.watched():
        for change in (lambda: run.mark("STOPPED"), lambda: run.path.rename(tmp_path / "elsewhere"), run.begin):
            change()
            with pytest.raises(Empty):
                codes.get(timeout=0.1)
        run.mark("RUNNING", f"{os.getpid()}\nanother node 01234567\n")
        assert codes.get(timeout=100) == Exit.STOPPED


def test_the_configuration_can_be_read_whatever_the_number_of_classes(tmp_path):
    run = RunFolder(tmp_path)
    for count, recorded in ((1_000, True), (21_841, False)):
        data = {"name": "image_folder", "class_names": [f"n{k:08d}" for k in range(count)]}
        run.write_config({"data": data, "seed": 3})
        kept = data if recorded else {"name": "image_folder"}
        assert run.read_config() == {"data": kept, "seed": 3}


@pytest.mark.parametrize(("job", "restarts", "free"), [("7", "1", True), ("7", "0", False), ("8", "1", False)])
def test_only_a_requeued_job_takes_its_folder_over(job, restarts, free, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0)
    run = RunFolder(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    run.begin()
    before = (tmp_path / "RUNNING").read_text()
    monkeypatch.setattr(module, "TOKEN", "of this process")
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    trains = ExitStack()
    assert trains.enter_context(run.claimed())

    found = []

    def claim():
        with RunFolder(tmp_path).claimed() as is_free:
            found.append(is_free)

    requeued = Thread(target=claim)
    requeued.start()
    with trains:
        while requeued.is_alive() and (tmp_path / "RUNNING").read_text() == before:
            time.sleep(0.01)
    requeued.join()
    assert found == [free]
    assert ((tmp_path / "RUNNING").read_text() == before) is not free


def test_a_run_is_recognised_by_the_present_names_of_its_overrides(tmp_path):
    (tmp_path / "overrides.yaml").write_text("[trainer.precision=bf16, sampler=chain, seed=1]")
    assert is_run_of(tmp_path, ["trainer.precision=bf16-mixed", "sampler=segments", "seed=1"])
    assert not is_run_of(tmp_path, ["trainer.precision=bf16-mixed", "sampler=segments", "seed=2"])
