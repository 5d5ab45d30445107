"""Noise levels: schedules that draw them, curricula of their number, segments, and preconditioning."""
