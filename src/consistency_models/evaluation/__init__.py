"""Evaluation: feature spaces, metrics with protocol in their names, data-against-data floors, pictures."""

from consistency_models.evaluation.protocol import Evaluation, Score, combined

__all__ = ["Evaluation", "Score", "combined"]
