"""Plugins of Hydra: the launcher `processes` and the sweeper `search`.

Hydra finds them by their place: `hydra_plugins` is a namespace package, to which each distribution adds a folder.
"""
