"""A study behind Tune's searcher interface: to suggest is to ask, to complete is to tell.

Decides how many trials run at once, from the nodes that are there; Tune places and runs them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ray.tune.search import Searcher

from autotune.cluster.messages import TrialOrder, TrialReport
from autotune.drafts import write_file
from autotune.drivers.budget import Budget
from autotune.trials.protocols import Progress, TrialSource
from autotune.trials.trial import Failure, FailureKind, Outcome, Trial

__all__ = ["StudySearcher"]

_LOST = "its worker or its node was lost"


class Nodes(Protocol):
    """What is asked of a cluster; `RayCluster` is one."""

    @property
    def capacity(self) -> int:
        """How many trials run at once on the nodes that are there now."""
        ...

    def refresh(self, note: Callable[[str], None]) -> None:
        """Look which nodes are there."""
        ...


@dataclass(slots=True)
class _Open:
    """A trial that was asked for and not told yet."""

    trial: Trial
    began: float = field(default_factory=time.monotonic)

    @property
    def duration_s(self) -> float:
        return time.monotonic() - self.began


class StudySearcher(Searcher):  # type: ignore[misc]  # Ray is untyped
    """Hands Tune the study's trials, and the study their ends.

    Args:
        study: asked and told.
        nodes: how many trials run at once.
        budget: nothing is asked for that does not fit into the rest of it.
        order_of: what to tell a trial's actor.
        folder_of: a trial's folder here, by its number.
        progress: is told what happens.
        is_over: whether no trial is wanted any more.
        max_concurrent: run at most so many trials at once.
    """

    def __init__(
        self,
        study: TrialSource,
        *,
        nodes: Nodes,
        budget: Budget,
        order_of: Callable[[Trial], TrialOrder],
        folder_of: Callable[[int], Path],
        progress: Progress,
        is_over: Callable[[], bool],
        max_concurrent: int | None = None,
    ) -> None:
        super().__init__(metric=None, mode=None)
        self._study = study
        self._nodes = nodes
        self._budget = budget
        self._order_of = order_of
        self._folder_of = folder_of
        self._progress = progress
        self._is_over = is_over
        self._max_concurrent = max_concurrent
        self._open: dict[str, _Open] = {}
        self._has_no_more = False
        self._num_lost_in_a_row = 0
        self.num_ended = 0
        """Trials that came to an end of their own."""

    @property
    def num_lost_in_a_row(self) -> int:
        """Trials whose workers were lost since one came to an end of its own."""
        return self._num_lost_in_a_row

    def suggest(self, trial_id: str) -> dict[str, str] | str | None:
        """The next trial's order; None for not now, Tune's word for never again.

        Raises:
            StorageError: the record cannot be written.
        """
        self._nodes.refresh(self._progress.note)
        self._progress.cluster_changed(f"{self._nodes}: {len(self._open)} trials running")
        self._progress.refresh()
        if self._is_over():
            return self._never()
        at_once = min(self._nodes.capacity, self._max_concurrent or self._nodes.capacity)
        if len(self._open) >= at_once or (self._has_no_more and self._open):
            return None
        trial = self._study.ask(self._budget.remaining_s)
        self._progress.trials_changed(self._study.trials)
        # One that is lost may yet have to run again, so the end waits for those that run.
        self._has_no_more = trial is None
        if trial is None:
            return None if self._open else self._never()
        self._open[trial_id] = _Open(trial)
        self._progress.trial_started(trial)
        return self._order_of(trial).to_config()

    def _never(self) -> str:
        finished: str = Searcher.FINISHED
        return finished

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Follow a running trial."""
        self._follow(self._open[trial_id].trial, TrialReport.from_result(result), result)

    def _follow(self, trial: Trial, report: TrialReport, result: Mapping[str, Any]) -> None:
        for event in report.events:
            where = {"trial": trial.number, "node": result.get("node_ip", "")}
            self._progress.trial_event({**event, **where})

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the study how a trial ended.

        Raises:
            StorageError: the record cannot be written.
        """
        if trial_id not in self._open:
            return
        held = self._open[trial_id]
        report = TrialReport() if error else TrialReport.from_result(result or {})
        self._follow(held.trial, report, result or {})
        self._num_lost_in_a_row = 0 if report.outcome else self._num_lost_in_a_row + 1
        self.num_ended += report.outcome is not None
        lost = Failure(kind=FailureKind.LOST_NODE, message=_LOST)
        outcome = report.outcome or Outcome(failure=lost, duration_s=held.duration_s)
        folder = self._folder_of(held.trial.number)
        for name, text in report.files.items():
            write_file(folder / Path(name).name, text)
        self._tell(trial_id, outcome)

    def _tell(self, trial_id: str, outcome: Outcome) -> None:
        ended = self._study.tell(self._open.pop(trial_id).trial, outcome)
        self._has_no_more = False
        self._progress.trials_changed(self._study.trials)
        self._progress.trial_ended(ended)

    def end_all(self, kind: FailureKind, message: str) -> None:
        """Tell the study that whatever still runs was ended.

        Raises:
            StorageError: the record cannot be written.
        """
        for trial_id, held in list(self._open.items()):
            failure = Failure(kind=kind, message=message)
            self._tell(trial_id, Outcome(failure=failure, duration_s=held.duration_s))

    def set_search_properties(self, *_: object, **__: object) -> bool:
        """Tune has nothing to say about what the study seeks."""
        return True

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune writes its searcher down when it starts, and never reads it back."""
        return {}

    def __deepcopy__(self, memo: object) -> StudySearcher:
        return self

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study's own record is the only one."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was saved."""
