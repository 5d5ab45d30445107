"""Distances d(online, target) and weightings w(s, t) of a loss."""
