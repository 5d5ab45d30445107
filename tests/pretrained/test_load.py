"""Loading: what does not fit one of our networks in every name and shape is refused, and says what it was."""

import hashlib
import zipfile

import pytest
import torch
from pretrained import snapshots

import consistency_models
from consistency_models import pretrained
from consistency_models.networks import official
from consistency_models.pretrained import CheckpointError
from consistency_models.sampling.samplers import Consistency, Heun

KWARGS = {"img_resolution": 8, "img_channels": 3, "label_dim": 2, "model_type": "SongUNet"}
KWARGS |= {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "dropout": 0.1}


def song(**changes):
    torch.manual_seed(0)
    given = {key: value for key, value in (KWARGS | changes).items() if key not in ("img_channels", "model_type")}
    return official.SongUNet(in_channels=3, out_channels=3, **given)


def snapshot(path, class_name="EDMPrecond", network="SongUNet", kwargs=None, weights=None):
    """A snapshot of a small SongUNet with a few things changed."""
    weights = {f"model.{name}": value for name, value in song().state_dict().items()} | (weights or {})
    weights = {name: value for name, value in weights.items() if value is not None}
    said = {"sigma_data": 0.5, "sigma_min": 0.0, "sigma_max": float("inf")}
    module = snapshots.module(class_name, weights, {**KWARGS, **(kwargs or {})}, {"model": network}, **said)
    return snapshots.dump({"ema": module}, path)


def precond(path, uncertainty, **changes):
    """A snapshot of a small EDM2, or of ECT's copy of one, which has no head for the uncertainty."""
    kwargs = {"img_resolution": 8, "img_channels": 3, "label_dim": 2, "model_channels": 16, "channel_mult": [1, 2]}
    kwargs |= {"num_blocks": 1, "attn_resolutions": [], "channels_per_head": 16, "logvar_channels": 8, **changes}
    torch.manual_seed(0)
    weights = official.Precond(**kwargs).state_dict()
    weights = {name: value for name, value in weights.items() if uncertainty or not name.startswith("logvar")}
    weights |= {name: torch.tensor(0.5) for name in weights if name.endswith("gain")}  # 0 at first: nothing seen
    return snapshots.dump({"ema": snapshots.module("Precond", weights, kwargs, {"unet": "UNet"}, sigma_data=0.5)}, path)


@pytest.mark.parametrize(("dropout_res", "expected"), [(None, {8: 0.4, 4: 0.4}), (4, {8: 0.0, 4: 0.4})])
def test_dropout_is_limited_as_the_file_says(dropout_res, expected, tmp_path):
    network = pretrained.load(precond(tmp_path / "a.pkl", False, dropout=0.4, dropout_res=dropout_res)).model.network
    blocks = {**network.unet.enc, **network.unet.dec}
    found = {name: block.dropout for name, block in blocks.items() if "block" in name}
    assert found == {name: expected[int(name.partition("x")[0])] for name in found}
    assert {name.partition("x")[0] for name in found} == {"8", "4"}


OPTIONS = {"attn_balance": 0.2, "res_balance": 0.4, "concat_balance": 0.6, "label_balance": 0.7, "clip_act": None}
OPTIONS |= {"channel_mult_noise": 2, "channel_mult_emb": 3, "resample_filter": [1, 3, 3, 1]}


def test_edm2_s_options_are_read_from_the_file(tmp_path):
    loaded = pretrained.load(precond(tmp_path / "a.pkl", True, **OPTIONS)).model
    unet = loaded.network.unet
    assert (unet.label_balance, unet.concat_balance) == (0.7, 0.6)
    for name, block in [*unet.enc.items(), *unet.dec.items()]:
        if not name.endswith("conv"):
            assert (block.res_balance, block.attn_balance, block.clip_act) == (0.4, 0.2, None)
            assert block.filter.shape == (1, 1, 4, 4)
    assert (unet.emb_noise.weight.shape, len(unet.emb_fourier.freqs)) == ((48, 32), 32)


@pytest.mark.parametrize(
    ("uncertainty", "size", "kind", "steps", "second"),
    [
        (True, 64, Heun, (18,), None),  # EDM2's, of ImageNet 64
        (False, 64, Consistency, (1, 2), 1.526),  # ECT's
        (False, 32, Consistency, (1, 2), 0.821),
    ],
)
def test_a_precond_is_sampled_as_its_authors_did(uncertainty, size, kind, steps, second, tmp_path):
    generator = consistency_models.load(precond(tmp_path / "a.pkl", uncertainty, img_resolution=size))
    assert (generator.steps, generator.num_classes) == (steps, 2)
    sampler = generator.make_sampler(steps=2)
    assert type(sampler) is kind
    assert sampler.sigmas[0] == pytest.approx(80.0)
    if second:
        assert sampler.sigmas[1] == pytest.approx(second)
    images = generator.sample(2, steps=2, labels=[1, 0])
    assert images.shape == (2, 3, size, size)
    assert images.isfinite().all()
    assert not torch.equal(images, generator.sample(2, steps=2, labels=[0, 1]))


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
