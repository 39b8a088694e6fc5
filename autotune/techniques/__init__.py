"""Techniques that a DeepSpeed JSON cannot hold, put on a model: one file for each.

Trials and exports go through the same functions. Knows models and strategies; does not know
trials, clocks or processes.
"""
