"""What Tune calls while a search runs: when to stop, and when a trial has ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ray.tune import Callback, Stopper

__all__ = ["ForgetReports", "SearchStopper"]


class ForgetReports(Callback):  # type: ignore[misc]  # Ray is untyped
    """Drops each trial's last report, which holds the ends of its logs, and what Tune made of it.

    Tune keeps the mean of the latest five and ten values of every number that is reported, and
    what was asked for beside each report: more than the rest of what it has of a trial.
    """

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """After the searcher was told."""
        for name in ("report", "config"):
            trial.last_result.pop(name, None)
        trial.run_metadata.metric_analysis.clear()
        trial.run_metadata.metric_n_steps.clear()


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
