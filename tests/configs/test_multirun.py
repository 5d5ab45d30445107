"""A multirun: the configuration of every job is checked before the first one starts."""

import importlib.util

import pytest
from commands import CONF

from consistency_models.app.checks import Composer, check
from consistency_models.app.checks.problems import ConfigErrors


def test_passes(passes):
    assert passes("model=ict,ct seed=0,1", multirun=True) == ["model=ict,ct", "seed=0,1"]
    assert passes("'seed=range(0,3)'", multirun=True) == ["seed=range(0,3)"]
    assert passes("seed=5", multirun=True) == ["seed=5"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("loss=l2,l9 seed=0,1", "(in 2 of 4 jobs; the first is loss=l9 seed=0)"),
        (
            "'seed=choice(0,-1,2)'",
            "seed=-1 is not allowed. Allowed: a whole number >= 0. (in 1 of 3 jobs; the first is seed=-1)",
        ),
        ("optimizer.lr=1e-3,0", "(in 1 of 2 jobs; the first is optimizer.lr=0)"),
        ("'data.batch_size=range(0,3)'", "data.batch_size=0"),
        ("model=ict,cd", "teacher=none"),
        ("seed=0,1 trainer.max_step=5", "Did you mean trainer.max_steps=5?"),
        ("seed=0,1 loss=l9", "loss=l9"),
        (
            "hydra.job.name=a,b",
            "hydra.job.name=a,b is not allowed: Hydra's own settings cannot be swept over. Allowed: one value",
        ),
        ("'optimizer.lr=interval(0,1)'", "an interval needs a sweeper that searches"),
        ("seed=0,1 ckpt_path={run}", "last and FOLDER resume one run"),
        ("seed=0,1 hydra.sweep.dir={root} hydra.sweep.subdir=../run", "its checkpoints would be overwritten"),
        (
            "hydra/launcher=processes hydra.launcher.jobs=0 seed=0,1",
            "hydra.launcher.jobs=0 is not allowed. Allowed: a whole number",
        ),
        ("hydra/launcher=processes hydra.launcher.gpus=2 seed=0,1", "Did you mean hydra.launcher.gpus=[2]?"),
        ("hydra/sweeper=search hydra.sweeper.direction=minimise seed=0,1", "Did you mean hydra.sweeper.direction=mini"),
        (
            "hydra/sweeper=search hydra.sweeper.at_once=0 seed=0,1",
            "hydra.sweeper.at_once=0 is not allowed. Allowed: a whole number",
        ),
        ("seed=0,1 ckpt_path=last", "last and FOLDER resume one run"),
    ],
)
def test_refused(line, told, refused):
    assert any(told in str(one) for one in refused(line, multirun=True))


def test_a_search_needs_its_package(refused, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "optuna" else find(name, *more))
    assert 'pip install -e ".[sweeps]"' in refused("hydra/sweeper=search seed=0,1", multirun=True)[0].fix


def test_what_is_wrong_with_all_jobs_is_told_once(refused):
    lines = refused("'seed=range(0,5)' optimizer.lr=0", multirun=True)
    assert [str(line) for line in lines] == ["optimizer.lr=0 is not allowed. Allowed: a number > 0"]


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """`sweep(params, *overrides, **flags)`: check sweeps=mine with these parameters, without --multirun."""

    def run(params, *overrides):
        (tmp_path / "sweeps").mkdir(exist_ok=True)
        lines = "".join(f"      {key}: {value}\n" for key, value in params.items())
        text = f"# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n{lines}"
        (tmp_path / "sweeps/mine.yaml").write_text(text)
        monkeypatch.setenv("PROJECT_ROOT", str(tmp_path))
        return check("train", Composer("train", CONF), ["sweeps=mine", *overrides])

    return run


def test_the_axes_of_a_file_are_checked(sweep):
    assert sweep({"seed": "0,1", "loss": "l1,l2"}, "trainer.max_steps=5") == ["sweeps=mine", "trainer.max_steps=5"]
    with pytest.raises(ConfigErrors, match=r"loss=l9 is .*in 2 of 4 jobs"):
        sweep({"seed": "0,1", "loss": "l1,l9"})
    with pytest.raises(ConfigErrors, match=r"Did you mean trainer.max_steps=5"):
        sweep({"trainer.max_step": "5,6"})


def test_an_axis_that_is_typed_replaces_the_file_s(sweep):
    assert sweep({"seed": "0,1", "loss": "l1,l9"}, "loss=l1,l2")


def test_a_hundred_jobs_compose_their_common_part_once(composer, files, monkeypatch):
    counted = []
    load = composer.loader.load_configuration
    monkeypatch.setattr(composer, "_bases", {})
    monkeypatch.setattr(composer.loader, "load_configuration", lambda *a, **k: counted.append(a) or load(*a, **k))
    check("train", composer, ["seed=range(0,20)", "loss=l1,l2"], True)
    assert len(counted) == 3  # without the axes, with l1, with l2
