"""Images in batches: the noise of each image, and sampling that keeps a GPU busy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from consistency_models.random import seed_of

__all__ = ["ImageNoise", "blocks", "image_batches"]


def blocks(indices: range, size: int) -> list[range]:
    """Divide indices at the multiples of `size`: the rounding of a network depends on the size of its batch."""
    first, stop = indices.start, indices.stop
    borders = [first, *range(first - first % size + size, stop, size), stop]
    return [range(start, end) for start, end in pairwise(borders)]


@torch.no_grad()
def image_batches(
    sample: Callable[[Tensor, ImageNoise], Tensor],
    parts: Iterable[range],
    seed: int,
    shape: tuple[int, ...],
    device: torch.device,
) -> Iterator[Tensor]:
    """Yield the images of each range of indices, on the CPU.

    The next range is begun before a range is yielded. A GPU therefore works while the noise of the next range is drawn
    on the host, and while the caller uses the images.

    Args:
        sample: `sample(indices, noise)` returns the images of indices (n,) on the device.
        parts: the ranges.
        seed: the noise depends on (seed, index) only.
        shape: (C, H, W).
        device: the device of the noise.
    """
    waiting: Callable[[], Tensor] | None = None
    for part in parts:
        indices = torch.arange(part.start, part.stop)
        images = sample(indices, ImageNoise(seed, indices.tolist(), shape, device))
        finished, waiting = waiting, _copied_to_host(images)
        if finished is not None:
            yield finished()
    if waiting is not None:
        yield waiting()


def _copied_to_host(images: Tensor) -> Callable[[], Tensor]:
    """Start to copy images to the host. The returned function waits for the copy and returns it."""
    copy = images.to("cpu", non_blocking=images.is_cuda)  # from CUDA to page-locked memory, beside the next kernels
    if not images.is_cuda:
        return lambda: copy
    copied = torch.cuda.current_stream(images.device).record_event()

    def wait() -> Tensor:
        copied.synchronize()
        return copy.clone()  # page-locked memory is scarce

    return wait


class ImageNoise:
    """Standard normal noise of given images: each call draws the next, and the generator is seeded for each image.

    Noise for a GPU is copied from page-locked memory, so the host does not wait for the kernels of earlier batches.
    """

    def __init__(self, seed: int, indices: list[int], shape: tuple[int, ...], device: torch.device | str) -> None:
        self.seed, self.indices, self.shape, self.device = seed, indices, shape, device
        self.draws = 0

    def __call__(self) -> Tensor:
        """(len(indices), *shape)"""
        on_gpu, generator = torch.device(self.device).type == "cuda", torch.Generator()
        drawn = torch.empty(len(self.indices), *self.shape, pin_memory=on_gpu)
        for place, k in zip(drawn, self.indices):
            place.normal_(generator=generator.manual_seed(seed_of(self.seed, "image", k, self.draws)))
        self.draws += 1
        return drawn.to(self.device, non_blocking=on_gpu)
