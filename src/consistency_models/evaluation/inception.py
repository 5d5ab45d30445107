"""The feature space of FID, KID and the Inception score."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor, nn

from consistency_models.evaluation.features import to_bytes, to_rgb
from consistency_models.storage.downloads import Weights
from consistency_models.trust import loadable
from consistency_models.values import Text, checked

__all__ = ["InceptionV3"]

WEIGHTS = Weights(
    "torch-fidelity",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)


@loadable(download=False)
class InceptionV3(nn.Module):
    """The 2048 pooled features of the Inception-v3 of December 2015, the feature space of FID (arXiv 1706.08500).

    torch-fidelity's port of the TensorFlow graph: uint8 images, TensorFlow 1's bilinear resizing to 299x299 without
    antialiasing, (x - 128)/128.  Logits are those of the graph's matrix product, without bias, as the Inception score
    takes them.

    Args:
        data: not used; every extractor takes the data set.
        weights: torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`; by default the file is searched and, if
            necessary, downloaded: see `Weights`.
        download: whether weights that are not on disk may be downloaded.

    Raises:
        FileNotFoundError, ValueError: see `Weights.use`.
    """

    name, protocol = "inception", "8 bits, TensorFlow 1 bilinear 299"

    needs_images = True
    cpu_batch_size = 4

    @checked
    def __init__(self, data=None, weights: Text | Path | None = None, download: bool = True) -> None:
        super().__init__()
        self.network = WEIGHTS.use(_network, weights, download)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 2048), on the network's device, of images (B, 1 or 3, H, W) in [-1, 1] on any device."""
        (features,) = self.network(to_rgb(to_bytes(images.to(self.network.fc.weight.device))))
        return features

    def logits(self, features: Tensor) -> Tensor:
        """Logits of the 1008 classes, (B, 1008), from features (B, 2048)."""
        return features.to(self.network.fc.weight) @ self.network.fc.weight.T


def _network(state: dict[str, Tensor]) -> nn.Module:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # The class always unpickles a file. The file written here holds only tensors.
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    with torch.random.fork_rng(devices=[]):  # the class draws random weights before it loads the file
        return FeatureExtractorInceptionV3("inception", ["2048"], file)
