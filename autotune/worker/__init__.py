"""The processes that train: a warm server, and the ranks forked from it.

Builds the model, applies the strategy, measures. Does not know the study.
"""
