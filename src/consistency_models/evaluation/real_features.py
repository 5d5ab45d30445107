"""Features of the real images in one pass, which several processes can divide among themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from consistency_models.evaluation.feature_set import Moments
from consistency_models.random import seed_of

__all__ = ["Share", "merged", "share_of", "subset"]


def subset(n: int, points: int) -> Tensor | None:
    """The images whose points are kept: `points` of n at random, sorted (points,) int64; None for all, if n <= points.

    The choice depends on n and points only.
    """
    if n <= points:
        return None
    generator = torch.Generator().manual_seed(seed_of("points of real images", n, points))
    return torch.randperm(n, generator=generator)[:points].sort().values


@dataclass(frozen=True)
class Share:
    """Features of the batches of one process.

    Args:
        points: number of each batch -> points of its images in the subset, (b, F) float32.
        moments: (n, mean, scatter) of all images of these batches; None if points of all images are kept.
    """

    points: dict[int, Tensor]
    moments: tuple[int, Tensor, Tensor] | None


def share_of(
    images: Tensor, extract: Callable[[Tensor], Tensor], size: int, points: int, rank: int = 0, ranks: int = 1
) -> Share:
    """Compute the features of batches rank, rank + ranks, … of `size` images each.

    Args:
        images: (n, C, H, W), or an object with the same `split`.
        extract: returns the features (B, F) of a batch.
        size: images in a batch. The batches do not depend on the number of processes.
        points: largest number of images whose points are kept: see `subset`.
        rank, ranks: this process, and the number of processes.
    """
    chosen, found, moments = subset(len(images), points), {}, Moments()
    for k, batch in enumerate(images.split(size)[rank::ranks]):
        number, features = rank + k * ranks, extract(batch)
        if chosen is None:
            found[number] = features.cpu()
            continue
        moments.add(features if features.device.type == "cuda" else features.cpu())  # others may lack float64
        rows = chosen[(chosen >= number * size) & (chosen < number * size + len(batch))] - number * size
        found[number] = features[rows.to(features.device)].cpu()
    if chosen is None or not moments.n:
        return Share(found, None)
    return Share(found, (moments.n, moments.mean.cpu(), moments.scatter.cpu()))


def merged(shares: Sequence[Share]) -> tuple[Tensor, Moments | None]:
    """Merge the shares of all processes: points in the order of the images, and moments of all images or None."""
    points = {number: rows for share in shares for number, rows in share.points.items()}
    moments = Moments()
    for share in shares:
        if share.moments is not None:
            moments.merge(*share.moments)
    return torch.cat([points[number] for number in sorted(points)]), moments if moments.n else None
