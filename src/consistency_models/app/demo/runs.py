"""Loaded runs, with everything the live page asks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from consistency_models.devices import chosen_device
from consistency_models.errors import ConfigError
from consistency_models.evaluation.features import to_bytes
from consistency_models.files import is_pipeline
from consistency_models.sampling.generator import Generator
from consistency_models.sampling.text_to_image import TextToImage
from consistency_models.storage.loading import load

__all__ = ["MAX_STEPS", "Condition", "Run", "open_runs"]

Condition = int | tuple[str, float] | None
"""Number of a class; a text and its guidance; None: the classes take turns, or the model is unconditional."""
MAX_STEPS = 8
PIXELS = 1 << 21  # of all images of one answer
MOST = 40  # images of one answer


@dataclass(frozen=True, eq=False)
class Run:
    """A run on the page.

    Args:
        name: the path, as on the command line.
        generator: the model.
        step_counts: the step counts from 1 to `MAX_STEPS` that the sampler takes.
        latent: text encoders and VAE of a model of latents; None for a model of images.
    """

    name: str
    generator: Generator
    step_counts: tuple[int, ...]
    latent: TextToImage | None = None

    @property
    def takes_text(self) -> bool:
        """Whether the condition is a text."""
        return getattr(self.generator.model.network, "takes_text", False)

    @property
    def guidance(self) -> float:
        """The first guidance of a model of text: the middle of the range of its training, or 1, no guidance."""
        bounds = self.generator.config["data"].get("guidance_w") or (0.0,)
        return 1 + sum(bounds) / len(bounds)

    @property
    def most(self) -> int:
        """The largest number of images of one answer, so that it has at most two million pixels, but at least one."""
        channels, height, width = self.generator.shape
        factor = 1 if self.latent is None else self.latent.encoders.factor
        pixels = (channels if self.latent is None else 3) * height * width * factor**2
        return max(1, min(MOST, PIXELS // pixels))

    def nearest(self, steps: int) -> int:
        """The step count that the sampler takes and that is nearest to `steps`."""
        return min(self.step_counts, key=lambda each: abs(each - steps))

    def labels(self, condition: Condition, n: int) -> Tensor | None:
        """The classes of n images; None for a model without classes."""
        if condition is None or not self.generator.num_classes:
            return self.generator.labels(torch.arange(n))
        return torch.full((n,), condition)

    def class_names(self, condition: Condition, n: int) -> list[str]:
        """The names of the classes of n images; empty for a model without classes or names."""
        return self.generator.names(self.labels(condition, n)) or []

    def shown(self, images: Tensor) -> Tensor:
        """Pixels of what `Generator.sample` returns: decoded images of a model of text, otherwise as in the model."""
        return to_bytes(images) if self.takes_text else self.pictures(images)

    def pictures(self, x: Tensor) -> Tensor:
        """Pixels of images or latents x, (B, 1 or 3, H, W) uint8."""
        return to_bytes(x if self.latent is None else self.latent.images(x))


def open_runs(
    paths: Sequence[str], weights: str | None = None, device: str = "auto", pipeline: str | None = None
) -> list[Run]:
    """Load runs that can be shown side by side.

    Args:
        paths: what `consistency_models.load` takes.
        weights: as for `load`.
        device: device of the models; auto selects a GPU if there is one.
        pipeline: folder of the pipeline with text encoders and VAE, for models of latents; None: the folder that the
            file names.

    Raises:
        ConfigError: the device is missing, a run makes points, the runs make different images, or the pipeline is
            missing or not used.
        CheckpointError: a run cannot be loaded.
    """
    device = chosen_device(device)
    runs = [_open(path, weights, device, pipeline) for path in paths]
    first, *others = runs
    for run in others:
        for what in ("shape", "num_classes"):
            own, other = getattr(first.generator, what), getattr(run.generator, what)
            if own != other:
                reason = f"{what} of {run.name} is {other}, but {own} of {first.name}"
                raise ConfigError("run", run.name, "runs of the same images and classes", reason=reason)
        if (run.takes_text, run.latent is None) != (first.takes_text, first.latent is None):
            reason = f"{run.name} and {first.name} differ in whether they take texts or make latents"
            raise ConfigError("run", run.name, "runs of the same images and classes", reason=reason)
    return runs


def _open(path: str, weights: str | None, device: str, pipeline: str | None) -> Run:
    generator, latent = load(path, weights, device), None
    if not generator.clamp or generator.shape[0] not in (1, 3):
        named = generator.pipeline if generator.pipeline and is_pipeline(generator.pipeline) else None
        folder = pipeline or named
        if folder is None:
            reason = f"{path} makes {'x'.join(map(str, generator.shape))} numbers, which are no grey or RGB pixels"
            allowed = "the folder of the pipeline whose VAE decodes the latents of the run"
            raise ConfigError("pipeline", None, allowed, "points cannot be shown", reason=reason)
        source = generator.config["data"].get("source") or {}
        latent = TextToImage(folder, device, source.get("scale"), source.get("shift"))
        generator.pipeline, generator.text_to_image = str(folder), latent
    elif pipeline is not None:
        raise ConfigError("pipeline", pipeline, "left out", reason=f"{path} makes images, and not latents")
    counts = tuple(steps for steps in range(1, MAX_STEPS + 1) if _takes(generator, steps)) or generator.steps
    return Run(str(path), generator, counts, latent)


def _takes(generator: Generator, steps: int) -> bool:
    try:
        generator.check_levels(generator.make_sampler(steps=steps).sigmas)
    except ValueError:
        return False
    return True
