"""What eval.py refuses before it looks at the run."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "configs"))

from commands import CONF, DummyFiles

from consistency_models.app.checks import Composer, check
from consistency_models.errors import ConfigError

RANGE = "FIRST-LAST, two or more images"
CASES = [
    ("run=wandb:me/cm/model:v0", "run", "wandb artifact get me/cm/model:v0"),
    ("seeds=5", "seeds", RANGE),
    ("seeds=9-0", "seeds", RANGE),
    ("seeds=5-5", "seeds", RANGE),
    ("seeds=[0-9,0-9]", "seeds", "different"),
    ("seeds=[0-9,10-20]", "seeds", "ranges of one size"),
    ("seeds=0-9 n=10", "n", "seeds=0-9 already sets"),
    ("seeds=0-9 repeats=3", "repeats", "seeds=0-9 already sets"),
    ("repeats=0", "repeats", "a whole number >= 1"),
    ("sigmas=[1,80]", "sigmas", "did you mean sigmas=[80,1]?"),
    ("sigmas=80", "sigmas", "a list of descending levels"),
    ("sigmas=[80,0]", "sigmas", "a list of descending levels"),
    ("sigmas=[80,1] steps=[1,2]", "steps", "sigmas=[80,1] are 2 steps"),
    ("devices=0", "devices", "a whole number >= 1"),
    ("devices=2 device=mps", "devices", "1 with device=mps"),
    ("devices=2 device=cuda:1", "devices", "1 with device=cuda:1"),
    ("wandb=of", "wandb", "auto, online, offline, disabled"),
    ("sampler=heum", "sampler", "did you mean sampler=heun?"),
    ("sampler=heun sampler.rho=0", "sampler.rho", "a number >= 0.1 and <= 1000"),
    ("sampler=consistency sampler.sigma_mid=90", "sampler.sigma_mid", "between sigma_min=0.002 and sigma_max=80.0"),
    ("sampler=heun sampler.sigma_min=90", "sampler.sigma_min", "less than sampler.sigma_max=80.0"),
    ("task=sampel", "task", "did you mean task=sample?"),
    ("features.reference=test", "features.reference", "add features=NAME, one of classifier, "),
    ("sampler.rho=3", "sampler.rho", "add sampler=NAME, one of consistency, "),
    ("model=ict", "model", "augment, data, features, network, paths, sampler, task"),
    ("task=sample task.format=jpg", "task.format", "png, zip, npz"),
    ("task=sample task.classes=3", "task.classes", "did you mean task.classes=[3]?"),
    ("task=sample task.n=5", "task.n", "keys of task"),
    ("task=sample steps=[1,2]", "steps", "one step count with task=sample"),
    ("task=sample repeats=2", "repeats", "1 with task=sample"),
    ("task=sample seeds=[0-1,2-3]", "seeds", "one range with task=sample"),
    ("task=search steps=[1]", "steps", "task=search needs a second level"),
    ("task=search sigmas=[80,1]", "sigmas", "task=search looks for them"),
    ("task=search task.grid=2", "task.grid", "a whole number >= 3"),
    ("task=search task.images=1", "task.images", "a whole number >= 2"),
]


@pytest.fixture(scope="module")
def composer():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROJECT_ROOT", str(CONF.parent))
        yield Composer("eval", CONF)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return DummyFiles(tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize(("line", "key", "told"), CASES, ids=[case[0] for case in CASES])
def test_refused(line, key, told, composer, files):
    with pytest.raises(ConfigError) as caught:
        check("eval", composer, files.split(f"run={{run}} {line}"))
    problems = getattr(caught.value, "problems", [caught.value])
    fields = [(one.allowed, one.reason, one.fix) for one in problems if one.key == key]
    assert any(told in field for each in fields for field in each), str(caught.value)


def test_processes_of_torchrun_are_refused(composer, files, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="each process of torchrun would do the whole task"):
        check("eval", composer, files.split("run={run}"))


@pytest.mark.parametrize(
    "line",
    [
        "weights=0.9999",
        "seeds=0-49999",
        "seeds=[0-49999,50000-99999,100000-149999]",
        "sigmas=[80,24.4,5.84]",
        "sampler=heun +sampler.churn=40 steps=[18]",
        "task=sample n=50000 task.format=npz devices=8",
        "task=search steps=[3] task.metric=fd",
        *(f"{group}={file.stem}" for group in ("task", "sampler") for file in sorted((CONF / group).glob("*.yaml"))),
    ],
)
def test_passes(line, composer, files):
    arguments = files.split(f"run={{run}} {line}")
    assert check("eval", composer, arguments) == arguments
