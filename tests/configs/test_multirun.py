"""A multirun: the configuration of every job is checked before the first one starts."""

import importlib.util

import pytest
from commands import CONF

from consistency_models.app.checks import Composer, check
from consistency_models.app.checks.problems import ConfigErrors
from consistency_models.errors import ConfigError


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
        ("'seed=range(5,0)'", "seed=range(5,0) is not allowed: the axis has no values"),
        ("hydra/sweeper=search 'seed=range(5,0)'", "seed=range(5,0) is not allowed: the axis has no values"),
        ("'loss=glob(none*)'", "loss=glob(none*) is not allowed: the axis has no values"),
        ("'seed=range(0,5,0)'", "a STEP other than 0"),
        ("hydra/sweeper=search 'optimizer.lr=interval(2,1)'", "interval(LOW, HIGH) with LOW < HIGH"),
        ("hydra/sweeper=search 'optimizer.weight_decay=tag(log,interval(0,1))'", "0 < LOW with tag(log, …)"),
        ("plan=true seed=0,1", "plan=true is not allowed: the plan is that of one run"),
        ("++plan=true seed=0,1", "plan=true is not allowed: the plan is that of one run"),
        ("sweeps=ict_depth,ict_distance", "it chooses the axes of a multirun"),
        ("sweeps=ict_depth sweep_size=small,digits", "it chooses the axes of a multirun"),
    ],
)
def test_refused(line, told, refused):
    assert any(told in str(one) for one in refused(line, multirun=True))


@pytest.mark.parametrize(
    ("task", "line", "fix"),
    [
        ("train", "seed=0,1", ""),
        ("train", "model=ict,ct", ""),
        ("train", "evaluation.steps=1,2", ", or write evaluation.steps=[1,2] for a list"),
        ("train", "optimizer.betas=0.9,0.99", ", or write optimizer.betas=[0.9,0.99] for a list"),
        ("train", "'tags=choice(a,b)'", ", or write tags=[a,b] for a list"),
        ("train", "'evaluation.steps=range(1,3)'", ""),
        ("train", "paths.output=a,b", ""),
        ("eval", "run=a,b", ""),
        ("eval", "run=a sampler=heun,euler", ""),
        ("eval", "run=a steps=1,2", ", or write steps=[1,2] for a list"),
    ],
)
def test_a_list_is_suggested_for_keys_that_take_one(task, line, fix, refused, composer, eval_composer):
    (error,) = refused(line, task=task, composer=eval_composer if task == "eval" else composer)
    assert error.fix == f"add --multirun to sweep over them{fix}"


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


@pytest.mark.parametrize(
    ("sweep", "override", "told"),
    [
        ("{small: {seed: '0,1'}}", "sweep_size=paper", "sweep_size=paper is not allowed: sweeps=mine has no axes of"),
        ("{small: {seed: '0,1'}}", "sweep_size=paper", "Allowed: small"),
        ("{small: {seed: '0,1'}, paper: null}", "sweep_size=paper", "Allowed: small"),
        ("{small: {seed: '0,1'}}", "sweep_size=null", "sweep_size=null is not allowed. Allowed: small"),
        ("{small: {seed: '0,1'}}", "sweep_size=big", "sweep_size=big is not allowed. Allowed: small"),
        ("{small: {seed: '0,1'}}", "~sweep", "sweep=null is not allowed: no size has axes"),
        ("{small: {seed: '0,1'}}", "~sweep_size", "Interpolation key 'sweep_size' not found"),
        ("{small: null}", "seed=0", "no size has axes"),
        ("3", "seed=0", "sweep=3 is not allowed: no size has axes. Allowed: a mapping SIZE: {KEY: VALUES}"),
        ("{small: 3}", "loss=l1", "sweep.small=3 is not allowed. Allowed: a mapping KEY: VALUES"),
        ("{small: '${nothing}'}", "seed=0", "Interpolation key 'nothing' not found"),
        ("{small: {seed: 'range(1,0)'}}", "loss=l1", "seed=range(1,0) is not allowed: the axis has no values"),
    ],
)
def test_the_sizes_of_a_file_are_checked(sweep, override, told, tmp_path, monkeypatch):
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps/mine.yaml").write_text(f"# @package _global_\ndefaults: [/sweep]\nsweep: {sweep}\n")
    monkeypatch.setenv("PROJECT_ROOT", str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        check("train", Composer("train", CONF), ["sweeps=mine", override])
    assert told in str(caught.value)


@pytest.mark.parametrize("group", ["sweeps", "model"])
@pytest.mark.parametrize("text", ["", "# nothing yet\n"])
def test_an_empty_file_is_refused(text, group, tmp_path):
    (tmp_path / group).mkdir()
    (tmp_path / group / "mine.yaml").write_text(text)
    with pytest.raises(ConfigErrors) as caught:
        check("train", Composer("train", CONF, more=tmp_path), [f"{group}=mine"])
    message = f"{group}=mine is not allowed: the file is empty. Allowed: a file with settings. Choose another file"
    assert str(caught.value) == message


def test_an_axis_that_is_typed_replaces_the_file_s(sweep):
    assert sweep({"seed": "0,1", "loss": "l1,l9"}, "loss=l1,l2")


def test_a_hundred_jobs_compose_their_common_part_once(composer, files, monkeypatch):
    counted = []
    load = composer.loader.load_configuration
    monkeypatch.setattr(composer, "_bases", {})
    monkeypatch.setattr(composer.loader, "load_configuration", lambda *a, **k: counted.append(a) or load(*a, **k))
    check("train", composer, ["seed=range(0,20)", "loss=l1,l2"], True)
    assert len(counted) == 3  # without the axes, with l1, with l2
