"""The feature space of FD_DINOv2."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from consistency_models.evaluation.features import resized_to, to_bytes, to_rgb
from consistency_models.storage.downloads import Weights
from consistency_models.trust import loadable
from consistency_models.values import Text, checked

__all__ = ["DINOv2"]

WEIGHTS = Weights(
    "DINOv2",
    "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
    "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
)
SIZE, PATCH = 224, 14
NAMES = {384: "dinov2_vits14", 768: "dinov2_vitb14", 1024: "dinov2"}  # by width; papers use ViT-L/14


@loadable(download=False)
class DINOv2(nn.Module):
    """The class token of DINOv2's ViT-L/14, 1024 values: the feature space of FD_DINOv2.

    (DINOv2, arXiv 2304.07193; its use for generative models: Stein et al., arXiv 2306.04675.)  Images are resized to
    224x224, bicubic and antialiased, and normalised by ImageNet's mean and standard deviation.

    Args:
        data: not used; every extractor takes the data set.
        weights: `dinov2_vitl14_pretrain.pth`, or the file of ViT-S/14 or ViT-B/14, whose scores have another name; by
            default the first file is searched and, if necessary, downloaded (1.2 GB): see `Weights`.
        download: whether weights that are not on disk may be downloaded.

    Raises:
        FileNotFoundError, ValueError: see `Weights.use`.
    """

    protocol = "8 bits, bicubic antialiased 224"

    needs_images = True
    cpu_batch_size = 4

    @checked
    def __init__(self, data=None, weights: Text | Path | None = None, download: bool = True) -> None:
        super().__init__()
        self.network = WEIGHTS.use(_network, weights, download)
        width = self.network.hidden_dim
        self.name = NAMES.get(width, f"dinov2_width{width}")
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, width), on the network's device, of images (B, 1 or 3, H, W) in [-1, 1] on any device."""
        images = resized_to(SIZE, to_rgb(to_bytes(images.to(self.mean.device))))
        return self.network((images / 255 - self.mean) / self.std)


def _network(state: dict[str, Tensor]) -> nn.Module:
    """Build torchvision's vision transformer with DINOv2's weights.

    The transformer has no LayerScale γ·f(x): γ is multiplied into the last linear layer of f.  Positions are those of
    37x37 patches, interpolated to 16x16 with the offset of 0.1 that DINOv2 uses.
    """
    from torchvision.models import VisionTransformer

    width = state["cls_token"].shape[-1]
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    new = {
        "class_token": state["cls_token"],
        "conv_proj.weight": state["patch_embed.proj.weight"],
        "conv_proj.bias": state["patch_embed.proj.bias"],
        "encoder.pos_embedding": _positions(state["pos_embed"]),
        "encoder.ln.weight": state["norm.weight"],
        "encoder.ln.bias": state["norm.bias"],
    }
    for i in range(layers):
        ours, theirs = f"encoder.layers.encoder_layer_{i}", f"blocks.{i}"
        for kind in ("weight", "bias"):
            new[f"{ours}.ln_1.{kind}"] = state[f"{theirs}.norm1.{kind}"]
            new[f"{ours}.ln_2.{kind}"] = state[f"{theirs}.norm2.{kind}"]
            new[f"{ours}.self_attention.in_proj_{kind}"] = state[f"{theirs}.attn.qkv.{kind}"]
            new[f"{ours}.mlp.0.{kind}"] = state[f"{theirs}.mlp.fc1.{kind}"]
            for to, last, scale in (("self_attention.out_proj", "attn.proj", "ls1"), ("mlp.3", "mlp.fc2", "ls2")):
                gamma, value = state[f"{theirs}.{scale}.gamma"], state[f"{theirs}.{last}.{kind}"]
                new[f"{ours}.{to}.{kind}"] = gamma.view(-1, *[1] * (value.ndim - 1)) * value
    with torch.device("meta"):  # drawing weights would advance the generator
        network = VisionTransformer(SIZE, PATCH, layers, width // 64, width, 4 * width)
    network.heads = nn.Identity()
    network.load_state_dict(new, assign=True)
    return network


def _positions(embedding: Tensor) -> Tensor:
    token, patches = embedding.split([1, embedding.shape[1] - 1], 1)
    side, new_side = round(patches.shape[1] ** 0.5), SIZE // PATCH
    grid = patches.view(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(new_side + 0.1) / side, mode="bicubic")
    return torch.cat([token, grid.flatten(2).transpose(1, 2)], 1)
