"""EDM's ADM and OpenAI's are one function: the same weights under other names, attention channels in another order.

Each family's own order is checked against its own golden file; that they agree after this conversion, and only after
it, is a check on both.
"""

import pytest
import torch
from torch.testing import assert_close

from consistency_models.networks.adm import DhariwalUNet
from consistency_models.networks.openai_adm import OpenAIUNet

RESIDUAL = {"norm0": "in_layers.0", "conv0": "in_layers.2", "affine": "emb_layers.1", "norm1": "out_layers.0"}
RESIDUAL |= {"conv1": "out_layers.3", "skip": "skip_connection"}
ATTENTION = {"norm2": "norm", "qkv": "qkv", "proj": "proj_out"}
TOP = {"map_layer0": "time_embed.0", "map_layer1": "time_embed.2", "map_label": "label_emb"}
TOP |= {"out_norm": "out.0", "out_conv": "out.2", "enc.16x16_conv": "input_blocks.0.0"}
SIZES = {"model_channels": 128, "channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (8,), "head_channels": 64}


def openai_names(network):
    """{name of a layer in EDM's layout: in OpenAI's}."""
    places = {f"enc.{key}": (f"input_blocks.{i}.0", f"input_blocks.{i}.1") for i, key in enumerate(network.enc)}
    i, attends = -1, False
    for key, block in network.dec.items():
        if key.endswith("_in0"):
            places[f"dec.{key}"] = ("middle_block.0", "middle_block.1")
        elif key.endswith("_in1"):
            places[f"dec.{key}"] = ("middle_block.2", None)
        elif key.endswith("_up"):  # OpenAI's is the last thing that the level before does
            places[f"dec.{key}"] = (f"output_blocks.{i}.{1 + attends}", None)
        else:
            i, attends = i + 1, bool(block.heads)
            places[f"dec.{key}"] = (f"output_blocks.{i}.0", f"output_blocks.{i}.1")
    names = dict(TOP)
    for ours, (residual, attention) in places.items():
        names |= {f"{ours}.{a}": f"{residual}.{b}" for a, b in RESIDUAL.items()}
        names |= {f"{ours}.{a}": f"{attention}.{b}" for a, b in ATTENTION.items()}
    return names


def to_edm(weights, network, heads_first=True):
    """OpenAI's weights in EDM's layout; the network's own resampling filters stay."""
    names, converted = openai_names(network), network.state_dict()
    for name in converted:
        layer, _, kind = name.rpartition(".")
        if kind == "resample_filter":
            continue
        value = weights[f"{names[layer]}.{kind}"]
        if layer == "map_label":
            value = value.t()
        if layer.endswith("qkv") and heads_first:  # (3, head, channel) to (head, channel, 3)
            heads = value.shape[0] // 3 // SIZES["head_channels"]
            value = value.unflatten(0, (3, heads, -1)).movedim(0, 2).flatten(0, 2)
        converted[name] = value
    return converted


@pytest.mark.parametrize("classes", [0, 3])
def test_one_function_in_two_layouts(classes):
    torch.manual_seed(0)
    theirs = OpenAIUNet(16, 3, classes, **SIZES).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    ours = DhariwalUNet(16, 3, classes, **SIZES).eval()
    x, c_noise = torch.randn(2, 3, 16, 16), torch.tensor([-0.4, 1.0])
    labels = torch.eye(3)[:2] if classes else None
    used = {name for name in openai_names(ours).values() if f"{name}.weight" in theirs.state_dict()}
    assert len(used) == len({name.rpartition(".")[0] for name in theirs.state_dict()})

    with torch.no_grad():
        expected = theirs(x, c_noise, labels)
        ours.load_state_dict(to_edm(theirs.state_dict(), ours))
        assert_close(ours(x, 1000 * c_noise, labels), expected, rtol=0, atol=1e-4 * expected.abs().max().item())
        ours.load_state_dict(to_edm(theirs.state_dict(), ours, heads_first=False))
        assert (ours(x, 1000 * c_noise, labels) - expected).abs().max() > 0.01 * expected.abs().max()
