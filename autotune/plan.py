"""The answer for hardware that is not here: what is predicted of every strategy of a space.

Nothing is measured. Does not know how the answer is shown, nor torch.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from autotune.hardware import Hardware
from autotune.hardware_spec import HardwareSpec
from autotune.knobs import LossClass
from autotune.pareto import Objectives, Pick, front_of, pick_of
from autotune.plan_calibration import Lesson
from autotune.predictor import AnalyticPredictor
from autotune.pruners import PredictedMemoryPruner
from autotune.question import Question
from autotune.search_space import SearchSpace
from autotune.software import Software
from autotune.strategy import Strategy
from autotune.study_summary import model_flops_utilisation
from autotune.trial import Prediction
from autotune.workload import Workload

__all__ = ["ASSUMED_SOFTWARE", "Candidate", "Plan", "make_plan"]

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
class Plan:
    """What is predicted of one question, for every strategy that its space has."""

    question: Question
    """On the ranks of all hosts."""
    spec: HardwareSpec
    reference: Strategy
    """The strategy whose loss-changing knobs all others are compared with."""
    candidates: tuple[Candidate, ...]
    lesson: Lesson | None = None
    """What predictions were corrected by, if by anything."""

    @property
    def workload(self) -> Workload:
        """What is trained."""
        return self.question.workload

    @property
    def hardware(self) -> Hardware:
        """The devices of all hosts."""
        return self.question.hardware

    def fits(self, candidate: Candidate) -> bool:
        """Whether it is expected to fit device and host, by the rule that a search launches by."""
        return not candidate.prediction.missing_bytes(**self.question.limits)

    def surely_fits(self, candidate: Candidate) -> bool:
        """Whether it fits even if it needs as much as it may."""
        prediction, limit = candidate.prediction, self.question.memory_limit_bytes
        return self.fits(candidate) and prediction.peak_device_upper_bytes <= limit

    @cached_property
    def front(self) -> tuple[Candidate, ...]:
        """The predicted Pareto front, fastest first; empty where nothing is expected to fit."""
        return tuple(front_of([c for c in self.candidates if self.fits(c)], _objectives))

    @property
    def picks(self) -> dict[Pick, Candidate]:
        """The named strategies of the front; empty where nothing is expected to fit."""
        found = {which: pick_of(self.front, which, _objectives) for which in Pick}
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
            host_memory_bytes=self.hardware.host_memory_bytes,
            disk_bytes=self.hardware.nvme_free_bytes,
        )
        speed = candidate.prediction.tokens_per_second
        faster = [c for c in self.candidates if c.prediction.tokens_per_second > speed]
        refused = (
            (other, reason)
            for other in sorted(faster, key=_speed)
            if (reason := pruner.reason_to_skip(other.strategy, other.prediction, ()))
        )
        return list(itertools.islice(refused, num))


def make_plan(
    question: Question, spec: HardwareSpec, space: SearchSpace, lesson: Lesson | None = None
) -> Plan:
    """Predict every strategy of the space.

    Args:
        question: on `spec.all_ranks`.
        spec: the hosts.
        space: of the same question; a space too large to list is drawn from.
        lesson: of the same question; predictions are the uncorrected ones if left out.
    """
    predictor = lesson or AnalyticPredictor(question.workload, question.hardware)
    return Plan(
        question=question,
        spec=spec,
        reference=space.reference,
        candidates=tuple(
            Candidate(strategy=strategy, prediction=predictor.predict(strategy))
            for strategy in space.strategies()
        ),
        lesson=lesson,
    )


def _speed(candidate: Candidate) -> float:
    return candidate.prediction.tokens_per_second


def _objectives(candidate: Candidate) -> Objectives:
    return candidate.prediction.tokens_per_second, candidate.prediction.peak_memory_bytes
