"""Files of weights: where they are looked for, and that only the published ones are taken."""

import hashlib
from dataclasses import replace

import pytest
import torch
from server import serving

from consistency_models.storage.downloads import Weights, weights_folder


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A published file, its bytes, and an empty folder in which it is looked for."""
    torch.save({"a": torch.arange(3)}, tmp_path / "file")
    content = (tmp_path / "file").read_bytes()
    monkeypatch.setenv("CONSISTENCY_MODELS_WEIGHTS", str(tmp_path / "mine"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    digest = hashlib.sha256(content).hexdigest()
    return Weights("somebody", f"https://example.org/a/net-{digest[:8]}.pth", digest), content


def put(content, folder, name):
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)


@pytest.mark.parametrize("folder", ["mine", "hub/checkpoints"])
def test_it_is_found_on_disk(published, tmp_path, folder):
    weights, content = published
    put(content, tmp_path / folder, weights.name)
    assert weights.path() == tmp_path / folder / weights.name
    assert weights.use(lambda state: state["a"].tolist()) == [0, 1, 2]


def test_another_content_under_its_name_is_refused(published, tmp_path):
    weights, content = published
    put(content + b"!", tmp_path / "mine", weights.name)
    with pytest.raises(
        ValueError, match=rf"mine/{weights.name} has SHA-256 .* the published file {weights.sha256[:16]}"
    ):
        weights.path()


def test_the_first_digits_are_not_enough(published, tmp_path):
    weights, content = published
    put(content, tmp_path / "mine", weights.name)
    alike = replace(weights, sha256=weights.sha256[:-1] + ("0" if weights.sha256[-1] != "0" else "1"))
    with pytest.raises(ValueError, match="it is damaged or another one"):
        alike.path()


def test_it_is_not_downloaded_for_a_file_that_names_it(published, monkeypatch):
    weights, _ = published
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("asked the network"))
    with pytest.raises(FileNotFoundError, match=f"put {weights.url} into that folder"):
        weights.use(dict, download=False)


def test_it_is_downloaded_once_and_checked(published):
    weights, content = published
    with serving(content) as server:
        weights = replace(weights, url=server.url)
        assert weights.path() == weights.path() == weights_folder() / weights.name
        assert server.requests == [None]
    assert weights.path().read_bytes() == content


@pytest.mark.parametrize(
    ("plan", "message"), [(["404"], "HTTP Error 404"), ([], "SHA256 .*, the published file")], ids=["404", "another"]
)
def test_what_cannot_be_had_is_named_with_its_place(published, plan, message):
    weights, content = published
    with serving(content + b"!") as server:
        server.plan, weights = plan, replace(weights, url=server.url)
        message = rf"somebody's {weights.name} is not in .*mine, and http://.* could not be fetched \(.*{message}.*\)"
        with pytest.raises(FileNotFoundError, match=message):
            weights.use(dict)


def test_a_file_of_the_users_is_taken_as_it_is(published, tmp_path):
    weights, _ = published
    torch.save({"b": 1}, tmp_path / "own.pth")
    assert weights.use(dict, tmp_path / "own.pth") == {"b": 1}
    with pytest.raises(FileNotFoundError, match=rf"no file {tmp_path}/none.pth; put somebody's {weights.name} there"):
        weights.path(tmp_path / "none.pth")


class Trap:
    def __reduce__(self):
        return (exec, ("raise SystemExit",))


@pytest.mark.parametrize("content", [b"", b"not a file of torch", Trap()], ids=["empty", "text", "pickle"])
def test_a_file_of_another_kind_is_refused_and_runs_nothing(published, tmp_path, content):
    weights, _ = published
    if isinstance(content, bytes):
        (tmp_path / "own.pth").write_bytes(content)
    else:
        torch.save(content, tmp_path / "own.pth")
    with pytest.raises(ValueError, match=rf"own.pth is not somebody's {weights.name}: "):
        weights.use(dict, tmp_path / "own.pth")


def test_a_file_that_cannot_be_built_from_is_refused(published, tmp_path):
    weights, _ = published
    torch.save({"a": 1}, tmp_path / "own.pth")
    with pytest.raises(ValueError, match=r"own.pth is not somebody's .*: 'missing'"):
        weights.use(lambda state: state["missing"], tmp_path / "own.pth")


def test_the_folder_is_the_users_choice(monkeypatch, tmp_path):
    monkeypatch.delenv("CONSISTENCY_MODELS_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights_folder() == tmp_path / "consistency_models" / "weights"
