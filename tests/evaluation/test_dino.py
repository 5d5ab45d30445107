"""DINOv2: the network against a plain one, which is written from the paper's formulas."""

import pytest
import torch
from torch.nn import functional as F

from consistency_models.evaluation.dino import DINOv2


def plain(state, images, heads=2):
    """A vision transformer with LayerScale, of normalised images (B, 3, 224, 224)."""
    width = state["cls_token"].shape[-1]

    def linear(name, x):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name, x):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    patches = images.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5).reshape(len(images), 256, -1)
    tokens = patches @ state["patch_embed.proj.weight"].view(width, -1).T + state["patch_embed.proj.bias"]
    grid = state["pos_embed"][:, 1:].view(1, 37, 37, width).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=16.1 / 37, mode="bicubic").permute(0, 2, 3, 1).view(1, 256, width)
    token = (state["cls_token"] + state["pos_embed"][:, :1]).expand(len(images), -1, -1)
    x = torch.cat([token, tokens + grid], 1)
    for i in range(2):
        q, k, v = linear(f"blocks.{i}.attn.qkv", norm(f"blocks.{i}.norm1", x)).view(len(x), 257, 3, heads, -1).unbind(2)
        share = torch.einsum("bqhc,bkhc->bhqk", q, k).div((width / heads) ** 0.5).softmax(-1)
        mixed = torch.einsum("bhqk,bkhc->bqhc", share, v).reshape(x.shape)
        x = x + state[f"blocks.{i}.ls1.gamma"] * linear(f"blocks.{i}.attn.proj", mixed)
        hidden = F.gelu(linear(f"blocks.{i}.mlp.fc1", norm(f"blocks.{i}.norm2", x)))
        x = x + state[f"blocks.{i}.ls2.gamma"] * linear(f"blocks.{i}.mlp.fc2", hidden)
    return norm("norm", x)[:, 0]


def test_the_network_is_the_plain_one(weight_files, dino_state):
    space = DINOv2(weights=weight_files["DINOv2"])
    images = torch.randint(256, (3, 3, 224, 224), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = ((images + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(space(images), plain(dino_state(), normalised), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("width", "name"), [(384, "dinov2_vits14"), (128, "dinov2_width128")])
def test_numbers_of_another_network_have_another_name(width, name, tmp_path, dino_state):
    torch.save(dino_state(width, 1), tmp_path / "other.pth")
    assert DINOv2(weights=tmp_path / "other.pth").name == name
