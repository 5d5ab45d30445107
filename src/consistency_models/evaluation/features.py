"""Feature spaces in which generated and real images are compared.

An extractor is made from a data set and maps images in [-1, 1], shape (B, C, H, W), to features (B, F). It declares
    name      a part of the name of every number that is measured in its space: distances in different ones cannot be
              compared
    protocol  what happens to images on the way, beside the weights: what is kept on disk depends on it
and one that tells classes apart has `logits(features)`, (B, F) -> (B, classes).
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
    """Images in [-1, 1] as an image file would keep them: clamped, rounded to the nearest of 256 values, uint8."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """uint8 images scaled to [-1, 1], float32; floating-point images as they are."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images


def to_rgb(images: Tensor) -> Tensor:
    """Grey images (B, 1, H, W) as (B, 3, H, W); (B, 3, H, W) as they are.

    Raises:
        ValueError: images have another number of channels.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"this feature space is of grey or RGB images (B, 1 or 3, H, W); got {tuple(images.shape)}")
    return images.expand(-1, 3, -1, -1)


def resized_to(size: int, images: Tensor) -> Tensor:
    """uint8 images (B, C, H, W) as Pillow scales them to size x size, bicubic and antialiased; float32."""
    images = images.float()
    for shape in ((images.shape[2], size), (size, size)):  # first the rows, then the columns, each to 8 bits
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
    """The values of the image themselves, (B, C·H·W): for points of a mixture, and for images without classes.

    Args:
        data: not used; every extractor is given the data set.
    """

    name, protocol = "identity", "values"

    def __init__(self, data) -> None:
        super().__init__()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C·H·W)."""
        return images.flatten(1)


@loadable()
class Classifier(nn.Module):
    """The 64 penultimate features of a small convolutional network that is trained to tell the data's classes apart.

    Four fifths of the images train it; the accuracy on the rest is `held_out_accuracy`. It sees images as files keep
    them, in 8 bits. It is trained once, on one CPU core, and kept by `cache` under the digest of the data, the
    settings and this file's own text. The same data, settings and machine give the same features; no random numbers of
    others are disturbed.

    Made for square images of 8 to 32 pixels. Its distances mean something beside their floor on the same data set; they
    cannot be compared with FID.

    Args:
        data: `.images` (n, C, H, W) uint8, `.labels` (n,) int64, `.num_classes`, `.digest`, `.name`.
        steps: training steps, at least 1; 300 are enough for digits, larger sets gain from more.
        batch_size: images of a step.
        learning_rate: the highest of a one-cycle schedule, for AdamW.
        seed: of initial weights, held-out images, batches and dropout.

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
                f"features=classifier learns the data's classes, and {data.name} has none: choose features=identity"
            )
        settings = (data.digest, steps, batch_size, learning_rate, seed, source_fingerprint(Classifier))
        # Everything random is drawn from the CPU's default generator, which is then put back as it was; one thread, so
        # that sums are rounded alike whatever the machine's load and number of cores.
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad(), _one_thread():
            torch.default_generator.manual_seed(seed)
            self._build(data.images.shape[1:], data.num_classes)
            self.register_buffer("held_out_accuracy", torch.tensor(torch.nan))
            trained = cached("classifier", settings, lambda: self._trained(data, steps, batch_size, learning_rate))
            self.load_state_dict(trained)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1], on any device -> (B, 64) on the classifier's."""
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
        # Without dropout the features of a class shrink to a point, and little but its frequency is left to compare.
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
