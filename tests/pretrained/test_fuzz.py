"""Mutated pickles: nothing but a snapshot or a CheckpointError comes of them, and no event but their own reading."""

import json

import pytest
from jobs import command
from parity.golden import OURS
from pretrained import snapshots


def fuzz(folder, cases, files, seed=0):
    """How the cases ended, by `fuzz.py` in a process of its own whose working folder must stay empty."""
    folder.mkdir()
    words = ("tests/pretrained/fuzz.py", "--seed", seed, "--cases", cases, *files)
    code, output = command(folder, *map(str, words))
    assert code == 0, output
    assert not list(folder.iterdir())
    endings = json.loads(output.splitlines()[-1])
    assert sum(endings.values()) == cases
    return endings


@pytest.fixture
def written(tmp_path):
    """A small snapshot as each of the three projects writes it."""
    network = snapshots.module("EDMPrecond", snapshots.small_state_dict(), {"label_dim": 0, "channel_mult": [1, 2]})
    tops = {
        "edm": {"ema": network, "augment_pipe": None, "dataset_kwargs": {"path": "x"}},
        "ect": {"loss_fn": snapshots.ect_loss(), "ema": network},
        "edm2": snapshots.EasyDict(dataset_kwargs=snapshots.EasyDict(path="x"), ema=network),
    }
    return [snapshots.dump(top, tmp_path / f"{name}.pkl") for name, top in tops.items()]


def test_two_thousand_mutations(written, tmp_path):
    endings = fuzz(tmp_path / "empty", 2000, written)
    assert endings["read"] > 10  # some mutations are harmless: the reader is not just refusing everything
    assert endings["refused"] > 1000


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_mutations_of_the_golden_snapshots(seed, written, tmp_path):
    endings = fuzz(tmp_path / "empty", 3000, [*sorted(OURS.glob("edm/*snapshot*.pkl")), *written], seed)
    assert endings["loaded"] > 10
