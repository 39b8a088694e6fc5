"""The summary of a study: its trials, and the figures that follow from them.

Does not know where trials are stored, nor how a figure is shown.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

from autotune.knob_values import LossClass
from autotune.machine.hardware import DEVICE_KINDS, DeviceType, Hardware
from autotune.question.goal import FRONT_PICKS, Goal
from autotune.question.own_training import OwnTraining
from autotune.question.workload import Workload
from autotune.space.strategy import Strategy
from autotune.study.baseline import Baseline
from autotune.study.confirmation import Comparison, comparisons
from autotune.study.pareto import confirmed_rival, pareto_front, pick
from autotune.study.prediction_error import PredictionError, errors_of, prediction_errors
from autotune.study.ties import Tie, tied_with, ties
from autotune.trials.trial import Trial, TrialState

__all__ = ["StudySummary", "model_flops_utilisation"]


@dataclass(frozen=True, kw_only=True)
class StudySummary:
    """A finished or running study."""

    name: str
    question: Mapping[str, object]
    """What was asked, by flag without its dashes."""
    workload: Workload
    hardware: Hardware
    reference: Strategy
    """The strategy whose loss-changing knobs all others are compared with."""
    trials: tuple[Trial, ...]
    elapsed_s: float
    """Wall time of all searches of this study together."""
    versions: Mapping[str, str]
    goal: Goal = Goal.FRONT
    """What the last search was after."""
    end_reason: str | None = None
    """Why the last search ended, in words."""
    own_training: OwnTraining | None = None
    """The user's own command, where trials ran that."""
    baseline: Baseline | None = None
    """What the user has, if a search was told."""
    folder: Path | None = None
    """The study folder as the user named it; None stands for `results/<name>`."""
    storage_url: str | None = None
    """Where trials are kept if not in the folder, as it may be shown."""

    @property
    def counts(self) -> dict[TrialState, int]:
        """Trials by state, all states named."""
        found = Counter(trial.state for trial in self.trials)
        return {state: found[state] for state in TrialState}

    @property
    def num_launched(self) -> int:
        """Trials that ran to an end of their own; those stopped from outside do not count."""
        return sum(
            trial.was_launched and trial.state is not TrialState.INTERRUPTED
            for trial in self.trials
        )

    @property
    def num_out_of_memory(self) -> int:
        """Launched trials that ran out of device or host memory."""
        return sum(trial.was_launched and trial.ran_out_of_memory for trial in self.trials)

    @property
    def out_of_memory_fraction(self) -> float | None:
        """Share of launched trials that ran out of memory."""
        return self.num_out_of_memory / self.num_launched if self.num_launched else None

    @property
    def trials_per_minute(self) -> float | None:
        """Launched trials for each minute of the search."""
        return 60 * self.num_launched / self.elapsed_s if self.elapsed_s > 0 else None

    @property
    def num_unfit(self) -> int:
        """Complete trials over the memory limit, or with a thrashing allocator."""
        complete = [trial for trial in self.trials if trial.state is TrialState.COMPLETE]
        return sum(not trial.fits for trial in complete)

    @property
    def prediction_errors(self) -> dict[str, PredictionError]:
        """How far what was predicted before each launch was off, by quantity."""
        errors = prediction_errors(self.trials)
        return {name: error for name, error in errors.items() if self._is_comparable(name)}

    def _is_comparable(self, quantity: str) -> bool:
        """On the CPU the resident set is measured: nobody can tell live tensors in it."""
        return quantity != "allocated" or self.hardware.device_type is not DeviceType.CPU

    @property
    def forced(self) -> list[Trial]:
        """Trials that ran although their prediction had pruned them."""
        return [trial for trial in self.trials if trial.is_forced]

    @property
    def reused(self) -> list[Trial]:
        """Trials that an earlier study measured."""
        return [trial for trial in self.trials if trial.reused_from is not None]

    @property
    def baseline_trial(self) -> Trial | None:
        """The trial of what the user has: the latest, if it was tried again."""
        if self.baseline is None or self.baseline.strategy is None:
            return None
        alike = [trial for trial in self.trials if trial.strategy == self.baseline.strategy]
        return max(
            alike, key=lambda trial: (trial.measurement is not None, trial.number), default=None
        )

    @cached_property
    def front(self) -> list[Trial]:
        """The Pareto front, fastest first."""
        return pareto_front(self.trials)

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """What runs in turns say about the order of the trials that were run again."""
        return comparisons([trial for trial in self.trials if trial.fits])

    @property
    def ties(self) -> list[Tie]:
        """Trials of the front that may be as fast as others."""
        return ties(self.front, self.comparisons)

    def as_fast_as(self, trial: Trial) -> list[Trial]:
        """The other trials of the front that a measured trial's throughput is a tie with."""
        return tied_with(trial, self.front, self.comparisons)

    @property
    def disturbed(self) -> list[Trial]:
        """Measured trials beside which the machine had other work."""
        return [t for t in self.trials if t.measurement is not None and t.measurement.disturbance]

    @property
    def interrupted(self) -> list[Trial]:
        """Trials that were stopped from outside."""
        return [trial for trial in self.trials if trial.state is TrialState.INTERRUPTED]

    @property
    def picks(self) -> dict[Goal, Trial]:
        """The named trials: of the front, and the one with the least energy where it is counted.

        Empty where nothing fits.
        """
        front = self.front
        found = {which: pick(front, which) for which in FRONT_PICKS}
        found[Goal.ENERGY] = self._least_energy
        return {which: trial for which, trial in found.items() if trial is not None}

    @property
    def _least_energy(self) -> Trial | None:
        counted = [(t.energy_j_per_token, t) for t in self.trials if t.fits]
        known = [(energy, trial) for energy, trial in counted if energy is not None]
        return min(known, key=itemgetter(0))[1] if known else None

    def best_for(self, goal: Goal) -> Trial | None:
        """The trial that a search was after: the pick of that name, of the front its fast end.

        None where nothing fits; for the least energy also where no device counted any.
        """
        return self.picks.get(goal.pick)

    @property
    def best(self) -> Trial | None:
        """What the last search was after, or else the fastest; None where nothing fits."""
        return self.best_for(self.goal) or self.best_for(Goal.THROUGHPUT)

    @property
    def incumbent_of_the_fastest(self) -> Trial | None:
        """The confirmed trial that may be as fast as the fastest, where that one ran only once."""
        fastest = self.best_for(Goal.THROUGHPUT)
        return confirmed_rival(self.trials, fastest) if fastest is not None else None

    def mfu(self, trial: Trial) -> float | None:
        """Model FLOPs utilisation; None where the peak rate of the device is not on record."""
        if trial.measurement is None or self.hardware.device_kind not in DEVICE_KINDS:
            return None
        return model_flops_utilisation(
            trial.tokens_per_second, self.workload, self.hardware, trial.strategy
        )

    def headroom(self, trial: Trial) -> float | None:
        """Share of the device's memory that was free at the peak, as the driver counts it."""
        if trial.measurement is None:
            return None
        return 1 - trial.measurement.peak_device_bytes / self.hardware.device_memory_bytes

    def loss_class(self, trial: Trial) -> LossClass:
        """Whether the trial's strategy can change what is learned."""
        return trial.strategy.loss_class(self.reference)

    def record(self, trial: Trial) -> dict[str, Any]:
        """A trial with what follows from it, as JSON values; None for NaN and infinity."""
        record = trial.to_dict() | {
            "strategy_in_words": str(trial.strategy),
            "loss_class": str(self.loss_class(trial)),
            "mfu": self.mfu(trial),
            "headroom": self.headroom(trial),
        }
        if trial.measurement is not None:
            record["measurement"] |= {
                "step_time_s": trial.measurement.step_time_s,
                "peak_memory_bytes": trial.measurement.peak_memory_bytes,
            }
            if trial.prediction is not None:
                errors = errors_of(trial.prediction, trial.measurement)
                record["prediction_errors"] = {
                    name: error for name, error in errors.items() if self._is_comparable(name)
                }
        finite: dict[str, Any] = _finite(record)
        return finite


def model_flops_utilisation(
    tokens_per_second: float, workload: Workload, hardware: Hardware, strategy: Strategy
) -> float:
    """Share of the devices' peak rate that goes into the model's own matrix products."""
    flops_per_s = tokens_per_second * _flops_per_token(workload, strategy)
    return flops_per_s / (hardware.flops_per_s * hardware.num_devices)


def _flops_per_token(workload: Workload, strategy: Strategy) -> float:
    """Matrix products that one token of training needs, without recomputation.

    6 N + 12 L H Q T: Chowdhery et al., PaLM (arXiv 2204.02311), appendix B, with N the weights
    that take part in matrix products. Frozen weights have no gradient of their own: 4 N.
    """
    model = workload.model
    attention = sum(i * o for i, o in model.attention_linears.values())
    mlp = sum(i * o for i, o in model.mlp_linears.values())
    if model.num_experts > 1:
        mlp *= model.experts_per_token
    layers = model.num_hidden_layers
    weights = layers * (attention + mlp) + model.vocab_size * model.hidden_size
    scores = 12 * layers * model.num_attention_heads * model.head_dim * workload.seq_len
    if strategy.lora_rank:
        adapters = workload.num_trainable_parameters(strategy.lora_rank, strategy.lora_targets)
        targets = workload.adapter_targets(strategy.lora_targets)
        # A token passes the adapters of the experts that it is routed to.
        idle = 1 - model.experts_per_token / model.num_experts
        adapters -= int(idle * model.num_expert_adapters(strategy.lora_rank, targets))
        return 4 * weights + 6 * adapters + scores
    return 6 * weights + scores


def _finite(value: Any) -> Any:
    """JSON has no word for NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    # Most values by far; to ask whether something is a Mapping takes longer.
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
