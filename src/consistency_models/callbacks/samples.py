"""Pictures and a film of samples of the averaged weights, always from the same noise."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from consistency_models.callbacks.ema import WeightEMA
from consistency_models.callbacks.film import Film
from consistency_models.callbacks.step import StepCallback
from consistency_models.evaluation import Evaluation
from consistency_models.evaluation.grids import save_comparison, save_grid, save_scatter
from consistency_models.sampling.generator import Generator
from consistency_models.values import Size, Text, checked

log = logging.getLogger(__name__)

__all__ = ["SampleGrids"]


class SampleGrids(StepCallback):
    """Saves `step_00001800_1step.png` every `every_n_steps` steps, and at the end `final.png` with all step counts.

    The noise of an image depends only on the seed and its position, so that pictures can be compared over time and
    between runs. `film.gif` shows the first row over the training, at the first step count; see `Film`. An error of
    the film is a warning, because a training must not end for it.

    Args:
        folder: folder of the pictures.
        every_n_steps: optimiser steps between two pictures, at least 1.
        columns, rows: images in a picture; with classes, ten columns show one class each.
        points: points in a picture of low-dimensional data.
        generator: samples from the model in training.
        evaluation: holds the data; pictures of points show the data, too.
        settings: `steps` (step counts) and `seed`.
        film_every_n_steps: lowest number of optimiser steps between two frames, at least 1; None writes no film. Points
            have no film.
    """

    state_key = "SampleGrids"

    pauses = True
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
        film_every_n_steps: Size | None = None,
        **_: Any,
    ) -> None:
        self.folder, self.every_n_steps = Path(folder), every_n_steps
        self.columns, self.rows, self.points = columns, rows, points
        self.generator, self.evaluation, self.settings = generator, evaluation, settings
        self.is_scatter = not generator.clamp and not evaluation.data.is_latent
        self.film: Film | None = None
        if film_every_n_steps is not None and not self.is_scatter:
            self.film = Film(self.folder / "film.gif", film_every_n_steps)

    def after_step(self, trainer: Trainer, method: LightningModule, batch, step: int) -> None:
        """Draw every `every_n_steps` steps and at the end, and add the frames of the film."""
        if not (trainer.is_global_zero or method.sharded):
            return
        if self.film is not None and self.film.is_due(step, method.total_steps):
            self.add_frame(self.film, trainer, method, step)
        if step % self.every_n_steps == 0 or step == method.total_steps:
            self.draw(trainer, method, step)

    def add_frame(self, film: Film, trainer: Trainer, method: LightningModule, step: int) -> None:
        """Add a frame to the film, and pass the finished film to the loggers that support videos."""
        ema = next(c for c in trainer.callbacks if isinstance(c, WeightEMA))
        images = None
        try:
            with ema.applied(method):
                images = self.generator.sample(self.columns, self.settings["steps"][0], self.settings["seed"])
            if not trainer.is_global_zero:
                return
            film.add(step, method.total_steps, self.evaluation.data.pictures(images))
            for logger in trainer.loggers:
                if step == method.total_steps and hasattr(logger, "log_video"):
                    logger.log_video("samples/film", [str(film.path)], step=step)
        except Exception as error:
            if images is None and method.sharded:
                raise  # the other processes wait for the weights of this one
            log.warning("no frame of step %d in %s: %s: %s", step, film.path, type(error).__name__, error)

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
            *first, last = map(str, samples)
            counts = f"{', '.join(first)} and {last} steps" if first else f"{last} step{'s' * (last != '1')}"
            title = f"the same noise in {counts}, weights {weights}, step {step}"
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

    def state_dict(self) -> dict[str, Any]:
        """Return the frames of the film."""
        return {} if self.film is None else self.film.state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the frames of the film."""
        if self.film is not None:
            self.film.load(state)
