"""Optimisers, learning-rate factors, and averages of weights."""

from __future__ import annotations

from consistency_models.optim.ema import Constant, HalfLife, PowerFunction, ema_update
from consistency_models.optim.learning_rates import InverseSqrt, Linear
from consistency_models.optim.optimizers import RAdam

__all__ = ["Constant", "HalfLife", "InverseSqrt", "Linear", "PowerFunction", "RAdam", "ema_update"]
