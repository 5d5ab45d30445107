"""The evaluation protocol: metrics, reference images, floors, and the names of scores."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
from annotated_types import Ge
from torch import Tensor, nn

from consistency_models.devices import chosen_device
from consistency_models.errors import ConfigError, DataError
from consistency_models.evaluation.feature_set import FeatureSet
from consistency_models.evaluation.features import to_float
from consistency_models.evaluation.real_features import Share, merged, share_of, subset
from consistency_models.evaluation.references import Reference, identity_of
from consistency_models.networks.layout import prefers_channels_last, set_channels_last
from consistency_models.random import seed_of
from consistency_models.storage.cache import cached, source_fingerprint
from consistency_models.trust import loadable
from consistency_models.values import NpzFile, Size, checked

__all__ = ["SMALLEST_TO_SPLIT", "Evaluation", "Score", "combined"]

FACTS = ("name", "needs_labels", "needs_points", "needs_order", "is_distance")  # attributes of every metric
SMALLEST_TO_SPLIT = 4  # images: the covariance of each half needs two


@dataclass(frozen=True)
class Score:
    """One measured value, with its protocol.

    Args:
        metric, features, reference: names of the metric, the feature space and the real images ("train").
        value: measured value, or the mean over repetitions; NaN if an image is not finite.
        n: number of generated images.
        reference_digest: hash of the real images.
        steps: sampling steps; None if real images replace the generated ones.
        spread: standard deviation over repetitions, or None.
        best: best value over repetitions, or None; EDM's papers print the smallest of three.
        is_distance: whether lower is better.
    """

    metric: str
    value: float
    n: int
    features: str
    reference: str
    reference_digest: str
    steps: int | None
    spread: float | None = None
    best: float | None = None
    is_distance: bool = True

    @property
    def name(self) -> str:
        """Full name, such as fd1797_classifier_train_1step, or fd898_classifier_train_floor for real images."""
        sampler = "floor" if self.steps is None else f"{self.steps}step"
        return f"{self.metric}{self.n}_{self.features}_{self.reference}_{sampler}"


def combined(scores: Sequence[Score]) -> Score:
    """Combine scores of one name on several sets of images into mean, spread and best; NaN if one of them is NaN.

    Raises:
        ValueError: there is no score, or their names differ.
    """
    if len({score.name for score in scores}) != 1:
        names = ", ".join(sorted({score.name for score in scores})) or "none"
        raise ValueError(f"scores to combine must be one or more of one name; got {names}")
    values = [score.value for score in scores]
    if len(values) == 1:
        return scores[0]
    mean = statistics.fmean(values)
    if math.isnan(mean):
        return replace(scores[0], value=mean)
    best = (min if scores[0].is_distance else max)(values)
    return replace(scores[0], value=mean, spread=statistics.stdev(values), best=best)


@loadable(reference_bytes=None)
class Evaluation:
    """Scores generated images against real images. The features of the real images are computed once.

    Args:
        data: `.images` (n, C, H, W), uint8 or float in [-1, 1]; `.labels` (n,) int64 or None; `.num_classes`;
            `.digest`; `.name`; `.test`, another such set or None.
        extractor: `extractor(data)` returns the feature space.
        metrics: metrics to compute. A metric that needs labels is skipped for images without labels; a metric that
            needs the reference's images is skipped for a reference of mean and covariance only.
        reference: train, test, or an npz file: see `Reference.of`.
        batch_size: images in one call of the extractor.
        device: device of the extractor; auto selects a GPU if there is one.
        reference_bytes: limit of the memory for the arrays of an npz file: see `Reference.of`.
        reference_points: largest number of real images whose features are kept. Of a larger set, mean and covariance
            are those of all images, summed in one pass. Metrics that compare with single real images, and floors, use
            a random subset of this size, which the names of their scores state (train100000).

    Attributes:
        extract_all: yields the features of an iterable of batches, in order; by default computed in this process.
        collect_shares: returns the shares of the real images (see `real_features`); by default one, of this process.

    Raises:
        ConfigError: this machine does not have the device; a metric lacks an attribute, or has the name of another.
        DataError: the reference cannot be read.
    """

    @checked
    def __init__(
        self,
        data,
        extractor: Callable[..., nn.Module],
        metrics: Sequence[Callable[[FeatureSet, FeatureSet], float]],
        reference: Literal["train", "test"] | NpzFile = "train",
        batch_size: Size = 512,
        device: Literal["auto", "cpu", "cuda"] = "cpu",
        reference_bytes: Size | None = None,
        reference_points: Annotated[int, Ge(2)] = 100_000,
    ) -> None:
        names = [getattr(metric, "name", None) for metric in metrics]
        lacks = [need for metric in metrics for need in FACTS if not hasattr(metric, need)]
        if lacks or len(set(names)) < len(names):
            reason = f"one of them lacks the attribute {lacks[0]}" if lacks else "two of them have one name"
            allowed = f"metrics with {', '.join(FACTS)}, each of its own name"
            raise ConfigError("features.metrics", names, allowed, reason=reason)
        self.data, self.metrics, self.batch_size = data, metrics, batch_size
        self.device = torch.device(chosen_device(device, "features.device"))
        self.source = Reference.of(data, reference, reference_bytes)
        self.make_extractor, self.reference_points = extractor, reference_points
        self.extract_all: Callable[[Iterable[Tensor]], Iterable[Tensor]] = lambda batches: map(self.extract, batches)
        self.collect_shares: Callable[[], Sequence[Share]] = lambda: [self.share()]
        self._is_shared = False

    @cached_property
    def extractor(self) -> nn.Module:
        """The feature space; built, and if necessary trained, at the first access."""
        extractor = self.make_extractor(self.data).to(self.device)
        set_channels_last(extractor, prefers_channels_last(extractor, self.device.type))
        return extractor

    @cached_property
    def reference(self) -> FeatureSet:
        """Features of the real images, or the statistics of a file.

        Raises:
            DataError: the statistics are of another feature space, or every metric needs the images.
        """
        source = self.source
        if source.images is None:
            size = self.features(self.data.images[:2]).points.shape[1]
            if len(source.moments["mu"]) != size or all(metric.needs_points for metric in self.metrics):
                names = ", ".join(metric.name for metric in self.metrics)
                raise DataError(
                    f"features.reference: {source.name} holds mean and covariance of {len(source.moments['mu'])} "
                    f"features; {self.extractor.name} has {size}, and the metrics ({names}) "
                    "must include one that needs only these: choose features=inception, a file with images, or train"
                )
            return FeatureSet(None, moments=source.moments)
        features = self._features_of_source()
        if source.moments is not None and len(source.moments["mu"]) == features.points.shape[1]:
            return replace(features, moments=source.moments)
        return features

    @cached_property
    def space(self) -> str:
        """Identity of the feature space: see `identity_of`."""
        return identity_of(self.extractor)

    def share_reference(self) -> None:
        """Compute the features of the real images together with all processes of a training, once.

        Every process must call this method. Each extracts the features of its share of the images; the first process
        collects and caches them.
        """
        if self._is_shared or (self.source.images is not None and len(self.source.images) < 2):
            return
        self._is_shared = True
        rank, ranks, is_needed = dist.get_rank(), dist.get_world_size(), [False]

        def gather() -> list[Share]:
            is_needed[0] = True
            dist.broadcast_object_list(is_needed)
            shares: list[Any] = [None] * ranks
            dist.gather_object(self.share(rank, ranks), shares)
            return shares

        if rank == 0:
            alone, self.collect_shares = self.collect_shares, gather
            try:
                self.reference  # noqa: B018
            finally:
                self.collect_shares = alone
                if not is_needed[0]:  # the features are in the cache, or not needed
                    dist.broadcast_object_list(is_needed)
        else:
            dist.broadcast_object_list(is_needed)
            if is_needed[0]:
                dist.gather_object(self.share(rank, ranks))

    def share(self, rank: int = 0, ranks: int = 1) -> Share:
        """Compute the features of batches rank, rank + ranks, … of the real images."""
        return share_of(self.source.images, self.extract, self.batch_size, self.reference_points, rank, ranks)

    @property
    def _subset(self) -> tuple[int, ...]:
        """(reference_points,) if the reference has more images, otherwise ()."""
        n = 0 if self.source.images is None else len(self.source.images)
        return (self.reference_points,) if n > self.reference_points else ()

    def _features_of_source(self) -> FeatureSet:
        source = self.source
        chosen = subset(len(source.images), self.reference_points)
        labels = source.labels if chosen is None or source.labels is None else source.labels[chosen]

        if not self.extractor.state_dict():  # features without a network are cheap and are not cached
            points, moments = merged(self.collect_shares())
            return FeatureSet(points, labels, self.extractor, moments and moments.statistics)

        def compute() -> dict[str, Tensor]:
            points, moments = merged(self.collect_shares())
            statistics = (FeatureSet(points) if moments is None else moments).statistics
            return {"points": points} | {name: torch.from_numpy(value) for name, value in statistics.items()}

        tensors = cached("features", (source.digest, self.space, *self._subset), compute)
        moments = {name: value.numpy() for name, value in tensors.items() if name != "points"}
        return FeatureSet(tensors["points"], labels, self.extractor, moments)

    @torch.no_grad()
    def extract(self, batch: Tensor) -> Tensor:
        """Compute the features (B, F) of one batch, on the device of the extractor.

        The extractor runs in full float32, without autocast and TensorFloat-32, so that features do not depend on the
        device.
        """
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with exact, torch.autocast(self.device.type, enabled=False):
            size = getattr(self.extractor, "cpu_batch_size", None) if self.device.type == "cpu" else None
            return torch.cat([self.extractor(to_float(part)) for part in batch.split(size or len(batch))])

    def features(self, images: Tensor, labels: Tensor | None = None) -> FeatureSet:
        """Compute the features of images (n, C, H, W), uint8 or float in [-1, 1], and return them on the CPU."""
        batches = [points.cpu() for points in self.extract_all(images.split(self.batch_size))]
        return FeatureSet(torch.cat(batches), labels, self.extractor)

    def scores(self, images: Tensor, labels: Tensor | None, steps: int) -> list[Score]:
        """Score images (n, C, H, W) in [-1, 1], sampled in `steps` steps for classes `labels` (n,) or None.

        The list is empty for a reference of a single image.
        """
        if self.source.images is not None and len(self.source.images) < 2:
            return []
        generated = self.features(images, labels)
        finite = generated.points.isfinite().all()
        return [
            self._score(metric, metric(generated, self.reference) if finite else math.nan, len(generated), steps)
            for metric in self._applicable(generated)
        ]

    def floor(self, splits: int = 5) -> list[Score]:
        """Score real images against other real images: mean and spread over random splits of the data in halves.

        The bias of a distance falls about as 1/n. A half has n/2 images. A perfect generator of n images, scored
        against all n, therefore has about half the floor; a generator that has memorised the images scores lower.
        For a share, such as Agreement, the floor is the value of real images. The list is empty for fewer than
        `SMALLEST_TO_SPLIT` images. The floor is the same for all runs on the same data, and is cached on disk.

        Args:
            splits: number of random splits, at least 2.
        """
        if self.source.images is None or len(self.source.images) < SMALLEST_TO_SPLIT:
            return []
        metrics = self._applicable(self.reference)
        code = source_fingerprint(FeatureSet, *map(type, metrics))
        key = (self.source.digest, self.space, splits, [(metric.name, vars(metric)) for metric in metrics], code)
        key += self._subset
        values = cached("floor", key, lambda: {"values": [self._split(metrics, split) for split in range(splits)]})
        n = len(self.reference) // 2
        return [
            combined([self._score(metric, value, n) for value in each])
            for metric, each in zip(metrics, zip(*values["values"]))
        ]

    def _split(self, metrics: Sequence[Callable[[FeatureSet, FeatureSet], float]], split: int) -> list[float]:
        generator = torch.Generator().manual_seed(seed_of("floor", split))
        order = torch.randperm(len(self.reference), generator=generator)
        n = len(order) // 2
        halves = self.reference[order[:n]], self.reference[order[n:]]
        return [metric(*halves) for metric in metrics]

    def _applicable(self, images: FeatureSet) -> list[Callable[[FeatureSet, FeatureSet], float]]:
        """The metrics whose inputs (labels, reference points) are available."""
        labelled, has_points = images.labels is not None, self.reference.points is not None
        return [m for m in self.metrics if (labelled or not m.needs_labels) and (has_points or not m.needs_points)]

    def _score(self, metric, value: float, n: int, steps: int | None = None) -> Score:
        used = self._subset if metric.needs_points or steps is None else ()
        return Score(
            metric=metric.name,
            value=value,
            n=n,
            features=self.extractor.name,
            reference="".join(map(str, (self.source.name, *used))),
            reference_digest=self.source.digest,
            steps=steps,
            is_distance=metric.is_distance,
        )
