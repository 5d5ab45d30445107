"""EDM2's U-Net, whose layers preserve magnitudes by construction.

(Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, arXiv 2312.02696, App. B.)
Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Annotated

import torch
from annotated_types import MinLen
from torch import Tensor, nn

from consistency_models.networks.layers import check_levels
from consistency_models.networks.mp_layers import Block, MPConv, MPFourier, mp_cat, mp_silu, mp_sum
from consistency_models.networks.network import Network
from consistency_models.trust import loadable
from consistency_models.values import BelowOne, Count, Positive, Share, Size, checked

__all__ = ["EDM2"]


class UNet(Network):
    """The U-Net of `EDM2`, with the arguments of `EDM2`."""

    def __init__(
        self,
        image_size: int,
        channels: int,
        num_classes: int,
        augment_dim: int,
        dropout: float,
        dropout_resolution: int | None,
        label_dropout: float,
        model_channels: int,
        channel_mult: Sequence[int],
        num_blocks: int,
        attn_resolutions: Sequence[int],
        head_channels: int,
        channel_mult_noise: int | None,
        channel_mult_emb: int | None,
        label_balance: float,
        concat_balance: float,
        checkpointing: bool,
        embedding: Callable[[int], nn.Module] | None,
        two_times: bool,
        outputs: int,
        **blocks,
    ) -> None:
        super().__init__(image_size, channels, num_classes, augment_dim, label_dropout, checkpointing, two_times)
        self.label_balance, self.concat_balance = label_balance, concat_balance
        resolutions = [image_size >> level for level in range(len(channel_mult))]
        levels = list(zip(resolutions, (model_channels * mult for mult in channel_mult)))
        noise_channels = levels[0][1] if channel_mult_noise is None else model_channels * channel_mult_noise
        widest = max(c for _, c in levels)
        emb_channels = widest if channel_mult_emb is None else model_channels * channel_mult_emb

        def block(c_in: int, c_out: int, resolution: int, attn: bool = False, **kwargs) -> Block:
            drop = dropout if resolution <= (dropout_resolution or image_size) else 0.0
            heads = c_out // head_channels if attn else 0
            return Block(c_in, c_out, emb_channels, heads=heads, dropout=drop, **kwargs, **blocks)

        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = MPFourier(noise_channels) if embedding is None else embedding(noise_channels)
        self.emb_scale = 1.0 if embedding is None else sqrt(2)  # to unit mean square
        self.emb_noise = MPConv(noise_channels, emb_channels, 0)
        self.noise_end = MPConv(noise_channels, emb_channels, 0) if two_times else None
        self.gain_end = nn.Parameter(torch.zeros([])) if two_times else None
        self.noise_augment = MPConv(noise_channels * augment_dim, emb_channels, 0) if augment_dim else None
        self.gain_augment = nn.Parameter(torch.zeros([])) if augment_dim else None
        self.emb_label = MPConv(num_classes, emb_channels, 0) if num_classes else None

        self.enc, widths = nn.ModuleDict(), []
        c = channels + 1
        for resolution, c_out in levels:
            key = f"{resolution}x{resolution}"
            if resolution == image_size:
                self.enc[f"{key}_conv"] = MPConv(c, c_out, 3)
                c = c_out
            else:
                self.enc[f"{key}_down"] = block(c, c, resolution, encoder=True, resample="down")
            widths.append(c)
            for i in range(num_blocks):
                attn = resolution in attn_resolutions
                self.enc[f"{key}_block{i}"] = block(c, c_out, resolution, attn, encoder=True)
                c = c_out
                widths.append(c)

        self.dec = nn.ModuleDict()
        for resolution, c_out in reversed(levels):
            key = f"{resolution}x{resolution}"
            if resolution == resolutions[-1]:
                self.dec[f"{key}_in0"] = block(c, c, resolution, True, encoder=False)
                self.dec[f"{key}_in1"] = block(c, c, resolution, encoder=False)
            else:
                self.dec[f"{key}_up"] = block(c, c, resolution, encoder=False, resample="up")
            for i in range(num_blocks + 1):
                attn = resolution in attn_resolutions
                self.dec[f"{key}_block{i}"] = block(c + widths.pop(), c_out, resolution, attn, encoder=False)
                c = c_out
        self.out_conv = MPConv(c, outputs * channels, 3)

    def embedding(self, noise_label: Tensor, labels: Tensor, augment: Tensor, end_label: Tensor | None) -> Tensor:
        """Compute the embedding (B, emb) that conditions every block."""
        emb = self.emb_noise(self.emb_scale * self.emb_fourier(noise_label))
        if self.noise_end is not None and self.gain_end is not None:
            emb = emb + self.noise_end(self.emb_scale * self.emb_fourier(end_label), self.gain_end)
        if self.noise_augment is not None and self.gain_augment is not None:
            embedded = self.emb_scale * self.emb_fourier(augment.flatten())
            emb = emb + self.noise_augment(embedded.view(len(emb), -1), self.gain_augment)
        if self.emb_label is not None:
            emb = mp_sum(emb, self.emb_label(labels * sqrt(self.num_classes)), self.label_balance)
        return mp_silu(emb)

    def body(self, x: Tensor, emb: Tensor) -> Tensor:
        """F(x), shape (B, outputs·channels, size, size), for the embedding (B, emb)."""
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        skips = []
        for name, block in self.enc.items():
            x = block(x) if name.endswith("conv") else self.run(block, x, emb)
            skips.append(x)
        for name, block in self.dec.items():
            x = mp_cat(x, skips.pop(), self.concat_balance) if "block" in name else x
            x = self.run(block, x, emb)
        return self.out_conv(x, self.out_gain)


@loadable()
class EDM2(Network):
    """Magnitude-preserving U-Net, and a head for the uncertainty of the loss; F(x, noise_label, labels).

    The stored weights are normalised before each training step, by `force_norm`.

    Args:
        image_size: height and width; divisible by 2^(levels - 1).
        channels: channels of the image.
        num_classes: width of the one-hot labels; 0 for an unconditional network.
        augment_dim: number of additional inputs, each embedded as the noise level; their layer has a gain that is
            initialised to 0.
        dropout: probability within the blocks.
        dropout_resolution: highest resolution of blocks with dropout; by default all blocks have dropout.
        label_dropout: probability, in training, of dropping the class of an image (for classifier-free guidance).
        model_channels: channels at multiplier 1.
        channel_mult: multiplier of each level, fine to coarse.
        num_blocks: residual blocks a level (the decoder has one more).
        attn_resolutions: resolutions with attention; the start of the decoder always has attention.
        head_channels: channels of an attention head.
        channel_mult_noise: multiplier of the noise level's Fourier features; by default that of the finest level.
        channel_mult_emb: multiplier of the embedding's channels; by default that of the widest level.
        resample_filter: 1-D filter of the resampling, of even length.
        res_balance: share t of the residual branch in each block, against 1 - t of the main branch, in [0, 1].
        attn_balance: share of the attention, in [0, 1].
        concat_balance: share of the encoder's features where the decoder concatenates them.
        label_balance: share of the class in the embedding.
        clip_act: outputs of blocks are clamped to [-clip_act, clip_act]; null for no clamp.
        logvar_channels: width of the uncertainty head, 128 as published; 0 for no head, if the loss does not train it.
        checkpointing: do not store activations within blocks; the backward pass recomputes them.
        embedding: maps a width to a module from noise labels (B,) to features (B, width) of mean square ½, such as a
            `PositionalEmbedding`; None: EDM2's Fourier features, at which continuous-time consistency models diverge.
        two_times: take a second noise label, whose layer has a gain that is initialised to 0.
        outputs: number of images in the result, one behind the other in the channels; 2: with a second head.

    Raises:
        ValueError: image_size cannot be halved as often as channel_mult has levels, or the filter's length is
            odd.
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
        dropout_resolution: Size | None = None,
        label_dropout: Share = 0.0,
        model_channels: Size = 192,
        channel_mult: Annotated[Sequence[Size], MinLen(1)] = (1, 2, 3, 4),
        num_blocks: Size = 3,
        attn_resolutions: Sequence[Size] = (16, 8),
        head_channels: Size = 64,
        channel_mult_noise: Size | None = None,
        channel_mult_emb: Size | None = None,
        resample_filter: Annotated[Sequence[Positive], MinLen(1)] = (1, 1),
        res_balance: Share = 0.3,
        attn_balance: Share = 0.3,
        concat_balance: Share = 0.5,
        label_balance: Share = 0.5,
        clip_act: Positive | None = 256,
        logvar_channels: Count = 0,
        checkpointing: bool = False,
        embedding: Callable[[int], nn.Module] | None = None,
        two_times: bool = False,
        outputs: Size = 1,
    ) -> None:
        super().__init__(image_size, channels, num_classes, augment_dim, two_times=two_times)
        check_levels(image_size, channel_mult)
        if len(resample_filter) % 2:
            raise ValueError(f"resample_filter must have an even length; got {list(resample_filter)}")
        self.unet = UNet(
            *(image_size, channels, num_classes, augment_dim, dropout, dropout_resolution, label_dropout),
            *(model_channels, channel_mult, num_blocks, attn_resolutions, head_channels, channel_mult_noise),
            channel_mult_emb=channel_mult_emb,
            label_balance=label_balance,
            concat_balance=concat_balance,
            checkpointing=checkpointing,
            embedding=embedding,
            two_times=two_times,
            outputs=outputs,
            resample_filter=resample_filter,
            res_balance=res_balance,
            attn_balance=attn_balance,
            clip_act=clip_act,
        )
        if logvar_channels:
            self.logvar_fourier = MPFourier(logvar_channels)
            self.logvar_linear = MPConv(logvar_channels, 1, 0)

    def log_variance(self, noise_label: Tensor) -> Tensor:
        """u(σ), (B,): the logarithm of the error, learned by the loss e^(-u)·λ(σ)·‖D - x‖² + u."""
        return self.logvar_linear(self.logvar_fourier(noise_label))[:, 0]

    def force_norm(self) -> None:
        """Normalise the stored weights of all layers: `Method` does so before each step.  (Sec. 2.3.)"""
        for module in self.modules():
            if isinstance(module, MPConv):
                module.force_norm()

    def forward(
        self,
        x: Tensor,
        noise_label: Tensor,
        labels: Tensor | None = None,
        augment: Tensor | None = None,
        end_label: Tensor | None = None,
    ) -> Tensor:
        """F(x), see `Network.forward`."""
        return self.unet(x, noise_label, labels, augment, end_label)
