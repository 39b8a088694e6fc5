"""Makes Tune drop the results of trials that have ended, since the study keeps them."""

from __future__ import annotations

from typing import Any

from ray.tune import Callback

__all__ = ["ForgetReports"]


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
