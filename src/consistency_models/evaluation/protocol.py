"""What is measured, against which images, and what the numbers are called."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from consistency_models.errors import DataError
from consistency_models.evaluation.feature_set import FeatureSet
from consistency_models.evaluation.features import to_float
from consistency_models.evaluation.references import Reference, identity_of
from consistency_models.random import seed_of
from consistency_models.storage.cache import cached, source_fingerprint
from consistency_models.trust import loadable
from consistency_models.values import NpzFile, Size, checked

__all__ = ["SMALLEST_TO_SPLIT", "Evaluation", "Score", "combined"]

SMALLEST_TO_SPLIT = 4  # images: each half needs two for its covariance


@dataclass(frozen=True)
class Score:
    """One measured number, with all that it depends on.

    Args:
        metric, features, reference: names of the metric, the feature space and the real images ("train").
        value: the number, or the mean over repetitions; NaN if an image was not finite.
        n: generated images.
        reference_digest: hash of the real images.
        steps: sampling steps; None for real images in place of generated ones.
        spread: standard deviation over repetitions, or None.
        best: the best over repetitions, or None: EDM's papers print the smallest of three.
        is_distance: less is better.
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
        """Such as fd1797_classifier_train_1step, or fd898_classifier_train_floor for real images."""
        sampler = "floor" if self.steps is None else f"{self.steps}step"
        return f"{self.metric}{self.n}_{self.features}_{self.reference}_{sampler}"


def combined(scores: Sequence[Score]) -> Score:
    """Scores of one name on several sets of images as one: mean, spread and best; NaN alone if one of them is NaN.

    Raises:
        ValueError: there is none, or they are of different names.
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
    """Measures generated images against real ones, whose own features are computed once.

    Args:
        data: `.images` (n, C, H, W), uint8 or float in [-1, 1]; `.labels` (n,) int64 or None; `.num_classes`;
            `.digest`; `.name`; `.test`, another such set or None.
        extractor: `extractor(data)` gives the feature space.
        metrics: of these, those that need labels are left out where there are none, and those that need the reference's
            images where it is but their mean and covariance.
        reference: train, test, or an npz file: see `Reference.of`.
        batch_size: images whose features are computed at a time.
        device: where that is done; auto is a GPU if there is one.
        reference_bytes: what the arrays of an npz file may take in memory: see `Reference.of`.

    Attributes:
        progress: `progress(what, done, total)` is called as the features of a set of images are computed; None.

    Raises:
        DataError: the reference cannot be had.
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
    ) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.data, self.metrics, self.batch_size, self.device = data, metrics, batch_size, torch.device(device)
        self.source = Reference.of(data, reference, reference_bytes)
        self.make_extractor = extractor
        self.progress: Callable[[str, int, int], None] | None = None

    @cached_property
    def extractor(self) -> nn.Module:
        """The feature space; made, and if need be trained, when it is first asked for."""
        return self.make_extractor(self.data).to(self.device)

    @cached_property
    def reference(self) -> FeatureSet:
        """Features of the real images, or what a file says of them.

        Raises:
            DataError: the file's statistics are of another space, or no metric can do with them alone.
        """
        source = self.source
        if source.images is None:
            size = self.features(self.data.images[:2]).points.shape[1]
            if len(source.moments["mu"]) != size or all(metric.needs_points for metric in self.metrics):
                raise DataError(
                    f"features.reference: {source.name} holds mean and covariance of {len(source.moments['mu'])} "
                    f"features; {self.extractor.name} has {size}, and {', '.join(m.name for m in self.metrics)} must "
                    "have one that can do with them: choose features=inception, or a file with images, or train"
                )
            return FeatureSet(None, moments=source.moments)
        made = self._of_images()
        if source.moments is not None and len(source.moments["mu"]) == made.points.shape[1]:
            return replace(made, moments=source.moments)
        return made

    @cached_property
    def space(self) -> str:
        """What the feature space is known by."""
        return identity_of(self.extractor)

    def _of_images(self) -> FeatureSet:
        source = self.source

        def computed() -> FeatureSet:
            return self.features(source.images, source.labels, source.name)

        def plain() -> dict[str, Tensor]:
            made = computed()
            return {"points": made.points} | {name: torch.from_numpy(each) for name, each in made.statistics.items()}

        if not self.extractor.state_dict():  # what no network has made is not worth keeping
            return computed()
        made = cached("features", (source.digest, self.space), plain)
        return FeatureSet(made.pop("points"), source.labels, self.extractor, {k: v.numpy() for k, v in made.items()})

    @torch.no_grad()
    def features(self, images: Tensor, labels: Tensor | None = None, what: str = "images") -> FeatureSet:
        """Features, on the CPU, of images (n, C, H, W), uint8 or float in [-1, 1].

        In full float32 (neither autocast nor TensorFloat-32), so that they do not depend on the device.
        """
        batches, done = [], 0
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with exact, torch.autocast(self.device.type, enabled=False):
            for batch in images.split(self.batch_size):
                batches.append(self.extractor(to_float(batch)).cpu())
                done += len(batch)
                if self.progress is not None:
                    self.progress(what, done, len(images))
        return FeatureSet(torch.cat(batches), labels, self.extractor)

    def scores(self, images: Tensor, labels: Tensor | None, steps: int) -> list[Score]:
        """All metrics of images (n, C, H, W) in [-1, 1], made in `steps` steps for classes `labels` (n,), if any.

        None where there is one real image only: it has no distribution.
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
        """What real images score against other real images: mean and spread over random splits of the data in halves.

        The bias of a distance falls about as 1/n. A half has n/2 images, so a perfect generator of n images, scored
        against all n, comes out at about half the floor; one that has learned these very images by heart, below that.
        For a share, such as Agreement, the floor is what real images reach. None where there are fewer than
        `SMALLEST_TO_SPLIT` images. It is the same for all runs on the same data, and kept.

        Args:
            splits: how many, at least 2.
        """
        if self.source.images is None or len(self.source.images) < SMALLEST_TO_SPLIT:
            return []
        metrics = self._applicable(self.reference)
        code = source_fingerprint(FeatureSet, *map(type, metrics))
        key = (self.source.digest, self.space, splits, [(metric.name, vars(metric)) for metric in metrics], code)
        values = cached("floor", key, lambda: {"values": [self._of_halves(metrics, split) for split in range(splits)]})
        n = len(self.reference) // 2
        return [
            combined([self._score(metric, value, n) for value in each])
            for metric, each in zip(metrics, zip(*values["values"]))
        ]

    def _of_halves(self, metrics: Sequence[Callable[[FeatureSet, FeatureSet], float]], split: int) -> list[float]:
        generator = torch.Generator().manual_seed(seed_of("floor", split))
        order = torch.randperm(len(self.reference), generator=generator)
        n = len(order) // 2
        pair = self.reference[order[:n]], self.reference[order[n:]]
        return [metric(*pair) for metric in metrics]

    def _applicable(self, images: FeatureSet) -> list[Callable[[FeatureSet, FeatureSet], float]]:
        """The metrics for which there is what they need."""
        labelled, has_points = images.labels is not None, self.reference.points is not None
        return [m for m in self.metrics if (labelled or not m.needs_labels) and (has_points or not m.needs_points)]

    def _score(self, metric, value: float, n: int, steps: int | None = None) -> Score:
        return Score(
            metric=metric.name,
            value=value,
            n=n,
            features=self.extractor.name,
            reference=self.source.name,
            reference_digest=self.source.digest,
            steps=steps,
            is_distance=metric.is_distance,
        )
