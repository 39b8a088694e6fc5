"""The user's own training command: how it is read, run and steered without changing a line of it.

Does not know studies, nor how trials are timed.
"""
