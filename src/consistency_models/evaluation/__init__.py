"""Evaluation: feature spaces, metrics whose names contain the protocol, floors from real images, and figures."""

from __future__ import annotations

from consistency_models.evaluation.feature_set import FeatureSet
from consistency_models.evaluation.metrics import (
    Agreement,
    EnergyDistance,
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    Precision,
    Recall,
    SlicedWasserstein,
)
from consistency_models.evaluation.ode_error import ODEError, ODEErrors
from consistency_models.evaluation.protocol import Evaluation, Score, combined
from consistency_models.evaluation.runs import Run, read_runs

__all__ = [
    "Agreement",
    "EnergyDistance",
    "Evaluation",
    "FeatureSet",
    "FrechetDistance",
    "InceptionScore",
    "KernelDistance",
    "ODEError",
    "ODEErrors",
    "Precision",
    "Recall",
    "Run",
    "Score",
    "SlicedWasserstein",
    "combined",
    "read_runs",
]
