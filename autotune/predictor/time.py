"""Time of one optimizer step: a roofline of matrix products, memory traffic, links and the host.

Williams et al., Roofline (CACM 52(4), 2009), taken as a sum over kinds of work, since kernels of
one kind run after those of another. Does not know memory capacity.
"""

from __future__ import annotations

from autotune.hardware import Hardware
from autotune.knobs import Offload
from autotune.predictor.host import HostModel
from autotune.predictor.links import LinkModel
from autotune.predictor.memory import MemoryModel
from autotune.predictor.precision import group_bytes
from autotune.predictor.shares import RankShare
from autotune.predictor.states import StatesModel
from autotune.predictor.update import PCIE_BYTES_PER_S, UpdateModel
from autotune.predictor.work import Work, micro_step_work
from autotune.strategy import Strategy
from autotune.workload import Workload

__all__ = ["TimeModel"]

_MATMUL_FRACTION = 0.70
_ATTENTION_FRACTION = 0.30
_BANDWIDTH_FRACTION = 0.60
"""Attained parts of the peak rates. Measured: Llamas of 1.1 to 13 billion on one H100."""

_STREAM_FRACTION = 0.90
"""Of the peak bandwidth. Assumed: what plain copies and additions of large tensors attain, which
neither reduce nor convert."""


class TimeModel:
    """Step time of any strategy, for one workload on one machine."""

    def __init__(self, workload: Workload, hardware: Hardware, memory: MemoryModel) -> None:
        self._workload = workload
        self._hardware = hardware
        self._memory = memory
        self._states = StatesModel(workload, hardware)
        self._host = HostModel(workload, hardware)
        self._links = LinkModel(workload, hardware, self._states)
        self._update = UpdateModel(
            workload,
            hardware,
            self._states,
            bytes_per_s=hardware.memory_bytes_per_s * _BANDWIDTH_FRACTION,
            flops_per_s=hardware.flops_per_s * _MATMUL_FRACTION,
        )
        self._works: dict[tuple[object, ...], Work] = {}

    def step_time_s(self, strategy: Strategy) -> float:
        """Seconds of one optimizer step, all its micro-steps, the slowest rank.

        The stages of a pipeline wait for the slowest of them; m micro-batches pass p stages in the
        time of m + p - 1: Huang et al., GPipe (arXiv 1811.06965), section 2.3.
        """
        shares = self._states.shares(strategy)
        accumulation = self._states.accumulation(strategy)
        if len(shares) == 1:
            return accumulation * self._micro_step_s(
                strategy, shares[0], accumulation
            ) + self._once_s(strategy, shares[0], accumulation)
        micro_step = max(self._micro_step_s(strategy, share, accumulation) for share in shares)
        once = max(self._once_s(strategy, share, accumulation) for share in shares)
        return (accumulation + len(shares) - 1) * micro_step + once

    def _micro_step_s(self, strategy: Strategy, share: RankShare, accumulation: int) -> float:
        work = max(
            self._device_s(strategy, share),
            self._host.micro_step_s(strategy, share.num_layers, accumulation),
        )
        seconds = work + self._links.micro_step_s(strategy, share)
        if strategy.offload_param is not Offload.NONE:
            seconds += self._update.micro_step_s(strategy, share)
        if strategy.offload_checkpoints is not Offload.NONE:
            # Down and up again, on the stream that computes.
            moved = self._memory.host_bytes(strategy) / self._hardware.num_devices
            seconds += 2 * moved / PCIE_BYTES_PER_S
        return seconds

    def _once_s(self, strategy: Strategy, share: RankShare, accumulation: int) -> float:
        """What comes once a step."""
        return (
            self._update.step_s(strategy, share)
            + self._update.gradients_s(strategy, share, accumulation)
            + self._links.step_s(strategy, share)
        )

    def _device_s(self, strategy: Strategy, share: RankShare) -> float:
        """Forward and backward of one micro-batch on the device."""
        work = self._work(strategy, share)
        tokens = strategy.micro_batch_size * self._workload.seq_len
        tokens //= strategy.sequence_parallel_size
        rate, bandwidth = self._hardware.flops_per_s, self._hardware.memory_bytes_per_s
        flops_s = work.matmul_flops / _MATMUL_FRACTION + work.attention_flops / _ATTENTION_FRACTION
        traffic = tokens * work.traffic_bytes + work.fixed_bytes
        stream_s = tokens * work.stream_bytes / (bandwidth * _STREAM_FRACTION)
        return tokens * flops_s / rate + traffic / (bandwidth * _BANDWIDTH_FRACTION) + stream_s

    def _work(self, strategy: Strategy, share: RankShare) -> Work:
        key = (
            share,
            group_bytes(strategy),
            # fp8 takes no other bytes than the common precision.
            strategy.attention_precision,
            strategy.mlp_precision,
            strategy.lm_head_precision,
            strategy.tf32,
            strategy.fused_kernels,
            strategy.torch_compile,
            strategy.attention,
            strategy.checkpoint_interval > 0,
            strategy.checkpoint_scope,
            strategy.mlp_tiles > 1,
            strategy.loss_tiles > 1,
            strategy.lora_rank,
            strategy.lora_targets,
        )
        work = self._works.get(key)
        if work is None:
            adapters = self._states.trained_of(strategy, share) if strategy.lora_rank else 0
            work = self._works[key] = micro_step_work(
                self._workload, self._hardware, strategy, share, adapters
            )
        return work
