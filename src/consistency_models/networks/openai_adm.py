"""ADM, the U-Net of guided diffusion, with the parameter names of OpenAI's consistency-model checkpoints.

(Dhariwal & Nichol, arXiv 2105.05233; used by Consistency Models, arXiv 2303.01469, for ImageNet 64 and LSUN 256.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import log
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from annotated_types import MinLen
from torch import Tensor, nn

from consistency_models.networks.layers import GroupNorm, Linear, PositionalEmbedding, attention, check_levels, dropout
from consistency_models.networks.network import Network
from consistency_models.trust import loadable
from consistency_models.values import BelowOne, Count, Positive, Share, Size, checked

__all__ = ["OpenAIUNet"]


class Dropout(nn.Dropout):
    """`layers.dropout` as a module of a sequence."""

    def forward(self, x: Tensor) -> Tensor:
        """Zero elements of x in training; shape of x."""
        return dropout(x, self.p, self.training)


def _zero(module: nn.Module) -> nn.Module:
    """Set all parameters of a module to zero: the initialisation of the last layer of a residual branch."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def noise_embedding(channels: int, scale: float) -> PositionalEmbedding:
    """`PositionalEmbedding` with frequencies rounded as in OpenAI's code, which matters for labels near 1000."""
    embedding = PositionalEmbedding(channels, scale, endpoint=False)
    half = channels // 2
    embedding.freqs = torch.exp(-log(10000) * torch.arange(half, dtype=torch.float32) / half)
    return embedding


class Resample(nn.Module):
    """Nearest-neighbour upsampling by 2, or the mean of 2x2 pixels, with an optional learned 3x3 convolution.

    Args:
        channels: channels of input and output.
        up: True to upsample, False to downsample.
        learnt: add the convolution; for downsampling, a convolution of stride 2 replaces the mean.
    """

    def __init__(self, channels: int, up: bool, learnt: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if learnt and up else None
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if learnt and not up else None

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        """Map (B, C, H, W) to (B, C, 2H, 2W) or (B, C, H/2, W/2); the embedding is not used."""
        if self.up:
            x = F.interpolate(x, scale_factor=2)
            return x if self.conv is None else self.conv(x)
        return F.avg_pool2d(x, 2) if self.op is None else self.op(x)


class ResBlock(nn.Module):
    """Residual block; (B, in, H, W) and embedding (B, emb) to (B, out, H', W').

        h = conv(resample(silu(norm(x))));   h ← conv(dropout(silu(norm(h)·(1 + scale) + shift)))   adaptive, or
        h ← conv(dropout(silu(norm(h + shift))));   skip(resample(x)) + h

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        emb_channels: width of the embedding.
        dropout: probability of dropout.
        adaptive_scale: True: the embedding scales and shifts (AdaGN); False: the embedding shifts.
        resample: a module for both branches, or None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        dropout: float,
        adaptive_scale: bool,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.adaptive_scale = adaptive_scale
        self.in_layers = nn.Sequential(
            GroupNorm(32, in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.resample = resample
        self.emb_layers = nn.Sequential(nn.SiLU(), Linear(emb_channels, out_channels * (2 if adaptive_scale else 1)))
        self.out_layers = nn.Sequential(
            GroupNorm(32, out_channels),
            nn.SiLU(),
            Dropout(dropout),
            _zero(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """H' = H, 2H or H/2, depending on `resample`."""
        norm, silu, conv = self.in_layers
        h = silu(norm(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = conv(h)
        params = self.emb_layers(emb)[:, :, None, None].to(h.dtype)
        if self.adaptive_scale:
            scale, shift = params.chunk(2, 1)
            h = self.out_layers[1:](torch.addcmul(shift, self.out_layers[0](h), 1 + scale))
        else:
            h = self.out_layers(h + params)
        return self.skip_connection(x) + h


class AttentionBlock(nn.Module):
    """x + proj_out(attention(qkv(norm(x)))), shape of x.

    Args:
        channels: channels of the input.
        heads: attention heads, which divide the channels.
        legacy_order: see `OpenAIUNet`.
    """

    def __init__(self, channels: int, heads: int, legacy_order: bool) -> None:
        super().__init__()
        self.heads, self.legacy_order = heads, legacy_order
        self.norm = GroupNorm(32, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        """Map (B, C, H, W) to the same shape; the embedding is not used."""
        qkv = self.qkv(self.norm(x))
        if self.legacy_order:
            q, k, v = qkv.unflatten(1, (self.heads, 3, -1)).unbind(2)
        else:
            q, k, v = qkv.unflatten(1, (3, self.heads, -1)).unbind(1)
        return x + self.proj_out(attention(q, k, v))


@loadable()
class OpenAIUNet(Network):
    """U-Net of OpenAI's checkpoints, such as `cd_imagenet64_*.pt` and `ct_bedroom256.pt`; F(x, noise_label, labels).

    Args:
        image_size: height and width; divisible by 2^(levels - 1).
        channels: channels of the image.
        num_classes: width of the one-hot labels; 0 for an unconditional network.
        augment_dim: must be 0; the network takes no augmentation labels.
        dropout: probability within the blocks.
        dropout_resolution: highest resolution of blocks with dropout; by default all blocks have dropout.
        label_dropout: probability, in training, of dropping the class of an image (for classifier-free guidance).
        out_channels: channels of the result; `channels` by default.
        model_channels: channels at multiplier 1; a multiple of 32.
        channel_mult: multiplier of each level, fine to coarse.
        num_blocks: residual blocks a level (the decoder has one more).
        attn_resolutions: resolutions with attention; the middle block always has attention.
        head_channels: channels of an attention head.
        heads: number of attention heads of every block; overrides head_channels.
        adaptive_scale: True: the embedding scales and shifts (AdaGN); False: the embedding shifts.
        resblock_updown: True: residual blocks resample; False: separate convolutions resample.
        legacy_order: True: channels of queries, keys and values are ordered (head, 3, channel), as in early
            guided-diffusion checkpoints; False: (3, head, channel), as in the checkpoints of consistency models.
        noise_scale: factor of c_noise, 1000 for the published networks.
        checkpointing: do not store activations within blocks; the backward pass recomputes them.

    Raises:
        ValueError: image_size cannot be halved as often as channel_mult has levels.
    """

    norm_groups = True

    @checked
    def __init__(
        self,
        image_size: Size,
        channels: Size,
        num_classes: Count = 0,
        augment_dim: Literal[0] = 0,
        dropout: BelowOne = 0.0,
        *,
        dropout_resolution: Size | None = None,
        label_dropout: Share = 0.0,
        out_channels: Size | None = None,
        model_channels: Size = 192,
        channel_mult: Annotated[Sequence[Size], MinLen(1)] = (1, 2, 3, 4),
        num_blocks: Size = 3,
        attn_resolutions: Sequence[Size] = (32, 16, 8),
        head_channels: Size = 64,
        heads: Size | None = None,
        adaptive_scale: bool = True,
        resblock_updown: bool = True,
        legacy_order: bool = False,
        noise_scale: Positive = 1000.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(image_size, channels, num_classes, augment_dim, label_dropout, checkpointing)
        check_levels(image_size, channel_mult)
        emb_channels = 4 * model_channels

        def residual(c_in: int, c_out: int, resolution: int, resample: nn.Module | None = None) -> ResBlock:
            drop = dropout if resolution <= (dropout_resolution or image_size) else 0.0
            return ResBlock(c_in, c_out, emb_channels, drop, adaptive_scale, resample)

        def attend(c: int) -> AttentionBlock:
            return AttentionBlock(c, heads or c // head_channels, legacy_order)

        def resampling(c: int, resolution: int, up: bool) -> nn.Module:
            resample = Resample(c, up, learnt=not resblock_updown)
            return residual(c, c, resolution, resample) if resblock_updown else resample

        self.map_noise = noise_embedding(model_channels, noise_scale)
        self.time_embed = nn.Sequential(
            Linear(model_channels, emb_channels), nn.SiLU(), Linear(emb_channels, emb_channels)
        )
        if num_classes:
            self.label_emb = nn.Embedding(num_classes, emb_channels)

        c = model_channels * channel_mult[0]
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(channels, c, 3, padding=1)])])
        widths, resolution = [c], image_size
        for level, mult in enumerate(channel_mult):
            if level:
                resolution //= 2
                self.input_blocks.append(nn.ModuleList([resampling(c, resolution, up=False)]))
                widths.append(c)
            for _ in range(num_blocks):
                block = residual(c, model_channels * mult, resolution)
                c = model_channels * mult
                widths.append(c)
                self.input_blocks.append(
                    nn.ModuleList([block, attend(c)] if resolution in attn_resolutions else [block])
                )

        self.middle_block = nn.ModuleList([residual(c, c, resolution), attend(c), residual(c, c, resolution)])

        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_blocks + 1):
                block = residual(c + widths.pop(), model_channels * mult, resolution)
                c = model_channels * mult
                blocks: list[nn.Module] = [block, attend(c)] if resolution in attn_resolutions else [block]
                if level and i == num_blocks:
                    resolution *= 2
                    blocks.append(resampling(c, resolution, up=True))
                self.output_blocks.append(nn.ModuleList(blocks))

        last = nn.Conv2d(c, out_channels or channels, 3, padding=1)
        self.out = nn.Sequential(GroupNorm(32, c), nn.SiLU(), _zero(last))

    def embedding(self, noise_label: Tensor, labels: Tensor, augment: Tensor, end_label: Tensor | None) -> Tensor:
        """Compute the embedding (B, emb) that conditions every block."""
        emb = self.time_embed(self.map_noise(noise_label))
        if self.num_classes:
            with torch.autocast(emb.device.type, enabled=False):
                emb = emb + labels.to(emb.dtype) @ self.label_emb.weight
        return emb

    def body(self, x: Tensor, emb: Tensor) -> Tensor:
        """F(x), shape (B, out_channels, size, size), for the embedding (B, emb)."""
        first, *rest = cast("Iterable[nn.ModuleList]", self.input_blocks)
        x = first[0](x)
        skips = [x]
        for blocks in rest:
            for block in blocks:
                x = self.run(block, x, emb)
            skips.append(x)
        for block in self.middle_block:
            x = self.run(block, x, emb)
        for blocks in cast("Iterable[nn.ModuleList]", self.output_blocks):
            x = torch.cat([x, skips.pop()], 1)
            for block in blocks:
                x = self.run(block, x, emb)
        return self.out(x)
