"""Golden weights in files as official code writes them: what is loaded gives the official code's numbers."""

import hashlib
import re
from functools import partial

import pytest
import torch
from parity.golden import cases, class_labels, load
from pretrained import snapshots
from torch.testing import assert_close

from consistency_models import pretrained
from consistency_models.networks import official
from consistency_models.noise.preconditioning import EDM, IDDPM, VE, VP, Boundary
from consistency_models.pretrained import openai

SAID = {
    "sigma_data": 0.5,
    "sigma_min": 0.003,
    "sigma_max": 80.0,
    "beta_d": 19.0,
    "beta_min": 0.1,
    "M": 500,
    "epsilon_t": 1e-4,
}
CLASSES = {"EDMPrecond": EDM, "ECMPrecond": Boundary, "VPPrecond": VP, "VEPrecond": VE, "iDDPMPrecond": IDDPM}


def assert_near(got, expected):
    assert_close(got, expected, rtol=0, atol=1e-5 * expected.abs().max().item(), check_dtype=False)


def weights(case):
    return {key.removeprefix("sd/"): value for key, value in case.items() if key.startswith("sd/")}


def same_channels(case):
    kwargs = case["meta"].get("kwargs", {})
    return "in_channels" in kwargs and kwargs["in_channels"] == kwargs.get("out_channels")


@pytest.mark.parametrize("class_name", CLASSES)
@pytest.mark.parametrize(
    "path", [case for case in cases("out", "noise_labels", "sd/.+") if same_channels(load(case.values[0]))]
)
def test_every_preconditioning_around_every_network(path, class_name, tmp_path):
    case = load(path)
    kwargs = dict(case["meta"]["kwargs"])
    channels, _ = kwargs.pop("in_channels"), kwargs.pop("out_channels")
    state_dict = {f"model.{name}": value for name, value in weights(case).items()}
    if class_name == "iDDPMPrecond":  # twice the outputs: the second half are the variances
        for name, value in state_dict.items():
            if name.split(".")[-2].endswith(("out_conv", "aux_conv")):
                state_dict[name] = torch.cat([value, torch.full_like(value, 7.0)])
        state_dict = {"u": torch.linspace(9, 0, 501), **state_dict}
    module = snapshots.module(
        class_name, state_dict, {"img_channels": channels, **kwargs}, {"model": case["meta"]["cls"]}, **SAID
    )
    loaded = pretrained.load(snapshots.dump({"ema": module}, tmp_path / "snapshot.pkl"))

    got = loaded.model.network(case["x"], case["noise_labels"], class_labels(case))
    assert_near(got[:, :channels], case["out"])
    assert type(loaded.model.preconditioning) is CLASSES[class_name]
    assert (loaded.sigma_data, loaded.sigma_min, loaded.sigma_max) == (0.5, 0.003, 80.0)
    assert (loaded.channels, loaded.image_size) == case["x"].shape[1:3]
    assert loaded.num_classes == kwargs.get("label_dim", 0)
    if class_name == "ECMPrecond":
        assert loaded.model.preconditioning.sigma_min == 0.003
    if class_name == "VPPrecond":
        assert vars(loaded.model.preconditioning) == vars(VP(19.0, 0.1, 500, 1e-4))
    if class_name == "VEPrecond":
        assert vars(loaded.model.preconditioning) == vars(VE(0.003, 80.0))
    if class_name == "iDDPMPrecond":
        assert torch.equal(loaded.model.preconditioning.levels, state_dict["u"])
        assert loaded.model.preconditioning.steps == 500


@pytest.mark.parametrize("logvar", [True, False], ids=["edm2", "ect"])
@pytest.mark.parametrize("path", cases("D", "sd/unet.+", "sd/logvar.+"))
def test_edm2_and_its_copies_in_ect(path, logvar, tmp_path):
    case = load(path)
    state_dict, kwargs = weights(case), dict(case["meta"]["kwargs"])
    if not logvar:
        state_dict = {name: value for name, value in state_dict.items() if not name.startswith("logvar")}
        kwargs = {**kwargs, "dropout_res": 16}
    sigma_data = kwargs.get("sigma_data", 0.5)
    module = snapshots.module("Precond", state_dict, kwargs, {"unet": "UNet"}, sigma_data=sigma_data)
    loaded = pretrained.load(snapshots.dump(snapshots.EasyDict(ema=module), tmp_path / "edm2.pkl"))
    assert_near(loaded.model(case["x"], case["sigma"], class_labels(case)), case["D"])
    if "D_nolabel" in case:
        assert_near(loaded.model(case["x"], case["sigma"]), case["D_nolabel"])


@pytest.mark.parametrize("path", cases("out_flash3hd", "timesteps"))
def test_openai_file(path, tmp_path, monkeypatch):
    case = load(path)
    said = case["meta"]["kwargs"]
    family = partial(official.UNetModel, **said)
    labels = torch.eye(said["num_classes"])[case["y"]] if said.get("num_classes") else None
    torch.save(weights(case), tmp_path / "cd_tiny.pt")
    monkeypatch.setitem(openai.FAMILIES, "tiny", family)
    recognised = pretrained.load(tmp_path / "cd_tiny.pt")
    given = pretrained.load_openai(tmp_path / "cd_tiny.pt", consistency=False, network=family())
    for loaded, scalings in ((recognised, Boundary), (given, EDM)):
        got = loaded.model.network(case["x"], case["timesteps"] / 1000, labels)
        assert_near(got, case["out_flash3hd"])
        assert type(loaded.model.preconditioning) is scalings
        assert (loaded.image_size, loaded.channels) == (said["image_size"], said["in_channels"])


@pytest.mark.parametrize(("path", "name"), cases(r"(\w+)_sha256"))
def test_openai_families_are_the_released_ones(path, name):
    with torch.device("meta"):
        networks = {network.image_size: network for network in (make() for make in openai.FAMILIES.values())}
    network = networks[int(re.search(r"\d+$", name)[0])]
    listing = "\n".join(f"{key} {tuple(p.shape)}" for key, p in network.state_dict().items())
    assert hashlib.sha256(listing.encode()).hexdigest() == load(path)[f"{name}_sha256"]
