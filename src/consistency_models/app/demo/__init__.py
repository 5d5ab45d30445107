"""The live page of trained runs, `python -m consistency_models.app.demo`: samples, trajectories and edits."""
