"""One check of `autotune doctor`: what was found, and what to type about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Check", "CheckStatus"]


class CheckStatus(StrEnum):
    """How it stands."""

    OK = "ok"
    WARNING = "warning"
    """Trials run, but some strategies cannot be tried, or something may go wrong."""
    MISSING = "missing"
    """No trial can run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One finding."""

    name: str
    status: CheckStatus
    detail: str
    """What was found."""
    remedy: str = ""
    """What to type; empty only where all is well."""

    @classmethod
    def ok(cls, name: str, detail: str) -> Check:
        """All is well."""
        return cls(name=name, status=CheckStatus.OK, detail=detail)

    @classmethod
    def warning(cls, name: str, detail: str, remedy: str) -> Check:
        """Trials run all the same."""
        return cls(name=name, status=CheckStatus.WARNING, detail=detail, remedy=remedy)

    @classmethod
    def missing(cls, name: str, detail: str, remedy: str) -> Check:
        """No trial runs without it."""
        return cls(name=name, status=CheckStatus.MISSING, detail=detail, remedy=remedy)
