"""From noise to images: samplers, the generator that runs them, zero-shot editing, and one-step solvers of the ODE.

`Euler`, `Heun` and `DPM2` are samplers of many steps, from noise to images. Single steps, for methods with a teacher,
are the classes of the same names in `sampling.solvers`.
"""

from __future__ import annotations

from consistency_models.sampling import solvers
from consistency_models.sampling.editing import Colorization, Inpainting, SuperResolution, edit, estimate_sigma, slerp
from consistency_models.sampling.general_ode import GeneralODESampler
from consistency_models.sampling.generator import Generator
from consistency_models.sampling.samplers import (
    DPM2,
    Ancestral,
    Consistency,
    Euler,
    FlowMapSampler,
    Heun,
    SegmentSampler,
)
from consistency_models.sampling.table import DDIM, LCM

__all__ = [
    "DDIM",
    "DPM2",
    "LCM",
    "Ancestral",
    "Colorization",
    "Consistency",
    "Euler",
    "FlowMapSampler",
    "GeneralODESampler",
    "Generator",
    "Heun",
    "Inpainting",
    "SegmentSampler",
    "SuperResolution",
    "edit",
    "estimate_sigma",
    "slerp",
    "solvers",
]
