"""Weights, optimizer states, gradients and buffers that DeepSpeed holds on one rank.

Read from DeepSpeed 0.19 (`runtime/zero/stage_1_and_2.py`, `runtime/zero/stage3.py`,
`runtime/fp16/unfused_optimizer.py`, `runtime/bf16_optimizer.py`), after Rajbhandari et al., ZeRO
(arXiv 1910.02054), section 3. Does not know activations.
"""

from __future__ import annotations

from typing import Any

from autotune.knob_values import CheckpointScope, Offload, Optimizer, Precision
from autotune.machine.hardware import DeviceType, Hardware
from autotune.predictor.memory.gradients import (
    Trained,
    bucket,
    final_gradients,
    held_gradients,
    of_bf16_pipeline,
    overlaps,
)
from autotune.predictor.memory.held_states import States
from autotune.predictor.memory.optimizer_states import (
    muon_border_elements,
    optimizer_state_bytes,
)
from autotune.predictor.memory.precision import (
    FP32_BYTES,
    NORM_BYTES,
    GroupBytes,
    group_bytes,
    master_bytes,
)
from autotune.predictor.memory.sharding import (
    RankShard,
    ShardModel,
    fraction_of_16_bit,
    weight_bytes,
    zero_size,
)
from autotune.question.workload import Method, Workload
from autotune.space.deepspeed_config import stepped_elements
from autotune.space.optimizers import OPTIMIZERS
from autotune.space.strategy import Strategy

__all__ = ["StatesModel", "has_bf16_optimizer"]

_LIVE_ELEMENTS = 1_000_000_000
"""Most gathered parameters that ZeRO-3 keeps (`zero/config.py`, `max_live_parameters`)."""

_PREFETCHED_ELEMENTS = 50_000_000
"""Elements that ZeRO-3 prefetches at once, and one weight (`stage3_prefetch_bucket_size`)."""

_NORM_ELEMENTS = 250_000_000
"""Elements whose squares are summed at once (`stage3.py`, `_constant_buffered_norm2`)."""

_NF4_BYTES = 0.516
"""Bytes of a weight in 4 bit, with an 8-bit absmax for 64 weights, and an fp32 absmax for 256 of
these.

Dettmers et al., QLoRA (arXiv 2305.14314), section 3: double quantization.
"""

_MUON_GATHERED_BYTES = 256 * 2**20
"""Most bytes of the buffers that ZeRO keeps for whole gradients of Muon's matrices
(`stage_1_and_2.py`, `_muon_allgather_max_cached_bytes`)."""

_MUON_COPIES = 5
"""Number of bf16 matrices that one Newton-Schulz iteration holds
(`zero/muon/original_muon.py`)."""


class StatesModel:
    """States of any strategy, for one workload on one machine."""

    def __init__(self, workload: Workload, hardware: Hardware) -> None:
        self._workload = workload
        self._num_ranks = hardware.num_devices
        self._device_bytes = hardware.device_memory_bytes
        self._is_cpu = hardware.device_type is DeviceType.CPU
        self._num_layers = workload.model.num_hidden_layers
        self._shards = ShardModel(workload.model)
        self._trainable: dict[tuple[int, str], int] = {}

    def num_trainable(self, strategy: Strategy) -> int:
        """Parameters that the optimizer sees, over all stages."""
        key = (strategy.lora_rank, strategy.lora_targets)
        if key not in self._trainable:
            self._trainable[key] = self._workload.num_trainable_parameters(*key)
        return self._trainable[key]

    def trained_of(self, strategy: Strategy, shard: RankShard) -> int:
        """Parameters of a shard that the optimizer sees.

        Adapters do not go with tensor parallelism, which would divide some of them.
        """
        if not strategy.lora_rank:
            return shard.parameters.total
        return self.num_trainable(strategy) * shard.num_layers // self._num_layers

    def accumulation(self, strategy: Strategy) -> int:
        """Micro-steps of one optimizer step; 1 if the batch cannot be divided."""
        batch = self._workload.global_batch_size
        return max(1, strategy.gradient_accumulation_steps(batch, self._num_ranks))

    def shards(self, strategy: Strategy) -> tuple[RankShard, ...]:
        """The shards of the model, one for each stage."""
        return self._shards.of(strategy, self.accumulation(strategy))

    def of(self, strategy: Strategy, shard: RankShard | None = None) -> States:
        """The states of one strategy on the ranks of one stage, by default the first."""
        shard = shard or self.shards(strategy)[0]
        return self.of_shard(strategy, shard, self.accumulation(strategy) > 1)

    def of_shard(self, strategy: Strategy, shard: RankShard, is_accumulating: bool) -> States:
        """The states of one strategy on the ranks of one stage.

        On a CPU, offloading moves nothing, because the host's memory is the device's.
        """
        sizes = group_bytes(strategy)
        trained = self._trained(strategy, shard, sizes)
        weights = self._weights(strategy, shard, trained, sizes)
        ranks = zero_size(strategy, self._num_ranks)
        stage = strategy.zero_stage
        resident = init_weights = weights / (ranks if stage == 3 else 1)
        if strategy.offload_param is not Offload.NONE and not self._is_cpu:
            # Weights below the persistence threshold stay on the device: norms.
            resident = sizes.norm * shard.parameters.other
            init_weights = sizes.residual * shard.parameters.largest
        hpz = strategy.zero_hpz_partition_size
        states = optimizer_state_bytes(strategy, self._workload.model, shard, trained.num)
        held_states = int(states * trained.owned * trained.device_fraction)
        held_states += self._border_states(strategy, shard, trained)
        common: dict[str, Any] = {
            "weights": int(resident),
            "second_weights": int(weights / hpz) if hpz > 1 else 0,
            "master_weights": int(trained.master * trained.owned * trained.device_fraction),
            "optimizer_states": held_states,
            "staged_states": self._staged_states(strategy, shard, trained),
            "paged_states": held_states if OPTIMIZERS[strategy.optimizer].is_paged else 0,
            "has_early_states": stage not in (1, 2),
            "first_gradient": self._first_gradient(strategy, shard, sizes),
            "init_weights": int(init_weights),
        }
        if has_bf16_optimizer(strategy):
            return States(**common, **of_bf16_pipeline(trained))
        one = bucket(strategy, trained, sizes)
        has_two = stage == 3 or (overlaps(strategy) and self._num_ranks > 1)
        buckets = one * (2 if has_two else 1)
        # ZeRO-3 creates its bucket once; ZeRO-1 keeps it until the last micro-step.
        buckets_in_forward = one if stage == 3 else 0
        if stage == 1 and is_accumulating:
            buckets_in_forward = buckets
        e, held = trained.gradient, held_gradients(strategy, trained, is_accumulating)
        final = final_gradients(
            strategy, trained, held, num_ranks=self._num_ranks, is_accumulating=is_accumulating
        )
        gathered = self._gathered(strategy, shard, sizes) if stage == 3 else 0
        has_streams = stage == 3 and overlaps(strategy) and ranks > 1
        is_received = has_two and stage in (1, 2) and not trained.is_offloaded
        has_staging = trained.is_offloaded and stage < 3 and not strategy.lora_rank
        return States(
            **common,
            offload_buffers=sizes.lm_head * shard.parameters.largest if has_staging else 0,
            accumulated_gradients=int(held * e),
            received_gradients=int(e * trained.owned) if is_received else 0,
            buckets=buckets,
            buckets_in_forward=buckets_in_forward,
            final_gradients=int(final * e),
            gathered_weights=gathered,
            span_weights=self._span_weights(strategy, shard, gathered),
            beside_at_most=(
                self._gathered_beside(strategy, shard, sizes)
                if stage == 3
                else one * (stage > 0 and ranks > 1)
            ),
            # Late buckets hold no more than all gradients.
            late_bucket=2 * min(one, int(e * trained.num) // 3) if has_streams else 0,
            step_buffers=int(
                self._step_buffers(strategy, shard, trained) * trained.device_fraction
            ),
            offload_copies=self._offload_copies(strategy, shard, trained),
            first_copies=self._offload_copies(strategy, shard, trained) if stage == 3 else 0,
            buckets_in_step=buckets_in_forward if stage == 3 else 0,
            init_buffers=int(self._init_buffers(strategy, trained, weights, states)),
            init_beside=int(self._init_beside(strategy, trained, weights)),
        )

    def _trained(self, strategy: Strategy, shard: RankShard, sizes: GroupBytes) -> Trained:
        num = self.trained_of(strategy, shard)
        ranks = zero_size(strategy, self._num_ranks)
        is_divided = strategy.zero_stage > 0 or has_bf16_optimizer(strategy)
        gradient: float = sizes.residual
        if not sizes.is_uniform and not strategy.lora_rank:
            gradient = weight_bytes(shard, sizes) / num
        master: float = _master_bytes(strategy)
        if not sizes.is_uniform and not strategy.zero_stage:
            # Only 16-bit weights have masters (`techniques/master_weights.py`).
            master = FP32_BYTES * fraction_of_16_bit(shard, sizes)
        is_offloaded = strategy.offload_optimizer is not Offload.NONE and not self._is_cpu
        offloaded = strategy.offload_ratio if is_offloaded else 0.0
        return Trained(
            num=num,
            owned=num / ranks if is_divided else num,
            gradient=gradient,
            master=master,
            is_converted=master != gradient,
            is_offloaded=is_offloaded,
            device_fraction=1.0 - offloaded,
        )

    def _weights(
        self, strategy: Strategy, shard: RankShard, trained: Trained, sizes: GroupBytes
    ) -> float:
        """Bytes of all weights of a shard, with adapters and a frozen vision tower."""
        held: float = weight_bytes(shard, sizes)
        held += sizes.residual * self._workload.model.frozen_tower_parameters
        if strategy.lora_rank:
            held += sizes.residual * trained.num
        if self._workload.method is Method.QLORA:
            attention, mlp = shard.parameters.attention, shard.parameters.mlp
            held -= sizes.attention * attention + sizes.mlp * mlp
            held += _NF4_BYTES * (attention + mlp)
        return held

    def _staged_states(self, strategy: Strategy, shard: RankShard, trained: Trained) -> int:
        """Bytes of Muon's next momentum, which stages 1 and 2 keep (`_muon_staging_momentum`)."""
        if strategy.optimizer is not Optimizer.MUON or strategy.zero_stage not in (1, 2):
            return 0
        num = trained.num if strategy.lora_rank else shard.parameters.linears
        inner = int(trained.gradient * num * trained.owned / trained.num)
        return inner + self._border_states(strategy, shard, trained)

    def _border_states(self, strategy: Strategy, shard: RankShard, trained: Trained) -> int:
        """Bytes of Muon's momentum of matrices at the border of a partition, beyond it.

        Of adapters, which are small, none are counted.
        """
        if strategy.optimizer is not Optimizer.MUON or strategy.zero_stage not in (1, 2):
            return 0
        if strategy.lora_rank:
            return 0
        ranks = zero_size(strategy, self._num_ranks)
        elements = muon_border_elements(self._workload.model, shard.num_layers, ranks)
        return int(trained.gradient * elements)

    def _first_gradient(self, strategy: Strategy, shard: RankShard, sizes: GroupBytes) -> int:
        if strategy.lora_rank:
            return 0
        if shard.has_head:
            return sizes.lm_head * shard.parameters.head
        return sizes.residual * shard.parameters.largest

    def _gathered(self, strategy: Strategy, shard: RankShard, sizes: GroupBytes) -> int:
        """Most bytes of whole weights that ZeRO-3 has gathered at once.

        From NVMe, nothing is prefetched or kept for its next use. Measured: on one rank without
        offload the partition is the whole weight, and nothing is copied.
        """
        parameters = shard.parameters
        if zero_size(strategy, self._num_ranks) == 1 and strategy.offload_param is Offload.NONE:
            return 0
        if strategy.offload_param is Offload.NVME:
            return sizes.residual * min(2 * parameters.largest, parameters.total)
        return sizes.residual * min(parameters.total, _LIVE_ELEMENTS)

    def _span_weights(self, strategy: Strategy, shard: RankShard, gathered: int) -> int:
        """Bytes of the layers that are recomputed together: they stay until their backward.

        `partitioned_param_coordinator.py`, `fetch_sub_module`: what is there already costs nothing
        of what may be fetched ahead, so that all are marked as fetched for their next use. From
        NVMe nothing is fetched ahead.
        """
        span, sizes = strategy.checkpoint_interval, group_bytes(strategy)
        is_whole = strategy.checkpoint_scope is CheckpointScope.LAYER
        if not gathered or span < 2 or not is_whole or strategy.offload_param is Offload.NVME:
            return 0
        num_layers = max(1, shard.num_layers)
        span_elements = min(span, num_layers) * (shard.parameters.linears // num_layers)
        left = sizes.residual * shard.parameters.total - gathered
        return int(max(0, min(left, sizes.residual * span_elements)))

    def _gathered_beside(self, strategy: Strategy, shard: RankShard, sizes: GroupBytes) -> int:
        parameters, num_ranks = shard.parameters, zero_size(strategy, self._num_ranks)
        if parameters.total <= _LIVE_ELEMENTS or strategy.offload_param is Offload.NVME:
            return 0
        if num_ranks == 1:
            has_any = strategy.offload_param is not Offload.NONE
            return sizes.residual * parameters.largest if has_any else 0
        # The largest of one layer: embeddings are gathered separately.
        largest = parameters.linears // max(1, shard.num_layers)
        return sizes.residual * (parameters.largest + min(largest, 2 * _PREFETCHED_ELEMENTS))

    def _step_buffers(self, strategy: Strategy, shard: RankShard, trained: Trained) -> float:
        """Bytes of averaged gradients, their flat copy, and this copy in the master's precision.

        Stages 1 and 2 hold all three at once (`stage_1_and_2.py`, `step`): 2 + 2 + 4 bytes a
        parameter in bf16. Stage 3 does so by sub-groups, beside the gradient buffer (`stage3.py`,
        `_prepare_fp32_grad_for_sub_group`). Stage 0 holds gradients and their fp32 copy
        (`unfused_optimizer.py`), in fp16 only the copy (`techniques/master_weights.py`).
        """
        e, master, owned = trained.gradient, trained.master, trained.owned
        converted = master if trained.is_converted else 0
        if strategy.zero_stage == 0:
            needed = (FP32_BYTES if strategy.scales_own_loss else e + converted) * owned
        elif strategy.zero_stage == 3:
            at_once = min(owned, stepped_elements(self._workload, strategy, self._num_ranks))
            needed = e * owned + (e + converted) * at_once
        else:
            needed = (2 * e + converted) * owned
        if self._is_cpu:
            # torch's AdamW on a CPU is not fused: its denominator takes two more copies.
            needed = max(needed, 3 * max(master, e) * owned)
        if strategy.optimizer is Optimizer.MUON:
            needed += 2 * _MUON_COPIES * shard.parameters.largest
            if strategy.zero_stage and self._num_ranks > 1:
                needed += min(_MUON_GATHERED_BYTES, 2 * e * trained.num)
        return needed

    def _offload_copies(self, strategy: Strategy, shard: RankShard, trained: Trained) -> int:
        """Bytes of the copies that offloading makes of the largest gradient.

        Gradients have their norm computed and are converted one by one: in stage 3 this rank's
        partition, beside it, a quarter billion elements at a time (`stage3.py`,
        `partition_grads`), in stages 1 and 2 the whole gradient (`stage_1_and_2.py`).
        """
        if not trained.is_offloaded or strategy.lora_rank:
            return 0
        largest = shard.parameters.largest
        if strategy.zero_stage < 3:
            return int(max(NORM_BYTES, trained.master) * largest)
        part = largest / zero_size(strategy, self._num_ranks)
        norm = NORM_BYTES * min(part, _NORM_ELEMENTS)
        return int(trained.gradient * part + max(norm, trained.master * part))

    def _init_buffers(
        self, strategy: Strategy, trained: Trained, weights: float, states: float
    ) -> float:
        """Bytes that building the engine needs beside the weights.

        Stages 1 and 2 flatten all weights into a copy, on the host if the device has no room, then
        clone their partition, even with offload. Stages 0 and 3 take a first optimizer step with
        gradients of zeros.
        """
        e, master, here = trained.gradient, trained.master, trained.device_fraction
        if strategy.zero_stage in (1, 2):
            flat = e * trained.num * self._flattens_here(trained, weights)
            return max(flat, (e + master * here) * trained.owned)
        if strategy.zero_stage == 3:
            at_once = min(
                trained.owned, stepped_elements(self._workload, strategy, self._num_ranks)
            )
            return master * (trained.owned + 2 * at_once) * here
        return (2 * max(master, e) + states) * trained.owned * here

    def _flattens_here(self, trained: Trained, weights: float) -> bool:
        return weights + trained.gradient * trained.num < self._device_bytes

    def _init_beside(self, strategy: Strategy, trained: Trained, weights: float) -> float:
        """Bytes of the clone of a partition, if freed weights leave no room for it.

        On one rank the partition is the whole model, and weights of up to 1 MiB leave gaps. On
        several ranks it is smaller, and lies where weights were.
        """
        is_whole = strategy.zero_stage in (1, 2) and trained.owned == trained.num
        is_made = is_whole and trained.is_offloaded and self._flattens_here(trained, weights)
        return trained.gradient * trained.owned if is_made else 0


def has_bf16_optimizer(strategy: Strategy) -> bool:
    """Whether `BF16_Optimizer` trains a strategy: a pipeline in bf16 without ZeRO."""
    return strategy.is_bf16_pipeline and strategy.zero_stage == 0


def _master_bytes(strategy: Strategy) -> int:
    """Bytes of one master weight; 0 if the optimizer updates the weights themselves."""
    if strategy.precision is Precision.FP32 and strategy.zero_stage == 0:
        return 0
    return master_bytes(strategy)
