"""Networks with official weights, against the output of the official code: 1e-5 of the largest number."""

import hashlib
import json
import re

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from networks.files import config
from parity.golden import cases, class_labels, constants, expect, load
from torch.testing import assert_close

from consistency_models.networks import official
from consistency_models.networks.layers import UNetBlock
from consistency_models.networks.openai_adm import noise_embedding
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.preconditioning import EDM, Boundary


def assert_near(got, expected, tolerance=1e-5):
    assert got.shape == expected.shape
    assert_close(got, expected, rtol=0, atol=tolerance * expected.abs().max().item(), check_dtype=False)


def weights(case):
    return {key.removeprefix("sd/"): value for key, value in case.items() if key.startswith("sd/")}


def official_network(case, **changes):
    """The network that the file names, with its weights, whose names and order are the official ones."""
    network = getattr(official, case["meta"]["cls"])(**case["meta"]["kwargs"], **changes)
    assert list(network.state_dict()) == list(weights(case))
    parameters = sum(p.numel() for p in network.parameters())
    assert parameters == case["meta"].get("num_params", parameters)
    network.load_state_dict(weights(case))
    return network.eval()


@pytest.mark.parametrize("path", cases("out", "noise_labels", "sd/.+"))
def test_edm_networks(path):
    case = load(path)
    network, taps = official_network(case), case["meta"].get("taps", [])
    seen = {}
    for name in [*taps, "map_layer1"]:
        network.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    out = network(case["x"], case["noise_labels"], class_labels(case))
    assert_near(out, case["out"])
    if "tap_mean_std" in case:
        assert_near(
            torch.stack([torch.stack([seen[name].mean(), seen[name].std()]) for name in taps]), case["tap_mean_std"]
        )
    if "tap_map_layer1" in case:
        assert_near(seen["map_layer1"], case["tap_map_layer1"])
    if "grad_norms" in case:
        (out * case["grad_out"]).sum().backward()
        parameters = dict(network.named_parameters())
        norms = torch.stack([parameters[name].grad.norm() for name in case["meta"]["grad_norm_names"]])
        assert_close(norms.double(), case["grad_norms"].clamp(min=0), rtol=1e-4, atol=1e-6)  # -1: not reached, here 0


@pytest.mark.parametrize("path", cases("out_augment", "augment_labels", "noise_labels"))
def test_edm_networks_with_augmentation_labels(path):
    case = load(path)
    augment = case["augment_labels"] if case["meta"]["kwargs"].get("augment_dim", 0) else None
    assert_near(
        official_network(case)(case["x"], case["noise_labels"], class_labels(case), augment), case["out_augment"]
    )


@pytest.mark.parametrize("path", cases("out", "emb", "sd/norm0.weight"))
def test_blocks(path):
    case = load(path)
    kwargs = dict(case["meta"]["kwargs"])
    heads = kwargs.pop("num_heads", None) or kwargs["out_channels"] // kwargs.pop("channels_per_head", 64)
    up, down = kwargs.pop("up", False), kwargs.pop("down", False)
    block = UNetBlock(
        **{key: value for key, value in kwargs.items() if key not in ("attention", "channels_per_head")},
        heads=heads if kwargs.get("attention") else 0,
        resample="up" if up else "down" if down else None,
    )
    assert list(block.state_dict()) == list(weights(case))
    block.load_state_dict(weights(case))
    assert_near(block.eval()(case["x"], case["emb"]), case["out"])


@pytest.mark.parametrize(("path", "order"), cases("out_(flash3hd|legacy_h3d)", "timesteps"))
def test_openai_network(path, order):
    case = load(path)
    network = official_network(case, legacy_order=order == "legacy_h3d", noise_scale=1)
    classes = case["meta"]["kwargs"].get("num_classes")
    labels = torch.eye(classes)[case["y"]] if classes else None
    assert_near(network(case["x"], case["timesteps"], labels), case[f"out_{order}"])
    if "timestep_embedding" in case:
        assert_near(network.map_noise(case["timesteps"]), case["timestep_embedding"], 1e-6)


def openai_levels(shapes):
    """num_res_blocks, channel_mult and attention_resolutions of the network with these shapes of its parameters.

    A level has num_res_blocks + 1 output blocks. The last of each level, but of the last, ends with an upsampling.
    """
    modules = {tuple(name.split(".")[:3]) for name in shapes if name.startswith("output_blocks.")}
    count = len({block for _, block, _ in modules})
    ups = [m for m in modules if m[2] != "0" and ".".join((*m, "qkv.weight")) not in shapes]
    per_level = count // (len(ups) + 1)
    firsts = [f"input_blocks.{1 + level * per_level}" for level in range(len(ups) + 1)]
    width = shapes["time_embed.0.weight"][1]
    mult = tuple(shapes[f"{first}.0.out_layers.3.weight"][0] // width for first in firsts)
    attention = tuple(2**level for level, first in enumerate(firsts) if f"{first}.1.qkv.weight" in shapes)
    return {"num_res_blocks": per_level - 1, "channel_mult": mult, "attention_resolutions": attention}


def openai_variant(case, variant, **changes):
    """The README's network, its sizes from the file; its parameters are a sine that starts at the parameter's place."""
    scale_shift, updown = variant.split("_")
    shapes = dict(json.loads(case[f"params_{variant}"]))
    network = official.UNetModel(
        image_size=case["x"].shape[-1],
        in_channels=case["x"].shape[1],
        model_channels=shapes["time_embed.0.weight"][1],
        out_channels=shapes["out.2.weight"][0],
        **openai_levels(shapes),
        num_classes=shapes.get("label_emb.weight", [None])[0],
        num_heads=4,
        num_head_channels=16,
        use_scale_shift_norm=scale_shift == "ss",
        resblock_updown=updown == "updown",
        **changes,
    )
    assert {name: list(p.shape) for name, p in network.named_parameters()} == shapes
    with torch.no_grad():
        for k, (name, p) in enumerate(network.named_parameters()):
            v = np.sin(0.7390851 * np.arange(1, p.numel() + 1) + k)
            v = v * 1.5 / np.sqrt(p[0].numel()) if p.ndim > 1 else 1 + 0.2 * v if name.endswith("weight") else 0.1 * v
            p.copy_(torch.from_numpy(v.astype(np.float32)).view_as(p))
    return network.eval()


@pytest.mark.parametrize(("path", "variant"), cases(r"out_((?:ss|noss)_(?:updown|conv))", r"params_\w+"))
def test_openai_variants(path, variant):
    case = load(path)
    network = openai_variant(case, variant, noise_scale=1)
    labels = torch.eye(network.num_classes)[case["y"]] if network.num_classes else None
    assert_near(network(case["x"], case["t"], labels), case[f"out_{variant}"])


@pytest.mark.parametrize(("path", "variant"), cases(r"cm_denoised_(\w+)", r"params_\w+"))
def test_openai_denoised(path, variant):
    case, fixed = load(path), constants(path)
    network = openai_variant(case, variant)
    labels = torch.eye(network.num_classes)[case["y"]] if network.num_classes else None
    boundary = Boundary(fixed["sigma_data"], fixed["sigma_min"])
    denoised = Preconditioned(network, boundary)(case["x"], case.get("sigma", torch.tensor([0.5, 20.0])), labels)
    assert_near(denoised, case[f"cm_denoised_{variant}"])


@pytest.mark.parametrize(("path", "name"), cases(r"(\w+)_sha256"))
def test_released_networks_have_the_released_parameters(path, name):
    case = load(path)
    data = {"image_size": int(re.search(r"\d+$", name)[0]), "network_classes": 1000 if "imagenet" in name else 0}
    with torch.device("meta"):
        network = instantiate(config(f"openai_adm_{name}", **data).network)
    listing = "\n".join(f"{key} {tuple(p.shape)}" for key, p in network.state_dict().items())
    assert hashlib.sha256(listing.encode()).hexdigest() == case[f"{name}_sha256"]
    if f"{name}_n_params" in case:
        assert sum(p.numel() for p in network.parameters()) == case[f"{name}_n_params"]


@pytest.mark.parametrize(("path", "channels"), cases(r"temb_(\d+)", "t"))
def test_timestep_embedding(path, channels):
    case = load(path)
    expect(noise_embedding(int(channels), 1.0)(case["t"]), case, f"temb_{channels}", rtol=0, atol=1e-6)


def edm2(path):
    """The file, its network, and the network in its preconditioning."""
    case = load(path)
    network = official_network(case)
    return case, network, Preconditioned(network, EDM(case["meta"]["kwargs"].get("sigma_data", 0.5)))


@pytest.mark.parametrize(("path", "what"), cases("(D|D_nolabel)", "sd/unet.+"))
def test_edm2(path, what):
    case, _, model = edm2(path)
    assert_near(model(case["x"], case["sigma"], class_labels(case) if what == "D" else None), case[what])


@pytest.mark.parametrize("path", cases("logvar", "sd/unet.+"))
def test_edm2_uncertainty(path):
    case, network, _ = edm2(path)
    assert_near(network.log_variance(case["sigma"].log() / 4), case["logvar"].flatten())


@pytest.mark.parametrize("path", cases("loss/value", "sd/unet.+"))
def test_edm2_loss(path):
    case, network, model = edm2(path)
    loss = {"P_mean": -0.4, "P_std": 1.0, "sigma_data": 0.5} | case["meta"].get("loss", {})
    sigma = (loss["P_std"] * case["loss/rnd_normal"] + loss["P_mean"]).exp()
    denoised = model(case["images"] + sigma * case["loss/unit_noise"], sigma.flatten(), class_labels(case))
    weight = (sigma**2 + loss["sigma_data"] ** 2) / (loss["sigma_data"] * sigma) ** 2
    u = network.log_variance(sigma.flatten().log() / 4)[:, None, None, None]
    assert_near(weight / u.exp() * (denoised - case["images"]) ** 2 + u, case["loss/value"])


@pytest.mark.parametrize("path", cases("D_train_first_call", "sd/unet.+"))
def test_edm2_in_training(path):
    case, network, model = edm2(path)
    network.train().force_norm()  # which the official code does in the call
    assert_near(model(case["x"], case["sigma"], class_labels(case)), case["D_train_first_call"])
    for key in [key for key in case if key.startswith("after_train/")]:
        assert_near(network.state_dict()[key.removeprefix("after_train/")], case[key])
