"""Replaces a module's class by a subclass, where a technique changes what a call does."""

from __future__ import annotations

from typing import Any

__all__ = ["subclass"]


def subclass(original: Any, **members: Any) -> type:
    """A subclass with members of its own, to be put in the place of a module's class.

    Of the same name and module: parameter names, isinstance and everything that looks at class
    names stay as they are.
    """
    return type(original.__name__, (original,), {"__module__": original.__module__} | members)
