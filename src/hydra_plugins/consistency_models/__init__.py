"""Plugins that Hydra finds by itself: a launcher and a sweeper."""
