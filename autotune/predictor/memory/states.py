"""Weights, optimizer states, gradients and buffers that DeepSpeed holds on one rank.

Read from DeepSpeed 0.19 (`runtime/zero/stage_1_and_2.py`, `runtime/zero/stage3.py`,
`runtime/fp16/unfused_optimizer.py`, `runtime/bf16_optimizer.py`), after Rajbhandari et al., ZeRO
(arXiv 1910.02054), section 3. Does not know activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autotune.knob_values import Offload, Optimizer, Precision
from autotune.machine.hardware import DeviceType, Hardware
from autotune.predictor.memory.gathered import gathered_beside, gathered_weights, span_weights
from autotune.predictor.memory.gradients import (
    Trained,
    bucket,
    final_gradients,
    held_gradients,
    of_bf16_pipeline,
    overlaps,
)
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

__all__ = ["States", "StatesModel", "has_bf16_optimizer"]

_NORM_ELEMENTS = 250_000_000
"""Elements whose squares are added up at once (`stage3.py`, `_constant_buffered_norm2`)."""

_NF4_BYTES = 0.516
"""Bytes of a weight in 4 bit, with an absmax of 8 bit for 64 weights and one of fp32 for 256 of
those.

Dettmers et al., QLoRA (arXiv 2305.14314), section 3: double quantization.
"""

_MUON_GATHERED_BYTES = 256 * 2**20
"""ZeRO keeps buffers for whole gradients of Muon's matrices up to this together
(`stage_1_and_2.py`, `_muon_allgather_max_cached_bytes`)."""

_MUON_COPIES = 5
"""Matrices in bf16 that one Newton-Schulz iteration holds (`zero/muon/original_muon.py`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class States:
    """Bytes on the device of one rank, by how long they stay."""

    weights: int
    """Weights that compute, frozen ones too."""
    second_weights: int
    """ZeRO++'s second copy, divided over fewer ranks."""
    master_weights: int
    optimizer_states: int
    paged_states: int
    """The part of the optimizer states in managed memory, which moves to the host where the device
    has no room."""
    staged_states: int
    """Muon's next momentum, beside the one that the optimizer has."""
    has_early_states: bool
    """Whether optimizer states are there before the first step: stages 1 and 2 make them in it."""
    offload_buffers: int
    """Staging for what moves between device and host."""
    accumulated_gradients: int
    """Gradients held from one micro-step to the next, and so on top of the activations."""
    buckets: int
    """Reduction buckets; from the first gradient of a micro-step on."""
    buckets_in_forward: int
    """The part of the buckets that is there in forward already."""
    received_gradients: int
    """Gradients of this rank's part, with room for all of it from the first bucket that travels in
    backward on, on a stream of its own; 0 where none does."""
    final_gradients: int
    """All gradients that are held when backward ends."""
    first_gradient: int
    """Gradient of the output projection: the first and widest of backward."""
    gathered_weights: int
    """ZeRO-3's full weights of the layers at work, at most."""
    span_weights: int
    """Whole weights that stay while several layers are recomputed together, beside them."""
    beside_at_most: int
    """Bytes beside all that is counted, for the upper bound. ZeRO-3: the limit holds back
    weights that are read ahead alone, and several on their way are copied out of one buffer.
    Stages 1 and 2: gradients for several ranks in a flat copy
    (`allreduce_bucket`)."""
    late_bucket: int
    """ZeRO-3's gradients of one bucket, and the weights that were gathered for them: given back
    by the host, and still in the way until streams of their own have done with them."""
    step_buffers: int
    """Copies of gradients made for the optimizer step, the gradients included."""
    offload_copies: int
    """Copies of the largest gradient on its way to the host: its part, and that in another
    precision."""
    first_copies: int
    """The offload copies where they are there beside the gradient itself."""
    buckets_in_step: int
    """The part of the buckets that is there in the optimizer step."""
    init_weights: int
    """Weights while the engine is built."""
    init_buffers: int
    """Copies made while the engine is built, on top of the weights."""
    init_beside: int
    """One more copy while the engine is built, after weights were given back, in whose place it
    has no room."""


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
        """Micro-steps of one optimizer step; 1 where the batch cannot be divided."""
        batch = self._workload.global_batch_size
        return max(1, strategy.gradient_accumulation_steps(batch, self._num_ranks))

    def shards(self, strategy: Strategy) -> tuple[RankShard, ...]:
        """The shards of the model that ranks have, one a stage."""
        return self._shards.of(strategy, self.accumulation(strategy))

    def of(self, strategy: Strategy, shard: RankShard | None = None) -> States:
        """What one strategy holds on the ranks of one stage, by default the first."""
        shard = shard or self.shards(strategy)[0]
        return self.of_shard(strategy, shard, self.accumulation(strategy) > 1)

    def of_shard(self, strategy: Strategy, shard: RankShard, is_accumulating: bool) -> States:
        """What one strategy holds on the ranks of one stage, in bytes.

        On the CPU offloading moves nothing: the host's memory is the device's.
        """
        sizes = group_bytes(strategy)
        trained = self._trained(strategy, shard, sizes)
        weights = self._weights(strategy, shard, trained, sizes)
        ranks = zero_size(strategy, self._num_ranks)
        stage = strategy.zero_stage
        resident = init_weights = weights / (ranks if stage == 3 else 1)
        if strategy.offload_param is not Offload.NONE and not self._is_cpu:
            # What is below the threshold of persistence: norms.
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
        # ZeRO-3 makes its bucket once; ZeRO-1 keeps it until the last micro-step.
        buckets_in_forward = one if stage == 3 else 0
        if stage == 1 and is_accumulating:
            buckets_in_forward = buckets
        e, held = trained.gradient, held_gradients(strategy, trained, is_accumulating)
        final = final_gradients(
            strategy, trained, held, num_ranks=self._num_ranks, is_accumulating=is_accumulating
        )
        gathered = gathered_weights(strategy, shard, self._num_ranks) if stage == 3 else 0
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
            span_weights=span_weights(strategy, shard, gathered),
            beside_at_most=(
                gathered_beside(strategy, shard, self._num_ranks)
                if stage == 3
                else one * (stage > 0 and ranks > 1)
            ),
            # All that may be late at once is no more than there is.
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
            # `techniques/master_weights.py`: of 16-bit weights alone.
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
        """Bytes of all weights of a shard, including adapters."""
        held: float = weight_bytes(shard, sizes)
        if strategy.lora_rank:
            held += sizes.residual * trained.num
        if self._workload.method is Method.QLORA:
            attention, mlp = shard.parameters.attention, shard.parameters.mlp
            held -= sizes.attention * attention + sizes.mlp * mlp
            held += _NF4_BYTES * (attention + mlp)
        return held

    def _staged_states(self, strategy: Strategy, shard: RankShard, trained: Trained) -> int:
        """Bytes of Muon's next momentum: stages 1 and 2 keep a copy (`_muon_staging_momentum`)."""
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

    def _step_buffers(self, strategy: Strategy, shard: RankShard, trained: Trained) -> float:
        """Averaged gradients, their flat copy, and that copy in the master's precision.

        `stage_1_and_2.py`, `step`: all three are alive when the last is made: with bf16 and an
        fp32 master 2 + 2 + 4 bytes a parameter. `stage3.py`, `_prepare_fp32_grad_for_sub_group`:
        the same, by sub-groups, beside the gradient buffer. `unfused_optimizer.py`, `step`:
        gradients, and their fp32 copy; `techniques/master_weights.py`: of fp16 the copy alone.
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
            # torch's AdamW on the CPU is not fused: its denominator takes two more copies.
            needed = max(needed, 3 * max(master, e) * owned)
        if strategy.optimizer is Optimizer.MUON:
            needed += 2 * _MUON_COPIES * shard.parameters.largest
            if strategy.zero_stage and self._num_ranks > 1:
                needed += min(_MUON_GATHERED_BYTES, 2 * e * trained.num)
        return needed

    def _offload_copies(self, strategy: Strategy, shard: RankShard, trained: Trained) -> int:
        """Each gradient has its norm taken and is converted, one after the other.

        `stage3.py`, `partition_grads`: of this rank's part, beside it, at most a quarter billion
        elements at a time for the norm; `stage_1_and_2.py`: of all of it.
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

        Stages 1 and 2 flatten all weights into a copy, by way of the host where the device has no
        room for it, then clone their partition on its way to the master; wherever the optimizer
        is. Stages 0 and 3 take a first optimizer step over gradients of zeros.
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
        """The clone of a whole partition: weights of up to 1 MiB left no room in their place.

        Of several ranks it is a part only, and lies where weights were.
        """
        is_whole = strategy.zero_stage in (1, 2) and trained.owned == trained.num
        is_made = is_whole and trained.is_offloaded and self._flattens_here(trained, weights)
        return trained.gradient * trained.owned if is_made else 0


def has_bf16_optimizer(strategy: Strategy) -> bool:
    """Whether `BF16_Optimizer` trains a strategy: a pipeline in bf16 without ZeRO."""
    return strategy.is_bf16_pipeline and strategy.zero_stage == 0


def _master_bytes(strategy: Strategy) -> int:
    """Bytes of one master weight; 0 where the optimizer updates the weights themselves."""
    if strategy.precision is Precision.FP32 and strategy.zero_stage == 0:
        return 0
    return master_bytes(strategy)
