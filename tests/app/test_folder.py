"""A run's folder: made by one run only, and always with one state."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from consistency_models.app import folder as module
from consistency_models.app.folder import RunFolder, make_new_folder


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
