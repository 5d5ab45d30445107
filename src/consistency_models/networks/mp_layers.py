"""Layers of EDM2's U-Net, which preserve magnitudes by construction.

(Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, arXiv 2312.02696, App. B.)
Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import pi, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from consistency_models.networks.layers import attention, dropout

__all__ = ["Block", "MPConv", "MPFourier", "mp_cat", "mp_silu", "mp_sum", "normalize"]


def normalize(x: Tensor, dim: int | tuple[int, ...], eps: float = 1e-4) -> Tensor:
    """x / (ε + ‖x‖/√n) with norms over the n elements along dim; the result has unit mean square."""
    n = x.shape[dim] if isinstance(dim, int) else x[0].numel()
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return x / (eps + norm / sqrt(n)).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """silu(x) / 0.596, which has unit variance for x ~ N(0, 1).  (Eq. 81.)"""
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """((1 - t)·a + t·b) / √((1 - t)² + t²).  (Eq. 88.)"""
    return a.lerp(b, t) / sqrt((1 - t) ** 2 + t**2)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Concatenate the channels of a and b, weighted (1 - t)² to t²; preserves the mean square.  (Eq. 103.)"""
    c = sqrt((a.shape[1] + b.shape[1]) / ((1 - t) ** 2 + t**2))
    return torch.cat([a * (c * (1 - t) / sqrt(a.shape[1])), b * (c * t / sqrt(b.shape[1]))], 1)


class MPFourier(nn.Module):
    """√2·cos(x·f_i + φ_i) with fixed f_i ~ 2π·N(0, 1), φ_i ~ U(0, 2π); (B,) to (B, channels).  (Eq. 75.)"""

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * pi * torch.randn(channels))
        self.register_buffer("phases", 2 * pi * torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Embed (B,) to (B, channels)."""
        return (x[:, None] * self.freqs + self.phases).cos() * sqrt(2)


class MPConv(nn.Module):
    """Convolution, or linear layer for kernel 0, whose weights are normalised for each output; no bias.  (Eq. 66.)

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: odd width; 0 for a linear layer, which ignores autocast because it maps the noise level.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *[kernel, kernel][: 2 * bool(kernel)]))

    @torch.no_grad()
    def force_norm(self) -> None:
        """Normalise the stored weights, so that the effective learning rate does not decay.  (Sec. 2.3.)"""
        self.weight.copy_(normalize(self.weight, tuple(range(1, self.weight.ndim))))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """Map (B, in, …) to (B, out, …)."""
        fan_in = self.weight[0].numel()
        w = normalize(self.weight, tuple(range(1, self.weight.ndim))) * (gain / sqrt(fan_in))
        if w.ndim == 2:
            with torch.autocast(x.device.type, enabled=False):
                return F.linear(x.to(w.dtype), w)
        return F.conv2d(x, w.to(x.dtype), padding=w.shape[-1] // 2)


class Block(nn.Module):
    """Residual block with optional self-attention; (B, in, H, W) and embedding (B, emb) to (B, out, H', W').

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        emb_channels: width of the embedding.
        encoder: normalise each pixel and widen before the residual branch, instead of widening on the skip path.
        resample: "up", "down" or None.
        heads: attention heads; 0 for no attention.
        dropout: probability of dropout.
        resample_filter: 1-D filter of the resampling, of even length.
        res_balance: share t of the residual branch.
        attn_balance: share t of the attention.
        clip_act: bound of the outputs; None for no bound.
    """

    filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        encoder: bool,
        resample: str | None = None,
        heads: int = 0,
        dropout: float = 0.0,
        resample_filter: Sequence[float] = (1, 1),
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float | None = 256,
    ) -> None:
        super().__init__()
        self.encoder, self.resample, self.heads, self.dropout = encoder, resample, heads, dropout
        self.res_balance, self.attn_balance, self.clip_act = res_balance, attn_balance, clip_act
        f = torch.as_tensor(resample_filter, dtype=torch.float32)
        self.box = list(resample_filter) == [1, 1]
        self.register_buffer("filter", torch.outer(f, f)[None, None] / f.sum() ** 2, persistent=False)
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(out_channels if encoder else in_channels, out_channels, 3)
        self.emb_linear = MPConv(emb_channels, out_channels, 0)
        self.conv_res1 = MPConv(out_channels, out_channels, 3)
        self.conv_skip = MPConv(in_channels, out_channels, 1) if in_channels != out_channels else None
        self.attn_qkv = MPConv(out_channels, 3 * out_channels, 1) if heads else None
        self.attn_proj = MPConv(out_channels, out_channels, 1) if heads else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """H' = H, 2H for "up", H/2 for "down"."""
        if self.resample == "up":
            x = F.interpolate(x, scale_factor=2) if self.box else self._filtered(x, F.conv_transpose2d, 4)
        if self.resample == "down":
            x = F.avg_pool2d(x, 2) if self.box else self._filtered(x, F.conv2d, 1)
        skip = x if self.conv_skip is None else self.conv_skip(x)
        if self.encoder:
            x = skip = normalize(skip, 1)
        y = self.conv_res0(mp_silu(x))
        scale = self.emb_linear(emb, self.emb_gain)[:, :, None, None] + 1
        y = dropout(mp_silu(y * scale.to(y.dtype)), self.dropout, self.training)
        x = mp_sum(skip, self.conv_res1(y).to(skip.dtype), self.res_balance)
        if self.attn_qkv is not None and self.attn_proj is not None:
            qkv = self.attn_qkv(x).unflatten(1, (self.heads, -1, 3))  # order (head, dim, 3)
            q, k, v = normalize(qkv, 2).unbind(3)
            x = mp_sum(x, self.attn_proj(attention(q, k, v)).to(x.dtype), self.attn_balance)
        return x if self.clip_act is None else x.clamp(-self.clip_act, self.clip_act)

    def _filtered(self, x: Tensor, convolution: Callable[..., Tensor], gain: int) -> Tensor:
        weight = (gain * self.filter).to(x.dtype).expand(x.shape[1], -1, -1, -1)
        return convolution(x, weight, stride=2, padding=(weight.shape[-1] - 1) // 2, groups=x.shape[1])
