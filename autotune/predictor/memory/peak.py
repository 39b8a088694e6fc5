"""Peak memory of one rank: the largest of a few moments of a training step.

Each moment holds resident tensors (weights, master weights, optimizer states) and tensors of its
own. Does not know time, nor what any trial measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autotune.knob_values import CheckpointScope, Experts, Offload
from autotune.machine.hardware import DeviceType, Hardware
from autotune.predictor.arithmetic import (
    Ask,
    Stages,
    StagesOfOne,
    ask_about,
    greatest,
    least,
    whole,
)
from autotune.predictor.memory.held_states import States
from autotune.predictor.memory.micro_batch import longest_tokens
from autotune.predictor.memory.peak_memory import PeakMemory
from autotune.predictor.memory.precision import element_bytes, group_bytes
from autotune.predictor.memory.sharding import RankShard, zero_size
from autotune.predictor.memory.states import StatesModel
from autotune.predictor.memory.token_model import TokenModel
from autotune.question.workload import Workload
from autotune.space.strategy import Strategy

__all__ = ["HeldBytes", "MemoryModel"]

_MIB = 2**20

_LEAST_FRACTIONS: Mapping[str, float] = {
    "weights": 0.98,
    "second copy of weights": 0.9,
    "master weights": 0.98,
    "optimizer states": 0.98,
    "offload buffers": 0.5,
    "workspace": 0.25,
    "gradients": 0.9,
    "gradient buckets": 0.5,
    "activations": 0.85,
    "logits": 0.85,
    "gathered weights": 0.0,
    "flattened weights": 0.0,
}
"""The fraction of each part that is certain, for the lower bound: arithmetic is certain, the
unusual code of a layer is not."""

_UNCERTAIN_FRACTION = 0.75
"""Uncertainty of activations that were counted for another architecture, as a fraction of them.

Measured with ten architectures on one H100: the largest error was that of GPT-2, 0.7."""

_LEAST_FRACTION_CPU = 0.6
"""Fraction of a CPU's peak that is certain: a CPU counts touched pages only, and its kernels keep
other tensors for backward."""

_FRAGMENTED_FRACTION = 0.25
_FRAGMENTED_FRACTION_FUSED = 0.05
"""Fraction of the memory of other moments that is fragmented, and so unusable, at the peak.

Measured in 26 trials on one H100 with expandable segments. Pooled: 0.36 without Liger (0.06 to
0.24 at large batches, about 1 where the optimizer step is the peak), 0.06 with Liger.
"""

_WORKSPACE_BYTES = 64 * _MIB
"""Workspace of cuBLAS for the threads of forward and backward, from PyTorch's allocator.

It is Hopper's default (`ATen/cuda/CublasHandlePool.cpp`), seen in allocation histories of an H100.
Older GPUs take 8 MiB for each thread.
"""

_ALLOCATOR_BYTES = 192 * _MIB
"""Bytes of the rounding of blocks, and of the pool of small blocks."""

_BUCKETS_BEHIND = 2
_MOST_BUCKETS_BEHIND = 3
"""Buckets of ZeRO-3's gradients by which the device is behind the host in backward: the
simulation's value, and the maximum. The host waits for the third (`stage3.py`,
`max_param_reduce_events`)."""

_PROCESS_BYTES = 100 * _MIB
_PROCESS_UPPER_BYTES = 800 * _MIB
"""Growth of a CPU rank's resident set beside tensors: libraries, threads, gloo's buffers.

Measured: 70 to 160 MiB in four trials of two ranks with the presets tiny and 125M.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldBytes:
    """Bytes of one token's activations on one rank at each moment, and related facts."""

    loss: int
    logits: int
    """Bytes that are alive only around the loss."""
    backward: int
    end_of_backward: int
    first_loss: int
    """Bytes in the loss of the very first step if they differ; else 0."""
    has_early_gradient: bool
    """Whether the output projection has a gradient already at the loss."""
    fragmented_fraction: float
    """Fraction of the memory of other moments that the allocator cannot use again."""
    gathered_to_save: int
    """Bytes of a rank, not of a token: one whole weight, while a checkpoint is saved."""
    uncertain_fraction: float
    """Additional uncertainty of activations, as a fraction of them."""


class MemoryModel:
    """Peak memory of any strategy, for one workload on one machine.

    Args:
        workload: what is trained.
        hardware: what it runs on.
        traces: as for `TokenModel`.
    """

    def __init__(
        self,
        workload: Workload,
        hardware: Hardware,
        *,
        traces: bool = True,
    ) -> None:
        self._workload = workload
        self._num_ranks = hardware.num_devices
        self._is_cpu = hardware.device_type is DeviceType.CPU
        self.states = StatesModel(workload, hardware)
        """The model of states; other models share it, because it caches its counts."""
        self.token_model = TokenModel(workload, is_cpu=self._is_cpu, traces=traces)

    def peak(self, strategy: Strategy) -> PeakMemory:
        """The peak of the worst rank, with its bounds and parts."""
        ask, is_accumulating = ask_about(strategy), self.states.accumulation(strategy) > 1
        shards = self.states.shards(strategy)
        peaks = (self.peak_of(ask, shard, is_accumulating) for shard in shards)
        return self.of_all_stages(StagesOfOne(peaks))

    @staticmethod
    def of_all_stages(stages: Stages) -> PeakMemory:
        """The largest of the peaks that `peak_of` gives for the stages of a pipeline."""
        worst: PeakMemory = stages.greatest(lambda peak: peak.expected_bytes)
        return worst

    def tokens(self, strategy: Strategy) -> int:
        """Tokens of one micro-batch on one rank, at most."""
        return longest_tokens(self._workload, strategy)

    def _busiest_bytes(self, strategy: Strategy) -> int:
        """Bytes of the loop over experts where one expert has all tokens, at most.

        Grouped and batched products hold as many rows however these are spread.
        """
        shape = self._workload.model
        if not shape.expert_parameters:
            return 0
        if strategy.experts_implementation is not Experts.EAGER:
            return 0
        row = 3 * shape.hidden_size + 4 * shape.intermediate_size
        return group_bytes(strategy).mlp * self.tokens(strategy) * row

    def host_bytes(self, ask: Ask, shards: Any) -> int:
        """Bytes of activations that are moved to the host, of all ranks together.

        Args:
            ask: about one strategy, or about a table of them.
            shards: the shards of all stages.
        """
        of_token, tokens = ask(self._host_token_bytes, shards), ask(self.tokens)
        num_bytes: int = of_token * tokens * self._num_ranks // ask(_num_stages, shards)
        return num_bytes

    def _host_token_bytes(self, strategy: Strategy, shards: tuple[RankShard, ...]) -> int:
        """Bytes of one token that are moved to the host, on one rank of each stage."""
        if self._is_cpu or strategy.offload_checkpoints is Offload.NONE:
            return 0
        token = self.token_model.of(strategy)
        return sum(
            shard.num_in_flight
            * (
                _num_inputs(strategy, shard) * token.layer_input
                + shard.num_layers * token.host_layer
            )
            for shard in shards
        )

    def peak_of(self, ask: Ask, shard: Any, is_accumulating: Any) -> PeakMemory:
        """The peak on the ranks of one stage.

        Args:
            ask: about one strategy, or about a table of them.
            shard: the shard of the stage.
            is_accumulating: whether an optimizer step has several micro-steps.
        """
        states: States = ask(self.states.of_shard, shard, is_accumulating)
        held: HeldBytes = ask(self._held, shard)
        moments = self._moments(states, held, ask(self.tokens))
        totals = {name: sum(parts.values()) for name, parts in moments.items()}
        allocated = greatest(*totals.values())
        built = totals["initialisation"] + states.init_beside
        # In the worst case the optimizer step cannot use any memory that backward has freed.
        apart = greatest(totals["loss"], totals["backward"])
        apart += states.step_buffers + states.offload_copies
        lower = greatest(
            *(
                sum(_LEAST_FRACTIONS[part] * size for part, size in parts.items())
                for parts in moments.values()
            )
        )
        widest = greatest(held.loss + held.logits, held.backward)
        uncertain = held.uncertain_fraction * ask(self.tokens) * widest
        if self._is_cpu:
            expected, lower = allocated + _PROCESS_BYTES, _LEAST_FRACTION_CPU * lower
            upper = 1.5 * apart + _PROCESS_UPPER_BYTES
        else:
            fragmented = whole(held.fragmented_fraction * greatest(0, apart - allocated))
            # Received gradients have a segment of their own, which no other tensor can use.
            received = states.received_gradients
            beside = greatest(
                totals["loss"], totals["backward"], totals["optimizer step"] - received
            )
            late = totals["backward"] + _BUCKETS_BEHIND * states.late_bucket
            trained = greatest(allocated, beside + received, late) + fragmented
            expected = greatest(trained, built) + _ALLOCATOR_BYTES
            late = totals["backward"] + _MOST_BUCKETS_BEHIND * states.late_bucket
            most = greatest(apart, allocated, late, built) + states.beside_at_most
            if self._num_ranks > 1:
                # Blocks of communication lie where logits were, so the next logits need new
                # memory.
                most = most + whole(held.fragmented_fraction * ask(self.tokens) * held.logits)
            upper = 1.05 * most + 2 * _ALLOCATOR_BYTES
        upper = upper + ask(self._busiest_bytes)
        return PeakMemory(
            expected_bytes=expected,
            allocated_bytes=allocated,
            lower_bytes=whole(greatest(lower - uncertain, 0)),
            upper_bytes=greatest(whole(upper + uncertain), expected),
            managed_bytes=states.paged_states,
            moments=moments,
            slack="process" if self._is_cpu else "allocator",
            init_beside_bytes=0 if self._is_cpu else states.init_beside,
        )

    def _moments(self, states: States, held: HeldBytes, tokens: int) -> dict[str, dict[str, int]]:
        """Bytes of each part at each moment of a step.

        For a whole model in bf16 with AdamW on one rank under ZeRO-1, the optimizer step takes 22
        bytes a parameter with fp32 masters, and 12 with masters and states in bf16, as measured.
        """
        stays = {
            "weights": states.weights,
            "second copy of weights": states.second_weights,
            "master weights": states.master_weights,
            "optimizer states": states.optimizer_states
            + states.staged_states
            - states.paged_states,
            "offload buffers": states.offload_buffers,
            "workspace": 0 if self._is_cpu else _WORKSPACE_BYTES,
        }
        accumulated = states.accumulated_gradients
        loss = stays | {
            "gradients": accumulated + held.has_early_gradient * states.first_gradient,
            "gradient buckets": states.buckets_in_forward,
            "activations": tokens * held.loss,
            "logits": tokens * held.logits,
            "gathered weights": states.gathered_weights,
        }
        # If initialisation takes a first step, its gradients are zeros.
        is_early = states.has_early_states
        masters = is_early * least(states.init_buffers, states.master_weights)
        return {
            "initialisation": {
                "weights": states.init_weights,
                "flattened weights": (1 - is_early) * states.init_buffers,
                "master weights": masters,
                "gradients": is_early * (states.init_buffers - masters),
            },
            "loss": loss,
            "backward": stays
            | {
                "gradients": accumulated + states.first_gradient,
                "gradient buckets": states.buckets,
                "activations": tokens * held.backward,
                "gathered weights": states.gathered_weights + states.span_weights,
            },
            "first gradient": stays
            | {
                "gradients": accumulated + states.first_gradient + states.first_copies,
                # The first gradient is as large as a bucket, and is reduced separately.
                "gradient buckets": states.buckets_in_forward,
                "activations": tokens * held.loss,
                "gathered weights": least(states.gathered_weights, states.first_gradient),
            },
            "end of backward": stays
            | {
                "gradients": states.final_gradients,
                "gradient buckets": states.buckets,
                "activations": tokens * held.end_of_backward,
                "gathered weights": states.gathered_weights,
            },
            "optimizer step": stays
            | {"gradients": states.step_buffers, "gradient buckets": states.buckets_in_step},
            "checkpoint save": stays
            | {"gradients": accumulated, "gathered weights": held.gathered_to_save},
            # If it does not differ, it holds less than the loss, and so is never the peak.
            "first loss": loss
            | {
                "optimizer states": states.has_early_states * stays["optimizer states"],
                "activations": tokens * held.first_loss,
            },
        }

    def _held(self, strategy: Strategy, shard: RankShard) -> HeldBytes:
        """Bytes that one token holds on a rank of one stage.

        `techniques/checkpointing.py` keeps every layer's input in the very first forward.
        """
        token = self.token_model.of(strategy)
        num_layers, num_inputs = shard.num_layers, _num_inputs(strategy, shard)
        is_moved = strategy.offload_checkpoints is Offload.CPU and not self._is_cpu
        # If inputs are on the host, one at a time is on the device.
        inputs = min(num_inputs, 1 if is_moved else num_inputs) * token.layer_input
        at_once = min(strategy.checkpoint_interval, num_layers) if num_inputs else num_layers
        # Activations of other micro-batches in the pipeline, and the tensors between stages.
        kept = inputs if num_inputs else num_layers * token.layer
        flying = (shard.num_in_flight - 1) * kept + (
            0 if shard.is_whole else 2
        ) * token.layer_input
        own_head = token.head if shard.has_head else 0
        first = 0
        if num_inputs and strategy.checkpoint_interval > 1 and not is_moved:
            first = shard.num_in_flight * num_layers * token.layer_input + own_head
        is_fused = strategy.fused_kernels
        return HeldBytes(
            loss=kept + flying + own_head,
            logits=token.loss if shard.has_head else 0,
            backward=(inputs if num_inputs else 0)
            + at_once * token.layer
            + token.recomputed
            + flying
            + own_head
            + token.layer_backward,
            end_of_backward=(at_once if num_inputs else 1) * token.layer
            + token.recomputed
            + flying,
            first_loss=first,
            # With tiles or Liger's chunks, the first one makes the output projection's gradient.
            has_early_gradient=(strategy.loss_tiles > 1 or is_fused) and shard.has_head,
            fragmented_fraction=_FRAGMENTED_FRACTION_FUSED if is_fused else _FRAGMENTED_FRACTION,
            gathered_to_save=self._gathered_to_save(strategy, shard),
            uncertain_fraction=_UNCERTAIN_FRACTION if self.token_model.uncertainty else 0.0,
        )

    def _gathered_to_save(self, strategy: Strategy, shard: RankShard) -> int:
        """Bytes of the largest weight, gathered whole before it is copied to the host.

        `engine.py` gathers module by module in `_zero3_consolidated_16bit_state_dict`, and with
        tensor parallelism in `_replace_module_consolidated_state_dict`. Other tensors are written
        without a copy: the `state_dict` of `stage_1_and_2.py`, `stage3.py` and `bf16_optimizer.py`
        clones nothing.
        """
        degree = strategy.tensor_parallel_size
        is_divided = strategy.zero_stage == 3 and zero_size(strategy, self._num_ranks) > 1
        if degree == 1 and not is_divided:
            return 0
        return element_bytes(strategy) * shard.parameters.largest * degree


def _num_stages(strategy: Strategy, shards: tuple[RankShard, ...]) -> int:
    return len(shards)


def _num_inputs(strategy: Strategy, shard: RankShard) -> int:
    """Number of layer inputs that checkpointing keeps; 0 if it keeps other tensors."""
    interval = strategy.checkpoint_interval
    if not interval or strategy.checkpoint_scope is not CheckpointScope.LAYER:
        return 0
    return -(-shard.num_layers // interval)
