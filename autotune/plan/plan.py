"""A plan: the predictions of every strategy of a space, for hardware that is not here.

Nothing is measured. Does not know how the answer is shown, nor torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from autotune.knob_values import LossClass
from autotune.machine.hardware import Hardware
from autotune.machine.hardware_spec import HardwareSpec
from autotune.machine.software import Software
from autotune.plan.calibration import Calibration
from autotune.predictor import AnalyticPredictor, ScriptSource
from autotune.pruners import PredictedMemoryPruner
from autotune.question.goal import FRONT_PICKS, Goal
from autotune.question.question import Question
from autotune.question.workload import Workload
from autotune.space.search_space import SearchSpace
from autotune.space.strategy import Strategy
from autotune.space.strategy_table import StrategyTable
from autotune.study.baseline import Baseline
from autotune.study.pareto import Metrics, front_of, front_rows, pick_of
from autotune.study.summary import model_flops_utilisation
from autotune.trials.prediction_table import PredictionTable
from autotune.trials.protocols import Predictor
from autotune.trials.trial import Prediction

__all__ = ["ASSUMED_SOFTWARE", "Candidate", "Candidates", "Plan", "make_plan"]

ASSUMED_SOFTWARE = Software(
    versions={},
    has_liger=True,
    has_compiler=True,
    has_async_io=True,
    has_cuda_toolkit=True,
    has_flash_attention=True,
    has_cpu_inductor=True,
    has_gpu_inductor=True,
)
"""Everything that a strategy may need is taken to be installed there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A strategy and what is predicted of it."""

    strategy: Strategy
    prediction: Prediction


@dataclass(frozen=True, kw_only=True)
class Candidates(Sequence[Candidate]):
    """Strategies and what is predicted of them, in rows; one becomes a `Candidate` when asked for.

    A million of them are ranked by their arrays, and only those that are shown are made.
    """

    table: StrategyTable
    predicted: PredictionTable
    """The predictions of the rows of `table`."""
    predictor: Predictor
    """Says of one what the table leaves out."""

    def __len__(self) -> int:
        """Strategies."""
        return len(self.table)

    @overload
    def __getitem__(self, row: int) -> Candidate: ...
    @overload
    def __getitem__(self, row: slice) -> tuple[Candidate, ...]: ...
    def __getitem__(self, row: int | slice) -> Candidate | tuple[Candidate, ...]:
        """One row, or some."""
        if isinstance(row, slice):
            return tuple(self[one] for one in range(len(self))[row])
        strategy = self.table.strategy(range(len(self))[row])
        return Candidate(strategy=strategy, prediction=self.predictor.predict(strategy))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is predicted of one question, for every strategy that its space has."""

    question: Question
    """On the ranks of all hosts."""
    spec: HardwareSpec
    reference: Strategy
    """The strategy whose loss-changing knobs all others are compared with."""
    candidates: Candidates
    calibration: Calibration | None = None
    """What predictions were corrected by, if by anything."""
    uncertainty: str | None = None
    """Why the activations of this model are a guess; None where they are not."""
    is_quick: bool = False
    """Whether the reserved memory of every strategy is a formula's."""
    baseline: Baseline | None = None
    """What the user has, if the plan was told."""

    @property
    def workload(self) -> Workload:
        """What is trained."""
        return self.question.workload

    @property
    def hardware(self) -> Hardware:
        """The devices of all hosts."""
        return self.question.hardware

    def fits(self, candidate: Candidate) -> bool:
        """Whether it is expected to fit device and host, by the rule that a search launches by.

        In a quick plan, in which nothing is simulated, whether its upper bound fits too: unless
        that is so of no strategy.
        """
        prediction, limits = candidate.prediction, self.question.limits
        is_uncertain = prediction.peak_device_upper_bytes > limits.device_bytes
        return not prediction.missing_bytes(limits) and not (self._is_strict and is_uncertain)

    def surely_fits(self, candidate: Candidate) -> bool:
        """Whether it fits even if it needs as much as it may."""
        prediction, limits = candidate.prediction, self.question.limits
        return (
            self.fits(candidate)
            and prediction.peak_device_upper_bytes <= limits.device_bytes
            and prediction.peak_host_upper_bytes <= limits.host_bytes
        )

    @cached_property
    def num_fitting(self) -> int:
        """Candidates that are expected to fit."""
        return int(np.count_nonzero(self._fits))

    @cached_property
    def num_surely_fitting(self) -> int:
        """Candidates whose upper bound fits too."""
        return int(np.count_nonzero(self._surely_fits))

    @cached_property
    def num_uncertain(self) -> int:
        """Candidates that are expected to fit, and whose upper bound does not."""
        return int(np.count_nonzero(self._expected_to_fit & ~self._surely_fits))

    @cached_property
    def front(self) -> tuple[Candidate, ...]:
        """The predicted Pareto front, fastest first; empty where nothing is expected to fit.

        One by one predictions are closer than those of a table: a row that turns out too large
        makes room for others.
        """
        predicted, fits = self.candidates.predicted, self._fits.copy()
        while True:
            rows = np.flatnonzero(fits)
            speeds, memories = predicted.tokens_per_second[rows], predicted.peak_memory_bytes[rows]
            rows = rows[front_rows(speeds, memories)]
            found = [self.candidates[row] for row in rows.tolist()]
            too_large = [not self.fits(candidate) for candidate in found]
            if not any(too_large):
                return tuple(front_of(found, _metrics))
            fits[rows[too_large]] = False

    @cached_property
    def own(self) -> Candidate | None:
        """What the user has, with its prediction; None where it cannot run, or is not known."""
        if self.baseline is None or self.baseline.strategy is None:
            return None
        strategy = self.baseline.strategy
        predictor = self.candidates.predictor
        return Candidate(strategy=strategy, prediction=predictor.predict(strategy))

    @property
    def picks(self) -> dict[Goal, Candidate]:
        """The named strategies of the front; empty where nothing is expected to fit."""
        found = {which: pick_of(self.front, which, _metrics) for which in FRONT_PICKS}
        return {which: candidate for which, candidate in found.items() if candidate is not None}

    def mfu(self, candidate: Candidate) -> float:
        """Model FLOPs utilisation, of the data sheet's peak."""
        speed = candidate.prediction.tokens_per_second
        return model_flops_utilisation(speed, self.workload, self.hardware, candidate.strategy)

    def headroom(self, candidate: Candidate) -> float:
        """Share of a device's memory that is free at the expected peak."""
        return 1 - candidate.prediction.peak_device_bytes / self.hardware.device_memory_bytes

    def loss_class(self, candidate: Candidate) -> LossClass:
        """Whether the strategy can change what is learned."""
        return candidate.strategy.loss_class(self.reference)

    def record(self, candidate: Candidate) -> dict[str, Any]:
        """All that is said of a candidate, as JSON values."""
        return {
            "strategy": candidate.strategy.to_dict(),
            "strategy_in_words": str(candidate.strategy),
            "loss_class": str(self.loss_class(candidate)),
            "prediction": asdict(candidate.prediction),
            "surely_fits": self.surely_fits(candidate),
            "mfu": self.mfu(candidate),
            "headroom": self.headroom(candidate),
        }

    def faster_but_too_large(self, candidate: Candidate, num: int) -> list[tuple[Candidate, str]]:
        """The next faster strategies that do not fit, slowest first, each with the reason.

        Args:
            candidate: what they are faster than.
            num: how many at most.
        """
        pruner = PredictedMemoryPruner(
            self.question.memory_limit_bytes,
            host_memory_bytes=self.question.host_limit_bytes,
            disk_bytes=self.hardware.nvme_free_bytes,
        )
        speeds = self.candidates.predicted.tokens_per_second
        faster = np.flatnonzero(~self._fits & (speeds > candidate.prediction.tokens_per_second))
        slowest_first = faster[np.argsort(speeds[faster], kind="stable")]
        refused = (
            (other, reason)
            for other in map(self.candidates.__getitem__, slowest_first.tolist())
            if (reason := pruner.reason_to_skip(other.strategy, other.prediction, ()))
        )
        return list(itertools.islice(refused, num))

    def closest(self, num: int) -> list[Candidate]:
        """The candidates that miss the least memory, least first."""
        rows = self.candidates.predicted.closest(num, self.question.limits)
        return [self.candidates[row] for row in rows]

    @cached_property
    def _fits(self) -> NDArray[np.bool_]:
        return self._surely_fits if self._is_strict else self._expected_to_fit

    @cached_property
    def _expected_to_fit(self) -> NDArray[np.bool_]:
        fits: NDArray[np.bool_] = (
            self.candidates.predicted.missing_bytes(self.question.limits) == 0
        )
        return fits

    @cached_property
    def _surely_fits(self) -> NDArray[np.bool_]:
        most = self.candidates.predicted.peak_device_upper_bytes
        fits: NDArray[np.bool_] = most <= self.question.limits.device_bytes
        return fits & self._expected_to_fit

    @property
    def _is_strict(self) -> bool:
        return self.is_quick and bool(self._surely_fits.any())


def make_plan(
    question: Question,
    spec: HardwareSpec,
    space: SearchSpace,
    calibration: Calibration | None = None,
    script_of: ScriptSource | None = None,
    known: AnalyticPredictor | None = None,
) -> Plan:
    """Predict every strategy of the space.

    Args:
        question: on `spec.all_ranks`.
        spec: the hosts.
        space: of the same question; a space too large to list is drawn from.
        calibration: of the same question; predictions are the uncorrected ones if left out.
        script_of: as for `AnalyticPredictor`; a calibration has its own.
        known: a predictor of the same question, whose table is not worked out again.
    """
    known = known or AnalyticPredictor(question.workload, question.hardware)
    predictor: Calibration | AnalyticPredictor = calibration or known.simulating(script_of)
    return Plan(
        question=question,
        spec=spec,
        reference=space.reference,
        candidates=Candidates(
            table=space.table,
            predicted=predictor.predict_table(space.table),
            predictor=predictor,
        ),
        calibration=calibration,
        uncertainty=predictor.uncertainty,
        is_quick=script_of is None,
    )


def _metrics(candidate: Candidate) -> Metrics:
    return candidate.prediction.tokens_per_second, candidate.prediction.peak_memory_bytes
