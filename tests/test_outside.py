"""What lies in packages of others: the examples are copied out of the project, and do all that the project's own do."""

import inspect
import os
import shutil
import subprocess
import sys
from importlib import import_module

import pytest
import torch
import yaml
from annotated_types import Ge, Gt, Le, Lt
from configs.commands import CONF
from jobs import GRADIENT_STEP, ROOT, TINY, TWO_PROCESSES, crash, run, run_two
from resume.test_resume import assert_same, contents

import consistency_models
from consistency_models import export
from consistency_models.app.checks import check
from consistency_models.app.checks.composing import Composer
from consistency_models.errors import CheckpointError, ConfigError, Exit
from consistency_models.storage.checkpoints import read

EXAMPLES = ROOT / "examples/your_own_method"
PACKAGES = sorted(path.parent.name for path in EXAMPLES.glob("*/conf"))
SMALL = (*TINY, "network.width=8", "data.batch_size=16", "callbacks.checkpoint.every_n_steps=4")


@pytest.fixture(params=PACKAGES)
def outside(request, tmp_path, monkeypatch):
    """A package in a folder of its own, that Python finds; returns its name and its folder."""
    folder = tmp_path / request.param
    shutil.copytree(EXAMPLES / request.param, folder)
    monkeypatch.syspath_prepend(str(folder))
    yield request.param, folder
    for name in [name for name in sys.modules if name.split(".")[0] == request.param]:
        del sys.modules[name]


def options(folder):
    """The command line that chooses everything the package brings: its methods, or else its other options."""
    found = sorted(path.relative_to(folder / "conf").with_suffix("") for path in (folder / "conf").glob("*/*.yaml"))
    models = [f"model={option.name}" for option in found if option.parent.name == "model"]
    return models or [f"{option.parent}={option.name}" for option in found]


def small(folder):
    network = "network=small" if "network" not in {path.parent.name for path in folder.glob("conf/network/*")} else None
    sizes = [each.replace("network.width", "network.model_channels") if network else each for each in SMALL]
    return [*options(folder), *sizes]


def test_it_is_killed_resumed_loaded_sampled_and_exported(outside, tmp_path, monkeypatch):
    name, folder = outside
    arguments = [f"hydra.searchpath=[file://{folder}/conf]", *small(folder), "trainer.max_steps=12"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(whole, *arguments) == Exit.DONE
    assert run(killed, *arguments, callbacks=crash(6)) == Exit.UNEXPECTED
    assert run(killed, *arguments, f"ckpt_path={killed}") == Exit.DONE
    assert_same(contents(whole), contents(killed))
    checkpoint = read(whole / "checkpoints/last.ckpt")
    assert_same(checkpoint["method"], read(killed / "checkpoints/last.ckpt")["method"])

    if any(str(checkpoint["config"][part]).count(f"{name}.") for part in ("network", "preconditioning", "sampler")):
        with pytest.raises(CheckpointError, match=f"CONSISTENCY_MODELS_TRUST={name}"):
            consistency_models.load(whole)
    monkeypatch.setenv("CONSISTENCY_MODELS_TRUST", name)
    generator = consistency_models.load(whole)
    images = generator.sample(4, steps=2, seed=3)
    assert images.isfinite().all()
    export.to_safetensors(generator, tmp_path / "model.safetensors")
    assert torch.equal(consistency_models.load(tmp_path / "model.safetensors").sample(4, steps=2, seed=3), images)


def test_two_processes_take_the_step_of_one(outside, tmp_path):
    _, folder = outside
    step = [*small(folder), *GRADIENT_STEP]
    assert run(tmp_path / "one", f"hydra.searchpath=[file://{folder}/conf]", *step) == Exit.DONE
    own = ("--config-dir", str(folder / "conf"))
    run_two(tmp_path / "two", *own, *step, *TWO_PROCESSES, path=[str(folder)])
    one, two = (read(tmp_path / name / "checkpoints/last.ckpt") for name in ("one", "two"))
    for part in ("model", "method"):
        assert one[part].keys() == two[part].keys()
        for key, value in one[part].items():
            torch.testing.assert_close(two[part][key], value, rtol=1e-6, atol=1e-6, msg=key)


def wrong_values(folder):
    """(key, value) just outside each bound that the constructors of the package state in their annotations."""
    for path in sorted(folder.glob("conf/*/*.yaml")):
        content = yaml.safe_load(path.read_text())
        tree = content if path.read_text().startswith("# @package _global_") else {path.parent.name: content}
        for key, node in objects(tree):
            module, _, target = node["_target_"].rpartition(".")
            if module.split(".")[0] == folder.name:
                for argument in inspect.signature(
                    getattr(import_module(module), target), eval_str=True
                ).parameters.values():
                    for bound in getattr(argument.annotation, "__metadata__", ()):
                        if argument.name in node or argument.name == "steps":
                            yield f"{key}.{argument.name}", outside_of(bound, argument.annotation.__origin__)


def objects(tree, path=""):
    for key, node in tree.items():
        where = f"{path}.{key}" if path else str(key)
        if isinstance(node, dict):
            if "_target_" in node:
                yield where, node
            yield from objects(node, where)


def outside_of(bound, kind):
    step = 1 if kind is int else 0.5
    return {Gt: lambda: bound.gt, Ge: lambda: bound.ge - step, Lt: lambda: bound.lt, Le: lambda: bound.le + step}[
        type(bound)
    ]()


def test_its_wrong_values_are_refused(outside):
    _, folder = outside
    composer = Composer("train", CONF, folder / "conf")
    wrong = [(key, value) for key, value in wrong_values(folder) if not key.startswith("sampler.steps")]
    assert wrong
    check("train", composer, options(folder))
    for key, value in wrong:
        with pytest.raises(ConfigError, match=f"{key}={value}"):
            check("train", composer, [*options(folder), f"{key}={value}"])


def test_a_refusal_imports_neither_the_package_nor_torch(outside):
    _, folder = outside
    key, value = next(iter(wrong_values(folder)))
    lines = [*options(folder), f"{key}={value}"]
    code = (
        "import sys\nfrom consistency_models.app.checks import check\n"
        "from consistency_models.app.checks.composing import Composer\n"
        f"try:\n    check('train', Composer('train', {str(CONF)!r}, {str(folder / 'conf')!r}), {lines!r})\n"
        f"except ValueError:\n    print(sorted({{'torch', {folder.name!r}}} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=found(folder))
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def found(folder):
    """An environment in which Python finds the package."""
    return {**os.environ, "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"}
