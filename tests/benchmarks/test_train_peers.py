"""The comparison with other projects' training code, with checkouts of a network of two weights."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
import train_peers
from peer_steps import FILES, PEERS

NETWORKS = """
import torch

class {name}(torch.nn.Module):
    def __init__(self, **sizes):
        super().__init__()
        self.scale, self.broken = (torch.nn.Parameter(torch.tensor(1.0)) for _ in range(2))
"""
LOSS = """
class {name}:
    stage = None

    def update_schedule(self, stage):
        self.stage = stage

    def __call__(self, net, images):
        assert self.stage == 7
        return {factor} * net.scale * images.mean(dim=(1, 2, 3)) + 0 * (net.broken - 1).sqrt()
"""
SAME_NETWORK = """
from consistency_models.networks.song import SongUNet

def EDMPrecond(img_resolution, img_channels, model_type, **sizes):
    return SongUNet(img_resolution, img_channels, **sizes)
"""
SQUARES = """
class EDMLoss:
    def __call__(self, net, images):
        return net(images, images[:, 0, 0, 0]).square().sum(dim=(1, 2, 3))
"""


def checkout(folder, precond, loss, factor):
    (folder / "training").mkdir(parents=True)
    (folder / "training/networks.py").write_text(NETWORKS.format(name=precond))
    (folder / "training/loss.py").write_text(LOSS.format(name=loss, factor=factor))
    return folder


@pytest.fixture
def checkouts(tmp_path):
    names = {"edm": ("EDMPrecond", "EDMLoss", 0.5), "ect": ("ECMPrecond", "ECMLoss", 0.25)}
    return {project: checkout(tmp_path / project, *names[project]) for project in names}


def test_each_step_uses_the_code_of_its_checkout(checkouts):
    images, sizes = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8), SimpleNamespace(channels=1, blocks=1)
    steps = {project: PEERS[project](folder, images, sizes) for project, folder in checkouts.items()}
    assert "training" not in sys.modules
    for _, step in steps.values():
        step()
    found = {project: {name: p.item() for name, p in net.named_parameters()} for project, (net, _) in steps.items()}
    assert found["edm"] == pytest.approx({"scale": 1 - 1e-3, "broken": 1})  # Adam: the sign; NaN becomes 0
    assert found["ect"] == pytest.approx({"scale": 1 - 1e-4 * 0.25, "broken": 1})  # RAdam's first step: the gradient


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no project is given: add a checkout, --edm FOLDER or --ect FOLDER or --openai FOLDER"),
        (["--openai", "FOLDER"], f"no file {FILES['openai']}; give the root of a checkout"),
        (["--warm", "0"], "at least one step, --warm 1"),
    ],
)
def test_what_is_refused(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_peers.main([str(tmp_path) if word == "FOLDER" else word for word in arguments] + ["--device", "cpu"])
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_same_work_is_compared(checkouts, tmp_path, capsys):
    small = ["--rounds", "1", "--threads", "1", "--device", "cpu", "--steps", "1", "--warm", "1", "--batch", "2"]
    given = [*small, "--channels", "8", "--blocks", "1", "--edm", str(checkouts["edm"])]
    with pytest.raises(ValueError, match="the networks differ"):
        train_peers.main(given)
    (checkouts["edm"] / "training/networks.py").write_text(SAME_NETWORK)
    (checkouts["edm"] / "training/loss.py").write_text(SQUARES)
    found = train_peers.main([*given, "--json", str(tmp_path / "found.json")])
    assert json.loads((tmp_path / "found.json").read_text()) == found
    assert [row["program"] for row in found["rows"]] == ["edm", *train_peers.LAYOUTS]
    assert found["rows"][0]["ratio"] == 1
    assert all(row["milliseconds"] > 0 for row in found["rows"])
    assert "openai was left out" in capsys.readouterr().out
