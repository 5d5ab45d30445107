"""What happens around a training step: weight averages, metrics, samples, validation, checkpoints, signals, NaN checks.

Each is a Lightning callback that conf/callbacks names, except `checkpoint_format`, a plugin that writes the files.
"""
