"""DiT: a transformer over the patches of an image or a latent.

(Peebles & Xie, Scalable Diffusion Models with Transformers, arXiv 2212.09748; the same network in SiT, 2401.08740.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from consistency_models.networks.layers import Linear, PositionalEmbedding, dropout
from consistency_models.networks.network import Network
from consistency_models.trust import loadable
from consistency_models.values import BelowOne, Count, Share, Size, checked

__all__ = ["DiT"]

FEATURES = partial(PositionalEmbedding, endpoint=False)  # features of a time, as published


class TimeEmbedding(nn.Module):
    """W_2 silu(W_1 features(t)); (B,) to (B, width).

    Args:
        features: module from times (B,) to (B, 256).
        width: width of the result.
    """

    def __init__(self, features: nn.Module, width: int) -> None:
        super().__init__()
        self.features = features
        self.mlp = nn.Sequential(Linear(256, width), nn.SiLU(), Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Embed (B,) to (B, width)."""
        return self.mlp(self.features(t))


class ClassEmbedding(nn.Module):
    """Rows of a table for one-hot classes; a row of zeros is the null class, the last row of the table.

    Args:
        num_classes: number of classes without the null class.
        width: width of the result.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        """Embed (B, num_classes) to (B, width)."""
        weight = self.embedding_table.weight
        return torch.cat([labels, 1 - labels.sum(1, keepdim=True)], 1).to(weight.dtype) @ weight


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(x)·(1 + scale) + shift, with the layer norm over the width; shape of x."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6).to(x.dtype) * (1 + scale) + shift


class Attention(nn.Module):
    """Self-attention over tokens, (B, N, width). `sdpa_kernel(SDPBackend.MATH)` reduces it to elementary operations.

    Args:
        width: width of a token, divisible by heads.
        heads: attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply attention; the result has the shape of x."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).contiguous()
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x ← x + g_1·attention(norm(x)·(1 + s_1) + b_1);  x ← x + g_2·mlp(norm(x)·(1 + s_2) + b_2).

    Args:
        width, heads: as for `DiT`.
        dropout: probability of dropout within the mlp.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.attn = Attention(width, heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 6 * width))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map tokens (B, N, width) and embedding (B, width) to (B, N, width)."""
        parts = self.adaLN_modulation(emb)[:, None].to(x.dtype)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = parts.chunk(6, 2)
        x = x + gate_1 * self.attn(modulated(x, shift_1, scale_1))
        h = F.gelu(self.mlp["fc1"](modulated(x, shift_2, scale_2)), approximate="tanh")
        return x + gate_2 * self.mlp["fc2"](dropout(h, self.dropout, self.training))


class FinalLayer(nn.Module):
    """A modulated norm and a linear layer to the values of a patch.

    Args:
        width: width of a token.
        values: values of a patch, patch_size²·channels.
    """

    def __init__(self, width: int, values: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, values)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 2 * width))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map tokens (B, N, width) and embedding (B, width) to (B, N, values)."""
        shift, scale = self.adaLN_modulation(emb)[:, None].to(x.dtype).chunk(2, 2)
        return self.linear(modulated(x, shift, scale))


def sincos_positions(width: int, size: int) -> Tensor:
    """[sin, cos] of the column, then of the row, for size² patches in row-major order; (size², width)."""
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    phase = torch.arange(size, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat([phase.sin(), phase.cos()], 1)
    row, column = (axis.repeat_interleave(size, 0), axis.repeat(size, 1))
    return torch.cat([column, row], 1).float()


@loadable()
class DiT(Network):
    """Transformer with adaLN-zero; F(x, noise_label, labels, augment[, end_label]), images (B, channels, size, size).

    The table of classes has an additional row for the null class; a row of zeros in `labels` selects this row.
    Parameter names are those of the published code.

    Args:
        image_size: height and width; divisible by patch_size.
        channels: channels of the image or latent.
        num_classes: width of the one-hot labels; 0 for an unconditional network.
        augment_dim: width of the augmentation labels; 0 for none.
        dropout: probability of dropout within the perceptrons; the published network has no dropout.
        label_dropout: probability, in training, of dropping the class of an image (for classifier-free guidance).
        out_channels: channels of the result; `channels` by default, twice as many if the network predicts a variance.
        patch_size: height and width of a patch.
        width: width of a token; divisible by heads and by 4.
        depth: number of blocks.
        heads: attention heads.
        embedding: maps 256 to a module from times (B,) to features (B, 256).
        checkpointing: do not store activations within blocks; the backward pass recomputes them.
        two_times: take a second noise label, through an embedding whose last layer is initialised to 0.
        outputs: number of images in the result, one behind the other in the channels; 2: with a second head.

    Raises:
        ValueError: patch_size does not divide image_size, or heads or 4 does not divide width.
    """

    @checked
    def __init__(
        self,
        image_size: Size,
        channels: Size,
        num_classes: Count = 0,
        augment_dim: Count = 0,
        dropout: BelowOne = 0.0,
        *,
        label_dropout: Share = 0.0,
        out_channels: Size | None = None,
        patch_size: Size = 2,
        width: Size = 384,
        depth: Size = 12,
        heads: Size = 6,
        embedding: Callable[[int], nn.Module] = FEATURES,
        checkpointing: bool = False,
        two_times: bool = False,
        outputs: Size = 1,
    ) -> None:
        super().__init__(image_size, channels, num_classes, augment_dim, label_dropout, checkpointing, two_times)
        if image_size % patch_size or width % heads or width % 4:
            raise ValueError(
                "need image_size divisible by patch_size, and width by heads and by 4; "
                f"got image_size {image_size}, patch_size {patch_size}, width {width}, heads {heads}"
            )
        self.patch_size, self.out_channels = patch_size, outputs * (out_channels or channels)
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(channels, width, patch_size, patch_size)})
        self.register_buffer("pos_embed", sincos_positions(width, image_size // patch_size), persistent=False)
        self.t_embedder = TimeEmbedding(embedding(256), width)
        self.t_embedder_end = TimeEmbedding(embedding(256), width) if two_times else None
        self.y_embedder = ClassEmbedding(num_classes, width) if num_classes else None
        self.map_augment = Linear(augment_dim, width, bias=False) if augment_dim else None
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch_size**2 * self.out_channels)
        self._init_weights()

    def _init_weights(self) -> None:
        """Initialise: Xavier-uniform weights, zero biases, embeddings N(0, 0.02²), zero modulations and last layer."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                if name.startswith("t_embedder"):
                    nn.init.normal_(module.weight, std=0.02)
                if "adaLN_modulation" in name or name in ("final_layer.linear", "t_embedder_end.mlp.2"):
                    nn.init.zeros_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def embedding(self, noise_label: Tensor, labels: Tensor, augment: Tensor, end_label: Tensor | None) -> Tensor:
        """Compute the embedding (B, width) that conditions every block."""
        emb: Tensor = self.t_embedder(noise_label)
        if self.t_embedder_end is not None:
            emb = emb + self.t_embedder_end(end_label)
        if self.y_embedder is not None:
            emb = emb + self.y_embedder(labels)
        if self.map_augment is not None:
            emb = emb + self.map_augment(augment)
        return emb

    def body(self, x: Tensor, emb: Tensor) -> Tensor:
        """F(x), shape (B, outputs·out_channels, size, size), for the embedding (B, emb)."""
        tokens = self.x_embedder["proj"](x).flatten(2).transpose(1, 2)
        tokens = tokens + self.pos_embed.to(tokens.dtype)
        for block in self.blocks:
            tokens = self.run(block, tokens, emb)
        patches = self.image_size // self.patch_size
        values = self.final_layer(tokens, emb).unflatten(2, (self.patch_size, self.patch_size, -1))
        rows = values.unflatten(1, (patches, patches)).permute(0, 5, 1, 3, 2, 4)
        return rows.flatten(4, 5).flatten(2, 3)
