"""Guidance of a denoiser by a weaker one: classifier-free guidance and autoguidance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from consistency_models import conditions
from consistency_models.conditions import Prompt
from consistency_models.noise.schedules import per_image

__all__ = ["Guided"]


class Guided(nn.Module):
    """W(x, σ) + w·(D(x, σ, class) - W(x, σ)): guidance of D by a weaker model W.

    In classifier-free guidance W is D without the class (Ho & Salimans, arXiv 2207.12598, Eq. 6). In autoguidance W is
    another model with the class, less trained or smaller (Karras et al., arXiv 2406.02507, Eq. 3).

    Args:
        model: D; without `weak` a class-conditional denoiser that was trained with label dropout.
        guidance: w; 1 is D, 0 is W (1 + w in the first paper). None: a number for each row, the argument `guidance` of
            the call, or 1 + `Prompt.guidance`.
        weak: W of autoguidance, or None.
        interval: the lowest and the highest level σ with guidance; None: all levels. Both models are called at all
            levels, so that a step does not depend on values of the device.  (Kynkäänniemi et al., arXiv 2404.07724.)
    """

    calls = 2  # network calls of one call of this module

    def __init__(
        self,
        model: nn.Module,
        guidance: float | None,
        weak: nn.Module | None = None,
        interval: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.interval = None if interval is None else tuple(interval)
        self.model, self.guidance, self.weak = model, guidance, weak
        self.origin = getattr(model, "origin", None)
        self.is_consistency_model = getattr(model, "is_consistency_model", False)

    @property
    def network(self) -> Any:
        """The network of the model."""
        return self.model.network

    @property
    def preconditioning(self) -> Any:
        """The scalings of the model."""
        return self.model.preconditioning

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        labels: Tensor | Prompt | None = None,
        augment: Tensor | None = None,
        guidance: Tensor | None = None,
        with_unguided: bool = False,
    ) -> Any:
        """Denoise images for one-hot labels or text; the result has the shape of x.

        Args:
            x, sigma, labels, augment: as for `model`.
            guidance: w of each row (B,), only if the guidance of the constructor is None.
            with_unguided: return a pair, the result and D(x, σ, class).

        Raises:
            ValueError: no row has a guidance, or the guidance is given twice.
        """
        given = {} if augment is None else {"augment": augment}
        if self.weak is None:
            weak = self.model(x, sigma, conditions.unconditional(self.model, labels), **given)
        else:
            weak = self.weak(x, sigma, labels, **given)
        weight = self._weight(x, labels, guidance)
        if self.interval is not None:
            inside = (sigma >= self.interval[0]) & (sigma <= self.interval[1])
            weight = 1 + per_image(inside.to(x.dtype), x) * (weight - 1)
        unguided = self.model(x, sigma, labels, **given)
        guided = weak + weight * (unguided - weak)
        return (guided, unguided) if with_unguided else guided

    def _weight(self, x: Tensor, labels: Tensor | Prompt | None, guidance: Tensor | None) -> Tensor | float:
        if self.guidance is not None:
            if guidance is not None:
                raise ValueError(f"guidance of each row is only for Guided(model, None); got guidance {self.guidance}")
            return self.guidance
        if guidance is not None:
            return per_image(guidance.to(x.dtype), x)
        drawn = getattr(labels, "guidance", None)
        if drawn is None:
            raise ValueError(
                "teacher.guidance=null takes w = guidance - 1 of each row from Prompt.guidance, which is not given"
            )
        return per_image(1 + drawn.to(x.dtype), x)
