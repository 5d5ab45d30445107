from dataclasses import replace

import pytest
import torch
from torch import nn

from consistency_models.data import digits
from consistency_models.evaluation.features import Classifier


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """A cache folder that all tests of this folder share, in place of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def digit_set():
    return digits()


@pytest.fixture(scope="session")
def few_digits(digit_set):
    """The first 12 digits: networks for photographs are slow on one core."""
    return replace(digit_set, images=digit_set.images[:12], labels=digit_set.labels[:12])


@pytest.fixture(scope="session")
def classifier(cache, digit_set):
    """The classifier of conf/features/classifier.yaml, trained on the digits."""
    return Classifier(digit_set)


@pytest.fixture(scope="session")
def weight_files(inception, dino_state, tmp_path_factory):
    """By class: a file of weights of the right names and shapes, for networks whose own no test can fetch."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save(inception.state_dict(), folder / "inception.pth")
    torch.save(dino_state(), folder / "dino.pth")
    return {"InceptionV3": folder / "inception.pth", "DINOv2": folder / "dino.pth"}


@pytest.fixture(scope="session")
def inception():
    """torch-fidelity's network with random weights, in whose depth activations keep their size."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    network = theirs.FeatureExtractorInceptionV3
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(network, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        made = network("random", ["2048", "logits_unbiased"])
        for module in made.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.normal_(made.fc.weight, std=0.05)
    return made


@pytest.fixture(scope="session")
def dino_state():
    """`dino_state(width, layers)`: weights under DINOv2's names, of a network that is small but for its patches."""
    return _dino_state


def _dino_state(width=128, layers=2):
    generator = torch.Generator().manual_seed(0)
    linear = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + 37 * 37, width), "mask_token": (1, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, 14, 14), "patch_embed.proj.bias": (width,)}
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    for i in range(layers):
        shapes |= {f"blocks.{i}.{name}.{kind}": (width,) for name in ("norm1", "norm2") for kind in ("weight", "bias")}
        shapes |= {f"blocks.{i}.{name}.gamma": (width,) for name in ("ls1", "ls2")}
        shapes |= {f"blocks.{i}.{name}.bias": (a * width,) for name, (a, _) in linear.items()}
        shapes |= {f"blocks.{i}.{name}.weight": (a * width, b * width) for name, (a, b) in linear.items()}
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
