"""docs/networks.md names every network, with the parameters that it has."""

import re
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from networks.files import NAMES, config

DOCS = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
ROW = r"^\| `(\w+)` \|.*\| ([\d,]+) \| (\d+)x\d+x(\d+)(?:, (\d+) classes)? \|$"
ROWS = re.findall(ROW, DOCS, re.MULTILINE)


def count(name, **changes):
    name, _, size, channels, classes = next(row for row in ROWS if row[0] == name)
    data = {"image_size": int(size), "channels": int(channels), "network_classes": int(classes or 0)}
    with torch.device("meta"):
        network = instantiate(config(name, **data).network, **changes)
    return f"{sum(p.numel() for p in network.parameters()):,}"


def test_every_network_is_in_the_table():
    assert sorted(name for name, *_ in ROWS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_parameters(name):
    assert count(name) == next(parameters for row, parameters, *_ in ROWS if row == name)


@pytest.mark.parametrize(
    ("name", "changes", "published"),
    [
        ("ddpmpp", {"augment_dim": 9}, "55,733,891"),
        ("ncsnpp", {"augment_dim": 9}, "56,397,827"),
        ("ddpmpp_64", {"augment_dim": 9}, "61,805,571"),
        ("ddpmpp", {"augment_dim": 9, "num_classes": 10}, "55,735,299"),
        ("edm2_imagenet64", {"logvar_channels": 128}, "280,209,381"),
    ],
)
def test_published_counts(name, changes, published):
    assert count(name, **changes) == published
