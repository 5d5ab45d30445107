"""What is measured, against which images, and what the numbers are called."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from consistency_models.evaluation.features import to_float
from consistency_models.evaluation.metrics import FeatureSet
from consistency_models.random import seed_of

__all__ = ["Evaluation", "Score"]


@dataclass(frozen=True)
class Score:
    """One measured number, with all that it depends on.

    Args:
        metric, features, reference: names of the metric, the feature space and the real images ("train").
        value: the number; NaN if an image was not finite.
        n: generated images.
        reference_digest: hash of the real images.
        steps: sampling steps; None for real images in place of generated ones.
        spread: standard deviation over repetitions, or None.
    """

    metric: str
    value: float
    n: int
    features: str
    reference: str
    reference_digest: str
    steps: int | None
    spread: float | None = None

    @property
    def name(self) -> str:
        """Such as fd1797_classifier_train_1step, or fd898_classifier_train_floor for real images."""
        sampler = "floor" if self.steps is None else f"{self.steps}step"
        return f"{self.metric}{self.n}_{self.features}_{self.reference}_{sampler}"


class Evaluation:
    """Measures generated images against a data set, whose own features are computed once.

    Args:
        data: `.images` (n, C, H, W), uint8 or float in [-1, 1]; `.labels` (n,) int64 or None; `.num_classes`;
            `.digest`; `.name`.
        extractor: `extractor(data)` gives the feature space.
        metrics: of these, those that need labels are left out where there are none.
        reference: what the data set is called in the names: train or test.
        batch_size: images whose features are computed at a time.
    """

    def __init__(
        self,
        data,
        extractor: Callable[..., nn.Module],
        metrics: Sequence[Callable[[FeatureSet, FeatureSet], float]],
        reference: str = "train",
        batch_size: int = 512,
    ) -> None:
        self.data, self.metrics = data, metrics
        self.reference_name, self.batch_size = reference, batch_size
        self.make_extractor = extractor

    @cached_property
    def extractor(self) -> nn.Module:
        """The feature space; made, and if need be trained, when it is first asked for."""
        return self.make_extractor(self.data)

    @cached_property
    def reference(self) -> FeatureSet:
        """Features of the whole data set."""
        return self.features(self.data.images, self.data.labels)

    @torch.no_grad()
    def features(self, images: Tensor, labels: Tensor | None = None) -> FeatureSet:
        """Features, float64 and on the CPU, of images (n, C, H, W), uint8 or float in [-1, 1]."""
        batches = [self.extractor(to_float(batch)).double().cpu() for batch in images.split(self.batch_size)]
        return FeatureSet(torch.cat(batches), labels, self.extractor)

    def scores(self, images: Tensor, labels: Tensor | None, steps: int) -> list[Score]:
        """All metrics of images (n, C, H, W) in [-1, 1], made in `steps` steps for classes `labels` (n,), if any."""
        generated = self.features(images, labels)
        finite = generated.points.isfinite().all()
        return [
            self._score(metric, [metric(generated, self.reference) if finite else math.nan], len(generated), steps)
            for metric in self._applicable(generated)
        ]

    def floor(self, splits: int = 5) -> list[Score]:
        """What real images score against other real images: mean and spread over random splits of the data in halves.

        The bias of a distance falls about as 1/n. A half has n/2 images, so a perfect generator of n images, scored
        against all n, comes out at about half the floor; one that has learned these very images by heart, below that.
        For a share, such as Agreement, the floor is what real images reach.

        Args:
            splits: how many, at least 2.
        """
        halves = []
        for split in range(splits):
            generator = torch.Generator().manual_seed(seed_of("floor", split))
            order = torch.randperm(len(self.reference), generator=generator)
            halves.append((self.reference[order[: len(order) // 2]], self.reference[order[len(order) // 2 :]]))
        return [
            self._score(metric, [metric(*pair) for pair in halves], len(halves[0][0]))
            for metric in self._applicable(self.reference)
        ]

    def _applicable(self, images: FeatureSet) -> list[Callable[[FeatureSet, FeatureSet], float]]:
        return [metric for metric in self.metrics if images.labels is not None or not metric.needs_labels]

    def _score(self, metric, values: list[float], n: int, steps: int | None = None) -> Score:
        return Score(
            metric=metric.name,
            value=statistics.fmean(values),
            n=n,
            features=self.extractor.name,
            reference=self.reference_name,
            reference_digest=self.data.digest,
            steps=steps,
            spread=statistics.stdev(values) if len(values) > 1 else None,
        )
