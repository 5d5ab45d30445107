"""task=search: ternary search finds the least, and the command that it prints uses what was found."""

import json
import shlex

import pytest
from evals import POINTS, evaluate, trained
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from consistency_models.app.tasks import search
from consistency_models.app.tasks.search import ternary_search
from consistency_models.errors import Exit


@pytest.mark.parametrize("high", [0, 1, 2, 3, 7, 38])
def test_the_least_of_every_unimodal_function(high):
    for least in range(high + 1):
        asked = []

        def function(i, least=least, asked=asked):
            asked.append(i)
            return (i - least) ** 2 if i > least else 3 * (least - i)

        assert ternary_search(function, 0, high) == least
        assert len(asked) == len(set(asked)) <= 2 * high.bit_length() + 2  # of 39, 14 at most


def test_an_empty_range_is_refused():
    with pytest.raises(ValueError, match="low <= high"):
        ternary_search(abs, 1, 0)


def test_levels_one_after_the_other(tmp_path, capsys):
    folder = trained(tmp_path, *POINTS, steps=20)
    arguments = ("task=search", "steps=[3]", "n=50", "task.grid=9", "task.metric=energy")
    assert evaluate(folder, *arguments) == Exit.DONE
    found = json.loads((folder / "evaluation/search.json").read_text())
    first, *further = found["sigmas"]
    assert first == 80
    assert first > further[0] > further[1]
    assert found["metric"] == "eval/energy50_identity_train_3step"
    assert (folder / "evaluation/search.png").stat().st_size
    for steps in (2, 3):
        tried = [each for each in found["trace"] if each["steps"] == steps]
        best = next(each for each in tried if each["best"])
        assert best["value"] == min(each["value"] for each in tried)
        assert best["sigma"] == found["sigmas"][steps - 1]
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command[2:5] == ["python", "eval.py", f"run={folder}"]
    assert evaluate(folder, "n=50", command[5]) == Exit.DONE
    again = json.loads((folder / "evaluation/evaluation.json").read_text())["results"]
    value = next(each["value"] for each in again if each["metric"] == found["metric"])
    assert value == pytest.approx(best["value"], rel=1e-3)  # levels are printed with six digits


def test_what_cannot_be_searched(tmp_path, capsys):
    folder = trained(tmp_path, *POINTS, "model=teacher")
    assert evaluate(folder, "task=search", "n=20") == Exit.BAD_INPUT
    assert "this one is Heun. Allowed: 2 or more, of a consistency sampler" in capsys.readouterr().err
    assert evaluate(folder, "task=search", "n=20", "sampler=consistency", "task.metric=fd") == Exit.BAD_INPUT
    assert "task.metric=fd is not allowed. Allowed: sw, energy" in capsys.readouterr().err


def test_the_command_that_uses_the_levels_has_what_they_were_found_with(monkeypatch):
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    assert search._typed_ways() == ""
    typed = ["run=x", "task=search", "sampler=consistency", "sampler.clip=false", "weights='0.9'", "n=10", "steps=[2]"]
    monkeypatch.setattr(HydraConfig.instance(), "cfg", OmegaConf.create({"hydra": {"overrides": {"task": typed}}}))
    words = shlex.split(search._typed_ways())
    assert words == ["sampler=consistency", "sampler.clip=false", "weights='0.9'"]
