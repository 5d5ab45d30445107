"""Optuna's search: what it optimises, and that it goes on where it stopped."""

import contextlib
import csv
import math
import sqlite3
from pathlib import Path

import optuna
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from consistency_models.errors import Exit
from hydra_plugins.consistency_models.search import distribution

SEARCH = (
    *("-m", "hydra/sweeper=search", "hydra.sweeper.n_trials=4", "logger=csv"),
    *("optimizer.lr=tag(log,interval(1e-4,1e-2))", "loss=l1,l2"),
)


def folder():
    (file,) = Path("runs").glob("*/*/optuna.db")
    return file.parent


def rows():
    with open(folder() / "jobs.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_monitored_metric_is_optimised(train):
    train.found = lambda settings: abs(math.log10(settings["optimizer"]["lr"] / 1e-3))
    assert train(*SEARCH) == 0
    values = [float(row["monitor"]) for row in rows()]
    assert len(values) == 4
    best = yaml.safe_load((folder() / "best.yaml").read_text())
    assert best["value"] == pytest.approx(min(values))
    assert best["job"] == values.index(min(values))
    trained = yaml.safe_load((folder() / str(best["job"]) / "config.yaml").read_text())
    assert trained["optimizer"]["lr"] == pytest.approx(best["overrides"]["optimizer.lr"])


def test_it_goes_on_where_it_stopped(train):
    train.outcome = lambda settings: Exit.STOPPED if len(train.ran) == 2 else Exit.DONE
    assert train(*SEARCH) == Exit.STOPPED
    second = train.ran[1]["optimizer"]["lr"]
    train.outcome = lambda settings: Exit.NOT_FINITE if len(train.ran) == 2 else Exit.DONE
    assert train(*SEARCH) == Exit.NOT_FINITE  # a failed trial is one, too: the others go on
    assert len(train.ran) == 3
    assert train.ran[0]["optimizer"]["lr"] == second
    assert [row["status"] for row in rows()] == ["DONE", "DONE", "FAILED", "DONE"]
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{folder().absolute()}/optuna.db")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        ("interval(1, 2)", optuna.distributions.FloatDistribution(1, 2)),
        ("tag(log, interval(1e-4, 1))", optuna.distributions.FloatDistribution(1e-4, 1, log=True)),
        ("range(1, 5)", optuna.distributions.IntDistribution(1, 4)),
        ("range(5, 0, -2)", optuna.distributions.CategoricalDistribution(["5", "3", "1"])),
        ("a,b", optuna.distributions.CategoricalDistribution(["a", "b"])),
    ],
)
def test_axes(axis, expected):
    assert distribution(OverridesParser.create().parse_overrides([f"x={axis}"])[0]) == expected


def test_a_search_is_checked_at_the_ends_of_its_axes(train, capsys):
    assert train(*SEARCH, "optimizer.lr=interval(-1,1)", "loss=l1,l9", "trainer.max_step=1,2") == Exit.BAD_INPUT
    told = capsys.readouterr().err
    assert all(line in told for line in ("optimizer.lr=-1", "loss=l9", "Did you mean trainer.max_steps=1?"))
    assert not Path("runs").exists()


def break_off(train):
    """Stop a search in its second job."""
    train.outcome = lambda settings: Exit.STOPPED if len(train.ran) == 2 else Exit.DONE
    assert train(*SEARCH, "hydra.sweep.dir=runs/mine/here") == Exit.STOPPED
    train.outcome = lambda settings: Exit.DONE


def test_a_folder_that_is_named_is_gone_on_in_too(train):
    """Though its first job has other values than the ends of the axes, which the check composes."""
    break_off(train)
    checkpoint = folder() / "0/checkpoints/last.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"PK" + b"sha256:" + b"0" * 64)
    assert train(*SEARCH, "hydra.sweep.dir=runs/mine/here") == 0
    assert len(train.ran) == 3


def not_a_database(file):
    file.write_text("no database of SQLite, but a text")


def without_columns(file):
    file.unlink()
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE trials (number INTEGER)")


@pytest.mark.parametrize("damage", [not_a_database, without_columns])
def test_a_damaged_database_is_told_in_one_line(damage, train, capsys):
    break_off(train)
    damage(folder() / "optuna.db")
    capsys.readouterr()
    assert train(*SEARCH, "hydra.sweep.dir=runs/mine/here") == Exit.STORAGE
    assert train.ran == []
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: search=runs/mine/here/optuna.db is not allowed: ")
    assert last.endswith(". Allowed: a database of Optuna. Start a new search in another folder by hydra.sweep.dir")
