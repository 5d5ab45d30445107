"""DDPM++ and NCSN++: the U-Nets of score-based generative modelling.

(Song et al., arXiv 2011.13456, App. H, as in EDM: Karras et al., arXiv 2206.00364, App. F.6 and Table 8.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import sqrt
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import MinLen
from torch import Tensor, nn

from consistency_models.networks.layers import Conv2d, Linear, PositionalEmbedding, UNetBlock, check_levels, group_norm
from consistency_models.networks.network import Network
from consistency_models.trust import loadable
from consistency_models.values import BelowOne, Count, Positive, Share, Size, checked

__all__ = ["SongUNet"]


@loadable()
class SongUNet(Network):
    """U-Net with residual blocks scaled by √½; F(x, noise_label, labels, augment), images (B, channels, size, size).

    DDPM++ is `embedding=PositionalEmbedding, encoder="standard"`; NCSN++ is `embedding=FourierEmbedding,
    encoder="residual", channel_mult_noise=2, resample_filter=(1, 3, 3, 1)`.

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
        channel_mult_noise: width of the noise label's features, in model_channels.
        num_blocks: residual blocks a level (the decoder has one more).
        attn_resolutions: resolutions with attention.
        middle_attention: attention at the start of the decoder, at any resolution.
        embedding: maps a width to a module from noise labels (B,) to features (B, width).
        encoder: "standard"; "residual" or "skip" feed a resampled image into each level.
        decoder: "standard"; "skip" sums an image from each level.
        resample_filter: filter taps of the resampling, see `Conv2d`.
        adaptive_scale: True: the embedding scales and shifts (AdaGN); False: the embedding shifts.
        double_norm: normalise scale and shift, see `UNetBlock`.
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
        model_channels: Size = 128,
        channel_mult: Annotated[Sequence[Size], MinLen(1)] = (2, 2, 2),
        channel_mult_emb: Size = 4,
        channel_mult_noise: Size = 1,
        num_blocks: Size = 4,
        attn_resolutions: Sequence[Size] = (16,),
        middle_attention: bool = True,
        embedding: Callable[[int], nn.Module] = PositionalEmbedding,
        encoder: Literal["standard", "skip", "residual"] = "standard",
        decoder: Literal["standard", "skip"] = "standard",
        resample_filter: Annotated[Sequence[Positive], MinLen(1)] = (1, 1),
        adaptive_scale: bool = False,
        double_norm: bool = False,
        checkpointing: bool = False,
        two_times: bool = False,
        outputs: Size = 1,
    ) -> None:
        super().__init__(image_size, channels, num_classes, augment_dim, label_dropout, checkpointing, two_times)
        check_levels(image_size, channel_mult)
        levels = len(channel_mult)
        self.num_blocks, self.resolutions = num_blocks, [image_size >> level for level in range(levels)]
        out_channels = outputs * (out_channels or channels)
        noise_channels, emb_channels = model_channels * channel_mult_noise, model_channels * channel_mult_emb

        def block(c_in: int, c_out: int, resolution: int, attn: bool = False, resample: str | None = None) -> UNetBlock:
            return UNetBlock(
                *(c_in, c_out, emb_channels, resample),
                heads=int(attn),
                dropout=dropout if resolution <= (dropout_resolution or image_size) else 0.0,
                skip_scale=sqrt(0.5),
                eps=1e-6,
                resample_filter=resample_filter,
                resample_proj=True,
                adaptive_scale=adaptive_scale,
                double_norm=double_norm,
            )

        resampling = partial(Conv2d, resample_filter=resample_filter)

        self.map_noise = embedding(noise_channels)
        self.map_label = Linear(num_classes, noise_channels) if num_classes else None
        self.map_augment = Linear(augment_dim, noise_channels, bias=False) if augment_dim else None
        self.map_end = Linear(noise_channels, noise_channels, bias=False) if two_times else None
        self.map_layer0 = Linear(noise_channels, emb_channels)
        self.map_layer1 = Linear(emb_channels, emb_channels)

        self.enc, widths = nn.ModuleDict(), []
        c, c_aux = model_channels, channels
        for level, resolution in enumerate(self.resolutions):
            key, attn = f"{resolution}x{resolution}", resolution in attn_resolutions
            if level == 0:
                self.enc[f"{key}_conv"] = Conv2d(channels, c, 3)
            else:
                self.enc[f"{key}_down"] = block(c, c, resolution, resample="down")
                if encoder == "skip":
                    self.enc[f"{key}_aux_down"] = resampling(c_aux, c_aux, 0, "down")
                    self.enc[f"{key}_aux_skip"] = Conv2d(c_aux, c, 1)
                if encoder == "residual":
                    self.enc[f"{key}_aux_residual"] = resampling(c_aux, c, 3, "down", fused=True)
                    c_aux = c
            widths.append(c)
            for i in range(num_blocks):
                self.enc[f"{key}_block{i}"] = block(c, model_channels * channel_mult[level], resolution, attn)
                c = model_channels * channel_mult[level]
                widths.append(c)

        self.dec = nn.ModuleDict()
        for level, resolution in reversed(list(enumerate(self.resolutions))):
            key, attn = f"{resolution}x{resolution}", resolution in attn_resolutions
            if level == levels - 1:
                self.dec[f"{key}_in0"] = block(c, c, resolution, middle_attention)
                self.dec[f"{key}_in1"] = block(c, c, resolution)
            else:
                self.dec[f"{key}_up"] = block(c, c, resolution, resample="up")
            for i in range(num_blocks + 1):
                c_out = model_channels * channel_mult[level]
                self.dec[f"{key}_block{i}"] = block(c + widths.pop(), c_out, resolution, attn and i == num_blocks)
                c = c_out
            if decoder == "skip" or level == 0:
                if decoder == "skip" and level < levels - 1:
                    self.dec[f"{key}_aux_up"] = resampling(out_channels, out_channels, 0, "up")
                self.dec[f"{key}_aux_norm"] = group_norm(c, 1e-6)
                self.dec[f"{key}_aux_conv"] = Conv2d(c, out_channels, 3)

        self._init_weights()

    def _init_weights(self) -> None:
        """Initialise Xavier-uniform weights, zero biases, last layers of branches near zero, small queries and keys."""
        for name, module in self.named_modules():
            if isinstance(module, Conv2d | Linear) and module.weight is not None:
                gain = sqrt(0.2) if name.endswith("qkv") else 1.0
                nn.init.xavier_uniform_(module.weight, 1e-5 if name.endswith(("conv1", "proj", "aux_conv")) else gain)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.map_end is not None:
            nn.init.zeros_(self.map_end.weight)

    def embedding(self, noise_label: Tensor, labels: Tensor, augment: Tensor, end_label: Tensor | None) -> Tensor:
        """Compute the embedding (B, emb) that conditions every block."""
        features = self.map_noise(noise_label)
        emb = torch.cat(features.chunk(2, 1)[::-1], 1)  # sines first, as in the published weights
        if self.map_end is not None:
            emb = emb + self.map_end(self.map_noise(end_label))
        if self.map_label is not None:
            emb = emb + self.map_label(labels * sqrt(self.num_classes))
        if self.map_augment is not None:
            emb = emb + self.map_augment(augment)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def body(self, x: Tensor, emb: Tensor) -> Tensor:
        """F(x), shape (B, outputs·out_channels, size, size), for the embedding (B, emb)."""
        enc, dec = self.enc, self.dec

        aux: Tensor = x
        skips: list[Tensor] = []
        for resolution in self.resolutions:
            key = f"{resolution}x{resolution}"
            if not skips:
                x = enc[f"{key}_conv"](x)
            else:
                x = self.run(enc[f"{key}_down"], x, emb)
                if f"{key}_aux_skip" in enc:
                    aux = enc[f"{key}_aux_down"](aux)
                    x = x + enc[f"{key}_aux_skip"](aux)
                if f"{key}_aux_residual" in enc:
                    x = aux = (x + enc[f"{key}_aux_residual"](aux)) * sqrt(0.5)
            skips.append(x)
            for i in range(self.num_blocks):
                x = self.run(enc[f"{key}_block{i}"], x, emb)
                skips.append(x)

        out = x  # replaced by the image, or by the sum of the images of all resolutions
        for resolution in reversed(self.resolutions):
            key = f"{resolution}x{resolution}"
            for name in (f"{key}_in0", f"{key}_in1", f"{key}_up"):
                if name in dec:
                    x = self.run(dec[name], x, emb)
            for i in range(self.num_blocks + 1):
                x = torch.cat([x, skips.pop()], 1)
                x = self.run(dec[f"{key}_block{i}"], x, emb)
            if f"{key}_aux_conv" in dec:
                image = dec[f"{key}_aux_conv"](F.silu(dec[f"{key}_aux_norm"](x)))
                out = dec[f"{key}_aux_up"](out) + image if f"{key}_aux_up" in dec else image
        return out
