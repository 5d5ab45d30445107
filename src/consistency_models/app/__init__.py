"""From a command line to runs: configurations are composed and checked, objects built, jobs launched and resumed.

Everything that knows Hydra, configuration keys or run folders is here. No other room imports this one.
"""
