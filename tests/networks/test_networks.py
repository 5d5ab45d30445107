"""What every network of conf/network promises, whatever its size."""

import pytest
import torch
import torch.nn.functional as F
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from networks.files import BASES, NAMES, TINY, config, tiny
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from consistency_models.networks.layers import UNetBlock, dropout


def inputs(network, batch=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, network.channels, network.image_size, network.image_size, generator=generator)
    noise_label = torch.linspace(-1.5, 1.0, batch)
    labels = torch.eye(4)[torch.arange(batch) % 4] if network.num_classes else None
    return x, noise_label, labels


@pytest.fixture(params=BASES)
def network(request):
    return tiny(request.param)


def relative(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", NAMES)
def test_every_file_builds_its_network(name):
    network = tiny(name, image_size=32)
    x, c, labels = inputs(network, batch=1)
    assert network(x, c, labels).shape == x.shape


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


@pytest.mark.parametrize("name", ["small", "ddpmpp", "adm"])
def test_double_normalisation(name):
    """norm(h)·p(scale) + p(shift), by hooks on the norm and the layer that gives scale and shift."""
    network = tiny(name, adaptive_scale=True, double_norm=True)
    seen = {}
    block = next(m for m in network.modules() if isinstance(m, UNetBlock))
    for part, key in ((block.norm1, "norm"), (block.affine, "affine")):
        part.register_forward_hook(lambda module, inputs, output, key=key: seen.update({key: output}))
    block.conv1.register_forward_pre_hook(lambda module, inputs: seen.update(out=inputs[0]))
    x, c, labels = inputs(network)
    network(x, c, labels)
    scale, shift = (y / (y.square().mean(1, keepdim=True) + 1e-8).sqrt() for y in seen["affine"].chunk(2, 1))
    expected = torch.nn.functional.silu(seen["norm"] * scale[:, :, None, None] + shift[:, :, None, None])
    torch.testing.assert_close(seen["out"], expected)
    with pytest.raises(InstantiationException, match=r"double_norm=True .* needs adaptive_scale=True"):
        tiny(name, adaptive_scale=False, double_norm=True)


def test_normalised_attention_does_not_depend_on_the_scale_of_its_projection():
    torch.manual_seed(0)
    x, emb = torch.randn(2, 32, 4, 4), torch.randn(2, 8)
    for norm in (True, False):
        block = UNetBlock(32, 32, 8, heads=2, attention_norm=norm).eval()
        torch.nn.init.normal_(block.proj.weight)
        before = block(x, emb)
        with torch.no_grad():
            block.qkv.weight *= 10
            block.qkv.bias *= 10
        assert torch.allclose(block(x, emb), before, atol=1e-4) == norm


@pytest.mark.parametrize("name", BASES)
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


@pytest.mark.parametrize("name", BASES)
def test_dropout_is_drawn_in_training_only_and_repeats_with_the_seed(name):
    network = tiny(name, dropout=0.5)
    x, c, labels = inputs(network)
    torch.testing.assert_close(network(x, c, labels), network(x, c, labels))
    network.train()
    first, second, again = (torch.manual_seed(seed) and network(x, c, labels) for seed in (3, 4, 3))
    assert relative(first, second) > 1e-3
    torch.testing.assert_close(first, again)


def test_dropout_is_that_of_torch_and_does_not_depend_on_the_layout():
    x = torch.randn(2, 8, 4, 4)
    drawn = []
    for drop, image in ((F.dropout, x), (dropout, x), (dropout, x.to(memory_format=torch.channels_last))):
        torch.manual_seed(0)
        drawn.append(drop(image, 0.3, True))
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[1], drawn[2])
    assert dropout(x, 0.3, False) is x


def test_dropout_only_at_coarse_resolutions():
    network = tiny("ddpmpp", dropout=0.5, dropout_resolution=8)
    blocks = {name: module.dropout for name, module in network.named_modules() if hasattr(module, "dropout")}
    assert {name for name, dropout in blocks.items() if dropout} == {name for name in blocks if "16x16" not in name}


@pytest.mark.parametrize("name", [name for name in BASES if "label_dropout" in config(name).network])
def test_a_hidden_class_is_no_class(name):
    network = tiny(name, label_dropout=1.0)
    x, c, labels = inputs(network)
    assert relative(network(x, c, labels), network(x, c)) > 1e-4
    network.train()
    torch.testing.assert_close(network(x, c, labels), network(x, c))


@pytest.mark.slow
@pytest.mark.parametrize("name", BASES)
def test_compiles_as_one_graph(name):
    network = tiny(name, dropout=0.1).train()
    x, c, labels = inputs(network)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.manual_seed(0)
    expected = network(x, c, labels)
    torch.manual_seed(0)
    assert relative(compiled(x, c, labels), expected) < 1e-5
    torch._dynamo.reset()


@pytest.mark.parametrize("name", [name for name in BASES if "channel_mult" in config(name).network])
def test_an_image_that_cannot_be_halved_is_refused(name):
    with pytest.raises(InstantiationException, match="image_size must be a multiple of"):
        tiny(name, image_size=17)


@pytest.mark.parametrize("name", ["openai_adm"])
def test_augmentation_labels_that_would_be_ignored_are_refused(name):
    with pytest.raises(InstantiationException, match=r"augment_dim=.* is not .* 0"):
        tiny(name, augment_dim=9)


@pytest.mark.parametrize("name", ["ddpmpp", "adm", "mlp", "edm2"])
def test_augmentation_labels_matter_and_none_means_zeros(name):
    network = tiny(name, augment_dim=9)
    x, c, labels = inputs(network)
    assert relative(network(x, c, labels, torch.ones(3, 9)), network(x, c, labels)) > 1e-4
    torch.testing.assert_close(network(x, c, labels, torch.zeros(3, 9)), network(x, c, labels))


@pytest.mark.parametrize("name", [name for name in BASES if "two_times" in config(name).network])
def test_a_second_time_starts_at_zero_and_a_second_output_follows_the_first(name):
    one, node = tiny(name), config(name, image_size=16).network
    changes = TINY[node._target_.rpartition(".")[2]] | {"two_times": True, "outputs": 2}
    two, (x, c, labels) = instantiate(node, **changes).eval(), inputs(one)
    own = {key: value for key, value in one.state_dict().items() if two.state_dict()[key].shape == value.shape}
    two.load_state_dict(own, strict=False)
    new = {key: parameter for key, parameter in two.named_parameters() if key not in own}
    for key, parameter in new.items():
        if "_end" not in key:
            nn.init.normal_(parameter)  # the last layer, which is 0 in some networks
    out = two(x, c, labels, None, c / 2)
    assert out.shape == (3, 2 * x.shape[1], *x.shape[2:])
    torch.testing.assert_close(two(x, c, labels, None, c / 3), out)
    for key, parameter in new.items():
        if "_end" in key:
            nn.init.normal_(parameter)
    assert relative(two(x, c, labels, None, c / 3), two(x, c, labels, None, c / 2)) > 1e-4


@pytest.mark.parametrize(("encoder", "decoder"), [("skip", "skip"), ("residual", "skip"), ("skip", "standard")])
def test_images_enter_and_leave_at_every_level(encoder, decoder):
    network = tiny("ncsnpp", encoder=encoder, decoder=decoder)
    x, c, labels = inputs(network)
    assert network(x, c, labels).shape == x.shape
    names = [name for name in network.state_dict() if "aux" in name and name.endswith("weight")]
    assert ("enc.8x8_aux_skip.weight" in names, "enc.8x8_aux_residual.weight" in names) == (
        encoder == "skip",
        encoder == "residual",
    )
    assert [f"dec.{r}x{r}_aux_conv.weight" in names for r in (16, 8, 4)] == [True, *[decoder == "skip"] * 2]


def test_unknown_encoder_is_refused_and_lost_attention_is_told_of():
    with pytest.raises(InstantiationException, match=r"encoder=residul is not .* standard, skip, residual"):
        tiny("ncsnpp", encoder="residul")
    with pytest.warns(UserWarning, match="no attention at 16x16: 8 channels make no head of 64"):
        tiny("adm", head_channels=64)
