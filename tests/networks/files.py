"""The files of conf/network, and small versions of what they describe."""

from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

CONF = Path(__file__).parents[2] / "conf" / "network"
OF_FOLDERS = {"diffusers", "diffusers_lora"}  # networks whose architecture is that of a folder
NAMES = sorted({path.stem for path in CONF.glob("*.yaml")} - OF_FOLDERS)
BASES = [
    name for name in NAMES if "defaults" not in OmegaConf.load(CONF / f"{name}.yaml")
]  # others change numbers only
TINY = {  # what makes each network cheap enough to run here; the rest of its file stays as it is
    "MLP": {"width": 32},
    "DiT": {"width": 32, "depth": 2, "heads": 2},
    "SongUNet": {"model_channels": 8, "num_blocks": 1},
    "DhariwalUNet": {"model_channels": 8, "num_blocks": 1, "head_channels": 8},
    "OpenAIUNet": {"model_channels": 32, "num_blocks": 1, "head_channels": 16},
    "EDM2": {"model_channels": 8, "num_blocks": 1, "head_channels": 8},
}


def config(name, **data):
    """conf/network/NAME.yaml, with the files that it extends, for a data set of 3-channel images in 4 classes."""
    node = OmegaConf.load(CONF / f"{name}.yaml")
    for base in reversed(node.pop("defaults", [])):
        node = node if base == "_self_" else OmegaConf.merge(config(base, **data).network, node)
    data = {"image_size": 16, "channels": 3, "network_classes": 4} | data
    return OmegaConf.create({"data": data, "network": node})


def tiny(name, image_size=16, **changes):
    """A small version of the network with all parameters random, so that no branch is hidden by a zero."""
    torch.manual_seed(0)
    node = config(name, image_size=image_size).network
    network = instantiate(node, **(TINY[node._target_.rpartition(".")[2]] | changes))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.eval()
