"""When Tune is to stop: asked many times a second, which also keeps the live view alive."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ray.tune import Stopper

__all__ = ["SearchStopper"]


class SearchStopper(Stopper):  # type: ignore[misc]  # Ray is untyped
    """Stops all trials together, none by itself.

    Args:
        should_stop: whether the search is over.
    """

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune writes it down when it starts, and never reads it back."""
        return {}

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """No trial is stopped by itself."""
        return False

    def stop_all(self) -> bool:
        """Whether the search is over."""
        return self._should_stop()
