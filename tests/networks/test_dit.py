"""DiT against diffusers' DiTTransformer2DModel, where diffusers is installed, and the shapes of the paper."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from consistency_models.networks.dit import DiT
from consistency_models.networks.layers import PositionalEmbedding

CLASSES = 5
SHAPES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}


def random_weights(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network.eval()


def pair(patch_size):
    """Ours, and diffusers' of the same shape."""
    diffusers = pytest.importorskip("diffusers")
    ours = DiT(
        8,
        4,
        CLASSES,
        out_channels=8,
        patch_size=patch_size,
        width=32,
        depth=3,
        heads=4,
        embedding=partial(PositionalEmbedding, endpoint=True),  # diffusers' frequencies
    )
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        sample_size=8,
        patch_size=patch_size,
        num_embeds_ada_norm=CLASSES,
        norm_eps=1e-6,
    )
    return ours, theirs.eval()


def as_theirs(ours, theirs):
    """Our weights under diffusers' names: each of its blocks has a copy of the embeddings."""
    renamed = {
        "x_embedder.proj": "pos_embed.proj",
        "final_layer.adaLN_modulation.1": "proj_out_1",
        "final_layer.linear": "proj_out_2",
    }
    of_block = {
        "adaLN_modulation.1": "norm1.linear",
        "attn.proj": "attn1.to_out.0",
        "mlp.fc1": "ff.net.0.proj",
        "mlp.fc2": "ff.net.2",
    }
    of_embedding = {
        "t_embedder.mlp.0": "timestep_embedder.linear_1",
        "t_embedder.mlp.2": "timestep_embedder.linear_2",
        "y_embedder.embedding_table": "class_embedder.embedding_table",
    }
    weights = {}
    for name, value in ours.items():
        module, _, kind = name.rpartition(".")
        if module in renamed:
            weights[f"{renamed[module]}.{kind}"] = value
        elif module in of_embedding:
            for i in range(3):
                weights[f"transformer_blocks.{i}.norm1.emb.{of_embedding[module]}.{kind}"] = value
        else:
            _, i, part = module.split(".", 2)
            if part == "attn.qkv":
                for key, third in zip(("to_q", "to_k", "to_v"), value.chunk(3)):
                    weights[f"transformer_blocks.{i}.attn1.{key}.{kind}"] = third
            else:
                weights[f"transformer_blocks.{i}.{of_block[part]}.{kind}"] = value
    assert weights.keys() == {name for name, _ in theirs.named_parameters()}
    return weights


def as_ours(theirs, ours):
    """Diffusers' weights under our names, found by sending numbered ones the other way."""
    names = {name: torch.full_like(value, i) for i, (name, value) in enumerate(ours.state_dict().items())}
    where = as_theirs(names, theirs)
    weights = theirs.state_dict()
    found = {}
    for i, (name, value) in enumerate(ours.state_dict().items()):
        keys = [key for key, number in where.items() if number.flatten()[0] == i]
        parts = [weights[key] for key in (keys if "qkv" in name else keys[:1])]
        found[name] = torch.cat(parts).view_as(value)
    return found


def inputs():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 4, 8, 8, generator=generator)
    classes = torch.tensor([0, 1, 4, 2, CLASSES, CLASSES])  # the last is the null class
    labels = torch.nn.functional.one_hot(classes, CLASSES + 1)[:, :-1].float()
    return x, torch.tensor([0.0, 0.3, 1.0, 17.0, 500.0, 999.0]), classes, labels


@pytest.mark.parametrize("patch_size", [2, 4])
@pytest.mark.parametrize("direction", ["ours to theirs", "theirs to ours"])
def test_equals_diffusers(patch_size, direction):
    ours, theirs = pair(patch_size)
    if direction == "ours to theirs":
        random_weights(ours)
        _, unexpected = theirs.load_state_dict(as_theirs(ours.state_dict(), theirs), strict=False)
        assert not unexpected
    else:
        random_weights(theirs)
        for block in theirs.transformer_blocks[1:]:  # which it has once for each block, all the same
            block.norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
        ours.load_state_dict(as_ours(theirs, ours))
        ours.eval()
    x, t, classes, labels = inputs()
    with torch.no_grad():
        expected = theirs(x, timestep=t, class_labels=classes).sample
        assert_close(ours(x, t, labels), expected, rtol=1e-5, atol=1e-5)


def test_no_labels_are_the_null_class():
    network = random_weights(DiT(4, 1, CLASSES, width=16, depth=1, heads=2))
    x, t = torch.randn(3, 1, 4, 4), torch.rand(3)
    assert torch.equal(network(x, t), network(x, t, torch.zeros(3, CLASSES)))
    assert not torch.equal(network(x, t), network(x, t, torch.eye(CLASSES)[:3]))


def test_starts_at_zero_and_the_second_time_changes_nothing_at_first():
    torch.manual_seed(0)
    network = DiT(4, 1, width=16, depth=1, heads=2, two_times=True)
    x, t = torch.randn(3, 1, 4, 4), torch.rand(3)
    assert not network(x, t, end_label=t).any()
    torch.nn.init.normal_(network.final_layer.linear.weight)
    torch.nn.init.normal_(network.final_layer.adaLN_modulation[1].weight)
    out = network(x, t, end_label=t)
    assert out.any()
    assert torch.equal(network(x, t, end_label=t / 2), out)
    torch.nn.init.normal_(network.t_embedder_end.mlp[2].weight)
    assert not torch.equal(network(x, t, end_label=t / 2), network(x, t, end_label=t))


@pytest.mark.parametrize(
    ("name", "published"),
    [("S", 33), ("B", 130), ("L", 458), ("XL", 675)],
)
def test_published_counts(name, published):
    """In millions, of patches of 2x2 of latents of 4x32x32 in 1000 classes with a variance (2212.09748, Table 4)."""
    width, depth, heads = SHAPES[name]
    shape = {"width": width, "depth": depth, "heads": heads}
    with torch.device("meta"):
        network = DiT(32, 4, 1000, out_channels=8, **shape)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(published, abs=1)


def test_forward_mode_derivative_of_both_times():
    from torch.nn.attention import SDPBackend, sdpa_kernel

    network = random_weights(DiT(4, 1, width=16, depth=2, heads=2, two_times=True)).double()
    x, dx = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64)
    t, end, h = torch.rand(3, dtype=torch.float64), torch.rand(3, dtype=torch.float64), 1e-5

    def function(x, t, end):
        return network(x, t, None, None, end)

    ones = torch.ones_like(t)
    with sdpa_kernel(SDPBackend.MATH):
        _, found = torch.func.jvp(function, (x, t, end), (dx, ones, 2 * ones))
    ahead, behind = (function(x + s * dx, t + s, end + 2 * s) for s in (h, -h))
    assert_close(found, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"patch_size": 3}, {"heads": 5}, {"width": 18, "heads": 2}])
def test_refused(wrong):
    with pytest.raises(ValueError, match="divisible"):
        DiT(8, 1, **{"width": 16, "depth": 1, "heads": 2} | wrong)
