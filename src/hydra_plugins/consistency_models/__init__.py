"""Plugins of Hydra: the launcher `processes` and the sweeper `search`.

Hydra finds plugins in the namespace package `hydra_plugins`, to which each distribution adds a folder.
"""
