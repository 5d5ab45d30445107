"""Learning-rate laws: the factor on the optimiser's learning rate at step k of K, counted from 0, with a given global batch.

Pure functions of the step, so a resumed run needs no state.
"""

from __future__ import annotations

import math

__all__ = ["Constant", "InverseSqrt", "LinearRamp"]


class Constant:
    """1: the papers' choice for consistency models, (arXiv 2303.01469, App. C; 2310.14189, Table 1), with an optional end:

    min(1, (1 - k/K)/decay), so that the factor falls to zero in a straight line over the last `decay` share of training.

    Args:
        decay: the share, in [0, 1]; 0 for none.

    Raises:
        ValueError: decay is outside [0, 1].
    """

    def __init__(self, decay: float = 0.0) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must be a share of training, from 0 to 1; got {decay}")
        self.decay = decay

    def __call__(self, k: int, K: int, batch_size: int) -> float:
        """The factor, in [0, 1]."""
        return min(1.0, (1 - k / K) / self.decay) if self.decay else 1.0


class LinearRamp:
    """min(images seen/ramp_images, 1).  (EDM, arXiv 2206.00364, Table 7, and its code: the first step has factor 0.)

    Args:
        ramp_images: when the ramp ends, in images; 0 for none.

    Raises:
        ValueError: ramp_images is negative or not finite.
    """

    def __init__(self, ramp_images: float = 10_000_000) -> None:
        if not 0 <= ramp_images < math.inf:
            raise ValueError(f"ramp_images must be at least 0 and finite; got {ramp_images}")
        self.ramp_images = ramp_images

    def __call__(self, k: int, K: int, batch_size: int) -> float:
        """The factor, in [0, 1]."""
        return min(k * batch_size / self.ramp_images, 1.0) if self.ramp_images > 0 else 1.0


class InverseSqrt(LinearRamp):
    """1/√max(step/reference_steps, 1), times the linear ramp.  (EDM2, arXiv 2312.02696, Sec. 2 and its code.)

    Args:
        reference_steps: where the decay begins: 35,000 in EDM2 on ImageNet-64 (`ref_batches`), 2,000 in ECT's.
        ramp_images: as `LinearRamp`; 0 in ECT.

    Raises:
        ValueError: reference_steps is not positive, or ramp_images is negative or not finite.
    """

    def __init__(self, reference_steps: float = 35_000, ramp_images: float = 10_000_000) -> None:
        super().__init__(ramp_images)
        if not 0 < reference_steps < math.inf:
            raise ValueError(f"reference_steps must be positive and finite; got {reference_steps}")
        self.reference_steps = reference_steps

    def __call__(self, k: int, K: int, batch_size: int) -> float:
        """The factor, in [0, 1]."""
        return super().__call__(k, K, batch_size) / math.sqrt(max(k / self.reference_steps, 1))
