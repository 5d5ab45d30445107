"""Scoring of the averaged weights during training."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from lightning import LightningModule, Trainer

from consistency_models.callbacks.checkpoint import Checkpoint
from consistency_models.callbacks.ema import WeightEMA
from consistency_models.callbacks.step import StepCallback
from consistency_models.evaluation import Evaluation, Score
from consistency_models.evaluation.ode_error import ODEError
from consistency_models.sampling.generator import Generator
from consistency_models.values import Size, checked

__all__ = ["Validation"]


class Validation(StepCallback):
    """Scores samples of fixed noise every `every_n_steps` steps and at the end, and saves `best.ckpt`.

    The monitored metric is the first metric of the evaluation, at the first step count.

    Args:
        every_n_steps: optimiser steps between two validations, at least 1.
        generator: samples from the model in training.
        evaluation: metrics and reference images.
        settings: `steps` (step counts), `n` (images), `seed`, `batch_size`.
        ode_error: `ode_error(device)` returns the `ODEError`; None if no true solution is known.
    """

    state_key = "Validation"

    pauses = True
    needs_callbacks = ("ema", "checkpoint")

    @checked
    def __init__(
        self,
        every_n_steps: Size,
        generator: Generator,
        evaluation: Evaluation,
        settings: dict[str, Any],
        ode_error: Callable[..., ODEError] | None = None,
    ) -> None:
        self.every_n_steps, self.make_ode_error = every_n_steps, ode_error
        self.generator, self.evaluation, self.settings = generator, evaluation, settings
        self.monitor: str | None = None
        self.final: dict[str, float] = {}
        self.best: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, method: LightningModule) -> None:
        """Forget the best values of a checkpoint of another run, whose best.ckpt is not in this folder."""
        super().on_train_start(trainer, method)
        checkpoint = next(c for c in trainer.callbacks if isinstance(c, Checkpoint))
        if not (checkpoint.folder / "best.ckpt").exists():
            self.best = {}

    def after_step(self, trainer: Trainer, method: LightningModule, batch, step: int) -> None:
        """Validate every `every_n_steps` steps and at the end."""
        if step % self.every_n_steps == 0 or step == method.total_steps:
            self.validate(trainer, method)

    def validate(self, trainer: Trainer, method: LightningModule) -> None:
        """Score the first average of the weights on the first process; the others wait, or take part if sharded."""
        improved = False
        if trainer.world_size > 1:
            self.evaluation.share_reference()
        if trainer.is_global_zero or method.sharded:
            ema = next(c for c in trainer.callbacks if isinstance(c, WeightEMA))
            with ema.applied(method):
                self.final = {f"val/{score.name}": score.value for score in self.scores()}
                steps = self.settings["steps"][0]
                if self.make_ode_error is not None and hasattr(self.generator.make_sampler(steps=steps), "descend"):
                    errors = self.ode_error(self.generator.solver(steps))
                    self.final |= {f"val/{name}": value for name, value in errors.summary().items()}
            self.monitor = next(iter(self.final))
            improved = self.note_best(trainer.global_step)
            for logger in trainer.loggers:
                logger.log_metrics(self.final, step=trainer.global_step)
        if trainer.strategy.broadcast(improved):
            checkpoint = next(c for c in trainer.callbacks if isinstance(c, Checkpoint))
            checkpoint.save(trainer)
            checkpoint.copy(trainer, "best.ckpt")

    def scores(self) -> list[Score]:
        """Compute all metrics at all step counts, with the current weights of the model."""
        n, scores = self.settings["n"], []
        labels = self.generator.labels(torch.arange(n))
        for steps in self.settings["steps"]:
            images = self.generator.sample(
                n, steps=steps, seed=self.settings["seed"], batch_size=self.settings["batch_size"]
            )
            scores += self.evaluation.scores(images, labels, steps)
        return scores

    @cached_property
    def ode_error(self) -> ODEError:
        """The `ODEError` on the model's device, built at the first access."""
        return self.make_ode_error(next(self.generator.model.parameters()).device)

    def note_best(self, step: int) -> bool:
        """Update the best value of each metric; returns whether the monitored metric has improved."""
        improved = False
        for name, value in self.final.items():
            if math.isnan(value):  # no later value would compare as better
                continue
            best = self.best.get(name)
            if best is None or (value < best["value"] if self.is_distance(name) else value > best["value"]):
                self.best[name] = {"value": value, "step": step}
                improved |= name == self.monitor
        return improved

    def is_distance(self, name: str) -> bool:
        """Return whether lower values of a metric are better; the ODE errors are distances, too."""
        fitting = (metric.is_distance for metric in self.evaluation.metrics if name.startswith(f"val/{metric.name}"))
        return next(fitting, True)

    def summary(self) -> dict[str, Any]:
        """Final and best metrics, their direction, network calls by step count, and the floor, for summary.json."""
        floor = {score.name: score.value for score in self.evaluation.floor()} if self.final else {}
        final = {name: value if math.isfinite(value) else None for name, value in self.final.items()}  # JSON has no NaN
        calls = {str(steps): self.generator.make_sampler(steps=steps).nfe for steps in self.settings["steps"]}
        distances = {name: self.is_distance(name) for name in final}
        metrics = {"final": final, "best": self.best, "is_distance": distances, "network_calls": calls}
        return {"metrics": metrics, "monitor": self.monitor, "floor": floor}

    def state_dict(self) -> dict[str, Any]:
        """Return the best and the last values."""
        return {"best": self.best, "monitor": self.monitor, "final": self.final}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the values of the checkpoint."""
        self.best, self.monitor, self.final = state["best"], state["monitor"], state["final"]
