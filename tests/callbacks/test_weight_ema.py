"""Averages in the model, for sampling: compiled networks run eagerly."""

from types import SimpleNamespace

import torch
from torch import nn

from consistency_models.callbacks.ema import WeightEMA
from consistency_models.optim.ema import Constant


class Own(nn.Linear):
    """torch 2.11 does not compile a layer of torch.nn by itself."""

    def forward(self, x):
        return super().forward(x)


def test_compiled_networks_run_eagerly_with_averages():
    compiled = []

    def backend(graph, inputs):
        compiled.append(inputs)
        return graph.forward

    model = nn.Sequential(Own(2, 2))
    model[0].compile(backend=backend, dynamic=False)
    ema, weights = WeightEMA(Constant([0.5])), list(model.parameters())
    ema.averages = {"0.5": [torch.zeros_like(p) for p in weights]}
    with ema.applied(SimpleNamespace(model=model, weights=weights)):
        assert not model(torch.ones(3, 2)).any()
        assert not compiled
    assert model(torch.ones(3, 2)).any()
    assert compiled
