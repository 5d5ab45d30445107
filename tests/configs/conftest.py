"""One composer for all tests of configurations: what they share is composed once."""

import pytest
from commands import CONF, DummyFiles

from consistency_models.app.checks import Composer, check
from consistency_models.errors import ConfigError


@pytest.fixture(scope="session", autouse=True)
def _as_in_main(as_in_main):
    pass


@pytest.fixture(scope="session")
def composer(_as_in_main):
    return Composer("train", CONF)


@pytest.fixture(scope="session")
def eval_composer(_as_in_main):
    return Composer("eval", CONF)


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Names that commands can use as {root}, {ckpt}, …"""
    return DummyFiles(tmp_path_factory.mktemp("files"))


@pytest.fixture
def passes(composer, files, tmp_path, monkeypatch):
    """`passes(line)`: the overrides that are handed to Hydra, for a command that is all right."""
    monkeypatch.chdir(tmp_path)

    def run(line, multirun=False):
        handed = check("train", composer, files.split(line), multirun)
        assert list(tmp_path.iterdir()) == []
        return handed

    return run


@pytest.fixture
def refused(composer, files, tmp_path, monkeypatch):
    """`refused(line)`: the problems of a command that is not, each once; nothing may have been written."""
    monkeypatch.chdir(tmp_path)

    def run(line, multirun=False, task="train", composer=composer):
        with pytest.raises(ConfigError) as caught:
            check(task, composer, files.split(line), multirun)
        assert list(tmp_path.iterdir()) == []
        return list({str(one): one for one in getattr(caught.value, "problems", [caught.value])}.values())

    return run
