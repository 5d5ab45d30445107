"""What diffusers' golden files are read with: their small network with text, and the scalings of their arguments."""

import json

import pytest
import torch
from parity.golden import TinyNet
from torch import nn

from consistency_models.conditions import Prompt
from consistency_models.noise import Discrete

TABLE = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps")
DEFAULTS = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}  # of diffusers' schedulers
EXACT = {"rtol": 1e-6, "atol": 1e-6}  # diffusers takes roots of the table in float32, see README.md of the files


def said(case, key):
    """The JSON under a key."""
    return json.loads(case[key])


def table_of(config):
    """The keys of a table in a scheduler's configuration, which has others, too."""
    table = DEFAULTS | {key: config[key] for key in TABLE if key in config}
    return table | ({"beta_schedule": config["trained_betas"]} if config.get("trained_betas") else {})


def offset(args):
    """`steps_offset`, which diffusers reads for the spacing "leading" only."""
    return args.get("steps_offset", 0) if args.get("timestep_spacing", "leading") == "leading" else 0


def scalings(config, prediction_type=None, boundary=None, kind=Discrete):
    """The scalings of a scheduler's configuration."""
    if config.get("rescale_betas_zero_snr"):
        pytest.skip("the last level of the table is infinite: Discrete refuses it")
    return kind(
        **table_of(config),
        prediction_type=prediction_type or config.get("prediction_type", "epsilon"),
        boundary=boundary,
    )


class TextNet(TinyNet):
    """TinyNet with text and, where the file has weights for it, guidance: t is the integer timestep."""

    def __init__(self, case, name):
        nn.Module.__init__(self)
        weights = {key.removeprefix(f"{name}."): case[key] for key in case if key.startswith(f"{name}.")}
        out, channels = weights["conv1.weight"].shape[:2]
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.lin = nn.Linear(3, out)
        self.text = nn.Linear(weights["text.weight"].shape[1], out)
        self.conv2 = nn.Conv2d(out, channels, 3, padding=1)
        self.guide = nn.Linear(weights["guide.weight"].shape[1], out, bias=False) if "guide.weight" in weights else None
        self.double().load_state_dict(weights)

    def encode(self, labels):
        return labels

    def unconditional(self, labels):
        return labels.unconditional()

    def forward(self, x, t, labels=None, augment=None):
        feats = torch.stack([torch.sin(t / 100), torch.cos(t / 100), t / 1000], dim=1)
        h = self.lin(feats) + self.text(labels.text.mean(1))
        if self.guide is not None:
            h = h + self.guide(labels.pooled)  # `pooled` holds the file's embedding of w
        return self.conv2(nn.functional.silu(self.conv1(x) + h[:, :, None, None]))


def prompts(case, guidance=None, embedding=None):
    """The prompts of a file; `embedding` is given to networks of w."""
    empty = case["empty"][0] if "empty" in case else None
    return Prompt(case["prompt"], pooled=embedding, guidance=guidance, empty=empty, empty_pooled=embedding)


class Recorded:
    """A denoiser that keeps its inputs, in the scale of a pipeline, and its outputs."""

    def __init__(self, denoiser):
        self.denoiser, self.inputs, self.outputs = denoiser, [], []

    def __call__(self, x, sigma):
        self.inputs.append(x / (1 + sigma.view(-1, 1, 1, 1) ** 2).sqrt())
        self.outputs.append(self.denoiser(x, sigma))
        return self.outputs[-1]
