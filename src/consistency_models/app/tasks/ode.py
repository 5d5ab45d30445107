"""The distance of a trained model to the true solution of the probability-flow ODE, if the solution is known."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from consistency_models import teachers
from consistency_models.app.ode_error import build_ode_error
from consistency_models.data import Source
from consistency_models.sampling.generator import Generator
from consistency_models.sampling.samplers import Consistency

log = logging.getLogger(__name__)

__all__ = ["ode_errors"]

TEACHERS = tuple(f"consistency_models.teachers.{name}_teacher" for name in ("run", "official", "diffusers"))


def ode_errors(
    generator: Generator, source: Source, samplers: Sequence[Any], device: str
) -> Iterator[tuple[Any, list[dict[str, Any]], dict[str, Any], float]]:
    """Yield (sampler, scores, errors at each level, seconds) for each solver of the ODE.

    All consistency samplers have the same solver, the consistency function. Every other sampler with `descend` is
    measured. Yields nothing for a run without an exact solution and without a teacher, or if the path of the teacher
    does not exist.
    """
    settings, teacher = generator.config["evaluation"], generator.config.get("teacher") or {}
    exact, path = source.has_closed_form, teacher.get("path")
    if not settings.get("ode_points") or not (exact or teacher.get("_target_")):
        return
    if not exact and path is not None and not Path(path).expanduser().exists():
        log.warning("teacher.path=%s does not exist: the distance to its ODE is not measured", path)
        return
    if not exact and not _is_plain(teacher):
        log.warning("the run's teacher is %s: the distance to its ODE is not measured", teacher.get("_target_"))
        return
    truth = None if exact else teachers.build_teacher(generator.config)
    make_measure = build_ode_error(generator.config, source, truth)
    if make_measure is None:
        return
    measure = make_measure(device)
    reference = "exact" if exact else "teacher"
    digest = source.digest if exact else truth.origin["digest"]
    functions = [sampler for sampler in samplers if isinstance(sampler, Consistency)]
    for sampler in samplers:
        if sampler in functions[1:] or not hasattr(sampler, "descend"):
            continue
        started, steps = time.perf_counter(), len(sampler.sigmas)
        errors = measure(generator.solver(steps))
        seconds, n = time.perf_counter() - started, len(measure.images)
        common = {"features": None, "reference": reference, "reference_digest": digest, "n": n, "is_distance": True}
        scores = [
            {"name": f"{name}{n}_{reference}_{steps}step", "value": value, **common}
            for name, value in errors.summary().items()
        ]
        levels = {name: getattr(errors, name).tolist() for name in ("sigmas", "rms", "median", "self_consistency")}
        yield sampler, scores, {"steps": steps, "reference": reference, **levels}, seconds


def _is_plain(teacher: dict[str, Any]) -> bool:
    """Whether building the teacher only reads a file; the configuration of a run may be untrusted."""
    text = str(teacher)
    return teacher.get("_target_") in TEACHERS and text.count("_target_") == 1 and "${" not in text
