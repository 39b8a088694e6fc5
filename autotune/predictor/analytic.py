"""The predictor from first principles: it needs no trial and learns from none.

Does not know which strategies are tried, nor how far off it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from autotune.knob_values import Batching, Offload
from autotune.machine.hardware import DeviceType, Hardware
from autotune.predictor.arithmetic import Ask, ask_about
from autotune.predictor.memory.host_memory import HostMemory, host_memory
from autotune.predictor.memory.peak import MemoryModel
from autotune.predictor.memory.peak_memory import PeakMemory
from autotune.predictor.memory.precision import FP32_BYTES, element_bytes
from autotune.predictor.memory.sharding import RankShard
from autotune.predictor.reserved.simulation import ReservedModel, ReservedPeak, ScriptSource
from autotune.predictor.step_time.model import StepParts, TimeModel
from autotune.predictor.table import Explanation, explain_table
from autotune.predictor.uncertainty.bounds import log_bounds, techniques
from autotune.predictor.uncertainty.coefficients import TIME_COEFFICIENTS, TimeCurve
from autotune.predictor.uncertainty.map_fit import prior_fit
from autotune.question.workload import Workload
from autotune.space.strategy import Strategy
from autotune.space.strategy_table import StrategyTable
from autotune.trials.prediction_table import PredictionTable
from autotune.trials.trial import Prediction

__all__ = ["DEVICE_OVERHEAD_BYTES", "AnalyticPredictor"]

DEVICE_OVERHEAD_BYTES = {DeviceType.CUDA: 1_806_000_000, DeviceType.CPU: 350_000_000}
"""CUDA: 1.68 GiB, what NVML showed beyond torch's reserved memory in 108 trials on an H100
(context, kernels, NCCL); 1.66 to 1.73 in all without managed memory. CPU: the resident set of a
rank just forked."""

_NUM_LATEST = 1024
"""Explanations that are cached: a study learns from the same trials repeatedly."""

_PRIOR_FIT = prior_fit(TIME_COEFFICIENTS)
"""The prior of the coefficients of the step time."""


class AnalyticPredictor:
    """Memory from what DeepSpeed and the layers allocate, time from a roofline.

    Args:
        workload: what is trained.
        hardware: what it runs on.
        script_of: gives the sequence of a model's allocations; `profile.script_of` traces it,
            which takes seconds the first time. None: reserved memory is estimated by a formula.
        traces: whether the activations of a new model are traced, which takes seconds. Otherwise
            they are counted, with wider bounds, and `uncertainty` says so.
    """

    def __init__(
        self,
        workload: Workload,
        hardware: Hardware,
        script_of: ScriptSource | None = None,
        *,
        traces: bool = True,
    ) -> None:
        self._workload = workload
        self._hardware = hardware
        self._is_cpu = hardware.device_type is DeviceType.CPU
        # A CPU has no data sheet here.
        self._knows_rates = not self._is_cpu or hardware.rates is not None
        self._num_ranks = hardware.num_devices
        self._num_nodes = hardware.num_nodes
        self._memory = MemoryModel(workload, hardware, traces=traces)
        self._reserved = script_of and ReservedModel(
            workload, hardware, self._memory.states, script_of, self._memory.token_model.of
        )
        self._time = TimeModel(workload, hardware, self._memory)
        self._explained = lru_cache(_NUM_LATEST)(self._explain)
        self._latest: tuple[StrategyTable, PredictionTable] | None = None
        self._device_overhead_bytes = DEVICE_OVERHEAD_BYTES[hardware.device_type]

    def simulating(self, script_of: ScriptSource | None) -> AnalyticPredictor:
        """A predictor of the same question that simulates reserved memory, and may trace.

        It takes over the last table, since tables are not simulated. It computes the table again
        if activations were a guess (`uncertainty`), because tracing may replace the guess.
        """
        other = AnalyticPredictor(self._workload, self._hardware, script_of)
        if self.uncertainty is None:
            other._latest = self._latest
        return other

    @property
    def uncertainty(self) -> str | None:
        """Why the activations of some strategy are a guess; None if none are."""
        return self._memory.token_model.uncertainty

    def predict(self, strategy: Strategy) -> Prediction:
        """Peak memory and step time of one strategy, with their uncertainty."""
        return self.explain(strategy)[0]

    def explain(self, strategy: Strategy) -> tuple[Prediction, StepParts]:
        """The prediction of one strategy, and the parts of its step time."""
        return self._explained(strategy, self.simulated(strategy))

    def simulated(self, strategy: Strategy) -> ReservedPeak | None:
        """The simulated peak of the allocator; None if it cannot be simulated."""
        return self._reserved.peak(strategy) if self._reserved else None

    def peak_memory(self, strategy: Strategy) -> PeakMemory:
        """The peak of the worst rank: simulated if its allocations are known, else a formula's."""
        return self._peak(strategy, self.simulated(strategy))

    def _peak(self, strategy: Strategy, simulated: ReservedPeak | None) -> PeakMemory:
        counted = self._memory.peak(strategy)
        if simulated is None:
            return counted
        return simulated.instead_of(counted, num_ranks=self._num_ranks)

    def _explain(
        self, strategy: Strategy, simulated: ReservedPeak | None
    ) -> tuple[Prediction, StepParts]:
        peak, parts = self._peak(strategy, simulated), self._time.parts(strategy)
        shards = self._memory.states.shards(strategy)
        unproven = tuple(self.techniques(strategy).values())
        below, above = log_bounds(TimeCurve(parts), _PRIOR_FIT, unproven)
        prediction = Prediction(
            **self._figures(ask_about(strategy), shards, peak, parts),
            step_time_lower_s=parts.total_s * math.exp(-below),
            step_time_upper_s=parts.total_s * math.exp(above),
            is_time_known=self._knows_rates,
            step_parts_s=self._time.activities_s(strategy, parts),
            moment=_moment_in_words(peak.moment, strategy),
            breakdown_bytes=peak.breakdown_bytes,
            is_simulated=simulated is not None,
        )
        return prediction, parts

    def techniques(self, strategy: Strategy) -> Mapping[str, float]:
        """Techniques of a strategy with few trials so far, and the deviation that each adds."""
        has_experts = self._workload.model.expert_parameters > 0
        return techniques(
            strategy,
            self._num_ranks,
            has_experts=has_experts,
            has_lengths=self._workload.lengths is not None,
        )

    def predict_table(self, table: StrategyTable) -> PredictionTable:
        """Peak memory and step time of every strategy of a table, in its order.

        The last table is cached: several parts of a search ask for the same table.
        """
        if self._latest is None or self._latest[0] is not table:
            parts = [predicted for predicted, _ in self.explain_table(table)]
            self._latest = table, PredictionTable.joined(parts)
        return self._latest[1]

    def explain_table(self, table: StrategyTable) -> Iterator[tuple[PredictionTable, Explanation]]:
        """Predictions of a table block by block, each with its explanation."""
        for part in explain_table(table, self._memory, self._time):
            shards = part.table.map(self._memory.states.shards)
            yield PredictionTable(**self._figures(part.ask, shards, part.peak, part.parts)), part

    def _figures(
        self, ask: Ask, shards: Any, peak: PeakMemory, parts: StepParts
    ) -> dict[str, Any]:
        """Figures of a prediction, by field name: of one strategy, or of a table."""
        step_time_s = parts.total_s
        host: HostMemory = ask(self._host_memory, shards)
        return {
            "peak_memory_bytes": peak.expected_bytes,
            "peak_allocated_bytes": peak.allocated_bytes,
            "peak_memory_lower_bytes": peak.lower_bytes,
            "peak_memory_upper_bytes": peak.upper_bytes,
            "device_overhead_bytes": self._device_overhead_bytes + peak.managed_bytes,
            "host_memory_bytes": host.expected,
            "host_memory_lower_bytes": host.lower,
            "host_memory_upper_bytes": host.upper,
            "host_save_bytes": host.save,
            # Every host has the same number of ranks, which offload the same.
            "disk_bytes": -(-ask(self._disk_bytes) // self._num_nodes),
            "step_time_s": step_time_s,
            "tokens_per_second": ask(self._tokens_fed) / step_time_s,
        }

    def _host_memory(self, strategy: Strategy, shards: tuple[RankShard, ...]) -> HostMemory:
        """Host memory of a strategy on each host; 0 on a CPU, where the peak includes it."""
        if self._is_cpu:
            return HostMemory(expected=0, lower=0, upper=0, save=0)
        return host_memory(
            self._workload,
            strategy,
            num_ranks=self._num_ranks,
            num_nodes=self._num_nodes,
            accumulation=self._memory.states.accumulation(strategy),
            activations=self._memory.host_bytes(ask_about(strategy), shards),
        )

    def _tokens_fed(self, strategy: Strategy) -> int:
        return self._workload.tokens_fed(is_packed=strategy.batching is Batching.PACKED)

    def _disk_bytes(self, strategy: Strategy) -> int:
        """Bytes on NVMe of all ranks together: master weights, moments, gradients, and weights.

        The optimizer is counted with 16 bytes a parameter. Measured: 15.0, because gradients and
        weights of less than 1 MiB stay in memory.
        """
        if not strategy.uses_nvme:
            return 0
        workload = self._workload
        trained = workload.num_trainable_parameters(strategy.lora_rank, strategy.lora_targets)
        total = 0
        if strategy.offload_optimizer is Offload.NVME:
            total += 4 * FP32_BYTES * trained
        if strategy.offload_param is Offload.NVME:
            total += element_bytes(strategy) * workload.model.num_held_parameters
        return total


def _moment_in_words(moment: str, strategy: Strategy) -> str:
    """The name of a moment for people: with checkpoints, backward peaks in recomputation."""
    is_repeated = moment == "backward" and strategy.checkpoint_interval > 0
    return "recomputation of a layer" if is_repeated else moment
