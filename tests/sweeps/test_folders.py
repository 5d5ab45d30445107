"""A multirun is one thing: one folder, jobs that are done once, a summary, an exit code.  Here no job really trains."""

import csv
import os
import shutil
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml

from consistency_models.app import multirun
from consistency_models.app.folder import RunFolder
from consistency_models.app.sweep_folder import SweepFolder, varied
from consistency_models.errors import Exit

FOUR = ("-m", "loss=l1,l2", "seed=0,1", "logger=csv")
TWO = ("-m", "seed=0,1", "logger=csv")


def folders(runs="runs"):
    return sorted(Path(runs).glob("*/*/jobs.csv"))


def jobs(file):
    with open(file, newline="") as rows:
        return list(csv.DictReader(rows))


def fails(what):
    return lambda settings: Exit.NOT_FINITE if what(settings) else Exit.DONE


def test_jobs_and_what_they_found(train):
    assert train(*FOUR) == 0
    (file,) = folders()
    rows = jobs(file)
    assert [row["overrides"] for row in rows] == [
        f"loss={loss} seed={seed} logger=csv" for loss in ("l1", "l2") for seed in (0, 1)
    ]
    assert [(row["status"], row["monitor"], row["exit_code"]) for row in rows] == [
        ("DONE", "10.0", "0"), ("DONE", "11.0", "0"), ("DONE", "10.0", "0"), ("DONE", "11.0", "0"),
    ]  # fmt: skip
    summary = (file.parent / "summary.md").read_text()
    assert "4 jobs: 4 DONE" in summary
    assert "| `loss=l1` | val/sw_1step | 10.5 | 0.71 | 2 |" in summary
    assert yaml.safe_load((file.parent / "0/config.yaml").read_text())["seed"] == 0


@pytest.mark.parametrize("text", ["[]", "3", "garbage", '{"metrics": 3}'])
def test_a_job_with_a_damaged_summary_is_done(text, tmp_path):
    sweep = SweepFolder(tmp_path)
    sweep.begin(["seed=0"], [["seed=0"]])
    RunFolder(tmp_path / "0").mark("DONE")
    (tmp_path / "0/summary.json").write_text(text)
    sweep.note("0", ["seed=0"], 0)
    assert [(row["status"], row["monitor"]) for row in jobs(tmp_path / "jobs.csv")] == [("DONE", "")]
    assert "1 DONE" in (tmp_path / "summary.md").read_text()


def test_one_failure_lets_the_others_go_on_and_is_told(train):
    train.outcome = fails(lambda settings: settings["seed"] == 0 and settings["loss"]["_target_"].endswith("L1"))
    assert train(*FOUR) == Exit.NOT_FINITE
    (file,) = folders()
    assert [row["status"] for row in jobs(file)] == ["FAILED", "DONE", "DONE", "DONE"]
    summary = (file.parent / "summary.md").read_text()
    assert "1 FAILED, 3 DONE" in summary
    assert "error: told why" in summary
    assert (file.parent / "0/FAILED").exists()


def test_the_same_command_does_what_is_not_done(train):
    train.outcome = fails(lambda settings: settings["seed"] == 1)
    assert train(*TWO) == Exit.NOT_FINITE
    train.outcome = fails(lambda settings: False)
    assert train(*TWO) == 0
    assert [settings["seed"] for settings in train.ran] == [1]
    (file,) = folders()
    assert {row["status"] for row in jobs(file)} == {"DONE"}
    assert {row["exit_code"] for row in jobs(file)} == {"0"}


def test_it_may_go_on_with_another_launcher(train):
    train.outcome = fails(lambda settings: settings["seed"] == 1)
    train(*TWO, "hydra/launcher=processes")
    train.outcome = fails(lambda settings: False)
    assert train(*TWO) == 0
    (file,) = folders()
    assert {row["status"] for row in jobs(file)} == {"DONE"}


def test_when_all_is_done_the_same_command_is_a_new_multirun(train):
    folder = ("hydra.sweep.dir=runs/x/${now:%H%M%S%f}",)
    assert train(*TWO, *folder) == train(*TWO, *folder) == 0
    assert len(train.ran) == 2
    assert len(folders()) == 2


def test_another_command_goes_on_with_nothing(train):
    train.outcome = fails(lambda settings: True)
    folder = ("hydra.sweep.dir=runs/x/${now:%H%M%S%f}",)
    train(*TWO, *folder)
    train(*TWO, *folder, "trainer.max_steps=7")
    assert len(train.ran) == 2
    assert len(folders()) == 2


def test_a_job_that_has_begun_goes_on_from_its_checkpoint(train):
    train.outcome = fails(lambda settings: settings["seed"] == 1)
    train(*TWO)
    (file,) = folders()
    checkpoint = file.parent / "1/checkpoints/last.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"PK" + b"sha256:" + b"0" * 64)
    train.outcome = fails(lambda settings: False)
    assert train(*TWO) == 0
    assert [settings["ckpt_path"] for settings in train.ran] == [str(file.parent.absolute() / "1")]


def test_a_folder_that_is_named_is_gone_on_in_too(train):
    """Though it has checkpoints, which another command would overwrite."""
    named = (*TWO, "hydra.sweep.dir=here")
    train.outcome = fails(lambda settings: settings["seed"] == 1)
    train(*named)
    checkpoint = Path("here/1/checkpoints/last.ckpt")
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"PK" + b"sha256:" + b"0" * 64)
    train.outcome = fails(lambda settings: False)
    assert train(*named) == 0
    assert len(train.ran) == 1
    assert train(*named, "trainer.max_steps=7") == Exit.BAD_INPUT
    assert train.ran == []


def unnoted(file, job):
    """As after a kill between the end of a training and its note."""
    sweep = SweepFolder(file.parent)
    sweep.note(job, next(row["overrides"] for row in sweep.rows() if row["job"] == job).split())


@pytest.mark.parametrize("launcher", [(), ("hydra/launcher=processes",)])
def test_a_job_that_is_done_but_not_noted_is_noted(train, launcher):
    assert train(*TWO) == 0
    (file,) = folders()
    unnoted(file, "1")
    assert train(*TWO, *launcher) == 0
    assert train.ran == []
    assert folders() == [file]
    assert [(row["status"], row["monitor"], row["exit_code"]) for row in jobs(file)][1] == ("DONE", "11.0", "0")
    assert "2 jobs: 2 DONE" in (file.parent / "summary.md").read_text()


def test_a_test_that_was_killed_is_done(train, monkeypatch):
    tested = []

    def run_task(config):
        tested.append(config["run"])
        written = Path(config["run"]) / "evaluation/evaluation.json"
        written.parent.mkdir(exist_ok=True)
        written.touch()
        return Exit.DONE

    monkeypatch.setattr("consistency_models.app.tasks.run_task", run_task)
    assert train(*TWO, "test=true") == 0
    (file,) = folders()
    folder = str(file.parent.absolute() / "1")
    assert tested[1] == folder
    unnoted(file, "1")
    assert train(*TWO, "test=true") == 0
    assert len(tested) == 2  # it had ended
    unnoted(file, "1")
    Path(folder, "evaluation/evaluation.json").unlink()
    assert train(*TWO, "test=true") == 0
    assert tested[2:] == [folder]
    assert train.ran == []
    assert [row["status"] for row in jobs(file)] == ["DONE", "DONE"]


def test_a_job_that_was_stopped_in_its_test_is_not_done(train):
    assert train(*TWO) == 0
    (file,) = folders()
    sweep = SweepFolder(file.parent)
    sweep.note("1", sweep.rows()[1]["overrides"].split(), int(Exit.STOPPED))
    assert [row["status"] for row in jobs(file)] == ["DONE", "STOPPED"]
    assert not sweep.finished


def test_who_stops_a_job_stops_the_multirun(train):
    train.outcome = lambda settings: Exit.STOPPED if settings["seed"] == 1 else Exit.DONE
    assert train(*TWO, "seed=0,1,2") == Exit.STOPPED
    assert len(train.ran) == 2
    (file,) = folders()
    assert [row["status"] for row in jobs(file)] == ["DONE", "STOPPED", "WAITING"]
    train.outcome = lambda settings: Exit.DONE
    assert train(*TWO, "seed=0,1,2") == 0
    assert len(train.ran) == 2


def test_two_of_the_same_at_once_do_not_share_a_folder(train):
    train.outcome = fails(lambda settings: True)
    train(*TWO)
    (file,) = folders()
    multirun.Multirun.claim = None  # this process has ended, so to speak
    lock = SweepFolder(file.parent).claim()
    assert SweepFolder(file.parent).claim() is None
    train(*TWO, "hydra.sweep.dir=runs/ict_digits/other")
    assert len(folders()) == 2
    lock.release()


HEADER = "job,overrides,differs,status,monitor,metric,exit_code\n"


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00j",  # UTF-16
        b"a,b\n1,2\n",
        (HEADER + "0,seed=0\n").encode(),
        (HEADER + "0,'seed=0,,FAILED,,,1\n").encode(),
        (HEADER + "0,seed=0,,FAILED,,,one\n").encode(),
        (HEADER + '0,"seed=0').encode(),
    ],
    ids=["encoding", "columns", "short", "quote", "number", "cut"],
)
def test_a_damaged_table_has_no_rows(content, tmp_path):
    sweep = SweepFolder(tmp_path)
    sweep.begin(["seed=0"], [["seed=0"]])
    (tmp_path / "jobs.csv").write_bytes(content)
    assert sweep.rows() == []
    assert sweep.exit_code == Exit.UNEXPECTED  # a failure may be lost
    assert not sweep.matches(["seed=0"], [["seed=0"]])
    sweep.note("0", ["seed=0"], 0)
    assert [row["overrides"] for row in jobs(tmp_path / "jobs.csv")] == ["seed=0"]


def test_a_damaged_table_beside_is_no_obstacle(train):
    """In a folder of the same command. The multirun has a new one, and its failures are told by the exit code."""
    train.outcome = fails(lambda settings: settings["seed"] == 1)
    train(*TWO)
    (file,) = folders()
    file.write_bytes(b"\xff\xfe\x00j")
    assert train(*TWO) == Exit.NOT_FINITE
    (new,) = set(folders()) - {file}
    assert [row["status"] for row in jobs(new)] == ["DONE", "FAILED"]
    train.outcome = fails(lambda settings: False)
    assert train(*TWO) == 0
    assert len(train.ran) == 1
    assert file.read_bytes() == b"\xff\xfe\x00j"


def test_a_pipe_is_no_table(tmp_path):
    os.mkfifo(tmp_path / "jobs.csv")
    assert SweepFolder(tmp_path).rows() == []


def test_a_damaged_mark_of_a_job_is_no_obstacle(tmp_path):
    sweep = SweepFolder(tmp_path)
    sweep.begin(["seed=0,1"], [["seed=0"], ["seed=1"]])
    for job in ("0", "1"):
        (tmp_path / job).mkdir()
    (tmp_path / "0/FAILED").write_bytes(b"error: \xff\n")
    (tmp_path / "1/FAILED").mkdir()
    sweep.note("0", ["seed=0"], 1)
    sweep.note("1", ["seed=1"], 1)
    assert "2 FAILED" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize("launcher", [(), ("hydra/launcher=processes",)])
def test_a_file_in_the_place_of_a_job_is_told_in_one_line(launcher, train, capsys):
    train.outcome = fails(lambda settings: settings["seed"] == 1)
    train(*TWO)
    (file,) = folders()
    shutil.rmtree(file.parent / "1")
    (file.parent / "1").touch()
    capsys.readouterr()
    time.sleep(1 - time.time() % 1)  # the name of a folder ends in the second
    assert train(*TWO, *launcher) == Exit.STORAGE
    assert train.ran == []
    message = f"run folder={file.parent}/1 is not allowed: a file is in the place of a job. Allowed: a folder"
    assert capsys.readouterr().err == f"error: {message}. Delete or rename it\n"


@pytest.mark.parametrize(
    ("hook", "arguments"), [("make_new_folder", ("seed=0",)), ("grid", TWO), ("RunFolder", ("seed=0",))]
)
def test_an_unexpected_error_of_a_callback_ends_the_command(hook, arguments, train, monkeypatch, capsys):
    """Hydra alone makes it a warning, and goes on without the folder."""
    monkeypatch.setattr(multirun, hook, Mock(side_effect=KeyError("lost")))
    assert train(*arguments) == Exit.UNEXPECTED
    assert train.ran == []
    assert capsys.readouterr().err.splitlines()[-1] == "error: KeyError: 'lost'"


def test_what_jobs_differ_in():
    assert varied([["a=1", "b=1"], ["a=2", "b=1"]]) == [["a=1"], ["a=2"]]
    assert varied([["a=1", "b=1"]]) == [["a=1", "b=1"]]


def test_two_multiruns_of_one_second_do_not_share_a_folder(tmp_path):
    """Also where the first is done before the second begins."""
    new = SweepFolder(tmp_path / "same second")
    made = [multirun.Multirun()._claimed(new, ["seed=0,1"], [["seed=0"]], is_named=False).path for _ in range(2)]
    assert [path.name for path in made] == ["same second", "same second_2"]
