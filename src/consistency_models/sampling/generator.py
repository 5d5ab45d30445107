"""Sampling from a trained model. Images do not depend on the batch size, the number of processes or the order.

The noise of image k is a function of (seed, k), so images 0 to 63 of 50,000 are the same as those of 64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from consistency_models import conditions
from consistency_models.conditions import Prompt
from consistency_models.random import seed_of
from consistency_models.sampling.editing import edit, grid_of

__all__ = ["Generator", "ImageNoise", "blocks"]


class Generator:
    """A model with its sampler: `.sample(n, steps=1)` returns images.

    Args:
        model: preconditioned network, `model(x, sigma, labels=…) -> denoised`, with `end=` if it has two times.
        shape: (C, H, W) of one image.
        make_sampler: `make_sampler(steps=n)` returns the sampler of n steps.
        num_classes: classes of a class-conditional model, 0 for an unconditional one.
        clamp: clamp images to [-1, 1].
        class_names: the name of each class, if known.
        lowest: the lowest level that the model was trained on; calls below are refused.
        prompts: the default texts of a model of text, which take turns; None: `sample` needs labels.
    """

    def __init__(
        self,
        model: nn.Module,
        shape: tuple[int, ...],
        make_sampler: Callable[..., Any],
        num_classes: int = 0,
        clamp: bool = True,
        class_names: Sequence[str] = (),
        lowest: float = 0.0,
        prompts: Prompt | None = None,
    ) -> None:
        self.class_names = tuple(class_names)
        self.model, self.shape, self.make_sampler = model, tuple(shape), make_sampler
        self.num_classes, self.clamp, self.lowest, self.prompts = num_classes, clamp, lowest, prompts
        # Set by `load`: the name of the weights, the configuration, step counts, path and digest of the file.
        self.weights, self.steps = "model", (1,)
        self.config: dict[str, Any] = {}
        self.origin: dict[str, Any] = {}

    def labels(self, indices: Tensor) -> Tensor | None:
        """The default class of each image: the classes take turns, so that all are equally frequent."""
        return indices % self.num_classes if self.num_classes else None

    def prompts_or_labels(self, indices: Tensor) -> Tensor | Prompt | None:
        """The default text or class of each image."""
        return self.labels(indices) if self.prompts is None else self.prompts[indices % len(self.prompts)]

    def condition(self, labels: Tensor | Prompt | None, device: torch.device | str) -> Tensor | Prompt | None:
        """What the model takes for classes (n,) or prompts: one-hot rows, or what the network makes of the prompts."""
        if self.num_classes and isinstance(labels, Tensor):
            return one_hot(labels, self.num_classes).float().to(device)
        network = getattr(self.model, "network", self.model)
        return conditions.encode(network, labels if labels is None else labels.to(device))

    def names(self, labels: Tensor | None) -> list[str] | None:
        """The names of these classes, given as (n,) numbers, or None if names or classes are unknown."""
        return [self.class_names[label] for label in labels] if self.class_names and labels is not None else None

    def solver(self, steps: int) -> Callable[..., Tensor]:
        """`(x, sigma, labels) -> x` at the ODE's end, from any one level, as the sampler of `steps` steps takes it.

        That raises ValueError for a level below `lowest`.
        """
        sampler = self.make_sampler(steps=steps)

        def descend(x: Tensor, sigma: Tensor, labels: Tensor | Prompt | None = None) -> Tensor:
            level = sigma[0].item()
            self.check_levels([level])
            return sampler.descend(partial(self.model, labels=labels), x, level)

        return descend

    def check_levels(self, sigmas: Sequence[float]) -> None:
        """Refuse levels that the model was not trained on.

        Raises:
            ValueError: one of them is below `lowest`.
        """
        if min(sigmas) < self.lowest * (1 - 1e-6):  # float32 rounds
            raise ValueError(
                f"sigmas: this model was trained on levels from {self.lowest:g} up; got {min(sigmas):.4g}. "
                "Call the model of its first stage, the teacher of model=tcm, below"
            )

    @torch.no_grad()
    def sample(
        self,
        n: int,
        steps: int | None = None,
        seed: int = 0,
        labels: Tensor | Prompt | None = None,
        batch_size: int = 256,
        first: int = 0,
        progress: Callable[[int], None] | None = None,
        sampler: Any = None,
    ) -> Tensor:
        """Images first … first + n - 1 of this seed, shape (n, C, H, W), on the CPU; in [-1, 1] for image data.

        Args:
            n: number of images, at least 1.
            steps: network calls an image (for an ODE sampler: solver steps); by default the first step count at which
                the model was evaluated, 1 for a consistency model.
            seed: images depend on (seed, index) only.
            labels: classes (n,) of a class-conditional model, or the n prompts of a model of text; by default they take
                turns.
            batch_size: images at a time, from one multiple of it to the next; changes them by rounding only.
            first: index of the first image.
            progress: called with the number of images after each batch.
            sampler: of `consistency_models.sampling.samplers`; by default `make_sampler(steps=steps)`.

        Raises:
            ValueError: n or steps below 1, or labels or levels that the model cannot take.
        """
        steps = self.steps[0] if steps is None else steps
        if n < 1 or steps < 1:
            raise ValueError(f"n and steps must be at least 1; got n={n}, steps={steps}")
        if isinstance(labels, Prompt):
            if len(labels) != n:
                raise ValueError(f"labels must be {n} prompts; got {len(labels)}")
        elif labels is not None:
            labels = torch.as_tensor(labels)
            if not self.num_classes:
                raise ValueError("labels: this model is unconditional; leave them out")
            if len(labels) != n or labels.min() < 0 or labels.max() >= self.num_classes:
                raise ValueError(
                    f"labels must be {n} numbers from 0 to {self.num_classes - 1}; got {labels.tolist()[:8]}"
                )
        sampler = self.make_sampler(steps=steps) if sampler is None else sampler
        parts, images = blocks(range(first, first + n), batch_size), torch.empty(n, *self.shape)
        labels_of = None if labels is None else lambda indices: labels[indices - first]
        for part, batch in zip(parts, self.batches(parts, sampler, seed, labels_of)):
            images[part.start - first : part.stop - first] = batch
            if progress is not None:
                progress(len(part))
        return images

    @torch.no_grad()
    def batches(
        self,
        parts: Iterable[range],
        sampler: Any,
        seed: int = 0,
        labels_of: Callable[[Tensor], Tensor | Prompt | None] | None = None,
    ) -> Iterator[Tensor]:
        """Yield the images of each range of indices, shape (len(range), C, H, W), on the CPU.

        A GPU samples the next range while the noise of the range after it is drawn on the host, and while the caller
        uses the images of a range.

        Args:
            parts: ranges of indices; see `blocks`.
            sampler: of `consistency_models.sampling.samplers`.
            seed: images depend on (seed, index) only.
            labels_of: `labels_of(indices)` returns classes or prompts; by default they take turns.

        Raises:
            ValueError: the model cannot take the levels of the sampler.
        """
        self.check_levels(sampler.sigmas)
        device, labels_of = next(self.model.parameters()).device, labels_of or self.prompts_or_labels
        waiting: Callable[[], Tensor] | None = None
        for part in parts:
            indices = torch.arange(part.start, part.stop)
            condition = self.condition(labels_of(indices), device)
            noise = ImageNoise(seed, indices.tolist(), self.shape, device)
            x = sampler(partial(self.model, labels=condition), noise(), noise)
            finished, waiting = waiting, _copied_to_host((x.clamp(-1, 1) if self.clamp else x).float())
            if finished is not None:
                yield finished()
        if waiting is not None:
            yield waiting()

    def edit(
        self,
        images: Tensor,
        operator: Any,
        levels: int | Sequence[float] = 40,
        seed: int = 0,
        labels: Tensor | None = None,
        steps: int | None = None,
        batch_size: int = 256,
        x: Tensor | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Images that agree with what `operator` measures of these, shape (n, C, H, W), on the CPU; see `editing`.

            known = torch.ones(8, 8, dtype=torch.bool);  known[2:6, 2:6] = False
            repaired = generator.edit(images, editing.Inpainting(known), labels=[3] * len(images))
            denoised = generator.edit(noisy, editing.Unconstrained(), levels=[0.5], labels=…, x=noisy)

        What is measured of the result is what was measured of the images: of inpainting to the last bit, otherwise but
        for rounding. So results are not clamped: with `Colorization` and `SuperResolution` they may leave [-1, 1].
        A model of segments and a teacher are taken down to the ODE's end at each level, by their own sampler.

        Args:
            images: (n, C, H, W) in [-1, 1], of the model's shape.
            operator: a measurement of `consistency_models.sampling.editing`, the same for all images.
            levels: how many points the Karras grid has (one call at each but the last), or descending levels.
            seed: noise depends on (seed, place in `images`) only.
            labels: classes (n,) for a class-conditional model.
            steps: those of its sampler, for a model that is not a consistency model; by default as in `sample`.
            batch_size: images at a time; changes them by rounding only.
            x: (n, C, H, W), images at the first level to start from; by default what is measured, with noise.
            progress: called with the number of images after each level of each batch.

        Raises:
            ValueError: images, labels or levels that do not fit the model, or that the operator cannot measure.
        """
        n, classes, device = len(images), self.num_classes, next(self.model.parameters()).device
        if tuple(images.shape[1:]) != self.shape or not images.is_floating_point() or not n:
            allowed = f"floating-point numbers of shape (n, {', '.join(map(str, self.shape))})"
            raise ValueError(f"images must be {allowed}; got {images.dtype} of shape {tuple(images.shape)}")
        if (labels is None) == bool(classes):
            kind = f"class-conditional: give {n} classes" if classes else "unconditional: leave them out"
            raise ValueError(f"labels: this model is {kind}")
        labels = None if labels is None else torch.as_tensor(labels)
        if labels is not None and (len(labels) != n or labels.min() < 0 or labels.max() >= classes):
            raise ValueError(f"labels must be {n} numbers from 0 to {classes - 1}; got {labels.tolist()[:8]}")
        steps = self.steps[0] if steps is None else steps
        solver, sampler = self.solver(steps), self.make_sampler(steps=steps)
        sigmas = grid_of(levels, sigma_max=sampler.sigmas[0]) if isinstance(levels, int) else levels
        sigma_min = getattr(sampler, "sigma_min", 0.0)  # only consistency functions stop above 0
        y, results = operator.measure(images.float()), []
        for rows in torch.arange(n).split(batch_size):
            condition = self.condition(None if labels is None else labels[rows], device)

            def denoiser(x: Tensor, sigma: Tensor, condition: Tensor | Prompt | None = condition) -> Tensor:
                if progress is not None:
                    progress(len(x))
                return solver(x, sigma, condition)

            noise = ImageNoise(seed, rows.tolist(), self.shape, device)
            start = None if x is None else x[rows].float().to(device)
            edited = edit(
                denoiser, y[rows].to(device), operator.replace, sigmas, noise, sigma_min, x=start, clip=self.clamp
            )
            results.append(edited.cpu())
        return torch.cat(results)


def blocks(indices: range, size: int) -> list[range]:
    """Divide indices at the multiples of `size`: the rounding of a network depends on the size of its batch."""
    first, stop = indices.start, indices.stop
    borders = [first, *range(first - first % size + size, stop, size), stop]
    return [range(start, end) for start, end in pairwise(borders)]


def _copied_to_host(images: Tensor) -> Callable[[], Tensor]:
    """Start to copy images to the host. The returned function waits for the copy and returns it."""
    copy = images.to("cpu", non_blocking=images.is_cuda)  # from CUDA to page-locked memory, beside the next kernels
    if not images.is_cuda:
        return lambda: copy
    copied = torch.cuda.current_stream(images.device).record_event()

    def wait() -> Tensor:
        copied.synchronize()
        return copy

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
