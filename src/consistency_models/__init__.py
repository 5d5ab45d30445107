"""Consistency models: train, ablate, compare and use generative models that make an image in one network call, or a few."""

__version__ = "0.1.0"
