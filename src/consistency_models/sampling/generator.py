"""Sampling from a trained model. Images do not depend on the batch size, the number of processes or the order.

The noise of image k is a function of (seed, k), so images 0 to 63 of 50,000 are the same as those of 64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from consistency_models import conditions
from consistency_models.conditions import Prompt
from consistency_models.sampling.batches import ImageNoise, blocks, image_batches
from consistency_models.sampling.editing import edit, grid_of
from consistency_models.sampling.guidance import Guided
from consistency_models.sampling.text_to_image import TextToImage

__all__ = ["Generator"]


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
        self._compiled: tuple[int, Callable[..., Tensor]] | None = None  # see `compile`
        # Set by `load`: the name of the weights, the configuration, step counts, path and digest of the file.
        self.weights, self.steps = "model", (1,)
        self.config: dict[str, Any] = {}
        self.origin: dict[str, Any] = {}
        self.pipeline: str | None = None  # folder of the text encoders and the VAE of a model of text

    def compile(self, batch_size: int = 256) -> None:
        """Compile the network calls of `sample` with `batch_size` images; calls of other sizes run eagerly.

            generator.compile(64)
            generator.sample(10_000, batch_size=64)

        The first call of this size compiles, which takes up to some minutes on a CPU. Images change by rounding only.
        """
        self._compiled = batch_size, torch.compile(self.model, dynamic=False)

    def denoise(self, x: Tensor, *levels: Tensor, **given: Any) -> Tensor:
        """The model as `sample` calls it: compiled for batches of the size of `compile`."""
        size, compiled = self._compiled or (0, self.model)
        return (compiled if len(x) == size else self.model)(x, *levels, **given)

    def labels(self, indices: Tensor) -> Tensor | None:
        """The default class of each image: the classes take turns, so that all are equally frequent."""
        return indices % self.num_classes if self.num_classes else None

    def prompts_or_labels(self, indices: Tensor) -> Tensor | Prompt | None:
        """The default text or class of each image."""
        return self.labels(indices) if self.prompts is None else self.prompts[indices % len(self.prompts)]

    def condition(self, labels: Tensor | Prompt | None, device: torch.device | str) -> Tensor | Prompt | None:
        """The condition of the model: one-hot rows (n, classes) for classes, or the network's encoding of prompts.

        Raises:
            ValueError: prompts for a model without text.
        """
        if self.num_classes and isinstance(labels, Tensor):
            return one_hot(labels, self.num_classes).float().to(device)
        network = getattr(self.model, "network", self.model)
        if isinstance(labels, Prompt) and not hasattr(network, "encode"):
            raise ValueError("labels: this model takes no text")
        return conditions.encode(network, labels if labels is None else labels.to(device))

    def names(self, labels: Tensor | None) -> list[str] | None:
        """The names of these classes, given as (n,) numbers, or None if names or classes are unknown."""
        return [self.class_names[label] for label in labels] if self.class_names and labels is not None else None

    def solver(self, steps: int) -> Callable[..., Tensor]:
        """Return `solve(x, sigma, labels)`: the end of the ODE from images x at one level sigma (B,), by the sampler.

        Args:
            steps: number of steps of the sampler.

        Raises:
            ValueError: the sampler starts from pure noise only. `solve` raises it for a level below `lowest`.
        """
        sampler = self.make_sampler(steps=steps)
        if not hasattr(sampler, "descend"):
            raise ValueError(f"{type(sampler).__name__} starts from pure noise only: choose another, such as Heun")

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

    @cached_property
    def text_to_image(self) -> TextToImage:
        """The text encoders and the VAE of `pipeline`, loaded when they are used first.

        Raises:
            ValueError: the model takes no text, or the folder is not known or gone.
            DataError: see `Encoders`.
        """
        if not getattr(getattr(self.model, "network", None), "takes_text", False):
            takes = "classes: give labels" if self.num_classes else "neither text nor classes: leave prompts out"
            raise ValueError(f"prompts: this model takes {takes}")
        if self.pipeline is None or not Path(self.pipeline).expanduser().is_dir():
            raise ValueError(
                f"prompts: the folder of the text encoders and the VAE is {self.pipeline}, which does not exist; "
                "set generator.pipeline to the folder of the pipeline that the model was distilled from"
            )
        source = self.config.get("data", {}).get("source") or {}
        device = next(self.model.parameters()).device
        return TextToImage(self.pipeline, device, source.get("scale"), source.get("shift"))

    def _prompts(self, texts: Sequence[str], guidance: float | None) -> tuple[Prompt, Callable[..., Tensor]]:
        """The encoded texts, and the model with guidance.

        Raises:
            ValueError: no list of texts, no text model, or the guidance is none that the model takes.
        """
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"prompts must be a list of texts, such as ['a red cat']; got {texts!r:.80}")
        encoders, network = self.text_to_image, cast(Any, self.model.network)
        if network.w_dim and guidance is None:
            raise ValueError("guidance: this model takes the guidance as an input; give a number, such as guidance=8.0")
        if network.w_dim or guidance in (None, 1):
            return encoders.prompts(texts, self.shape[-1], guidance if network.w_dim else None), self.denoise
        if network.two_times:
            raise ValueError(f"guidance={guidance}: a model of two times has learned its guidance; leave guidance out")
        return encoders.prompts(texts, self.shape[-1]), Guided(self.model, guidance)

    def _classes(self, labels: Tensor | Sequence[int], n: int) -> Tensor:
        """The classes of n images, shape (n,).

        Raises:
            ValueError: another number of classes, or a class that the model does not have.
        """
        try:
            classes = torch.as_tensor(labels)
        except (TypeError, ValueError, RuntimeError):  # names of classes, for instance
            classes = torch.empty(0)
        whole = classes.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
        if not whole or classes.shape != (n,) or classes.min() < 0 or classes.max() >= self.num_classes:
            got = labels.tolist() if isinstance(labels, Tensor) else labels
            raise ValueError(f"labels must be {n} whole numbers from 0 to {self.num_classes - 1}; got {got!r:.80}")
        return classes.long()

    @torch.no_grad()
    def sample(
        self,
        n: int | None = None,
        steps: int | None = None,
        seed: int = 0,
        labels: Tensor | Prompt | None = None,
        batch_size: int = 256,
        first: int = 0,
        progress: Callable[[int], None] | None = None,
        sampler: Any = None,
        prompts: Sequence[str] | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Images first … first + n - 1 of this seed, shape (n, C, H, W), on the CPU; in [-1, 1] for image data.

            generator.sample(64, labels=[3] * 64)
            generator.sample(prompts=["a red cat", "a dog"], steps=4)      # decoded images (2, 3, H, W) in [-1, 1]

        Args:
            n: number of images, at least 1; None: the number of prompts or labels.
            steps: network calls an image (for an ODE sampler: solver steps); by default the first step count at which
                the model was evaluated, 1 for a consistency model.
            seed: images depend on (seed, index) only.
            labels: classes (n,) of a class-conditional model, or the n prompts of a model of text; by default they take
                turns.
            batch_size: images at a time, from one multiple of it to the next; changes them by rounding only.
            first: index of the first image.
            progress: called with the number of images after each batch.
            sampler: of `consistency_models.sampling.samplers`; by default `make_sampler(steps=steps)`.
            prompts: n texts, in place of labels, for a model of text. `pipeline` is the folder of the text encoders and
                of the VAE, which decodes the latents.
            guidance: with prompts, g of uncond + g·(cond - uncond), as `guidance_scale` of pipelines. A model with w
                as an input requires g. For other models None or 1 is no guidance; with any other number the model is
                called twice in a step, with and without the text.

        Raises:
            ValueError: n, steps or batch_size below 1, or labels, prompts, guidance or levels that the model refuses.
            DataError: the folder of the text encoders and the VAE cannot be used.
        """
        steps, model, text_to_image = self.steps[0] if steps is None else steps, None, None
        if guidance is not None and prompts is None:
            raise ValueError("guidance: only with prompts; with labels=Prompt(…), w is Prompt.guidance")
        if prompts is not None:
            if labels is not None:
                raise ValueError("give prompts or labels, not both")
            if n not in (None, len(prompts)):
                raise ValueError(f"prompts must be n={n} texts; got {len(prompts)}")
            labels, model = self._prompts(prompts, guidance)
            text_to_image = self.text_to_image
        if n is None:
            if labels is None:
                raise ValueError("n is needed without prompts and labels")
            n = len(labels)
        if n < 1 or steps < 1 or batch_size < 1:
            given = f"n={n}, steps={steps}, batch_size={batch_size}"
            raise ValueError(f"n, steps and batch_size must be at least 1; got {given}")
        if isinstance(labels, Prompt):
            if len(labels) != n:
                raise ValueError(f"labels must be {n} prompts; got {len(labels)}")
        elif labels is not None:
            if not self.num_classes:
                raise ValueError("labels: this model is unconditional; leave them out")
            labels = self._classes(labels, n)

        def rows(indices: Tensor) -> Tensor | Prompt | None:
            return self.prompts_or_labels(indices) if labels is None else labels[indices - first]

        sampler, images = self.make_sampler(steps=steps) if sampler is None else sampler, []
        parts = blocks(range(first, first + n), batch_size)
        for batch in self.batches(parts, sampler, seed, rows, model):
            images.append(batch if text_to_image is None else text_to_image.images(batch))
            if progress is not None:
                progress(len(batch))
        return torch.cat(images)

    def batches(
        self,
        parts: Iterable[range],
        sampler: Any,
        seed: int = 0,
        labels_of: Callable[[Tensor], Tensor | Prompt | None] | None = None,
        model: Callable[..., Tensor] | None = None,
    ) -> Iterator[Tensor]:
        """Yield the images of each range of indices, shape (len(range), C, H, W), on the CPU; see `image_batches`.

        Args:
            parts: ranges of indices, such as `blocks`.
            sampler: of `consistency_models.sampling.samplers`.
            seed: images depend on (seed, index) only.
            labels_of: `labels_of(indices)` returns classes or prompts; by default they take turns.
            model: the model with guidance; by default the model.

        Raises:
            ValueError: the model cannot take the levels of the sampler.
        """
        self.check_levels(sampler.sigmas)
        device = next(self.model.parameters()).device

        def sample(indices: Tensor, noise: ImageNoise) -> Tensor:
            condition = self.condition((labels_of or self.prompts_or_labels)(indices), device)
            x = sampler(partial(model or self.denoise, labels=condition), noise(), noise)
            return (x.clamp(-1, 1) if self.clamp else x).float()

        return image_batches(sample, parts, seed, self.shape, device)

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

        The measurement of the result equals that of the images: exactly for inpainting, up to float32 rounding for the
        others. Results are therefore not clamped: with `Colorization` and `SuperResolution` they may leave [-1, 1]. The
        sampler of a model of segments or of a teacher solves the ODE from each level to the end.

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
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        if x is not None and x.shape != images.shape:
            raise ValueError(f"x must have the shape of images, {tuple(images.shape)}; got {tuple(x.shape)}")
        if tuple(images.shape[1:]) != self.shape or not images.is_floating_point() or not n:
            allowed = f"floating-point numbers of shape (n, {', '.join(map(str, self.shape))})"
            raise ValueError(f"images must be {allowed}; got {images.dtype} of shape {tuple(images.shape)}")
        if (labels is None) == bool(classes):
            kind = f"class-conditional: give {n} classes" if classes else "unconditional: leave them out"
            raise ValueError(f"labels: this model is {kind}")
        labels = None if labels is None else self._classes(labels, n)
        steps = self.steps[0] if steps is None else steps
        solver, sampler = self.solver(steps), self.make_sampler(steps=steps)
        sigmas = grid_of(levels, sigma_max=sampler.sigmas[0]) if isinstance(levels, int) else levels
        sigma_min = getattr(sampler, "sigma_min", 0.0)  # only consistency functions stop above 0
        y, results = operator.measure(images.float()), []
        for rows in torch.arange(n).split(batch_size):
            condition = self.condition(None if labels is None else labels[rows], device)

            def denoiser(x: Tensor, sigma: Tensor, condition: Tensor | Prompt | None = condition) -> Tensor:
                x = solver(x, sigma, condition)
                if progress is not None:
                    progress(len(x))
                return x

            noise = ImageNoise(seed, rows.tolist(), self.shape, device)
            start = None if x is None else x[rows].float().to(device)
            edited = edit(
                denoiser, y[rows].to(device), operator.replace, sigmas, noise, sigma_min, x=start, clip=self.clamp
            )
            results.append(edited.cpu())
        return torch.cat(results)
