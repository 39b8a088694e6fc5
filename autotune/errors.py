"""Every error that autotune raises on purpose.

    AutotuneError
    ├── ConfigError (a ValueError too)   what was asked is impossible: exit status 2
    ├── StorageError                     a folder or storage cannot be used: exit status 2
    └── LaunchError                      the machinery that runs trials broke: exit status 1

A trial that fails is a result (`trial.Failure`), never an exception.
"""

__all__ = ["AutotuneError", "ConfigError", "LaunchError", "StorageError"]


class AutotuneError(Exception):
    """Base of all errors that autotune raises on purpose."""


class ConfigError(AutotuneError, ValueError):
    """A question, space or strategy that cannot be: says the rule, the value, what to do."""


class StorageError(AutotuneError):
    """A study folder or its storage cannot be read, written or locked."""


class LaunchError(AutotuneError):
    """The warm server or its rank processes could not be started at all."""
