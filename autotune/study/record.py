"""The record of a study: its trials, in an Optuna storage.

The only file that knows what of a trial is what in Optuna: the strategy as parameters, the two
metrics as values, everything else as user attributes. So Optuna's dashboard and Optuna's own
functions read a study without autotune.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from autotune.errors import StorageError
from autotune.names import printable
from autotune.space.strategy import Strategy
from autotune.study.reruns import with_confirmations
from autotune.study.storage_address import check_is_kept, shown, storage_errors
from autotune.study.trial_rows import StoredTrial, TrialRows
from autotune.trials.trial import (
    METRICS,
    Failure,
    FailureKind,
    Outcome,
    Prediction,
    Trial,
    TrialState,
)

if TYPE_CHECKING:
    import optuna

__all__ = ["TrialRecord"]

_MEMORY_CONSTRAINT = "device_memory"
_TABLES_S = 2.0
"""After so long another search has made the tables of a new database."""

_YIELDED_TO = "yielded_to"
"""The attribute of what is no trial, since another search was first to write its strategy down."""


class TrialRecord:
    """The trials of one study; several searches may share a storage, each under its own name.

    Args:
        url: any Optuna storage URL; a file is `sqlite:///PATH`.
        name: the study's name in it.
        owner: who writes; trials that it left running when it died are its own to recover.
        choices: every value that each knob of the search space may take.
        memory_limit_bytes: what a trial may use of its device.
        is_shared: whether other searches may write to the same study meanwhile.

    Raises:
        StorageError: the storage cannot be opened, or is not one.
    """

    def __init__(
        self,
        url: str,
        name: str,
        *,
        owner: str,
        choices: Mapping[str, Sequence[Any]],
        memory_limit_bytes: int,
        must_exist: bool = False,
        is_shared: bool = False,
    ) -> None:
        import optuna

        self.is_shared = is_shared
        self._known: dict[int, Trial] = {}
        self._owners: dict[int, str | None] = {}

        self._url = url
        self._owner = owner
        self._memory_limit_bytes = memory_limit_bytes
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._distributions: dict[str, optuna.distributions.CategoricalDistribution] = {
            knob: optuna.distributions.CategoricalDistribution(tuple(values))
            for knob, values in choices.items()
        }
        with self._as_storage_error():
            # Its proposals are not asked for; Optuna's default would compute them at every trial.
            unused = optuna.samplers.RandomSampler()
            if must_exist:
                check_is_kept(url)
                self._storage = _storage_at(url, has_tables=True)
                self._study = self._loaded(name, unused)
            else:
                self._storage = self._opened(url)
                self._study = optuna.create_study(
                    storage=self._storage,
                    study_name=name,
                    sampler=unused,
                    directions=[metric.direction.value for metric in METRICS],
                    load_if_exists=True,
                )
                self._study.set_metric_names([metric.name for metric in METRICS])
            self._rows = TrialRows(self._storage, self._study._study_id, self._distributions)

    def _opened(self, url: str) -> optuna.storages.RDBStorage:
        """The storage; searches that start at once may both want to make its tables."""
        with suppress(Exception) if self.is_shared else nullcontext():
            return _storage_at(url)
        time.sleep(_TABLES_S)
        return _storage_at(url)

    def _loaded(self, name: str, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
        import optuna

        try:
            return optuna.load_study(study_name=name, storage=self._storage, sampler=sampler)
        except KeyError:
            raise StorageError(
                f"the study storage {shown(self._url)} cannot be used: it has no study {name}; "
                "use the --storage of the search"
            ) from None

    def close(self) -> None:
        """Let the connections to a database server go."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def _as_storage_error(self) -> AbstractContextManager[None]:
        """One clear line for whatever the storage's libraries raise."""
        return storage_errors(self._url)

    def keep_question(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the stored study was asked; `question` from now on where it does not say.

        Raises:
            StorageError: the record cannot be written.
        """
        with self._as_storage_error():
            kept: Mapping[str, Any] | None = self._study.user_attrs.get("question")
            if kept is not None:
                return kept
            self._study.set_user_attr("question", dict(question))
            return question

    def trials(self) -> list[Trial]:
        """All trials, oldest first; runs that confirm one are part of it, none of their own.

        Raises:
            StorageError: the storage cannot be read.
        """
        return with_confirmations(self._runs())

    def _runs(self) -> list[Trial]:
        """Trials, and runs that confirm them."""
        self._hear()
        return [self._known[number] for number in sorted(self._known)]

    def _hear(self) -> None:
        """Take in what was written since it was asked for last."""
        import optuna

        waiting = optuna.trial.TrialState.WAITING
        with self._as_storage_error():
            for stored in self._rows.read_new():
                if stored.state is waiting or _YIELDED_TO in stored.attributes:
                    self._known.pop(stored.number, None)
                else:
                    self._known[stored.number] = self._read(stored)
                    self._owners[stored.number] = stored.attributes.get("owner")

    def claim(
        self, strategy: Strategy, prediction: Prediction, *, is_forced: bool = False
    ) -> Trial | None:
        """Write down a trial that is about to run, unless another search has the strategy.

        Whoever wrote first has it. Optuna numbers trials one after the other under a lock of the
        study's row, and each is seen by whoever writes a later one; so of two searches that write
        the same strategy at once, the later sees the earlier one's trial, and gives way. What was
        only pruned is nobody's when it is forced to run.

        Raises:
            StorageError: the record cannot be written.
        """
        trial = self.start(strategy, prediction, is_forced=is_forced)
        if not self.is_shared:
            return trial
        for other in self.trials():
            if other.number >= trial.number or other.strategy != strategy:
                continue
            failure = other.failure
            is_open = failure is not None and failure.kind.says_nothing_about_the_strategy
            is_passed = is_forced and not other.was_launched and other.state is TrialState.PRUNED
            if not is_open and not is_passed:
                self._give_way(trial, other)
                return None
        return trial

    def _give_way(self, trial: Trial, other: Trial) -> None:
        """Mark a trial as none: another search had its strategy first."""
        with self._as_storage_error():
            state = _optuna_states()[TrialState.FAILED]
            self._rows.end(trial.number, state, attributes={_YIELDED_TO: other.number})

    def start(
        self,
        strategy: Strategy,
        prediction: Prediction,
        *,
        is_forced: bool = False,
        reused_from: str | None = None,
        confirms: int | None = None,
    ) -> Trial:
        """Write down a trial that is about to run, or was run in an earlier study.

        Args:
            strategy: what it runs.
            prediction: what is expected of it.
            is_forced: although it had been pruned.
            reused_from: the trial of an earlier study that measured it, in words.
            confirms: the number of the trial that it runs once more.
        """
        trial = Trial(
            number=-1,
            strategy=strategy,
            state=TrialState.RUNNING,
            prediction=prediction,
            memory_limit_bytes=self._memory_limit_bytes,
            is_forced=is_forced,
            reused_from=reused_from,
            confirms=confirms,
        )
        told = {"is_forced": is_forced or None, "reused_from": reused_from, "confirms": confirms}
        # What is not so is not written: each attribute is a row.
        return self._add(trial, {name: value for name, value in told.items() if value is not None})

    def finish(self, trial: Trial, outcome: Outcome) -> Trial:
        """Write down how a running trial ended."""
        ended = replace(
            trial,
            state=outcome.state,
            measurement=outcome.measurement,
            failure=outcome.failure,
            reason=outcome.reason,
            duration_s=outcome.duration_s,
        )
        values: list[float] = []
        constraints: dict[str, float] = {}
        if outcome.state is TrialState.COMPLETE and outcome.measurement is not None:
            values = [float(getattr(outcome.measurement, o.name)) for o in METRICS]
            excess = outcome.measurement.peak_device_bytes - self._memory_limit_bytes
            if outcome.measurement.num_alloc_retries:
                excess = max(excess, 1)
            constraints[_MEMORY_CONSTRAINT] = float(excess)
        with self._as_storage_error():
            self._rows.end(
                trial.number,
                _optuna_states()[outcome.state],
                values=values,
                attributes=_outcome_attributes(outcome),
                constraints=constraints,
            )
        return ended

    def add_pruned(self, strategy: Strategy, prediction: Prediction, reason: str) -> Trial:
        """Write down a trial that was not worth launching."""
        trial = Trial(
            number=-1,
            strategy=strategy,
            state=TrialState.PRUNED,
            prediction=prediction,
            reason=reason,
            memory_limit_bytes=self._memory_limit_bytes,
        )
        return self._add(trial, {"reason": reason})

    def _add(self, trial: Trial, told: Mapping[str, Any]) -> Trial:
        """Write a trial down; the trial with its number."""
        assert trial.prediction is not None
        attributes = {
            "strategy": trial.strategy.to_dict(),
            "strategy_in_words": str(trial.strategy),
            "prediction": asdict(trial.prediction),
            "owner": self._owner,
            **told,
        }
        values = attributes["strategy"]
        # A value that the space does not have, such as a baseline's, is no parameter.
        params = {
            knob: values[knob]
            for knob, distribution in self._distributions.items()
            if values[knob] in distribution.choices
        }
        with self._as_storage_error():
            number = self._rows.add(_optuna_states()[trial.state], params, attributes)
        return replace(trial, number=number)

    def recover(self) -> int:
        """End the trials that this owner left running when it was killed; how many there were."""
        left = [trial for trial in self._runs() if trial.state is TrialState.RUNNING]
        recovered = 0
        for trial in left:
            if self._owners[trial.number] not in (self._owner, None):
                continue
            # One that has an end was told, and the search killed while it wrote that down.
            has_ended = trial.measurement is not None or trial.failure is not None
            killed = Failure(
                kind=FailureKind.INTERRUPTED, message="the search was killed during the trial"
            )
            outcome = Outcome(
                measurement=trial.measurement,
                failure=trial.failure if has_ended else killed,
                reason=trial.reason,
                duration_s=trial.duration_s,
            )
            self.finish(trial, outcome)
            recovered += not has_ended
        return recovered

    def _read(self, stored: StoredTrial) -> Trial:
        attributes = stored.attributes
        try:
            outcome = Outcome.from_dict(attributes)
            failure = outcome.failure
            prediction = attributes.get("prediction")
            strategy = Strategy.from_dict(attributes["strategy"])
            state = _states()[stored.state]
            return Trial(
                number=stored.number,
                strategy=strategy,
                state=failure.state if failure and state is TrialState.FAILED else state,
                prediction=Prediction.from_dict(prediction) if prediction else None,
                measurement=outcome.measurement,
                failure=failure,
                reason=outcome.reason,
                duration_s=outcome.duration_s,
                memory_limit_bytes=self._memory_limit_bytes,
                is_forced=attributes.get("is_forced", False),
                reused_from=_printable_source(attributes.get("reused_from")),
                confirms=attributes.get("confirms"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(
                f"trial {stored.number} in {shown(self._url)} was not written by "
                f"this version of autotune: {error}"
            ) from error


def _printable_source(name: str | None) -> str | None:
    """Where a trial was taken over from, which reports and exports name."""
    return None if name is None else printable(name, "reused_from")


def _storage_at(url: str, *, has_tables: bool = False) -> optuna.storages.RDBStorage:
    """Optuna's storage. It takes braces in a URL for places of a template, which none are."""
    import optuna

    template = url.replace("{", "{{").replace("}", "}}")
    return optuna.storages.RDBStorage(template, skip_table_creation=has_tables)


def _outcome_attributes(outcome: Outcome) -> dict[str, Any]:
    attributes: dict[str, Any] = {"duration_s": outcome.duration_s}
    if outcome.measurement is not None:
        attributes["measurement"] = asdict(outcome.measurement)
    if outcome.failure is not None:
        attributes["failure"] = asdict(outcome.failure)
    if outcome.reason is not None:
        attributes["reason"] = outcome.reason
    return attributes


def _optuna_states() -> dict[TrialState, Any]:
    from optuna.trial import TrialState as OptunaState

    return {
        TrialState.RUNNING: OptunaState.RUNNING,
        TrialState.COMPLETE: OptunaState.COMPLETE,
        TrialState.PRUNED: OptunaState.PRUNED,
        TrialState.FAILED: OptunaState.FAIL,
        # Optuna has no other word for it.
        TrialState.INTERRUPTED: OptunaState.FAIL,
    }


def _states() -> dict[Any, TrialState]:
    """The one that is read of each of Optuna's; a failure says which it was."""
    states = _optuna_states().items()
    return {theirs: ours for ours, theirs in states if ours is not TrialState.INTERRUPTED}
