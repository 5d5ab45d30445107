"""Lightning callbacks around a training step: weight averages, metrics, samples, validation, checkpoints, NaN checks.

conf/callbacks selects the callbacks. `checkpoint_format` is Lightning's plugin that writes and reads checkpoint files.
"""
