"""Distances d(x, y) between two batches of images: one number for each image.

All take x, y of shape (B, ...) in the same dtype and return shape (B,), differentiable in both arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from consistency_models.storage.downloads import Weights
from consistency_models.trust import loadable
from consistency_models.values import NotNegative, Positive, Text, checked

__all__ = ["L1", "LPIPS", "ElementwiseHuber", "LInf", "PseudoHuber", "SquaredL2", "SquaredL2At32"]

VGG16 = Weights(
    "torchvision",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
)


@loadable()
class SquaredL2(nn.Module):
    """d(x, y) = mean_i (x_i - y_i)².  (Consistency Models, arXiv 2303.01469, Sec. 5.)"""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """d, shape (B,)."""
        return (x - y).square().flatten(1).mean(1)


@loadable()
class SquaredL2At32(nn.Module):
    """`SquaredL2` of the images resized to 32×32, bilinearly: `l2-32` of the official code. Images are (B, C, H, W)."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """d, shape (B,)."""
        return interpolate(x - y, size=(32, 32), mode="bilinear").square().flatten(1).mean(1)


@loadable()
class L1(nn.Module):
    """d(x, y) = mean_i |x_i - y_i|.  (Consistency Models, arXiv 2303.01469, Sec. 5.)"""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """d, shape (B,)."""
        return (x - y).abs().flatten(1).mean(1)


@loadable()
class LInf(nn.Module):
    """d(x, y) = max_i |x_i - y_i|.  (The official CIFAR-10 code; not in the paper's experiments.)"""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """d, shape (B,)."""
        return (x - y).abs().flatten(1).amax(1)


@loadable()
class ElementwiseHuber(nn.Module):
    """d(x, y) = mean_i √((x_i - y_i)² + c²) - c: `PseudoHuber` of each value in place of the whole image.

    (The loss "huber" of diffusers' LCM distillation scripts.)

    Args:
        c: at |x_i - y_i| = c the distance turns from quadratic to linear.
    """

    @checked
    def __init__(self, c: Positive = 0.001) -> None:
        super().__init__()
        self.c = c

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """d, shape (B,)."""
        square = (x - y).square()
        # √(d² + c²) - c without cancellation for small d.
        return (square / ((square + self.c**2).sqrt() + self.c)).flatten(1).mean(1)


@loadable()
class PseudoHuber(nn.Module):
    """d(x, y) = √(‖x - y‖² + c²) - c, with the norm over the whole image.

    Quadratic for ‖x - y‖ ≪ c, linear beyond. With the norm of single pixels, the same c would give nearly
    squared l2.  (Improved Techniques for Training Consistency Models, arXiv 2310.14189, Sec. 3.3.)

    Args:
        c: norm at which quadratic turns linear; 0 is the norm itself; by default the paper's 0.00054·√d for d values an
            image.
    """

    @checked
    def __init__(self, c: NotNegative | None = None) -> None:
        super().__init__()
        self.c = c

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """d, shape (B,)."""
        squared_norm = (x - y).square().flatten(1).sum(1)
        c = 0.00054 * math.sqrt(x[0].numel()) if self.c is None else self.c
        if c == 0:
            return _root(squared_norm)
        return squared_norm / (torch.sqrt(squared_norm + c * c) + c)  # = √(‖x - y‖² + c²) - c, without cancellation


def _root(squared: Tensor) -> Tensor:
    """√squared, whose gradient at 0 is 0 instead of NaN."""
    positive = squared > 0
    return torch.where(positive, torch.where(positive, squared, 1).sqrt(), 0)


class LPIPS(nn.Module):
    """The learned perceptual distance of images in [-1, 1], used in the training of the official consistency models.

    Images narrower than 256 are resized to 224×224 (bilinearly, not antialiased), then mapped to [0, 1], then compared
    by LPIPS v0.1 on VGG16. VGG's pooling is the mean in the library (piq) of the official PyTorch code, for ImageNet 64
    and LSUN, and the maximum in that of the official JAX code (lpips-j), for CIFAR-10.
    (Consistency Models, arXiv 2303.01469, Sec. 5; LPIPS, arXiv 1801.03924.)

    The network is loaded by `prepare` or at the first call. It is not part of this module's state, so checkpoints do
    not contain it.

    Args:
        weights: torchvision's `vgg16-397923af.pth`, a local file; by default the file is searched and, if necessary,
            downloaded at the first call: see `Weights`.
        metric: another perceptual metric of two batches of images in [0, 1], shape (B, 3, H, W) -> (B,).
        pooling: of VGG16, "average" or "max".

    Raises:
        FileNotFoundError: there is no file `weights`, or it cannot be downloaded.
        ValueError: both arguments are given, or the file has another content.
    """

    needs_rgb = True

    @checked
    def __init__(
        self,
        weights: Text | Path | None = None,
        metric: Callable[[Tensor, Tensor], Tensor] | None = None,
        pooling: Literal["average", "max"] = "average",
    ) -> None:
        super().__init__()
        if weights is not None and metric is not None:
            raise ValueError("weights are those of the default metric: give either weights or metric, not both")
        if weights is not None:
            VGG16.path(weights)
        self.weights, self.pooling = weights, pooling
        self._metric: list[Any] = [metric]  # a list, so that the module is not registered

    def prepare(self, load: bool = True) -> None:
        """Load the weights from a file or the internet, or leave them undefined, which is enough to count operations.

        Raises:
            FileNotFoundError: the weights are not on the disk and cannot be downloaded.
            ValueError: the file has another content.
        """
        if self._metric[0] is None:
            self._metric[0] = _VGG16(self.weights, load, self.pooling)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """d, shape (B,)."""
        self.prepare()
        x, y = (o.to(torch.promote_types(o.dtype, torch.float32)) for o in (x, y))
        if isinstance(self._metric[0], nn.Module):
            self._metric[0].to(x)
        if x.shape[-1] < 256:
            x, y = (interpolate(o, size=(224, 224), mode="bilinear") for o in (x, y))
        with torch.autocast(x.device.type, enabled=False):
            return self._metric[0]((x + 1) / 2, (y + 1) / 2)


class _VGG16(nn.Module):
    """LPIPS v0.1 on the activations relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3 of VGG16."""

    TAPS = (3, 8, 15, 22, 29)
    mean: Tensor
    std: Tensor

    def __init__(self, weights: str | Path | None, load: bool, pooling: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        pool = {"average": nn.AvgPool2d, "max": nn.MaxPool2d}[pooling]
        channels = 3
        with torch.device("meta"):  # an initialisation would advance the random generator of the training
            for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()] if width else [pool(2)]
                channels = width or channels
        self.features = nn.Sequential(*layers)
        if load:
            VGG16.use(self._fill, weights)
        else:
            self.features.to_empty(device="cpu")
        for i, weight in enumerate(_linear_weights()):
            self.register_buffer(f"linear{i}", weight)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))
        self.requires_grad_(False)

    def _fill(self, state: dict[str, Tensor]) -> None:
        convolutions = {name: value for name, value in state.items() if name.startswith("features.")}
        self.load_state_dict(convolutions, assign=True)

    def activations(self, x: Tensor) -> list[Tensor]:
        """The five activations, each divided by its length over the channels."""
        x, taps = (x - self.mean) / self.std, []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.TAPS:
                taps.append(x / (_root(x.square().sum(1, keepdim=True)) + 1e-10))
        return taps

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        linear = (self.get_buffer(f"linear{i}") for i in range(len(self.TAPS)))
        terms = zip(linear, self.activations(x), self.activations(y))
        return reduce(torch.add, ((w * (a - b).square()).sum(1).mean((1, 2)) for w, a, b in terms))


def _linear_weights() -> list[Tensor]:
    """The five linear layers of LPIPS v0.1 from torchmetrics, each of shape (1, channels, 1, 1)."""
    import torchmetrics

    file = Path(torchmetrics.__file__).parent / "functional/image/lpips_models/vgg.pth"
    state = torch.load(file, map_location="cpu", weights_only=True)
    return [state[f"lin{i}.model.1.weight"] for i in range(5)]
