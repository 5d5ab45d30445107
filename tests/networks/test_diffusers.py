"""diffusers' U-Nets as networks: the same numbers, text and w where they belong, and refusals."""

import json

import pytest
import torch
from tiny_pipelines import unet
from torch.nn.attention import SDPBackend, sdpa_kernel

from consistency_models.conditions import Prompt
from consistency_models.networks import UNet
from consistency_models.noise import Discrete, Preconditioned


def config_of(network):
    """The content of the network's config.json."""
    return json.loads(network.to_json_string())


def prompts(width=32, n=2, **parts):
    return Prompt(torch.randn(n, 5, width), empty=torch.zeros(5, width), **parts)


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    return unet()


@pytest.fixture(scope="module")
def pixels():
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return UNet2DModel(8, 3, 3, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, **blocks).eval()


def wrapped(network, **options):
    own = UNet(config_of(network), **options).eval()
    missing = own.unet.load_state_dict(network.state_dict(), strict=False)
    assert not missing.unexpected_keys
    return own


@torch.no_grad()
def test_text(plain):
    own, labels, x, k = wrapped(plain), prompts(), torch.randn(2, 4, 8, 8), torch.tensor([999.0, 19.0])
    assert (own.image_size, own.channels, own.num_classes) == (8, 4, 0)
    expected = plain(x, k, encoder_hidden_states=labels.text).sample
    torch.testing.assert_close(own(x, k, labels), expected, rtol=0, atol=0)
    assert not torch.equal(own(x, k, own.unconditional(labels)), expected)


@torch.no_grad()
def test_pixels(pixels):
    own, x, k = wrapped(pixels), torch.randn(2, 3, 8, 8), torch.tensor([999.0, 0.0])
    torch.testing.assert_close(own(x, k, own.encode(None)), pixels(x, k).sample, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"takes no classes here: set data\.conditional=false"):
        own.encode(torch.tensor([1, 2]))


@torch.no_grad()
def test_new_layers_start_at_zero(plain, pixels):
    labels, x, k = prompts(guidance=torch.tensor([3.0, 9.0])), torch.randn(2, 4, 8, 8), torch.tensor([999.0, 19.0])
    expected = plain(x, k, encoder_hidden_states=labels.text).sample
    own = wrapped(plain, time_cond_proj_dim=16, two_times=True)
    torch.testing.assert_close(own(x, k, labels, None, k / 2), expected, rtol=0, atol=0)
    own.unet.time_embedding.cond_proj.weight.normal_()
    assert not torch.equal(own(x, k, labels, None, k / 2), expected)
    own = wrapped(pixels, two_times=True)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(own(x, k, None, None, k / 2), pixels(x, k).sample, rtol=0, atol=0)
    own.unet.class_embedding.linear_2.weight.normal_()
    assert not torch.equal(own(x, k, None, None, k / 2), own(x, k, None, None, k / 3))


@torch.no_grad()
def test_the_second_parts_of_sdxl():
    network = unet(
        cross_attention_dim=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 24,
    )
    own, x, k = wrapped(network), torch.randn(2, 4, 8, 8), torch.tensor([999.0, 19.0])
    pooled, sizes = torch.randn(2, 24), torch.tensor([[16.0, 16, 0, 0, 16, 16], [32.0, 16, 8, 0, 16, 16]])
    labels = own.encode(prompts(64, pooled=pooled, sizes=sizes))
    added = {"text_embeds": pooled, "time_ids": sizes}
    expected = network(x, k, encoder_hidden_states=labels.text, added_cond_kwargs=added).sample
    torch.testing.assert_close(own(x, k, labels), expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match="missing: pooled, sizes"):
        own.encode(prompts(64))


def test_refused_prompts(plain):
    own = wrapped(plain, time_cond_proj_dim=16)
    for labels, message in [
        (None, "must be a Prompt; got NoneType"),
        (prompts(), "missing: guidance"),
        (prompts(24, guidance=torch.ones(2)), "width 32; got 24"),
    ]:
        with pytest.raises(ValueError, match=message):
            own.encode(labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "ControlNetModel"}, "names the class 'ControlNetModel'"),
        ({"_class_name": "os.system"}, "allowed are UNet2DModel, UNet2DConditionModel"),
        ({"no_such_key": 1}, "no_such_key"),
        ({"in_channels": 9}, "inpainting"),
        ({"addition_embed_type": "image"}, "addition_embed_type='image'"),
        ({"num_class_embeds": 10}, "num_class_embeds=10"),
        ({"sample_size": [8, 16]}, "two equal ones"),
    ],
)
def test_refused_configs(plain, change, message):
    with pytest.raises(ValueError, match=message):
        UNet(config_of(plain) | change)


def test_derivative_for_methods_of_continuous_time(plain):
    model = Preconditioned(wrapped(plain), Discrete()).double()
    x, sigma, labels = torch.randn(2, 4, 8, 8).double(), torch.tensor([2.0, 0.3]).double(), prompts().to(torch.float64)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # as `Method.derivative`
        _, derivative = torch.func.jvp(lambda x: model(x, sigma, labels), (x,), (torch.ones_like(x),))
        difference = (model(x + 1e-4, sigma, labels) - model(x - 1e-4, sigma, labels)) / 2e-4
    torch.testing.assert_close(derivative, difference, rtol=1e-4, atol=1e-5)


def test_without_the_extra(plain, monkeypatch):
    import sys

    config = config_of(plain)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install -e "\.\[latent\]"'):
        UNet(config)
