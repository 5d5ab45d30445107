"""The true solution of the probability-flow ODE, by which a model is measured: closed form, or a fine solution."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import one_hot

from consistency_models.app.build import prompts_of
from consistency_models.data import Source
from consistency_models.data_spec import DataSpec
from consistency_models.evaluation.features import to_float
from consistency_models.evaluation.ode_error import SIGMAS, HeunSolution, ODEError
from consistency_models.noise.discrete import Discrete
from consistency_models.teachers import Guided

__all__ = ["build_ode_error"]


def build_ode_error(
    config: dict[str, Any], source: Source, teacher: nn.Module | None
) -> Callable[..., ODEError] | None:
    """Return a function from a device to the `ODEError`; None if the true solution of the ODE is unknown.

    The solution is exact if the data set has one (a mixture), otherwise a fine solution of the teacher's ODE. A
    consistency model as teacher has no ODE: its output is no mean of images. A model with a transition is measured at
    levels above the transition; the ODE of a table at levels of the table. A source of captioned data has `prompts`,
    the prompts of its first images.
    """
    points, data = config["evaluation"]["ode_points"], DataSpec.of(config["data"])
    is_denoiser = teacher is not None and not getattr(teacher, "is_consistency_model", False)
    lowest = (config.get("model") or {}).get("transition") or 0.0
    ends = {"sigma_min": 0.002, "sigma_max": 80.0}
    sigmas = [sigma for sigma in SIGMAS if sigma >= lowest]
    if isinstance(table := getattr(teacher, "preconditioning", None), Discrete):
        ends = {"sigma_min": table.sigma_min, "sigma_max": table.sigma_max}
        sigmas = torch.logspace(*map(math.log10, ends.values()), 11, dtype=torch.float64)[1:].tolist()
    if not points or len(sigmas) < 2 or not (source.has_closed_form or is_denoiser):
        return None

    def measure(device: torch.device | str) -> ODEError:
        images = to_float(source.images[:points]).to(device)
        labels = one_hot(source.labels[:points], data.num_classes).float() if data.num_classes else None
        prompts = prompts_of(config["data"], source)
        if prompts is not None:
            images, labels = images[: len(prompts)], prompts[: len(images)]
        labels = None if labels is None else labels.to(device)
        exact, steps = source.has_closed_form, config["evaluation"]["ode_steps"]
        denoiser = None if exact else teacher.to(device).eval()
        if denoiser is not None and config["model"].get("guidance_input") is not None:  # that of the samples
            excess = (config["sampler"].get("inputs") or (0.0,))[-1]
            denoiser = Guided(denoiser.model, 1 + excess, denoiser.weak, denoiser.interval)
        solution = source.consistency if exact else HeunSolution(denoiser, steps, **ends)
        cache_key = source.digest if exact else None
        if not isinstance(denoiser, Guided) and hasattr(denoiser, "origin"):  # a digest does not identify guidance
            cache_key = repr((denoiser.origin["digest"], config["teacher"].get("weights"), steps))
        lowest_level, batch_size = ends["sigma_min"], config["evaluation"]["batch_size"]
        return ODEError(
            solution, images, labels, data.sigma_data, sigmas, lowest_level, batch_size=batch_size, cache_key=cache_key
        )

    return measure
