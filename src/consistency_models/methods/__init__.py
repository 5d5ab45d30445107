"""Training methods. Each file holds one LightningModule and has the name of the option `model=` that selects it."""

from __future__ import annotations

from consistency_models.methods.alphaflow import AlphaFlow
from consistency_models.methods.ayf import AlignYourFlow
from consistency_models.methods.base import Method, Step
from consistency_models.methods.cd import ConsistencyDistillation
from consistency_models.methods.cmt import MidTraining
from consistency_models.methods.ct import ConsistencyTraining
from consistency_models.methods.dcm import DirectConsistency
from consistency_models.methods.ect import EasyConsistencyTuning
from consistency_models.methods.facm import FlowAnchoredConsistency
from consistency_models.methods.flow_map import FlowMap
from consistency_models.methods.ict import ImprovedConsistencyTraining
from consistency_models.methods.imm import InductiveMomentMatching
from consistency_models.methods.mcm import MultistepConsistency
from consistency_models.methods.meanflow import MeanFlow
from consistency_models.methods.scd import ContinuousConsistencyDistillation
from consistency_models.methods.sct import ContinuousConsistencyTraining
from consistency_models.methods.shortcut import Shortcut
from consistency_models.methods.tcm import TruncatedConsistency
from consistency_models.methods.teacher import Diffusion

__all__ = [
    "AlignYourFlow",
    "AlphaFlow",
    "ConsistencyDistillation",
    "ConsistencyTraining",
    "ContinuousConsistencyDistillation",
    "ContinuousConsistencyTraining",
    "Diffusion",
    "DirectConsistency",
    "EasyConsistencyTuning",
    "FlowAnchoredConsistency",
    "FlowMap",
    "ImprovedConsistencyTraining",
    "InductiveMomentMatching",
    "MeanFlow",
    "Method",
    "MidTraining",
    "MultistepConsistency",
    "Shortcut",
    "Step",
    "TruncatedConsistency",
]
