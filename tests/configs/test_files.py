"""Wrong files: what a group's file says is checked as strictly as what is typed."""

import pytest
from commands import CONF

from consistency_models.app.checks import Composer

CASES = {  # text of an experiment, key, part of what is allowed, part of the fix
    "trainer: {max_step: 5}": ("trainer.max_step", "arguments of Trainer", "did you mean trainer.max_steps=5?"),
    "optimizer: {learning_rate: 0.1}": ("optimizer.learning_rate", "arguments of RAdam", ""),
    "curriculum: {N: 5}": ("curriculum.N", "arguments of Doubling: s0, s1", ""),
    "evaluation: {step: [1]}": ("evaluation.step", "keys of evaluation", "did you mean evaluation.steps=[1]?"),
    "modle: {name: x}": ("modle.name", "groups (", "did you mean model.name=x?"),
    "recipe: {learning_rate: 0.1}": ("recipe.learning_rate", "keys of recipe", "did you mean recipe.lr=0.1?"),
    "callbacks: {sample: {every: 5}}": (
        "callbacks.sample.every",
        "keys of callbacks",
        "callbacks.samples.every_n_steps=5?",
    ),
    "trainer: null": ("trainer", "keys below it: accelerator", ""),
    "trainer: [1]": ("config", "files that can be put together", "NAME"),
    "optimizer: {lr: -1}": ("optimizer.lr", "a number > 0", ""),
    "optimizer: {lr: .nan}": ("optimizer.lr", "a number > 0", ""),
    "optimizer: {lr: '1e-3x'}": ("optimizer.lr", "a number > 0", ""),
    "data: {batch_size: '32'}": ("data.batch_size", "a whole number >= 1", ""),
    "evaluation: {steps: 1}": ("evaluation.steps", "a list of 1 or more", "did you mean evaluation.steps=[1]?"),
    "teacher: {_target_: consistency_models.teachers.run_teacher}": ("teacher", "none", ""),
    "seed: ${sed}": ("seed", "interpolations of keys that exist", "'sed' not found"),
    "loss: {_target_: consistency_models.losses.distances.L9}": ("loss._target_", "can be imported", ""),
    "ckpt_path: last": ("ckpt_path", "a checkpoint file", "on the command line only"),
    "defaults: [override /loss: l9]": ("loss", "l1, l2", "asked for by experiment=NAME"),
    "defaults: [override /los: l2]": ("los", "a group of the defaults list", ""),
    "defaults: [override /model: cd]": ("teacher", "model=cd distils a teacher", "teacher.path=FOLDER"),
    "defaults: [override /schedule: lognormal]": ("schedule", "pairs of levels", "schedule=karras_lognormal"),
    "trainer: {max_steps: 5": ("config", "files that can be put together", "NAME.yaml"),
    "\ttrainer: 5": ("config", "files that can be put together", "NAME.yaml"),
    "- 5": ("config", "files that can be put together", ""),
    "x: &a 1\nx: 2": ("config", "files that can be put together", "duplicate key"),
}


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    """A folder with all these files, as experiments."""
    folder = tmp_path_factory.mktemp("more")
    (folder / "experiment").mkdir()
    for i, text in enumerate(CASES):
        (folder / f"experiment/wrong_{i}.yaml").write_text(f"# @package _global_\n{text}\n")
    good = "trainer: {max_steps: 7}\nloss: {_target_: json.loads, beyond: 5}\n+callbacks: {}\n".replace(
        "+callbacks: {}\n", ""
    )
    (folder / "experiment/right.yaml").write_text(f"# @package _global_\n{good}")
    (folder / "experiment/binary.yaml").write_bytes(b"\xff\xfe\x00")
    return Composer("train", CONF, folder)


@pytest.mark.parametrize("i", range(len(CASES)), ids=list(CASES))
def test_refused(i, more, refused):
    key, allowed, fix = list(CASES.values())[i]
    lines = refused(f"experiment=wrong_{i}", composer=more)
    told = next((one for one in lines if one.key == key), None)
    assert told is not None, lines
    assert "\n" not in str(told)
    assert allowed in told.allowed or allowed in told.reason
    fix = fix.replace("NAME", f"wrong_{i}")
    assert fix in told.fix or fix in told.reason


def test_a_file_that_is_no_text(more, refused):
    assert refused("experiment=binary", composer=more)[0].key == "config"


def test_an_object_of_somebody_else_may_have_any_argument(more, files, tmp_path, monkeypatch):
    from consistency_models.app.checks import check

    monkeypatch.chdir(tmp_path)
    assert check("train", more, ["experiment=right"]) == ["experiment=right"]
