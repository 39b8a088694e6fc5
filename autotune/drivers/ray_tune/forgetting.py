"""What Tune keeps of trials that have ended: nothing of what they said, for the study has it."""

from __future__ import annotations

from typing import Any

from ray.tune import Callback

__all__ = ["ForgetReports"]


class ForgetReports(Callback):  # type: ignore[misc]  # Ray is untyped
    """Drops each trial's last report once the searcher was told; it holds the ends of its logs."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """After the searcher was told."""
        trial.last_result.pop("report", None)
