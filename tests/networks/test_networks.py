"""What every network of conf/network promises, whatever its size."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.nn.attention import SDPBackend, sdpa_kernel

CONF = Path(__file__).parents[2] / "conf" / "network"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
TINY = {  # what makes each network cheap enough to run here; the rest of its file stays as it is
    "consistency_models.networks.mlp.MLP": {"width": 32},
    "consistency_models.networks.song.SongUNet": {"model_channels": 8, "num_blocks": 1},
}


def config(name, **data):
    """conf/network/NAME.yaml, with the files that it extends, for a data set of 3-channel images in 4 classes."""
    node = OmegaConf.load(CONF / f"{name}.yaml")
    for base in reversed(node.pop("defaults", [])):
        node = node if base == "_self_" else OmegaConf.merge(config(base, **data).network, node)
    data = {"image_size": 16, "channels": 3, "network_classes": 4} | data
    return OmegaConf.create({"data": data, "network": node})


def tiny(name, seed=0, **changes):
    """A small version of the network with all parameters random, so that no branch is hidden by a zero."""
    torch.manual_seed(seed)
    node = config(name).network
    network = instantiate(node, **TINY[node._target_], **changes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.eval()


def inputs(network, batch=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, network.channels, network.image_size, network.image_size, generator=generator)
    noise_label = torch.linspace(-1.5, 1.0, batch)
    labels = torch.eye(4)[torch.arange(batch) % 4] if network.num_classes else None
    return x, noise_label, labels


@pytest.fixture(params=NAMES)
def network(request):
    return tiny(request.param)


def relative(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()


def test_takes_the_whole_batch_and_no_image_sees_another(network):
    x, c, labels = inputs(network)
    out = network(x, c, labels)
    assert out.shape == x.shape
    assert relative(network(x[1:2], c[1:2], labels[1:2]), out[1:2]) < 1e-4


def test_every_input_and_every_parameter_matters(network):
    x, c, labels = inputs(network)
    out = network(x, c, labels)
    for changed in ((x.flip(0), c, labels), (x, c + 0.1, labels), (x, c, labels.roll(1, 0)), (x, c, None)):
        assert relative(network(*changed), out) > 1e-4
    network.train()(x, c, labels).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_labels_of_another_network_are_refused(network):
    x, c, _ = inputs(network)
    with pytest.raises(ValueError, match="takes 4 values"):
        network(x, c, torch.eye(5)[:3])
    with pytest.raises(ValueError, match="takes 0 values"):
        network(x, c, None, torch.zeros(3, 9))


def test_float64_agrees_with_float32(network):
    x, c, labels = inputs(network)
    out = network(x, c, labels)
    exact = network.double()(x.double(), c.double(), labels.double())
    assert exact.dtype == torch.float64
    assert relative(out.double(), exact) < 1e-4


def test_bf16_autocast_runs_forward_and_backward_and_keeps_the_noise_level_apart(network):
    x, c, labels = inputs(network)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, near = network(x, c, labels), network(x, c + 1e-3, labels)
    assert 1e-4 < relative(out.float(), network(x, c, labels)) < 0.1
    assert (out != near).any()
    out.float().sum().backward()


def test_channels_last_gives_the_same(network):
    x, c, labels = inputs(network)
    out = network(x, c, labels)
    last = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), c, labels)
    assert relative(last, out) < 1e-5


def test_forward_mode_derivatives_through_the_math_path(network):
    x, c, labels = (a.double() for a in inputs(network.double()))
    step = 1e-6
    with sdpa_kernel(SDPBackend.MATH):
        _, tangent = torch.func.jvp(lambda x, c: network(x, c, labels), (x, c), (x.flip(0), torch.ones_like(c)))
    ahead, behind = (network(x + s * x.flip(0), c + s, labels) for s in (step, -step))
    assert relative(tangent, (ahead - behind) / (2 * step)) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_changes_no_gradient(name):
    if "checkpointing" not in config(name).network:
        assert config(name).network._target_.endswith("MLP")  # nothing worth recomputing
        return
    gradients = []
    for checkpointing in (False, True):
        network = tiny(name, checkpointing=checkpointing, dropout=0.3).train()
        torch.manual_seed(2)
        network(*inputs(network)).square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", NAMES)
def test_dropout_is_drawn_in_training_only_and_repeats_with_the_seed(name):
    network = tiny(name, dropout=0.5)
    x, c, labels = inputs(network)
    torch.testing.assert_close(network(x, c, labels), network(x, c, labels))
    network.train()
    first, second, again = (torch.manual_seed(seed) and network(x, c, labels) for seed in (3, 4, 3))
    assert relative(first, second) > 1e-3
    torch.testing.assert_close(first, again)
