"""Layers of the U-Nets: resampling convolutions, attention, embeddings of noise levels, the residual block.

Parameter and buffer names are those of the published checkpoints.  (EDM, arXiv 2206.00364, App. F.6; EDM's names for
the layers of DDPM++ and NCSN++, arXiv 2011.13456, and of ADM, arXiv 2105.05233.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from consistency_models.trust import loadable
from consistency_models.values import Even, Positive, checked

__all__ = [
    "Conv2d",
    "FourierEmbedding",
    "GroupNorm",
    "Linear",
    "PositionalEmbedding",
    "UNetBlock",
    "attention",
    "check_levels",
    "dropout",
    "group_norm",
]


def check_levels(image_size: int, channel_mult: Sequence[int]) -> None:
    """Check that the image can be halved once for each level but the first.

    Raises:
        ValueError: the image cannot be halved so often.
    """
    if image_size % 2 ** (len(channel_mult) - 1):
        raise ValueError(
            f"image_size must be a multiple of {2 ** (len(channel_mult) - 1)} for the {len(channel_mult)} levels of "
            f"channel_mult={list(channel_mult)}; got {image_size}: give channel_mult fewer levels, or resize the images"
        )


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Return `F.dropout(x, p, training)`, with a mask that does not depend on the memory layout of x.

    PyTorch draws a mask in the order of the memory, a derivative in forward mode in another one, and a compiled network
    in that of a layout of its own. The mask is drawn flat, so that training, derivative and compiled network share
    their masks, and channels-last changes a training by rounding only.
    """
    if not training or p == 0:
        return x
    mask = torch.empty(x.numel(), dtype=torch.bool, device=x.device).bernoulli_(1 - p).view(x.shape)
    return x * mask * (1 / (1 - p))


class GroupNorm(nn.GroupNorm):
    """A group normalisation whose result has the type of its input, as in EDM's code, also under autocast on CUDA.

    Its mean and variance are in float32. CUDA's autocast would return float32, which doubles the memory traffic of the
    normalisation and of the activation after it. On a CPU, autocast leaves the type as it is.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        if not (input.is_cuda and torch.is_autocast_enabled("cuda")):
            return super().forward(input)
        with torch.autocast("cuda", enabled=False):
            weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
            return F.group_norm(input, self.num_groups, weight, bias, self.eps)


def group_norm(channels: int, eps: float = 1e-5) -> GroupNorm:
    """Group normalisation with at least four channels a group and at most 32 groups."""
    return GroupNorm(min(32, channels // 4), channels, eps)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax_j(q_i·k_j / √d) v_j over the pixels of an image; (B, heads, d, H, W) each, returns (B, heads·d, H, W).

    `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)` reduces attention to elementary operations. Forward-mode
    derivatives (`torch.func.jvp`) and second derivatives need this kernel.
    """
    size = q.shape[-2:]
    q, k, v = (a.flatten(3).transpose(2, 3).contiguous() for a in (q, k, v))  # (B, heads, H·W, d)
    out = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(1, 2).unflatten(2, size)
    return out.contiguous()  # torch 2.11 needs a contiguous input for the jvp of a group norm


class Linear(nn.Linear):
    """A linear layer that ignores autocast, for the embedding of the noise level.

    Neighbouring noise levels of a fine grid differ by less than the resolution of bf16.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in) to (B, out)."""
        if not torch.is_autocast_enabled(x.device.type):  # saves the context of every layer
            return F.linear(x.to(self.weight.dtype), self.weight, self.bias)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


@loadable()
class PositionalEmbedding(nn.Module):
    """[cos(s·x·f_i), sin(s·x·f_i)] with f_i = 10000^(-i / (n/2 - e)), i < n/2.  (DDPM, arXiv 2006.11239.)

    Args:
        channels: n; the last output is 0 if it is odd.
        scale: s; noise labels of EDM's preconditioning span about [-1.6, 1.1], those of DDPM span [0, 1000].
        endpoint: e = 1, so that the lowest frequency is exactly 1/10000; else e = 0.
    """

    freqs: Tensor

    @checked
    def __init__(self, channels: int, scale: Positive = 1.0, endpoint: bool = True) -> None:
        super().__init__()
        self.channels, self.scale = channels, scale
        exponents = torch.arange(channels // 2, dtype=torch.float32) / max(channels // 2 - endpoint, 1)
        self.register_buffer("freqs", (1 / 10000) ** exponents, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Embed (B,) to (B, channels)."""
        phase = (self.scale * x)[:, None] * self.freqs
        return F.pad(torch.cat([phase.cos(), phase.sin()], 1), (0, self.channels % 2))


@loadable()
class FourierEmbedding(nn.Module):
    """[cos(2π·x·f_i), sin(2π·x·f_i)] with fixed f_i ~ N(0, scale²).  (Fourier Features, arXiv 2006.10739.)

    Args:
        channels: number of outputs, even.
        scale: 16 for NCSN++ (arXiv 2011.13456); improved consistency training uses 0.02 (arXiv 2310.14189, Sec. 3.2).

    Raises:
        ValueError: channels is not even, or an argument is out of range.
    """

    freqs: Tensor

    @checked
    def __init__(self, channels: Even, scale: Positive = 16.0) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)

    def forward(self, x: Tensor) -> Tensor:
        """Embed (B,) to (B, channels)."""
        phase = x[:, None] * (2 * pi * self.freqs)
        return torch.cat([phase.cos(), phase.sin()], 1)


class Conv2d(nn.Module):
    """Convolution (B, in, H, W) to (B, out, H', W') after resampling by 2.

    The filter is outer(f, f) / (Σf)². f = (1, 1) repeats pixels for "up" and averages 2x2 pixels for "down".

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: odd width of the kernel; 0 for resampling without a convolution.
        resample: "up", "down" or None.
        resample_filter: f.
        fused: resample after the convolution, as in the image path of NCSN++; only with "down".
    """

    weight: Tensor  # None if kernel is 0, as bias
    bias: Tensor
    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        resample: str | None = None,
        resample_filter: Sequence[float] = (1, 1),
        fused: bool = False,
    ) -> None:
        super().__init__()
        conv = nn.Conv2d(in_channels, out_channels, kernel) if kernel else None
        self.register_parameter("weight", getattr(conv, "weight", None))
        self.register_parameter("bias", getattr(conv, "bias", None))
        self.kernel, self.resample, self.fused = kernel, resample, fused
        self.box = list(resample_filter) == [1, 1]
        if resample:
            f = torch.as_tensor(resample_filter, dtype=torch.float32)
            self.register_buffer("resample_filter", torch.outer(f, f)[None, None] / f.sum() ** 2)
            self.margin = (len(f) - 1) // 2

    def _filtered(self, x: Tensor, convolution: Callable[..., Tensor], gain: int, padding: int) -> Tensor:
        weight = (gain * self.resample_filter).to(x.dtype).expand(x.shape[1], -1, -1, -1)
        return convolution(x, weight, stride=2, padding=padding, groups=x.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """H' = H, 2H for "up", H/2 for "down"."""
        if self.fused:
            x = F.conv2d(x, self.weight, padding=self.kernel // 2 + self.margin)
            return self._filtered(x, F.conv2d, 1, 0) + self.bias[:, None, None]
        if self.resample == "up":
            x = F.interpolate(x, scale_factor=2) if self.box else self._filtered(x, F.conv_transpose2d, 4, self.margin)
        elif self.resample == "down":
            x = F.avg_pool2d(x, 2) if self.box else self._filtered(x, F.conv2d, 1, self.margin)
        return F.conv2d(x, self.weight, self.bias, padding=self.kernel // 2) if self.kernel else x


class UNetBlock(nn.Module):
    """Residual block with optional self-attention; (B, in, H, W) and embedding (B, emb) to (B, out, H', W').

        h = conv0(silu(norm0(x)))
        h ← conv1(dropout(silu(norm1(h)·(1 + scale) + shift)))    adaptive, else  conv1(dropout(silu(norm1(h + shift))))
        h ← conv1(dropout(silu(norm1(h)·p(scale) + p(shift))))    adaptive with double_norm
        x ← (h + skip(x))·skip_scale
        x ← (x + proj(attention(norm2(x))))·skip_scale

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        emb_channels: width of the embedding.
        resample: "up", "down" or None.
        heads: attention heads; 0 for no attention.
        dropout: probability of dropout.
        skip_scale: 1, or √½ to preserve the variance.
        eps: ε of the normalisations.
        resample_filter: filter taps of the resampling, see `Conv2d`.
        resample_proj: add a learned 1x1 convolution to the skip path of a block that resamples.
        adaptive_scale: True: the embedding scales and shifts (AdaGN); False: the embedding shifts.
        double_norm: replace 1 + scale and shift by p(scale) and p(shift), p(y) = y/√(mean y² + 1e-8) over channels.
            (sCM, arXiv 2410.11081, Sec. 4.1.)
        attention_norm: replace q, k and v of each head and pixel by p(q), p(k) and p(v).
            (EDM2, arXiv 2312.02696, App. B.)

    Raises:
        ValueError: double_norm without adaptive_scale.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        resample: str | None = None,
        heads: int = 0,
        dropout: float = 0.0,
        skip_scale: float = 1.0,
        eps: float = 1e-5,
        resample_filter: Sequence[float] = (1, 1),
        resample_proj: bool = False,
        adaptive_scale: bool = True,
        double_norm: bool = False,
        attention_norm: bool = False,
    ) -> None:
        super().__init__()
        if double_norm and not adaptive_scale:
            raise ValueError("double_norm=True normalises scale and shift: it needs adaptive_scale=True; got False")
        self.heads, self.dropout, self.skip_scale = heads, dropout, skip_scale
        self.adaptive_scale, self.double_norm, self.attention_norm = adaptive_scale, double_norm, attention_norm
        self.norm0 = group_norm(in_channels, eps)
        self.conv0 = Conv2d(in_channels, out_channels, 3, resample, resample_filter)
        self.affine = Linear(emb_channels, out_channels * (2 if adaptive_scale else 1))
        self.norm1 = group_norm(out_channels, eps)
        self.conv1 = Conv2d(out_channels, out_channels, 3)
        self.skip = None
        if in_channels != out_channels or resample:
            kernel = 1 if in_channels != out_channels or resample_proj else 0
            self.skip = Conv2d(in_channels, out_channels, kernel, resample, resample_filter)
        if heads:
            self.norm2 = group_norm(out_channels, eps)
            self.qkv = Conv2d(out_channels, 3 * out_channels, 1)
            self.proj = Conv2d(out_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """H' = H, 2H for "up", H/2 for "down"."""
        h = self.conv0(F.silu(self.norm0(x)))
        params = self.affine(emb)[:, :, None, None].to(h.dtype)
        if self.adaptive_scale:
            scale, shift = params.chunk(2, 1)
            scale, shift = (_pixel_norm(scale), _pixel_norm(shift)) if self.double_norm else (scale + 1, shift)
            h = F.silu(torch.addcmul(shift, self.norm1(h), scale))
        else:
            h = F.silu(self.norm1(h + params))
        h = self.conv1(dropout(h, self.dropout, self.training))
        x = (h + (x if self.skip is None else self.skip(x))) * self.skip_scale
        if self.heads:
            qkv = self.qkv(self.norm2(x)).unflatten(1, (self.heads, -1, 3))  # order (head, dim, 3)
            q, k, v = (_pixel_norm(qkv, 2) if self.attention_norm else qkv).unbind(3)
            x = (self.proj(attention(q, k, v)) + x) * self.skip_scale
        return x


def _pixel_norm(y: Tensor, dim: int = 1) -> Tensor:
    return y * (y.square().mean(dim, keepdim=True) + 1e-8).rsqrt()
