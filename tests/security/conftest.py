"""A small run, and a place in which nothing may happen."""

import socket

import pytest
import torch
from jobs import run
from security.hostile import CANARY, SMALL, Pickle

from consistency_models.errors import Exit


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a run of two steps; its checkpoint, which tests read hundreds of times, has 40 tensors."""
    folder = tmp_path_factory.mktemp("security") / "run"
    assert run(folder, *SMALL, "trainer.max_steps=2") == Exit.DONE
    return folder


@pytest.fixture
def nothing_happens(tmp_path, monkeypatch):
    """An empty folder for canaries: no file appears in it, no secret leaves the environment, no socket is opened."""
    folder = tmp_path / "canary"
    folder.mkdir()
    torch.save(Pickle(str(folder / CANARY)), folder / "pickle.pt")
    monkeypatch.setenv("CANARY", "a secret of the user's")
    monkeypatch.delenv("CONSISTENCY_MODELS_TRUST", raising=False)
    opened = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: opened.append(address))
    yield folder
    assert [path.name for path in folder.iterdir()] == ["pickle.pt"]
    assert not opened
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"a secret of the user's" not in path.read_bytes(), path
