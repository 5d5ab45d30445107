"""ADM, the U-Net of guided diffusion, with EDM's parameter names.

(Dhariwal & Nichol, arXiv 2105.05233, as EDM restates it: Karras et al., arXiv 2206.00364, App. F.6 and Table 8.)
`openai_adm` implements the same function with the parameter names of OpenAI's checkpoints.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import MinLen
from torch import Tensor, nn

from consistency_models.networks.layers import Conv2d, Linear, PositionalEmbedding, UNetBlock, check_levels, group_norm
from consistency_models.networks.network import Network
from consistency_models.trust import loadable
from consistency_models.values import BelowOne, Count, Share, Size, checked

__all__ = ["DhariwalUNet"]


@loadable()
class DhariwalUNet(Network):
    """U-Net whose blocks are scaled and shifted by the embedding; F(x, noise_label, labels, augment).

    Args:
        image_size: height and width; divisible by 2^(levels - 1).
        channels: channels of the image.
        num_classes: width of the one-hot labels; 0 for an unconditional network.
        augment_dim: width of the augmentation labels; 0 for none.
        dropout: probability within the blocks.
        dropout_resolution: highest resolution of blocks with dropout; by default all blocks have dropout.
        label_dropout: probability, in training, of dropping the class of an image (for classifier-free guidance).
        out_channels: channels of the result; `channels` by default.
        model_channels: channels at multiplier 1.
        channel_mult: multiplier of each level, fine to coarse.
        channel_mult_emb: width of the embedding, in model_channels.
        num_blocks: residual blocks a level (the decoder has one more).
        attn_resolutions: resolutions with attention; the middle block always has attention.
        head_channels: channels of an attention head; a block with fewer channels has no attention, as published.
        adaptive_scale: True: the embedding scales and shifts (AdaGN); False: the embedding shifts.
        double_norm, attention_norm: normalise scale and shift, or q, k and v, see `UNetBlock`.
        checkpointing: do not store activations within blocks; the backward pass recomputes them.
        two_times: take a second noise label, whose features enter through a linear layer that is initialised to 0.
        outputs: number of images in the result, one behind the other in the channels; 2: with a second head.

    Raises:
        ValueError: image_size cannot be halved as often as channel_mult has levels; double_norm without adaptive_scale.
    """

    norm_groups = True

    @checked
    def __init__(
        self,
        image_size: Size,
        channels: Size,
        num_classes: Count = 0,
        augment_dim: Count = 0,
        dropout: BelowOne = 0.0,
        *,
        dropout_resolution: Size | None = None,
        label_dropout: Share = 0.0,
        out_channels: Size | None = None,
        model_channels: Size = 192,
        channel_mult: Annotated[Sequence[Size], MinLen(1)] = (1, 2, 3, 4),
        channel_mult_emb: Size = 4,
        num_blocks: Size = 3,
        attn_resolutions: Sequence[Size] = (32, 16, 8),
        head_channels: Size = 64,
        adaptive_scale: bool = True,
        double_norm: bool = False,
        attention_norm: bool = False,
        checkpointing: bool = False,
        two_times: bool = False,
        outputs: Size = 1,
    ) -> None:
        super().__init__(image_size, channels, num_classes, augment_dim, label_dropout, checkpointing, two_times)
        check_levels(image_size, channel_mult)
        resolutions = [image_size >> level for level in range(len(channel_mult))]
        emb_channels = model_channels * channel_mult_emb
        levels = list(zip(resolutions, (model_channels * mult for mult in channel_mult)))

        def block(c_in: int, c_out: int, resolution: int, attn: bool = False, resample: str | None = None) -> UNetBlock:
            if attn and c_out < head_channels:
                size = f"{resolution}x{resolution}"
                warnings.warn(f"no attention at {size}: {c_out} channels make no head of {head_channels}", stacklevel=3)
            return UNetBlock(
                *(c_in, c_out, emb_channels, resample),
                heads=c_out // head_channels if attn else 0,
                dropout=dropout if resolution <= (dropout_resolution or image_size) else 0.0,
                adaptive_scale=adaptive_scale,
                double_norm=double_norm,
                attention_norm=attention_norm,
            )

        self.map_noise = PositionalEmbedding(model_channels, endpoint=False)
        self.map_augment = Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_end = Linear(model_channels, model_channels, bias=False) if two_times else None
        self.map_layer0 = Linear(model_channels, emb_channels)
        self.map_layer1 = Linear(emb_channels, emb_channels)
        self.map_label = Linear(num_classes, emb_channels, bias=False) if num_classes else None

        self.enc, widths = nn.ModuleDict(), []
        c = levels[0][1]
        for resolution, c_out in levels:
            key = f"{resolution}x{resolution}"
            if resolution == image_size:
                self.enc[f"{key}_conv"] = Conv2d(channels, c, 3)
            else:
                self.enc[f"{key}_down"] = block(c, c, resolution, resample="down")
            widths.append(c)
            for i in range(num_blocks):
                self.enc[f"{key}_block{i}"] = block(c, c_out, resolution, resolution in attn_resolutions)
                c = c_out
                widths.append(c)

        self.dec = nn.ModuleDict()
        for resolution, c_out in reversed(levels):
            key = f"{resolution}x{resolution}"
            if resolution == resolutions[-1]:
                self.dec[f"{key}_in0"] = block(c, c, resolution, True)
                self.dec[f"{key}_in1"] = block(c, c, resolution)
            else:
                self.dec[f"{key}_up"] = block(c, c, resolution, resample="up")
            for i in range(num_blocks + 1):
                self.dec[f"{key}_block{i}"] = block(c + widths.pop(), c_out, resolution, resolution in attn_resolutions)
                c = c_out
        self.out_norm = group_norm(c)
        self.out_conv = Conv2d(c, outputs * (out_channels or channels), 3)

        self._init_weights()

    def _init_weights(self) -> None:
        """Initialise as published: PyTorch's defaults, zero for last layers of branches, normal class embeddings."""
        for name, parameter in self.named_parameters():
            if name.rpartition(".")[0].endswith(("conv1", "proj", "out_conv", "map_augment", "map_end")):
                nn.init.zeros_(parameter)
        if self.map_label is not None:
            nn.init.normal_(self.map_label.weight)

    def embedding(self, noise_label: Tensor, labels: Tensor, augment: Tensor, end_label: Tensor | None) -> Tensor:
        """Compute the embedding (B, emb) that conditions every block."""
        emb = self.map_noise(noise_label)
        if self.map_end is not None:
            emb = emb + self.map_end(self.map_noise(end_label))
        if self.map_augment is not None:
            emb = emb + self.map_augment(augment)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            emb = emb + self.map_label(labels)
        return F.silu(emb)

    def body(self, x: Tensor, emb: Tensor) -> Tensor:
        """F(x), shape (B, outputs·out_channels, size, size), for the embedding (B, emb)."""
        skips = []
        for name, block in self.enc.items():
            x = block(x) if name.endswith("conv") else self.run(block, x, emb)
            skips.append(x)
        for name, block in self.dec.items():
            x = torch.cat([x, skips.pop()], 1) if "block" in name else x
            x = self.run(block, x, emb)
        return self.out_conv(F.silu(self.out_norm(x)))
