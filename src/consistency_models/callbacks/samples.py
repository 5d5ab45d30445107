"""Pictures of samples of the averaged weights, always from the same noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from consistency_models.callbacks.ema import WeightEMA
from consistency_models.callbacks.step import StepCallback
from consistency_models.evaluation import Evaluation
from consistency_models.evaluation.grids import save_comparison, save_grid, save_scatter
from consistency_models.sampling.generator import Generator
from consistency_models.values import Size, Text, checked

__all__ = ["SampleGrids"]


class SampleGrids(StepCallback):
    """Saves `step_00001800_1step.png` every `every_n_steps` steps, and at the end `final.png` with all step counts.

    The noise of an image depends only on the seed and its position, so that pictures can be compared over time and
    between runs.

    Args:
        folder: folder of the pictures.
        every_n_steps: optimiser steps between two pictures, at least 1.
        columns, rows: images in a picture; with classes, ten columns show one class each.
        points: points in a picture of low-dimensional data.
        generator: samples from the model in training.
        evaluation: holds the data; pictures of points show the data, too.
        settings: `steps` (step counts) and `seed`.
    """

    needs_callbacks = ("ema",)

    @checked
    def __init__(
        self,
        folder: Text | Path,
        every_n_steps: Size,
        columns: Size,
        rows: Size,
        points: Size,
        generator: Generator,
        evaluation: Evaluation,
        settings: dict[str, Any],
        **_: Any,
    ) -> None:
        self.folder, self.every_n_steps, self.columns, self.rows, self.points = (
            Path(folder),
            every_n_steps,
            columns,
            rows,
            points,
        )
        self.generator, self.evaluation, self.settings = generator, evaluation, settings
        self.is_scatter = not generator.clamp and not evaluation.data.is_latent

    def after_step(self, trainer: Trainer, method: LightningModule, batch, step: int) -> None:
        """Draw every `every_n_steps` steps and at the end."""
        due = step % self.every_n_steps == 0 or step == method.total_steps
        if due and (trainer.is_global_zero or method.sharded):
            self.draw(trainer, method, step)

    def draw(self, trainer: Trainer, method: LightningModule, step: int) -> None:
        """Sample with every step count, save the pictures, and pass them to the loggers that support images."""
        ema = next(c for c in trainer.callbacks if isinstance(c, WeightEMA))
        n = self.points if self.is_scatter else self.columns * self.rows
        with ema.applied(method) as weights:
            samples = {
                steps: self.generator.sample(n, steps=steps, seed=self.settings["seed"])
                for steps in self.settings["steps"]
            }
        if not trainer.is_global_zero:
            return
        paths = {}
        for steps, images in samples.items():
            paths[steps] = self.folder / f"step_{step:08d}_{steps}step.png"
            self.save(paths[steps], {f"{steps}-step": images}, f"{steps}-step samples at step {step}")
        if step == method.total_steps:
            title = f"the same noise in {' and '.join(map(str, samples))} steps, weights {weights}, step {step}"
            self.save(self.folder / "final.png", {f"{steps}-step": images for steps, images in samples.items()}, title)
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                for steps, path in paths.items():
                    logger.log_image(f"samples/{steps}step", [str(path)], step=step)

    def save(self, path: Path, images: dict[str, Tensor], title: str) -> None:
        """Save a grid of images, a comparison of several grids, or a scatter plot of points beside the data."""
        if self.is_scatter:
            save_scatter(path, {"data": self.evaluation.data.images[: self.points], **images}, title)
            return
        images = {name: self.evaluation.data.pictures(generated) for name, generated in images.items()}
        names = self.generator.names(self.generator.labels(torch.arange(self.columns * self.rows)))
        if len(images) == 1:
            save_grid(path, next(iter(images.values())), self.columns, title, names=names)
        else:
            save_comparison(path, images, self.columns, title, names=names)
