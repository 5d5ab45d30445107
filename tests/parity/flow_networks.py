"""Networks of two times that files under beyond/ were made with, random numbers that are stored, and steps of cases."""

import json
from dataclasses import dataclass, field

import torch
from methods.steps import step_of
from parity.golden import F64, check_gradients
from torch import nn
from torch.nn.functional import one_hot

from consistency_models.noise.preconditioning import Flow
from consistency_models.noise.schedules import Levels, per_image
from consistency_models.random import BatchRandom

EXACT = {"rtol": F64["rtol"], "atol": F64["atol"]}


def setting_of(case, name):
    """The arguments of a case."""
    return json.loads(case["cases_json"])[int(name.removeprefix("case"))]


def weights_of(case, name):
    """The weights NAME.*, by the rest of their keys."""
    return {key.removeprefix(f"{name}."): value for key, value in case.items() if key.startswith(f"{name}.")}


class ConvNet(nn.Module):
    """h = conv1(x) + lin(features of each time) + emb[label],  out = conv2(silu(h)) [, conv3(silu(h))].

    The times are the noise label, the end label, and the augmentation labels. A zero row of labels is the last class.
    """

    def __init__(self, case, name):
        super().__init__()
        weights = weights_of(case, name)
        for key, value in weights.items():
            module, kind = key.split(".")
            if not hasattr(self, module):
                setattr(self, module, nn.Module())
            getattr(self, module).register_parameter(kind, nn.Parameter(value.clone()))
        times = weights["lin.weight"].shape[1] // 3
        self.two_times = times > 1
        self.num_classes = len(weights["emb.weight"]) - 1 if "emb.weight" in weights else 0

    def forward(self, x, c_noise, labels=None, augment=None, end=None):
        times = [c_noise, *([] if end is None else [end]), *([] if augment is None else augment.unbind(1))]
        features = torch.cat([torch.stack([t.sin(), t.cos(), t / 4], 1) for t in times], 1)
        added = features @ self.lin.weight.T + self.lin.bias
        if self.num_classes:
            labels = x.new_zeros(len(x), self.num_classes) if labels is None else labels
            added = added + torch.cat([labels, 1 - labels.sum(1, keepdim=True)], 1).to(x) @ self.emb.weight
        h = nn.functional.conv2d(x, self.conv1.weight, self.conv1.bias, padding=1) + added[:, :, None, None]
        heads = [self.conv2, *([self.conv3] if hasattr(self, "conv3") else [])]
        h = nn.functional.silu(h)
        return torch.cat([nn.functional.conv2d(h, head.weight, head.bias, padding=1) for head in heads], 1)


class FlatNet(nn.Module):
    """F(x, t, s) = W2 silu(W1 x + a sin t + b cos t + d t + a2 sin s + b2 cos s + d2 s + c) + e on the flattened x."""

    two_times, num_classes = True, 0

    def __init__(self, case, name):
        super().__init__()
        for key, value in weights_of(case, name).items():
            self.register_parameter(key, nn.Parameter(value.clone()))

    def forward(self, x, t, labels=None, augment=None, s=None):
        t, s = t[:, None], s[:, None]
        h = x.flatten(1) @ self.W1.T + self.c
        h = h + self.a * t.sin() + self.b * t.cos() + self.d * t
        h = h + self.a2 * s.sin() + self.b2 * s.cos() + self.d2 * s
        return (nn.functional.silu(h) @ self.W2.T + self.e).view_as(x)


@dataclass(frozen=True)
class Stored(BatchRandom):
    """Random numbers of a file in place of drawn ones, by their stream."""

    draws: dict = field(default_factory=dict)

    def randn(self, stream, *shape, device="cpu", dtype=torch.float32):
        return self.draws[stream][self.local_slice].to(dtype)

    rand = randn


def stored(total, step=0, **draws):
    """Rows 0 … total - 1 of a global batch; blanks in names of streams are underscores here."""
    return Stored(0, step, total, slice(0, total), {key.replace("_", " "): value for key, value in draws.items()})


def sigma_of(t):
    """σ of the flow-matching time t."""
    return t / (1 - t)


def labels_of(case, network, key="label"):
    """One-hot classes of a file; None if the file or the network has none."""
    if key not in case or not network.num_classes:
        return None
    return one_hot(case[key].long(), network.num_classes + 1)[:, :-1].double()


def check_all_gradients(loss, network, case, name):
    """Every gradient that the file has of a case, of d mean(loss)/d parameter."""
    prefix = f"{name}_grad_"
    expected = sum(key.startswith(prefix) for key in case)
    assert check_gradients(loss, network, case, prefix, **EXACT) == expected


def flow_step(x, noise, t, r, labels=None, step=0):
    """The training step from t to r."""
    made = step_of(x, noise, Levels(sigma_of(t), sigma_of(r), sigma_of(r)), labels)
    made.rows = stored(len(x), step)
    return made


def in_flow(step):
    """z, the images of the step in the clock of flow matching."""
    return per_image(Flow().c_in(step.levels.high), step.x_t) * step.x_t


def loss_of(trained, step):
    """Online output, target, and the loss of each image."""
    online = trained.online(step)
    step.online = online.detach()
    with torch.no_grad():
        target = trained.target(step)
    return online, target, trained.loss(step, online, target)
