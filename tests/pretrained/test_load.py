"""Loading: what does not fit one of our networks in every name and shape is refused, and says what it was."""

import hashlib
import zipfile

import pytest
import torch
from pretrained import snapshots

from consistency_models import pretrained
from consistency_models.networks import official
from consistency_models.pretrained import CheckpointError

KWARGS = {"img_resolution": 8, "img_channels": 3, "label_dim": 2, "model_type": "SongUNet"}
KWARGS |= {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "dropout": 0.1}


def song():
    torch.manual_seed(0)
    given = {key: value for key, value in KWARGS.items() if key not in ("img_channels", "model_type")}
    return official.SongUNet(in_channels=3, out_channels=3, **given)


def snapshot(path, class_name="EDMPrecond", network="SongUNet", kwargs=None, weights=None):
    """A snapshot of a small SongUNet with a few things changed."""
    weights = {f"model.{name}": value for name, value in song().state_dict().items()} | (weights or {})
    weights = {name: value for name, value in weights.items() if value is not None}
    said = {"sigma_data": 0.5, "sigma_min": 0.0, "sigma_max": float("inf")}
    module = snapshots.module(class_name, weights, {**KWARGS, **(kwargs or {})}, {"model": network}, **said)
    return snapshots.dump({"ema": module}, path)


def test_a_loaded_model_is_ready_to_be_called(tmp_path):
    path = snapshot(tmp_path / "edm.pkl")
    loaded = pretrained.load(path)
    assert not any(module.training for module in loaded.model.modules())
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (loaded.kind, loaded.num_classes) == ("EDMPrecond", 2)
    x = torch.randn(2, 3, 8, 8)
    assert loaded.model(x, torch.tensor([0.1, 80.0]), torch.eye(2)).shape == x.shape
    for name, value in song().state_dict().items():
        assert torch.equal(loaded.model.network.state_dict()[name], value), name


def test_half_precision_weights_become_single(tmp_path):
    half = {f"model.{name}": value.half() for name, value in song().state_dict().items()}
    network = pretrained.load(snapshot(tmp_path / "half.pkl", weights=half)).model.network
    for name, value in song().state_dict().items():
        got = network.state_dict()[name]
        assert got.dtype == torch.float32
        assert torch.equal(got, value.half().float()), name


NAME = "model.map_layer0.weight"


@pytest.mark.parametrize(
    ("says", "changes"),
    [
        ("EDMPrecond, .*; found StackedPrecond", {"class_name": "StackedPrecond"}),
        ("KeyError: 'UNetModel'", {"network": "UNetModel"}),
        ("unexpected keyword argument 'gain'", {"kwargs": {"gain": 1}}),
        ("'spherical'", {"kwargs": {"embedding_type": "spherical"}}),
        ("TypeError", {"kwargs": {"channel_mult": 2}}),
        ("image_size must be a multiple of 2", {"kwargs": {"img_resolution": 9}}),
        ("tensors; found the arguments of one of 2000000 blocks", {"kwargs": {"num_blocks": 10**6}}),
        (r"map_label.weight of shape \(1000000, 2\)", {"kwargs": {"model_channels": 10**6}}),
        (r"map_layer0.weight of shape \(32, 8\); found None", {"weights": {NAME: None}}),
        (r"map_layer0.weight of shape \(32, 8\); found \(8, 32\)", {"weights": {NAME: torch.zeros(8, 32)}}),
        (r"more.weight of shape None; found \(2,\)", {"weights": {"model.more.weight": torch.zeros(2)}}),
        (r"map_label.weight of shape None; found \(8, 2\)", {"kwargs": {"label_dim": 0}}),
    ],
)
def test_a_snapshot_of_another_network_is_refused(says, changes, tmp_path):
    path = snapshot(tmp_path / "other.pkl", **changes)
    with pytest.raises(CheckpointError, match=f"{path}: expected .*{says}"):
        pretrained.load(path)


def openai_files():
    good = song().state_dict()
    return {
        "of shape .*; LSUN 256: expected": good,
        "found list": [good],
        "a flat dict of tensors; found dict": {"model": good},
        "flat dict of tensors; found objects that would need code to be run": {"model": song()},
    }


@pytest.mark.parametrize("says", openai_files())
def test_an_openai_file_of_another_kind_is_refused(says, tmp_path):
    path = tmp_path / "cd_other.pt"
    torch.save(openai_files()[says], path)
    with pytest.raises(CheckpointError, match=f"{path}: expected .*{says}"):
        pretrained.load(path)


def test_an_openai_file_that_unpacks_is_refused(tmp_path):
    torch.save({"x": torch.zeros(1 << 16)}, tmp_path / "plain.pt")
    path = tmp_path / "cd_packed.pt"
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(CheckpointError, match=f"{path}: expected a torch file that is not compressed"):
        pretrained.load(path)


def test_the_name_of_an_openai_file_says_what_it_is(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(song().state_dict(), path)
    with pytest.raises(CheckpointError, match="a name that starts edm_, cd_ or ct_, or the argument consistency"):
        pretrained.load(path)
    assert pretrained.load_openai(path, consistency=True, network=song()).kind == "OpenAI"


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="FileNotFoundError"):
        pretrained.load(tmp_path / "missing.pkl")
