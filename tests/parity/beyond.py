"""The convolutional network of the files beyond/, and their cases."""

import json

import torch
from torch import nn
from torch.nn.functional import silu


def settings(case):
    """[(prefix of the keys, arguments)] of a file."""
    return [(f"case{i}_", arguments) for i, arguments in enumerate(json.loads(case["cases_json"]))]


class ConvNet(nn.Module):
    """out = conv2(silu(conv1(x) + lin(sin t, cos t, t/4, for each time t in order) + emb[label])); labels are one-hot.

    Args:
        case: the file.
        name: prefix of the weights.
        sign: of the output.
    """

    def __init__(self, case, name, sign=1):
        super().__init__()
        weights = {key.removeprefix(f"{name}."): case[key] for key in case if key.startswith(f"{name}.")}
        hidden, channels = weights["conv1.weight"].shape[:2]
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=1)
        self.lin = nn.Linear(weights["lin.weight"].shape[1], hidden)
        self.conv2 = nn.Conv2d(hidden, len(weights["conv2.bias"]), 3, padding=1)
        if "emb.weight" in weights:
            self.emb = nn.Embedding(*weights["emb.weight"].shape)
        self.double().load_state_dict(weights)
        self.sign = sign

    def forward(self, x, t, labels=None, augment=None, end=None):
        times = [t] if end is None else [t, end]
        h = self.lin(torch.stack([f(t) for t in times for f in (torch.sin, torch.cos, lambda t: t / 4)], 1))
        if labels is not None:
            h = h + labels @ self.emb.weight
        return self.sign * self.conv2(silu(self.conv1(x) + h[:, :, None, None]))
