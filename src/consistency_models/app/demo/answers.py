"""From the controls of the live page to images, without widgets: samples with their trajectories, edits, interpolation.

The images are those of `consistency_models.load(run).sample(n, steps=steps, seed=seed, labels=…)`, bit for bit.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from consistency_models.app.demo.runs import Condition, Run
from consistency_models.sampling.batches import ImageNoise
from consistency_models.sampling.editing import Colorization, Inpainting, SuperResolution, Unconstrained, slerp

__all__ = ["EDITS", "Call", "Edit", "Edited", "Samples", "Settings", "edited", "interpolated", "sampled"]

STROKE = (5.38, 2.24)  # levels of stroke-guided generation, arXiv 2303.01469, Fig. 13


@dataclass(frozen=True)
class Call:
    """One call of the network.

    Args:
        sigma: σ, the level of the input.
        x: the input, (n, C, H, W).
        denoised: the output, (n, C, H, W).
    """

    sigma: float
    x: Tensor
    denoised: Tensor

    @property
    def scaled(self) -> Tensor:
        """x/√(1 + σ²): the input with a deviation of about 1 or less, so that it can be shown."""
        return self.x / math.sqrt(1 + self.sigma**2)


@dataclass(frozen=True)
class Samples:
    """The answer of a run.

    Args:
        images: (n, C, H, W), those of `Generator.sample`.
        calls: the calls of the network, from noise to images or latents.
        steps: step count that the run took.
        seconds: duration of the sampling.
    """

    images: Tensor
    calls: tuple[Call, ...]
    steps: int
    seconds: float


class _Recorder:
    """A sampler that also records the calls of the network. Its images are those of `sampler`."""

    def __init__(self, sampler: Any) -> None:
        self.sampler, self.sigmas, self.calls = sampler, sampler.sigmas, []

    def __call__(self, denoiser: Callable[..., Tensor], noise: Tensor, randn: Callable[[], Tensor]) -> Tensor:
        def recording(x: Tensor, sigma: Tensor, **given: Any) -> Tensor:
            denoised = denoiser(x, sigma, **given)
            self.calls.append(Call(sigma[0].item(), x.float().cpu(), denoised.float().cpu()))
            return denoised

        return self.sampler(recording, noise, randn)


@functools.lru_cache(maxsize=4)  # to show the trajectory of another image, or to edit one, needs no new sampling
def sampled(run: Run, condition: Condition, seed: int, steps: int, n: int) -> Samples:
    """Sample n images.

    Args:
        run: the run.
        condition: see `Condition`.
        seed: noise is a function of (seed, index), the same for all runs.
        steps: the run takes the step count nearest to it that its sampler takes.
        n: number of images.
    """
    steps = run.nearest(steps)
    recorder = _Recorder(run.generator.make_sampler(steps=steps))
    start = time.perf_counter()
    if isinstance(condition, tuple):
        given: dict[str, Any] = {"prompts": [condition[0]] * n, "guidance": condition[1]}
    else:
        given = {"labels": run.labels(condition, n)}
    images = run.generator.sample(n, seed=seed, sampler=recorder, **given)
    return Samples(images, tuple(recorder.calls), steps, time.perf_counter() - start)


@dataclass(frozen=True)
class Settings:
    """Settings of an edit; each edit uses a part of them.

    Args:
        brushed: pixels that are painted anew, bool (H, W).
        points: points of the grid of levels, at least 2; one less is the number of calls.
        patch: side of the patches whose means are kept.
        sigma: level of the noise that is added and removed.
    """

    brushed: Tensor
    points: int = 40
    patch: int = 2
    sigma: float = 0.5


@dataclass(frozen=True)
class Edited:
    """Results of an edit.

    Args:
        start: what the model is given for the first result, (C, H, W): the known part, the painting or the noisy image.
        images: (n, C, H, W), with different noise.
        seconds: duration.
    """

    start: Tensor
    images: Tensor
    seconds: float


@dataclass(frozen=True)
class Plan:
    """How an edit is made: the arguments of `Generator.edit`, and what the model is given."""

    operator: Any
    shown: Tensor
    levels: Any
    x: Tensor | None = None


@dataclass(frozen=True)
class Edit:
    """A kind of edit.

    Args:
        plan: (images (n, C, H, W), settings, noise) -> plan.
        settings: fields of `Settings` that the user sets.
        reads: part of the canvas that is the image: "background", or "composite" with the strokes.
        channels: numbers of channels of images that can be edited.
    """

    plan: Callable[[Tensor, Settings, ImageNoise], Plan]
    settings: tuple[str, ...] = ("points",)
    reads: str = "background"
    channels: tuple[int, ...] = (1, 3)


def _repaint(images: Tensor, settings: Settings, noise: ImageNoise) -> Plan:
    if not settings.brushed.any():
        raise ValueError("nothing is brushed: brush over the part of the image to repaint")
    operator = Inpainting(~settings.brushed)
    return Plan(operator, operator.measure(images), settings.points)


def _refine(images: Tensor, settings: Settings, noise: ImageNoise) -> Plan:
    operator = SuperResolution(settings.patch)
    return Plan(operator, operator.measure(images), settings.points)


def _colour(images: Tensor, settings: Settings, noise: ImageNoise) -> Plan:
    operator = Colorization()
    return Plan(operator, operator.grey(images), settings.points)


def _from_painting(images: Tensor, settings: Settings, noise: ImageNoise) -> Plan:
    return Plan(Unconstrained(), images, STROKE)


def _denoise(images: Tensor, settings: Settings, noise: ImageNoise) -> Plan:
    noisy = images + settings.sigma * noise()
    return Plan(Unconstrained(), noisy, (settings.sigma,), noisy)


EDITS = {
    "Repaint what is brushed": Edit(_repaint),
    "Refine patches": Edit(_refine, settings=("points", "patch")),
    "Colour": Edit(_colour, channels=(3,)),
    "From a painting": Edit(_from_painting, settings=(), reads="composite"),
    "Add noise and remove it": Edit(_denoise, settings=("sigma",)),
}
"""The edits of the page, by the text of their button."""


def edited(
    run: Run, edit: str, image: Tensor, settings: Settings, condition: int | None, seed: int, steps: int, n: int
) -> Edited:
    """Edit an image n times, with different noise.

    Args:
        run: a run of images.
        edit: a key of `EDITS`.
        image: (C, H, W) in [-1, 1].
        settings: settings of the edit.
        condition: number of a class; None: the classes take turns.
        seed: noise is a function of (seed, index).
        steps: step count from each level, for a model that is not a consistency model.
        n: number of results.

    Raises:
        ValueError: nothing is brushed, or the image, the patch or a level does not fit the model.
    """
    images, noise = image.expand(n, *image.shape), ImageNoise(seed, list(range(n)), run.generator.shape, "cpu")
    plan = EDITS[edit].plan(images, settings, noise)
    start = time.perf_counter()
    results = run.generator.edit(
        images,
        plan.operator,
        plan.levels,
        seed=seed,
        labels=run.labels(condition, n),
        steps=run.nearest(steps),
        x=plan.x,
    )
    return Edited(plan.shown[0], results, time.perf_counter() - start)


def interpolated(
    run: Run, condition: int | None, seed: int, steps: int, ends: tuple[int, int], n: int
) -> tuple[Tensor, float]:
    """Images of noise on the arc from the noise of image `ends[0]` to that of image `ends[1]`.

    Returns:
        Images (n, C, H, W), of one class, that of the first image if the classes take turns; and the seconds.

    Raises:
        ValueError: both ends are the same image, or n is below 2.
    """
    if ends[0] == ends[1] or n < 2:
        raise ValueError(f"interpolation needs two different images, and at least two results; got {ends} and {n}")
    steps, start = run.nearest(steps), time.perf_counter()
    sigma = run.generator.make_sampler(steps=steps).sigmas[0]
    a, b = ImageNoise(seed, list(ends), run.generator.shape, "cpu")()
    x = sigma * torch.stack([slerp(a, b, k / (n - 1)) for k in range(n)])
    labels = run.generator.labels(torch.full((n,), ends[0])) if condition is None else run.labels(condition, n)
    images = run.generator.edit(x, Unconstrained(), [sigma], labels=labels, steps=steps, x=x)
    return images, time.perf_counter() - start
