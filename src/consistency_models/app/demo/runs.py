"""Loaded runs, with everything the live page asks of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from consistency_models.conditions import Prompt
from consistency_models.data.encoders import Encoders
from consistency_models.errors import ConfigError
from consistency_models.evaluation.features import to_bytes
from consistency_models.sampling.generator import Generator
from consistency_models.storage.loading import load

__all__ = ["MAX_STEPS", "Run", "open_runs"]

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
        encoders: text encoders and VAE of a model of latents; None for a model of images.
    """

    name: str
    generator: Generator
    step_counts: tuple[int, ...]
    encoders: Encoders | None = None

    @property
    def takes_text(self) -> bool:
        """Whether the condition is a text."""
        return getattr(self.generator.model.network, "takes_text", False)

    @property
    def most(self) -> int:
        """The largest number of images of one answer, so that it has at most two million pixels, but at least one."""
        channels, height, width = self.generator.shape
        pixels = channels * height * width if self.encoders is None else 3 * height * width * self.encoders.factor**2
        return max(1, min(MOST, PIXELS // pixels))

    def nearest(self, steps: int) -> int:
        """The step count that the sampler takes and that is nearest to `steps`."""
        return min(self.step_counts, key=lambda each: abs(each - steps))

    def labels(self, condition: int | str | None, n: int) -> Tensor | Prompt | None:
        """The labels of n images.

        Args:
            condition: number of a class, or a text; None: the classes take turns, or the model is unconditional.
            n: number of images.
        """
        if self.takes_text:
            return self._prompt(condition or "", n)
        return self.generator.labels(torch.arange(n)) if condition is None else torch.full((n,), int(condition))

    def class_names(self, condition: int | str | None, n: int) -> list[str]:
        """The names of the classes of n images; empty for a model without classes or names."""
        return (self.generator.names(self.labels(condition, n)) or []) if self.generator.num_classes else []

    def _prompt(self, text: Any, n: int) -> Prompt:
        empty = self.encoders.empty()
        parts = {name: value.expand(n, *value.shape[1:]) for name, value in self.encoders.texts([text]).items()}
        shared = {{"text": "empty", "pooled": "empty_pooled"}[name]: value for name, value in empty.items()}
        if "pooled" in parts:
            pixels = self.generator.shape[1] * self.encoders.factor
            parts["sizes"] = torch.tensor([pixels, pixels, 0, 0, pixels, pixels]).expand(n, -1).float()
        return Prompt(**parts, **shared, guidance=torch.full((n,), self._guidance()))

    def _guidance(self) -> float:
        """w of LCM: the middle of the range of the training, as in the pictures of samples; 0 if there is none."""
        bounds = self.generator.config["data"].get("guidance_w") or (0.0,)
        return float(sum(bounds) / len(bounds))

    def pictures(self, x: Tensor) -> Tensor:
        """Pixels of images or latents x, (B, 1 or 3, H, W) uint8."""
        if self.encoders is None:
            return to_bytes(x)
        shift, scale = (torch.tensor(value).reshape(-1, 1, 1) for value in (self.encoders.shift, self.encoders.scale))
        return to_bytes(self.encoders.decoded(x / scale + shift))


def open_runs(
    paths: Sequence[str], weights: str | None = None, device: str = "auto", pipeline: str | None = None
) -> list[Run]:
    """Load runs that can be shown side by side.

    Args:
        paths: what `consistency_models.load` takes.
        weights: as for `load`.
        device: device of the models; auto selects a GPU if there is one.
        pipeline: folder of the pipeline with text encoders and VAE, for models of latents.

    Raises:
        ConfigError: the device is missing, a run makes points, the runs make different images, or the pipeline is
            missing or not used.
        CheckpointError: a run cannot be loaded.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        reason = str(error).partition("\n")[0]
        raise ConfigError("device", device, "auto, or a device of this machine", reason=reason) from error
    runs = [_open(path, weights, device, pipeline) for path in paths]
    first, *others = runs
    for run in others:
        for what in ("shape", "num_classes"):
            own, other = getattr(first.generator, what), getattr(run.generator, what)
            if own != other:
                reason = f"{what} of {run.name} is {other}, but {own} of {first.name}"
                raise ConfigError("run", run.name, "runs of the same images and classes", reason=reason)
    return runs


def _open(path: str, weights: str | None, device: str, pipeline: str | None) -> Run:
    generator = load(path, weights, device)
    encoders = None
    if not generator.clamp or generator.shape[0] not in (1, 3):
        if pipeline is None:
            reason = f"{path} makes {'x'.join(map(str, generator.shape))} numbers, which are no grey or RGB pixels"
            allowed = "the folder of the pipeline whose VAE decodes the latents of the run"
            raise ConfigError("pipeline", None, allowed, "points cannot be shown", reason=reason)
        encoders = Encoders(pipeline, device)
    elif pipeline is not None:
        raise ConfigError("pipeline", pipeline, "left out", reason=f"{path} makes images, and not latents")
    return Run(
        path, generator, tuple(filter(_taken_by(generator), range(1, MAX_STEPS + 1))) or generator.steps, encoders
    )


def _taken_by(generator: Generator) -> Callable[[int], bool]:
    def is_taken(steps: int) -> bool:
        try:
            generator.check_levels(generator.make_sampler(steps=steps).sigmas)
        except ValueError:
            return False
        return True

    return is_taken
