"""The commands: compose and check configurations, build objects, launch and resume jobs.

Only this package depends on Hydra, configuration keys and run folders. No other package imports it.
"""
