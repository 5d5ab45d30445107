"""A method of two times: one jump from t to r equals two jumps with the intermediate level √(t·r)."""

from jumps.method import Jumps
from jumps.network import TwoTimes
from jumps.noise import Inverse, TwoLogNormals
from jumps.sampler import Ladder

__all__ = ["Inverse", "Jumps", "Ladder", "TwoLogNormals", "TwoTimes"]
