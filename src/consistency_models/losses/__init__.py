"""Distances d(online, target) and weightings w(s, t) of a loss."""

from __future__ import annotations

from consistency_models.losses.distances import (
    L1,
    LPIPS,
    ElementwiseHuber,
    LInf,
    PseudoHuber,
    SquaredL2,
    SquaredL2At32,
)
from consistency_models.losses.learned import LogWeight
from consistency_models.losses.moments import MomentMatching
from consistency_models.losses.weightings import EDM, SNR, InverseGap, SNRPlusOne, TruncatedSNR, Uniform

__all__ = [
    "EDM",
    "L1",
    "LPIPS",
    "SNR",
    "ElementwiseHuber",
    "InverseGap",
    "LInf",
    "LogWeight",
    "MomentMatching",
    "PseudoHuber",
    "SNRPlusOne",
    "SquaredL2",
    "SquaredL2At32",
    "TruncatedSNR",
    "Uniform",
]
