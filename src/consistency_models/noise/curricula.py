"""Curricula: the number of noise levels N(k), and the decay μ(k) of the target's weights, at step k of K.

All curricula are pure functions of (k, K), so a resumed run needs no state. Steps beyond K have the value at K. N is
the number of grid points, and n = N - 1 the number of intervals. The published curricula state their ends s0 and s1 in
intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

from annotated_types import Ge

from consistency_models.trust import loadable
from consistency_models.values import BelowOne, Size, checked

__all__ = [
    "AdaptiveDecay",
    "Annealed",
    "Constant",
    "ConstantDecay",
    "Cosine",
    "Doubling",
    "Linear",
    "Progressive",
    "Square",
]


def _progress(k: int, K: int) -> float:
    if k < 0 or K < 1:
        raise ValueError(f"need a step k >= 0 of K >= 1; got k {k}, K {K}")
    return min(k, K) / K


@loadable()
class Constant:
    """N(k) = N.  (Consistency distillation: 18 on CIFAR-10, 40 elsewhere; arXiv 2303.01469, Table 3.)

    Args:
        N: number of grid points.
    """

    @checked
    def __init__(self, N: Annotated[int, Ge(2)]) -> None:
        self.N, self.s0 = N, N - 1

    def __call__(self, k: int, K: int) -> int:
        """N at step k of K."""
        return self.N


class _Growing:
    """Base class of curricula from s0 to s1 intervals. `AdaptiveDecay` also uses `s0`."""

    @checked
    def __init__(self, s0: Size, s1: Size) -> None:
        if s0 > s1:
            raise ValueError(f"need 1 <= s0 <= s1; got s0 {s0}, s1 {s1}")
        self.s0, self.s1 = s0, s1


@loadable()
class Progressive(_Growing):
    """N(k) = max(1, ⌈√(k/K·((s1+1)² - s0²) + s0²) - 1⌉) + 1: grows as a square root from s0 to s1 + 1.

    (Consistency training, arXiv 2303.01469, App. C, and the official code; iCT calls it the square-root curriculum.)

    Raises:
        ValueError: not 1 <= s0 <= s1.
    """

    def __init__(self, s0: Size = 2, s1: Size = 150) -> None:
        super().__init__(s0, s1)

    def __call__(self, k: int, K: int) -> int:
        """N at step k of K."""
        squared = _progress(k, K) * ((self.s1 + 1) ** 2 - self.s0**2) + self.s0**2
        return max(1, math.ceil(math.sqrt(squared) - 1)) + 1


@loadable()
class Doubling(_Growing):
    """N(k) = min(s0·2^⌊k/K'⌋, s1) + 1,  K' = ⌊K/(log₂⌊s1/s0⌋ + 1)⌋, at least 1.  (iCT, arXiv 2310.14189, Eq. 9.)

    Raises:
        ValueError: not 1 <= s0 <= s1.
    """

    def __init__(self, s0: Size = 10, s1: Size = 1280) -> None:
        super().__init__(s0, s1)

    def __call__(self, k: int, K: int) -> int:
        """N at step k of K."""
        _progress(k, K)
        stage = max(1, math.floor(K / (math.log2(self.s1 // self.s0) + 1)))
        # s1.bit_length() doublings reach s1 from any s0; the bound avoids huge powers of two.
        doublings = min(min(k, K) // stage, self.s1.bit_length())
        return min(self.s0 * 2**doublings, self.s1) + 1


@loadable()
class Annealed(_Growing):
    """N(k) = round(T(k)) + 1,  T(k) = s0·(s1/s0)^min(k/L, 1),  L = min(steps, K/2): log-linear, then constant.

    (Multistep consistency models, arXiv 2403.06807, Algorithm 1: 64 → 1280 over 100,000 of 200,000 steps.)

    Args:
        s0, s1: T at the start and at the end.
        steps: number of steps in which T grows; at most half of the training.

    Raises:
        ValueError: not 1 <= s0 <= s1.
    """

    @checked
    def __init__(self, s0: Size = 64, s1: Size = 1280, steps: Size = 100_000) -> None:
        super().__init__(s0, s1)
        self.steps = steps

    def intervals(self, k: int, K: int) -> float:
        """T at step k of K, not rounded."""
        grown = min(_progress(k, K) * K / min(self.steps, K / 2), 1)
        return self.s0 * (self.s1 / self.s0) ** grown

    def __call__(self, k: int, K: int) -> int:
        """N at step k of K."""
        return round(self.intervals(k, K)) + 1


class _Shape(_Growing):
    """N(k) = round(s0 + shape(k/K)·(s1 - s0)) + 1, with shape(0) = 0 and shape(1) = 1."""

    def __init__(self, s0: Size = 10, s1: Size = 1280) -> None:
        super().__init__(s0, s1)

    def shape(self, u: float) -> float:
        """The share of the growth at a share u of the training; defined by a subclass."""
        raise NotImplementedError

    def __call__(self, k: int, K: int) -> int:
        """N at step k of K."""
        return round(self.s0 + self.shape(_progress(k, K)) * (self.s1 - self.s0)) + 1


@loadable()
class Linear(_Shape):
    """N(k) = round(s0 + u·(s1 - s0)) + 1,  u = k/K.

    One of the shapes that iCT compares with doubling (arXiv 2310.14189, Fig. 3c); the paper does not state its formula.

    Raises:
        ValueError: not 1 <= s0 <= s1.
    """

    def shape(self, u: float) -> float:
        """u."""
        return u


@loadable()
class Square(_Shape):
    """N(k) = round(s0 + u²·(s1 - s0)) + 1,  u = k/K.  Source and errors as `Linear`."""

    def shape(self, u: float) -> float:
        """u²."""
        return u * u


@loadable()
class Cosine(_Shape):
    """N(k) = round(s0 + (1 - cos πu)/2·(s1 - s0)) + 1,  u = k/K.  Source and errors as `Linear`."""

    def shape(self, u: float) -> float:
        """(1 - cos πu)/2."""
        return (1 - math.cos(math.pi * u)) / 2


@loadable()
class ConstantDecay:
    """μ(k) = decay.  0: the target is the model itself."""

    @checked
    def __init__(self, decay: BelowOne) -> None:
        self.decay = decay

    def __call__(self, k: int, K: int) -> float:
        """μ at step k of K."""
        return self.decay


@loadable()
class AdaptiveDecay:
    """μ(k) = exp(s0·ln μ0/(N(k) - 1)): the target network changes more slowly as the grid gets finer.

    The divisor follows the official code; the paper prints N(k).  (Consistency Models, arXiv 2303.01469, App. C.)

    Args:
        initial: μ0, 0.9 on CIFAR-10 and 0.95 elsewhere; 0 gives μ(k) = 0.
        curriculum: N(k, K), with its `s0`.
    """

    @checked
    def __init__(self, initial: BelowOne, curriculum: Callable[[int, int], int]) -> None:
        self.initial, self.curriculum = initial, curriculum

    def __call__(self, k: int, K: int) -> float:
        """μ at step k of K."""
        s0 = self.curriculum.s0  # type: ignore[attr-defined]  # an attribute of every growing curriculum
        return self.initial ** (s0 / (self.curriculum(k, K) - 1))
