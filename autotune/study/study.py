"""The study: gives the next trial when asked, and records how it ended when told.

Passive: drivers own the loop.

Proposes through a sampler, predicts, skips what is not worth launching, and keeps the record.
Does not know how trials run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

from autotune.predictor.cached import CachedPredictor
from autotune.space.strategy import Strategy
from autotune.study.confirmation import Confirmer
from autotune.study.record import TrialRecord
from autotune.study.reruns import confirmed, reopened
from autotune.trials.durations import TrialDurations
from autotune.trials.protocols import Predictor, Pruner, Sampler
from autotune.trials.refit import needs_refit
from autotune.trials.trial import Outcome, Prediction, Trial, TrialState

__all__ = ["Study"]

_MAX_RETRIES = 2
"""A strategy whose trial failed for reasons that are not its own is tried so often again."""

_MOST_LEARNED = 200
"""The predictor learns from so many trials at most, taken evenly from all that were measured: more
would hardly move its few coefficients, and cost time at every prediction."""

_MAX_PUT_OFF = 8
"""So many proposals that take longer than what is left are put off before the search ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Proposal:
    """A strategy that may be launched, and how long that is expected to take."""

    strategy: Strategy
    prediction: Prediction
    duration_s: float
    is_forced: bool = False

    def as_trial(self) -> Trial:
        """Stands for it while it is put off, so that the sampler proposes another."""
        return Trial(number=-1, strategy=self.strategy, state=TrialState.RUNNING)


class Study:
    """One search, whoever drives it.

    Args:
        record: where trials are kept.
        sampler: what to try next.
        predictor: what a strategy will need, before any trial is known.
        pruners: what not to launch; the first that objects gives the reason.
        learn: gives the predictor that has learned from these trials; `predictor` stays in use if
            left out.
        max_trials: launch at most so many, those of earlier sessions included.
        num_forced: launch so many of those that their prediction had pruned, to check it.
        num_confirmed: run so many of the best again at the end, until their order is known; a
            share of the time is kept for it.
        durations: how long trials run.
        unpruned: is launched whatever the pruners object.
    """

    def __init__(
        self,
        record: TrialRecord,
        *,
        sampler: Sampler,
        predictor: Predictor,
        pruners: Sequence[Pruner],
        learn: Callable[[Sequence[Trial]], Predictor] | None = None,
        max_trials: int | None = None,
        num_forced: int = 0,
        num_confirmed: int = 0,
        durations: TrialDurations | None = None,
        unpruned: Strategy | None = None,
    ) -> None:
        self._unpruned = unpruned
        self._record = record
        self._sampler = sampler
        self._prior = predictor
        self._learn = learn
        self._pruners = tuple(pruners)
        self._max_trials = max_trials
        self._num_to_force = num_forced
        self._confirmer = Confirmer(num_confirmed)
        self._durations = durations or TrialDurations()
        self._trials = record.trials()
        self._predictor = self._prior
        self._num_learned = -1
        self._learn_again()
        self._running: set[int] = set()
        self.end_reason: str | None = None
        """Why `ask` returned None, in words."""

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All trials so far, those of earlier sessions included."""
        return tuple(self._trials)

    def ask(self, remaining_s: float) -> Trial | None:
        """The next trial to launch, written down as running; None when the search is over.

        Strategies that are not worth launching are written down as pruned on the way. When no new
        strategy is left to launch, the best are run again; then what ended early against figures
        that these runs have lowered.

        Args:
            remaining_s: what is left of the budget; nothing is started that needs more.

        Raises:
            StorageError: the record cannot be written.
        """
        kept_s = self._confirmer.kept_s(self._trials, remaining_s)
        trial = None if self._confirmer.has_begun else self._ask_new(remaining_s - kept_s)
        return trial or self._ask_confirming(remaining_s) or self._ask_reopened(remaining_s)

    def _ask_confirming(self, remaining_s: float) -> Trial | None:
        """A run of one of the best trials once more, while nothing else runs."""
        if self._running:
            return None
        best = self._confirmer.next(self._trials, remaining_s)
        if best is None:
            return None
        prediction = best.prediction or self._predictor.predict(best.strategy)
        run = self._record.start(best.strategy, prediction, confirms=best.number)
        self._running.add(run.number)
        return run

    def _ask_reopened(self, remaining_s: float) -> Trial | None:
        """A run of what ended early against a figure that the confirming runs have lowered."""
        has_room = self._max_trials is None or self._num_launched() < self._max_trials
        if self._running or not self._confirmer.has_begun or not has_room:
            return None
        for trial in reopened(self._trials):
            proposal = self._proposal(trial.strategy, self._predictor.predict(trial.strategy))
            if proposal.duration_s <= remaining_s:
                again = self._record.start(proposal.strategy, proposal.prediction)
                self._trials.append(again)
                self._running.add(again.number)
                return again
        return None

    def _ask_new(self, remaining_s: float) -> Trial | None:
        """A strategy that was not launched yet."""
        if self._max_trials is not None and self._num_launched() >= self._max_trials:
            self.end_reason = f"the limit of --trials {self._max_trials} is reached"
            return None
        if remaining_s <= 0:
            self.end_reason = "the budget is used up"
            return None
        while True:
            self._hear_of_others()
            proposal = (
                self._forced(remaining_s)
                or self._proposed_within(remaining_s)
                or self._forced(remaining_s)
            )
            if proposal is None:
                return None
            trial = self._record.claim(
                proposal.strategy, proposal.prediction, is_forced=proposal.is_forced
            )
            if trial is not None:
                self._trials.append(trial)
                self._running.add(trial.number)
                return trial

    def _hear_of_others(self) -> None:
        """Take in what other searches of a shared study have written."""
        if not self._record.is_shared:
            return
        self._trials = self._record.trials()
        self._learn_again()

    def _proposed_within(self, remaining_s: float) -> _Proposal | None:
        """The first proposal that is expected to end in time; None where there is none left."""
        put_off: list[Trial] = []
        while len(put_off) < _MAX_PUT_OFF:
            strategy = self._retry(but={trial.strategy for trial in put_off})
            strategy = strategy or self._sampler.propose([*self._trials, *put_off])
            if strategy is None:
                break
            prediction = self._predictor.predict(strategy)
            reason = self._reason_to_skip(strategy, prediction)
            if reason is not None:
                self._trials.append(self._record.add_pruned(strategy, prediction, reason))
                continue
            proposal = self._proposal(strategy, prediction)
            if proposal.duration_s <= remaining_s:
                return proposal
            put_off.append(proposal.as_trial())
        if put_off:
            self.end_reason = "the remaining budget is too short for another trial"
        else:
            all_done = "every strategy of the space was launched or pruned"
            self.end_reason = self._sampler.end_reason or all_done
        return None

    def tell(self, trial: Trial, outcome: Outcome) -> Trial:
        """Write down how a trial ended; the trial as it now stands.

        Raises:
            StorageError: the record cannot be written.
        """
        ended = self._record.finish(trial, outcome)
        self._running.discard(trial.number)
        if ended.confirms is not None:
            self._confirmer.ended(ended)
            self._trials = [
                confirmed(t, [ended]) if t.number == ended.confirms else t for t in self._trials
            ]
            return ended
        self._trials = [ended if t.number == trial.number else t for t in self._trials]
        self._learn_again()
        return ended

    def _learn_again(self) -> None:
        """Have the predictor learn, once there is enough that is new to it."""
        num_measured = sum(trial.measurement is not None for trial in self._trials)
        if self._learn is not None and needs_refit(num_measured, self._num_learned):
            measured = [trial for trial in self._trials if trial.measurement is not None]
            told = measured[:: -(-num_measured // _MOST_LEARNED) or 1]
            self._predictor = CachedPredictor(self._learn(told))
            self._num_learned = num_measured

    def _num_launched(self) -> int:
        own = [trial for trial in self._trials if trial.reused_from is None]
        return sum(map(_tells_of_its_strategy, own))

    def _retry(self, *, but: set[Strategy]) -> Strategy | None:
        """A strategy whose trials all failed for reasons that are not its own."""
        broken = [trial.strategy for trial in self._trials if _is_broken(trial)]
        attempts: dict[Strategy, list[Trial]] = {strategy: [] for strategy in broken}
        if attempts:
            for trial in self._trials:
                if trial.strategy in attempts:
                    attempts[trial.strategy].append(trial)
        for strategy, tried in attempts.items():
            is_open = all(map(_is_broken, tried))
            if is_open and len(tried) <= _MAX_RETRIES and strategy not in but:
                return strategy
        return None

    def _forced(self, remaining_s: float) -> _Proposal | None:
        """What its prediction had pruned, the nearest to the memory limit first.

        None where as many as were asked for have run, or none is left that fits into the time.
        """
        if self._num_to_force == 0:
            return None
        launched = [trial for trial in self._trials if _tells_of_its_strategy(trial)]
        if sum(trial.is_forced for trial in launched) >= self._num_to_force:
            return None
        known = {trial.strategy for trial in launched}
        pruned = [
            (trial.prediction.peak_device_bytes - trial.memory_limit_bytes, trial.strategy)
            for trial in self._trials
            if trial.state is TrialState.PRUNED
            and trial.strategy not in known
            and trial.prediction is not None
            and trial.prediction.peak_device_upper_bytes > trial.memory_limit_bytes
        ]
        for _, strategy in sorted(pruned, key=itemgetter(0)):
            proposal = self._proposal(strategy, self._predictor.predict(strategy))
            if proposal.duration_s <= remaining_s:
                return replace(proposal, is_forced=True)
        return None

    def _proposal(self, strategy: Strategy, prediction: Prediction) -> _Proposal:
        return _Proposal(
            strategy=strategy,
            prediction=prediction,
            duration_s=self._durations.expected_s(
                strategy, prediction, self._trials, predictor=self._predictor
            ),
        )

    def _reason_to_skip(self, strategy: Strategy, prediction: Prediction) -> str | None:
        """What a pruner objects, on every prediction there is.

        What was learned from other trials can save a strategy, but not condemn it.
        """
        if strategy == self._unpruned:
            return None
        reason = self._objection(strategy, self._prior)
        if reason is None or self._predictor is self._prior:
            return reason
        return self._objection(strategy, self._predictor, prediction)

    def _objection(
        self, strategy: Strategy, predictor: Predictor, prediction: Prediction | None = None
    ) -> str | None:
        """The first objection where all trials are predicted as the strategy is."""
        prediction = prediction or predictor.predict(strategy)
        trials = [
            replace(trial, prediction=predictor.predict(trial.strategy))
            if trial.failure
            else trial
            for trial in self._trials
        ]
        for pruner in self._pruners:
            if reason := pruner.reason_to_skip(strategy, prediction, trials):
                return reason
        return None


def _is_broken(trial: Trial) -> bool:
    """Whether it failed by the machinery or from outside."""
    return trial.failure is not None and trial.failure.kind.says_nothing_about_the_strategy


def _tells_of_its_strategy(trial: Trial) -> bool:
    """Whether it was launched, and not broken by the machinery or from outside."""
    was_run = trial.state is not TrialState.PRUNED or trial.was_launched
    return was_run and not _is_broken(trial)
