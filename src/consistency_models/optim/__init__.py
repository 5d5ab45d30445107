"""Optimisers, learning-rate factors, and averages of weights."""
