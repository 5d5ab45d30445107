"""Learning-rate schedules: the factor of the optimiser's learning rate at step k of K (from 0), for a batch size.

All are pure functions of the step, so a resumed run needs no state.
"""

from __future__ import annotations

import math

from consistency_models.trust import loadable
from consistency_models.values import NotNegative, Positive, Share, checked

__all__ = ["InverseSqrt", "Linear"]


@loadable()
class Linear:
    """min(images seen/warmup_images, 1)·min((1 - k/K)/decay, 1): linear warm-up, constant, linear decay.

    The papers' consistency models use neither warm-up nor decay. EDM warms up over 10 million images, from factor 0.
    (arXiv 2303.01469, App. C; EDM, arXiv 2206.00364, Table 7 and its code.)

    Args:
        warmup_images: length of the warm-up in images; 0 for no warm-up.
        decay: length of the decay to 0 at the end of the training, as a share of the training; 0 for no decay.
    """

    @checked
    def __init__(self, warmup_images: NotNegative = 0, decay: Share = 0.0) -> None:
        self.warmup_images, self.decay = warmup_images, decay

    def __call__(self, k: int, K: int, batch_size: int) -> float:
        """The factor, in [0, 1]."""
        start = min(k * batch_size / self.warmup_images, 1.0) if self.warmup_images else 1.0
        end = min(max(1 - k / K, 0.0) / self.decay, 1.0) if self.decay else 1.0
        return start * end


@loadable()
class InverseSqrt:
    """min(images seen/warmup_images, 1)/√max(k/reference_steps, 1).  (EDM2, arXiv 2312.02696, Sec. 2 and its code.)

    Args:
        reference_steps: first step of the decay: 35,000 for EDM2-S on ImageNet-64 (`ref_batches`), 2,000 in ECT.
        warmup_images: length of the linear warm-up in images; 0 for no warm-up, as in ECT.
    """

    @checked
    def __init__(self, reference_steps: Positive = 35_000, warmup_images: NotNegative = 10_000_000) -> None:
        self.reference_steps, self.warmup = reference_steps, Linear(warmup_images)

    def __call__(self, k: int, K: int, batch_size: int) -> float:
        """The factor, in [0, 1]."""
        return self.warmup(k, K, batch_size) / math.sqrt(max(k / self.reference_steps, 1))
