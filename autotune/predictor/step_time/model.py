"""Time of one optimizer step: a roofline of matrix products, memory traffic, links and the host.

Based on Williams et al., Roofline (CACM 52(4), 2009). Times of different kinds of work are added,
because their kernels run one after the other. Does not know memory capacity.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from autotune.knob_values import Offload
from autotune.machine.hardware import Hardware
from autotune.predictor.arithmetic import (
    Ask,
    Stages,
    StagesOfOne,
    ask_about,
    chosen,
    greatest,
    next_power_of_2,
)
from autotune.predictor.memory.gradients import overlaps
from autotune.predictor.memory.micro_batch import computed_tokens
from autotune.predictor.memory.peak import MemoryModel
from autotune.predictor.memory.sharding import RankShard
from autotune.predictor.step_time.communication import CommunicationModel
from autotune.predictor.step_time.effective_rates import ATTENTION_HALF_TOKENS, effective_rates
from autotune.predictor.step_time.launch_overhead import LaunchOverheadModel
from autotune.predictor.step_time.operation_counts import OperationCounts, micro_step_counts
from autotune.predictor.step_time.optimizer_step import OptimizerStepModel
from autotune.predictor.step_time.repeats import Repeats, repeats
from autotune.question.workload import Workload
from autotune.space.read_knobs import ReadCache
from autotune.space.strategy import Strategy

__all__ = ["StepParts", "TimeModel"]

_NOTHING = Repeats(attention=0, mlp=0, rest=0, head=0)
_ALL = Repeats(attention=1, mlp=1, rest=1, head=1)
"""Repetitions for finding the time of forward: a step that repeats all of it is longer by this
time. A fused loss is never repeated; its bytes count as backward's."""

_ROUNDING_S = 1e-12
"""Times below this are rounding errors, and left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepParts:
    """The parts of one optimizer step of the slowest rank."""

    num_micro_steps: float
    """Number of micro-steps in sequence; the filling of a pipeline counts as additional ones."""
    compute_s: float
    """Seconds of a micro-step: matrix products and attention."""
    traffic_s: float
    """Seconds of a micro-step: other traffic of the device's memory."""
    link_s: float
    """Seconds of a micro-step: communication between ranks for which the device waits."""
    host_s: float
    """Seconds of a micro-step: the least time that the host takes to launch it."""
    has_hooks: bool
    """Whether `host_s` includes ZeRO-3's hooks of every module."""
    forward_launch_fraction: float
    """The fraction of `host_s` before backward if host and device start together, as under ZeRO,
    which waits for its streams after every backward; otherwise 0."""
    backward_device_fraction: float
    """The fraction of the device's work in backward if both start together; otherwise 1."""
    moved_s: float
    """Seconds of a micro-step: transfers between host and device."""
    update_s: float
    """Seconds of a step: the optimizer on the device."""
    update_host_s: float
    """Seconds of a step: the host launches the optimizer while the device waits."""
    link_once_s: float
    """Seconds of a step: communication between ranks."""
    moved_once_s: float
    """Seconds of a step: transfers between host and device, and the optimizer on the host."""

    @property
    def device_s(self) -> float:
        """Seconds of a micro-step in which the device works, or waits for other ranks."""
        return self.compute_s + self.traffic_s + self.link_s

    @property
    def micro_step_s(self) -> float:
        """Seconds of a micro-step: the device works while the host launches.

        If both start together, backward does not begin before forward is launched.
        """
        after_forward_s = (
            self.forward_launch_fraction * self.host_s
            + self.backward_device_fraction * self.device_s
        )
        launched_s: float = greatest(self.device_s, self.host_s, after_forward_s)
        return launched_s + self.moved_s

    @property
    def once_s(self) -> float:
        """Seconds of the work that is done once in a step."""
        return self.update_s + self.update_host_s + self.link_once_s + self.moved_once_s

    @property
    def total_s(self) -> float:
        """Seconds of the step."""
        return self.num_micro_steps * self.micro_step_s + self.once_s


class TimeModel:
    """Step time of any strategy, for one workload on one machine."""

    def __init__(self, workload: Workload, hardware: Hardware, memory: MemoryModel) -> None:
        self._workload = workload
        self._hardware = hardware
        self._memory = memory
        self._states = memory.states
        self._host = LaunchOverheadModel(workload, hardware)
        self._links = CommunicationModel(workload, hardware, self._states)
        self._update = OptimizerStepModel(workload, hardware, self._states)
        self._rates = effective_rates(hardware)
        self._counts = ReadCache(self._count)

    def parts(self, strategy: Strategy) -> StepParts:
        """The parts of one optimizer step of the slowest rank."""
        shards = self._states.shards(strategy)
        ask, accumulation = ask_about(strategy), self._states.accumulation(strategy)
        parts = (self.parts_of(ask, shard, shards, accumulation) for shard in shards)
        return self.of_all_stages(StagesOfOne(parts))

    @staticmethod
    def of_all_stages(stages: Stages) -> StepParts:
        """The parts of one optimizer step of a pipeline, from those of its stages.

        Stages wait for the slowest stage, and the first micro-batch passes all of them: m
        micro-batches pass p equal stages in the time of m + p - 1 micro-steps. Huang et al., GPipe
        (arXiv 1811.06965), section 2.3.

        Args:
            stages: what `parts_of` gives for each stage.
        """
        slowest: StepParts = stages.greatest(lambda parts: parts.micro_step_s)
        last: StepParts = stages.greatest(lambda parts: parts.once_s)
        in_turn = stages.total(lambda parts: parts.micro_step_s) / slowest.micro_step_s
        return replace(
            slowest,
            num_micro_steps=slowest.num_micro_steps + in_turn - 1,
            update_s=last.update_s,
            update_host_s=last.update_host_s,
            link_once_s=last.link_once_s,
            moved_once_s=last.moved_once_s,
        )

    def activities_s(self, strategy: Strategy, parts: StepParts) -> dict[str, float]:
        """Seconds of one optimizer step by activity; they sum up to `parts.total_s`.

        If the host is too slow to keep the device busy, the host's time counts as forward and
        backward. Filling and draining a pipeline is an activity of its own.
        """
        shards = self._states.shards(strategy)
        accumulation = self._states.accumulation(strategy)
        shard = max(shards, key=lambda shard: sum(self._device_s(strategy, shard)))
        tokens = self._tokens(strategy)
        own, plain, again = (
            sum(self._seconds(tokens, self._work(strategy, shard, times)))
            for times in (None, _NOTHING, _ALL)
        )
        once = max(shards, key=lambda shard: self._update.step_s(strategy, shard))
        away_s = self._update.moved_s(strategy, once)
        optimizer_s = self._update.step_s(strategy, once) - away_s
        # If the host is slower than the device, communication is hidden.
        link_s = parts.link_s if parts.device_s > parts.host_s else 0.0
        worked = parts.micro_step_s - parts.moved_s - link_s
        seconds = {
            "forward": accumulation * worked * (again - plain) / own,
            "backward": accumulation * worked * (2 * plain - again) / own,
            "recomputation": accumulation * worked * (own - plain) / own,
            "optimizer": optimizer_s + parts.update_host_s,
            "communication": accumulation * link_s + parts.link_once_s,
            "host transfer": accumulation * parts.moved_s
            + max(0.0, parts.update_s + parts.moved_once_s - optimizer_s),
            "pipeline bubble": (parts.num_micro_steps - accumulation) * parts.micro_step_s,
        }
        # The stage that computes longest may not be the one that updates longest.
        scale = parts.total_s / sum(seconds.values())
        return {name: scale * length for name, length in seconds.items() if length > _ROUNDING_S}

    def parts_of(self, ask: Ask, shard: Any, shards: Any, accumulation: Any) -> StepParts:
        """The parts of one optimizer step of one stage.

        Args:
            ask: about one strategy, or about a table of them.
            shard: the shard of the stage.
            shards: the shards of all stages.
            accumulation: micro-steps of one optimizer step.
        """
        compute_s, traffic_s = self._seconds(ask(self._tokens), ask(self._work, shard))
        # Activations are copied to the host and back on the stream that computes.
        offloaded = self._memory.host_bytes(ask, shards) / self._hardware.num_devices
        moved_s = ask(self._update.micro_step_s, shard)
        moved_s += offloaded / self._rates.to_host_bytes_per_s
        moved_s += offloaded / self._rates.to_device_bytes_per_s
        update_s, is_away = ask(self._update.step_s, shard), ask(_is_away)
        gradients_s = ask(self._update.gradients_s, shard, accumulation)
        return StepParts(
            num_micro_steps=ask(_num_micro_steps, accumulation),
            compute_s=compute_s,
            traffic_s=traffic_s,
            link_s=ask(self._links.micro_step_s, shard),
            host_s=ask(self._launch_s, shard),
            has_hooks=ask(_has_hooks),
            forward_launch_fraction=ask(self._forward_launch_fraction),
            backward_device_fraction=ask(self._backward_device_fraction),
            moved_s=moved_s,
            update_s=chosen(is_away, 0.0, update_s),
            update_host_s=ask(self._launch_update_s, shard),
            link_once_s=ask(self._links.step_s, shard),
            moved_once_s=gradients_s + chosen(is_away, update_s, 0.0),
        )

    def _tokens(self, strategy: Strategy) -> float:
        return computed_tokens(self._workload, strategy)

    def _launch_s(self, strategy: Strategy, shard: RankShard) -> float:
        return self._host.micro_step_s(strategy, shard.num_layers)

    def _starts_together(self, strategy: Strategy) -> bool:
        """Whether the host waits for the device after every backward.

        `independent_gradient_partition_epilogue` of `stage3.py` and of `stage_1_and_2.py`.
        """
        overlaps_here = overlaps(strategy) and self._hardware.num_devices > 1
        return strategy.zero_stage == 3 or (strategy.zero_stage == 2 and overlaps_here)

    def _forward_launch_fraction(self, strategy: Strategy) -> float:
        return self._host.forward_fraction(strategy) if self._starts_together(strategy) else 0.0

    def _backward_device_fraction(self, strategy: Strategy) -> float:
        """Backward takes twice forward's time, or as long as forward if weights are frozen."""
        if not self._starts_together(strategy):
            return 1.0
        times = repeats(strategy)
        backward = (1 if strategy.lora_rank else 2) + (times.attention + times.mlp) / 2
        return backward / (1 + backward)

    def _launch_update_s(self, strategy: Strategy, shard: RankShard) -> float:
        return self._host.step_s(strategy, shard.num_layers)

    def _device_s(self, strategy: Strategy, shard: RankShard) -> tuple[float, float]:
        """Seconds of one micro-batch on the device: of matrix products, and of the rest."""
        return self._seconds(self._tokens(strategy), self._work(strategy, shard))

    def _seconds(self, tokens: float, work: OperationCounts) -> tuple[float, float]:
        rates = self._rates
        longer = 1 + ATTENTION_HALF_TOKENS / work.attended_tokens
        products_s = work.matmul_flops / rates.matmul_flops_per_s
        products_s += longer * work.attention_flops / rates.attention_flops_per_s
        moved = tokens * work.traffic_bytes + work.fixed_bytes + work.weight_bytes
        moved_s = moved / rates.traffic_bytes_per_s
        moved_s += tokens * work.stream_bytes / rates.stream_bytes_per_s
        moved_s += work.num_kernels * rates.kernel_s + self._pieces_s(tokens, work)
        return tokens * products_s, moved_s

    def _pieces_s(self, tokens: float, work: OperationCounts) -> float:
        """Additional seconds of a fused loss beyond its matrix products, if its pieces are small.

        Tokens are divided evenly, and a piece is rounded up to a power of two. In a small piece,
        reading the head's weights takes longer than multiplying by them.
        """
        part = tokens / greatest(1, work.loss_pieces)
        num_pieces = chosen(work.loss_pieces > 0, tokens / next_power_of_2(part), 0.0)
        read_s = num_pieces * work.loss_piece_bytes / self._rates.stream_bytes_per_s
        multiplied_s = tokens * work.loss_flops / self._rates.matmul_flops_per_s
        longer_s: float = greatest(0.0, read_s - multiplied_s)
        return longer_s

    def _work(
        self, strategy: Strategy, shard: RankShard, times: Repeats | None = None
    ) -> OperationCounts:
        return self._counts(strategy, shard, times)

    def _count(
        self, strategy: Strategy, shard: RankShard, times: Repeats | None
    ) -> OperationCounts:
        adapters = self._states.trained_of(strategy, shard) if strategy.lora_rank else 0
        return micro_step_counts(self._workload, self._hardware, strategy, shard, adapters, times)


def _num_micro_steps(strategy: Strategy, accumulation: int) -> int:
    return accumulation


def _has_hooks(strategy: Strategy) -> bool:
    return strategy.zero_stage == 3


def _is_away(strategy: Strategy) -> bool:
    return strategy.offload_optimizer is not Offload.NONE
