"""What is checked is what Hydra would run; and rules and names that are looked up without imports."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import hydra
import pytest
from annotated_types import Ge, Gt, Le, Len
from commands import CONF
from omegaconf import OmegaConf

from consistency_models.app.checks import check, rules
from consistency_models.app.checks.composing import Composer, plain
from consistency_models.app.checks.targets import find
from consistency_models.values import (
    BelowOne,
    Descending,
    Distinct,
    Infinite,
    Size,
    Text,
    Unknown,
    accepts,
    describe,
)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "model=ct seed=3 optimizer.lr=0.1",
        "data=mixture +trainer.benchmark=true ++seed=4",
        "callbacks.samples=null ~callbacks.progress logger=csv",
        "optimizer={lr:0.5} tags=[a,b] name='a b'",
        "model=cd teacher=exact data=mixture_16d ema=power hydra.job.name=x",
    ],
)
def test_the_same_as_hydra_composes(line, composer, files):
    overrides = files.split(line)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        theirs = hydra.compose("train", overrides)
    assert plain(composer.compose(composer.parse(overrides))) == OmegaConf.to_container(theirs)


def test_composing_leaves_no_trace(composer):
    first = plain(composer.compose(composer.parse(["seed=5"])))
    assert plain(composer.compose([]))["seed"] == 0
    assert first["seed"] == 5


@pytest.mark.parametrize("line", ["", "data=mixture", "data=image_folder data.root=x data.image_size=16"])
def test_the_average_forgets_the_initial_weights(line, composer):
    config = composer.compose(composer.parse(line.split()))
    assert config.ema.decays[0] ** config.trainer.max_steps < 0.01


@pytest.mark.parametrize(
    ("kind", "words", "good", "bad"),
    [
        (Annotated[int, Ge(2), Le(4)], "a whole number >= 2 and <= 4", [2, 4], [1, 5, 2.0, True, "2", None, [2]]),
        (BelowOne, "a number >= 0 and < 1", [0, 0.5], [1, -0.1, math.nan, math.inf, True, "0", None]),
        (Annotated[float, Gt(0), Infinite], "a number > 0, or inf", [1e-300, math.inf], [0, -math.inf, math.nan]),
        (Literal["a", 1] | None, "a, 1, or null", ["a", 1, None], ["b", True, 1.0, "null"]),
        (bool, "true, false", [True, False], [0, 1, "true", None]),
        (Text, "text", ["a"], ["", " ", 1, None]),
        (
            Annotated[Sequence[Size], Len(1, 2), Distinct],
            "a list of 1 to 2 different, each a whole number >= 1",
            [[1], [1, 2], (1,)],
            [[], [1, 1], [1, 2, 3], [0], [1.0], 1, "12"],
        ),
        (tuple[float, float], "a list of 2, each a number", [[1, 2], (1.5, 2)], [[1], [1, 2, 3], ["a", "b"]]),
        (Descending, "a list of descending levels, each a number > 0 and <= 1000000", [[2, 1]], [[1, 2], [0], []]),
        (Size | None, "a whole number >= 1, or null", [1, None], [0, "null"]),
        (Callable[[int], int], "an object with its _target_", [len], [{}, None, "${x}", 5]),
        (Unknown | None, "any value, or null", [1, None, "a"], []),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_kinds(kind, words, good, bad):
    assert describe(kind) == words
    assert [value for value in good if not accepts(kind, value)] == []
    assert [value for value in bad if accepts(kind, value)] == []
    for value in bad:
        assert rules.meant(kind, value) is None or accepts(kind, rules.meant(kind, value))


@pytest.mark.parametrize(
    ("target", "exists"),
    [
        ("consistency_models.losses.distances.L1", True),
        ("consistency_models.data.digits", True),
        ("consistency_models.data.digits.digits", True),
        ("consistency_models.sampling.samplers.Consistency.for_steps", True),
        ("torch.optim.RAdam", True),
        ("lightning.Trainer", True),
        ("json.loads", True),
        ("consistency_models.losses.distances", False),
        ("consistency_models.losses.distances.L9", False),
        ("consistency_models.sampling.samplers.Consistency.for_stairs", False),
        ("nowhere.at.all", False),
        ("json", False),
        ("", False),
        ("..", False),
        ("a b.c", False),
    ],
)
def test_find(target, exists):
    assert find(target).exists == exists


def test_a_module_that_is_no_python_is_left_to_its_import(tmp_path, monkeypatch):
    (tmp_path / "broken_module_of_a_user.py").write_text("def (")
    monkeypatch.syspath_prepend(tmp_path)
    assert find("broken_module_of_a_user.thing").exists


def test_a_new_root_of_the_runs_data_is_one_key(tmp_path, as_in_main):
    """`data.root=` alone is understood, as an addition; beside `data=` it is a key of that choice."""
    (tmp_path / "run.pkl").write_bytes(b"")
    composer = Composer("eval", CONF)
    run = f"run={tmp_path / 'run.pkl'}"
    lines = check("eval", composer, [run, f"data.root={tmp_path}", "task=sample"])
    assert lines == [run, f"+data.root={tmp_path}", "task=sample"]
    lines = [run, "data=cifar10", f"data.root={tmp_path}", "features=identity"]
    assert check("eval", composer, lines) == lines
