"""Mutated files of every format: nothing is executed, nothing hangs, nothing fills the memory, no bare traceback."""

import json

import numpy as np
import pytest
from app.evals import evaluate
from jobs import ROOT, TINY, command, run

import consistency_models
from consistency_models.errors import Exit
from consistency_models.export import to_safetensors

FORMATS = ("checkpoint", "export", "npz", "yaml", "compare", "resume")
CASES = dict.fromkeys(FORMATS, 200) | {"compare": 60, "resume": 80}  # a case of the last two draws figures, or trains


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A run on points, scored, with an export and a file of reference statistics."""
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    arguments = ("data=mixture", "features=identity", "network.width=16", "network.depth=1", "data.batch_size=8")
    quick = ("+data.source.sample_size=100", "evaluation.ode_points=8", "evaluation.ode_steps=4", "trainer.max_steps=2")
    assert run(folder, *TINY, *arguments, *quick) == Exit.DONE
    assert evaluate(folder, "n=20", "steps=[1,2]") == Exit.DONE
    to_safetensors(consistency_models.load(folder), folder / "model.safetensors")
    np.savez(folder / "reference.npz", arr_0=np.zeros((3, 1, 1, 2), np.uint8), mu=np.zeros(4), sigma=np.eye(4))
    return folder


def fuzz(name, folder, cases, seed):
    """How the cases ended, by `fuzz.py` in a process of its own."""
    words = ("tests/security/fuzz.py", name, str(folder), "--seed", str(seed), "--cases", str(cases))
    code, output = command(folder.parent, *words, PROJECT_ROOT=str(ROOT))
    assert code == 0, output[-3000:]
    endings = json.loads(output.splitlines()[-1])
    assert sum(endings.values()) == cases
    return endings


@pytest.mark.parametrize("name", FORMATS)
def test_some_mutations(name, folder):
    endings = fuzz(name, folder, CASES[name], 0)
    assert endings["used"] > 5  # some mutations are harmless: the reader is not just refusing everything
    if name not in ("compare", "resume"):
        assert endings["refused"] > 50


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", FORMATS)
def test_thousands_of_mutations(name, seed, folder):
    assert fuzz(name, folder, 1000, seed)["used"] > 25
