"""Feature spaces in which generated and real images are compared.

An extractor is built from a data set and maps images in [-1, 1], shape (B, C, H, W), to features (B, F). It declares
    name      part of the name of every score in this space; distances in different spaces cannot be compared
    protocol  preprocessing of the images; part of the key of cached features, beside the weights
and may declare
    cpu_batch_size  images in one call on a CPU, where activations of a whole batch would leave the caches
A classifier also has `logits(features)`, (B, F) -> (B, classes).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from consistency_models.storage.cache import cached, source_fingerprint
from consistency_models.trust import loadable
from consistency_models.values import Count, Positive, Size, checked

__all__ = ["Classifier", "Identity", "resized_to", "to_bytes", "to_float", "to_rgb"]


def to_bytes(images: Tensor) -> Tensor:
    """Convert images in [-1, 1] to uint8, as in an image file: clamp, then round to the nearest of 256 values."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """Scale uint8 images to [-1, 1], float32; floating-point images are returned unchanged."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images


def to_rgb(images: Tensor) -> Tensor:
    """Expand grey images (B, 1, H, W) to (B, 3, H, W); RGB images are returned unchanged.

    Raises:
        ValueError: images have another number of channels.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"this feature space takes grey or RGB images (B, 1 or 3, H, W); got {tuple(images.shape)}")
    return images.expand(-1, 3, -1, -1)


def resized_to(size: int, images: Tensor) -> Tensor:
    """Resize uint8 images (B, C, H, W) to size x size as Pillow does, bicubic and antialiased; returns float32."""
    images = images.float()
    for shape in ((images.shape[2], size), (size, size)):  # rows first, then columns; both are rounded to 8 bits
        images = F.interpolate(images, shape, mode="bicubic", antialias=True).round().clamp(0, 255)
    return images


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@loadable()
class Identity(nn.Module):
    """The pixel values, (B, C·H·W): for points of a mixture, and for images without classes.

    Args:
        data: not used; every extractor takes the data set.
    """

    name, protocol = "identity", "values"

    def __init__(self, data) -> None:
        super().__init__()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Flatten images (B, C, H, W) to (B, C·H·W)."""
        return images.flatten(1)


@loadable()
class Classifier(nn.Module):
    """The 64 penultimate features of a small convolutional network that is trained to classify the data.

    Four fifths of the images are the training set; `held_out_accuracy` is the accuracy on the rest. Images are rounded
    to 8 bits. The network is trained once, on one CPU core, and cached on disk by the digest of the data, the settings
    and the source text of this file. The same data, settings and machine give the same features. Training leaves the
    state of the global random number generators unchanged.

    Designed for square images of 8 to 32 pixels. Compare distances with their floor on the same data set; they cannot
    be compared with FID.

    Args:
        data: `.images` (n, C, H, W) uint8, `.labels` (n,) int64, `.num_classes`, `.digest`, `.name`.
        steps: training steps, at least 1; 300 are enough for digits, larger data sets benefit from more.
        batch_size: images in one step.
        learning_rate: maximum of the one-cycle schedule of AdamW.
        seed: seed of initial weights, held-out images, batches and dropout.

    Raises:
        ValueError: the data has no labels.
    """

    name, protocol = "classifier", "8 bits"

    needs_classes = True

    @checked
    def __init__(
        self, data, steps: Size = 300, batch_size: Size = 128, learning_rate: Positive = 5e-3, seed: Count = 0
    ) -> None:
        super().__init__()
        if data.labels is None:
            raise ValueError(
                f"features=classifier needs labelled data, and {data.name} has none: choose features=identity"
            )
        settings = (data.digest, steps, batch_size, learning_rate, seed, source_fingerprint(Classifier))
        # All random numbers come from the CPU's default generator, whose state is restored afterwards. One thread, so
        # that the rounding of sums depends neither on the load nor on the number of cores.
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad(), _one_thread():
            torch.default_generator.manual_seed(seed)
            self._build(data.images.shape[1:], data.num_classes)
            self.register_buffer("held_out_accuracy", torch.tensor(torch.nan))
            trained = cached("classifier", settings, lambda: self._trained(data, steps, batch_size, learning_rate))
            self.load_state_dict(trained)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 64), on the classifier's device, of images (B, C, H, W) in [-1, 1] on any device."""
        return self.body(to_float(to_bytes(images.to(self.held_out_accuracy.device))))

    def logits(self, features: Tensor) -> Tensor:
        """Logits of the classes, (B, classes), from features (B, 64)."""
        return self.head(features.to(self.held_out_accuracy))

    def _build(self, shape: tuple[int, int, int], classes: int) -> None:
        width, size = shape[:2]
        layers, channels, stride = [], 32, 1 if size <= 16 else 2
        while not layers or size > 4:
            layers += [nn.Conv2d(width, channels, 3, stride, padding=1), nn.GroupNorm(8, channels), nn.SiLU()]
            width, size = channels, -(-size // stride)
            channels, stride = 64, 2
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * size * size, 64), nn.SiLU())
        # Without dropout the features of each class collapse to a point, and distances compare only class frequencies.
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, classes))

    def _trained(self, data, steps: int, batch_size: int, learning_rate: float) -> dict[str, Tensor]:
        images, labels = data.images.cpu(), data.labels.cpu()
        held_out, rest = torch.randperm(len(images)).split([len(images) // 5, len(images) - len(images) // 5])
        optimizer = torch.optim.AdamW(self.parameters(), lr=learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
        self.train()
        for _ in range(steps):
            rows = rest[torch.randint(len(rest), (batch_size,))]
            loss = F.cross_entropy(self.head(self.body(to_float(images[rows]))), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        self.eval()
        with torch.no_grad():
            right = [self.logits(self(to_float(images[r]))).argmax(1) == labels[r] for r in held_out.split(512)]
        self.held_out_accuracy.fill_(torch.cat(right).float().mean())
        return dict(self.state_dict())
