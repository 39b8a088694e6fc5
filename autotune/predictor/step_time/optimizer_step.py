"""Time of the optimizer step: clipping, the update, and what offloading moves.

Does not know forward and backward, nor communication between ranks.
"""

from __future__ import annotations

from autotune.knob_values import MasterWeights, Offload, Optimizer
from autotune.machine.hardware import DeviceType, Hardware
from autotune.predictor.memory.precision import element_bytes
from autotune.predictor.memory.sharding import RankShard, zero_size
from autotune.predictor.memory.states import StatesModel
from autotune.predictor.step_time.effective_rates import effective_rates
from autotune.predictor.step_time.update_cost import update_cost
from autotune.question.workload import Workload
from autotune.space.strategy import Strategy

__all__ = ["OptimizerStepModel"]

_CPU_ADAM_BYTES = 30
"""Bytes of CPU Adam for one parameter: weight, gradient and moments read, weight and moments
written, bf16 copy."""

_HOST_WEIGHT_BYTES_PER_S = 2.4e9
"""Bytes per second of weights that come from the host one by one. Measured once, on one H100: 1.8
s for 2.2 GB twice, far from what pinned copies attain; why is not known."""

_NVME_BYTES_PER_PARAMETER = 24
"""Bytes on NVMe for one parameter: master weight and two moments in fp32, read and written."""

_AROUND_BYTES = {MasterWeights.FP32: 26, MasterWeights.BF16: 14}
"""Bytes of a step for one parameter, beside the optimizer's own step."""

_PREFETCH_S_PER_BYTE = 1.6e-12
"""Time per byte of managed memory to ask for pages that are there already: 3.4 µs for 2 MiB.
Measured on one H200 (`tests/benchmarks/optimizer_update.py`)."""

_NEWTON_SCHULZ_FLOPS = 30
"""FLOP of Muon for one parameter and each row of its matrix: five iterations of three products, of
2 n n m operations at most for n rows (`zero/muon/original_muon.py`)."""


class OptimizerStepModel:
    """The optimizer step of any strategy, for one workload on one machine."""

    def __init__(
        self,
        workload: Workload,
        hardware: Hardware,
        states: StatesModel,
    ) -> None:
        self._hidden_size = workload.model.hidden_size
        self._num_ranks = hardware.num_devices
        self._is_cpu = hardware.device_type is DeviceType.CPU
        self._states = states
        self._rates = effective_rates(hardware)
        self._bytes_per_s = self._rates.traffic_bytes_per_s

    def step_s(self, strategy: Strategy, shard: RankShard) -> float:
        """Copies, clipping and the update, of this rank's parameters.

        Bytes a parameter as `stage_1_and_2.py`, `step`, moves them: flattening 4, conversion 6,
        norm 2, clipping 8, copying back 6, all less with smaller masters; and the optimizer.
        """
        owned = self._owned(strategy, shard)
        around = _AROUND_BYTES[strategy.master_weights] * owned / self._bytes_per_s
        here = around + self.optimizer_s(strategy, shard)
        if strategy.offload_optimizer is Offload.NONE:
            return here
        away = strategy.offload_ratio
        adam_s = _CPU_ADAM_BYTES * self._num_ranks / self._rates.host_bytes_per_s
        return away * owned * adam_s + self.moved_s(strategy, shard) + (1 - away) * here

    def optimizer_s(self, strategy: Strategy, shard: RankShard) -> float:
        """The optimizer's own step on the device, of all parameters of this rank.

        The device computes while it moves: what takes longer counts.
        """
        owned, work, rates = self._owned(strategy, shard), update_cost(strategy), self._rates
        computed_s = work.instructions / rates.instructions_per_s
        seconds = owned * max(work.moved_bytes / self._bytes_per_s, computed_s)
        seconds += owned * work.paged_bytes * _PREFETCH_S_PER_BYTE
        if strategy.optimizer is Optimizer.MUON:
            part = owned / max(1, self._states.trained_of(strategy, shard))
            flops = _NEWTON_SCHULZ_FLOPS * self._hidden_size * shard.parameters.linears
            seconds += part * flops / self._rates.matmul_flops_per_s
        return seconds

    def moved_s(self, strategy: Strategy, shard: RankShard) -> float:
        """The part of `step_s` in which offloaded states travel: gradients, weights, files.

        All gradients go to the host, whatever part of the states is there (`stage3.py`,
        `partition_grads`), under ZeRO-3 in fp32.
        """
        if strategy.offload_optimizer is Offload.NONE:
            return 0.0
        away, rates = strategy.offload_ratio, self._rates
        down = 4 if strategy.zero_stage == 3 else 2
        seconds = down / rates.to_host_bytes_per_s + away * 2 / rates.to_device_bytes_per_s
        if strategy.offload_optimizer is Offload.NVME:
            files = _NVME_BYTES_PER_PARAMETER * self._num_ranks / rates.nvme_bytes_per_s
            seconds += away * files
        return self._owned(strategy, shard) * seconds

    def micro_step_s(self, strategy: Strategy, shard: RankShard) -> float:
        """Weights that are offloaded, brought to the device in forward and again in backward."""
        if strategy.offload_param is Offload.NONE or self._is_cpu:
            return 0.0
        passes = 2 + (strategy.checkpoint_interval > 0)
        part = shard.parameters.total / zero_size(strategy, self._num_ranks)
        moved = passes * element_bytes(strategy) * part
        seconds = moved / _HOST_WEIGHT_BYTES_PER_S
        if strategy.offload_param is Offload.NVME:
            seconds += moved * self._num_ranks / self._rates.nvme_bytes_per_s
        return seconds

    def gradients_s(self, strategy: Strategy, shard: RankShard, accumulation: int) -> float:
        """Gradients that accumulate on the host, over all micro-steps of a step.

        Stages 2 and 3 copy each micro-step's there; from the second on what is there comes to the
        device first, and goes back as the sum (`stage_1_and_2.py`,
        `async_accumulate_grad_in_cpu_via_gpu`; `stage3.py`, `partition_grads`). Stage 1 keeps them
        on the device. The last copy is part of `step_s`.
        """
        is_offloaded = strategy.offload_optimizer is not Offload.NONE and not self._is_cpu
        if not is_offloaded or strategy.zero_stage < 2 or accumulation == 1:
            return 0.0
        moved = element_bytes(strategy) * self._owned(strategy, shard)
        down = accumulation / self._rates.to_host_bytes_per_s
        return moved * (down + (accumulation - 1) / self._rates.to_device_bytes_per_s)

    def _owned(self, strategy: Strategy, shard: RankShard) -> float:
        trained = self._states.trained_of(strategy, shard)
        return trained / zero_size(strategy, self._num_ranks) if strategy.zero_stage else trained
