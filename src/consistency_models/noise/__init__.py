"""Noise levels: schedules, curricula of the number of levels, segments, and preconditioning."""

from __future__ import annotations

from consistency_models.noise.curricula import (
    AdaptiveDecay,
    Annealed,
    Constant,
    ConstantDecay,
    Cosine,
    Doubling,
    Linear,
    Progressive,
    Square,
)
from consistency_models.noise.discrete import Discrete, alphas_cumprod
from consistency_models.noise.pairs import ArctanLogNormal, Dyadic, Groups, LogNormalPair
from consistency_models.noise.preconditioned import Preconditioned
from consistency_models.noise.preconditioning import EDM, IDDPM, VE, VP, Boundary, Flow, TrigFlow
from consistency_models.noise.schedules import (
    ECTSchedule,
    KarrasLogNormal,
    KarrasUniform,
    Levels,
    LogNormal,
    karras_grid,
    per_image,
)
from consistency_models.noise.segments import Phases, Segments, cosine_grid, segment_edges
from consistency_models.noise.table_uniform import TableUniform
from consistency_models.noise.truncated import TruncatedStudentT

__all__ = [
    "EDM",
    "IDDPM",
    "VE",
    "VP",
    "AdaptiveDecay",
    "Annealed",
    "ArctanLogNormal",
    "Boundary",
    "Constant",
    "ConstantDecay",
    "Cosine",
    "Discrete",
    "Doubling",
    "Dyadic",
    "ECTSchedule",
    "Flow",
    "Groups",
    "KarrasLogNormal",
    "KarrasUniform",
    "Levels",
    "Linear",
    "LogNormal",
    "LogNormalPair",
    "Phases",
    "Preconditioned",
    "Progressive",
    "Segments",
    "Square",
    "TableUniform",
    "TrigFlow",
    "TruncatedStudentT",
    "alphas_cumprod",
    "cosine_grid",
    "karras_grid",
    "per_image",
    "segment_edges",
]
