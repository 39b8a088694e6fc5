"""Time of communication between ranks: gradients, weights, activations.

`techniques/parallel_layout.py` numbers the ranks: neighbours are in one tensor-parallel group,
then come sequence-parallel and data-parallel groups, and the stages of a pipeline are furthest
apart. A group within one host communicates over its links, and a group across hosts over the
network as well. Does not know what is computed at the same time, only which fraction of the
communication that hides.
"""

from __future__ import annotations

import math

from autotune.machine.hardware import Hardware
from autotune.predictor.memory.gradients import overlaps
from autotune.predictor.memory.micro_batch import computed_tokens
from autotune.predictor.memory.precision import FP32_BYTES, element_bytes
from autotune.predictor.memory.sharding import RankShard, zero_size
from autotune.predictor.memory.states import StatesModel, has_bf16_optimizer
from autotune.predictor.step_time.effective_rates import COLLECTIVE_S, effective_rates
from autotune.predictor.step_time.repeats import repeats
from autotune.question.workload import ModelShape, Workload
from autotune.space.strategy import Strategy

__all__ = ["CommunicationModel", "tensor_sums"]

_EXPOSED_FRACTION = 0.5
"""Fraction of the gradients' communication that backward does not hide (`overlap_comm`)."""

_8BIT_FRACTION = 0.5
_4BIT_FRACTION = 0.25
"""Fraction of the bytes relative to 16 bit, without the scales of blocks: ZeRO++ (arXiv
2306.10209), section 3."""


def tensor_sums(shape: ModelShape, strategy: Strategy) -> int:
    """Number of all-reduces of one layer under AutoTP, forward and backward."""
    times = repeats(strategy)
    num_columns = len(shape.attention_linears) + len(shape.mlp_linears) - 2
    return 2 + times.attention + times.mlp + num_columns


class CommunicationModel:
    """Communication time of any strategy, for one workload on one machine."""

    def __init__(self, workload: Workload, hardware: Hardware, states: StatesModel) -> None:
        self._workload = workload
        self._num_ranks = hardware.num_devices
        self._states = states
        self._rates = effective_rates(hardware)
        self._per_node = hardware.devices_per_node

    def micro_step_s(self, strategy: Strategy, shard: RankShard) -> float:
        """Seconds of communication in every micro-step that nothing hides.

        Stages 2 and 3 reduce gradients, and stage 3 gathers the weights in forward and again in
        backward: ZeRO (arXiv 1910.02054), section 7.
        """
        if self._num_ranks == 1:
            return 0.0
        seconds = self._tensor_s(strategy, shard) + self._sequence_s(strategy, shard)
        if not shard.is_whole:
            seconds += self._between_stages_s(strategy)
        if strategy.zero_stage < 2:
            return seconds
        exposed = _EXPOSED_FRACTION if overlaps(strategy) else 1.0
        trained = self._states.trained_of(strategy, shard)
        seconds += exposed * self._gradients_s(strategy, trained)
        if strategy.zero_stage == 3:
            num_bytes = element_bytes(strategy) * shard.parameters.total
            seconds += exposed * self._gathers_s(strategy, num_bytes)
        return seconds

    def step_s(self, strategy: Strategy, shard: RankShard) -> float:
        """Seconds of communication in every step.

        Stages 0 and 1 reduce gradients; stages 1 and 2 gather new weights.
        """
        if strategy.zero_stage == 3:
            return 0.0
        e, trained = element_bytes(strategy), self._states.trained_of(strategy, shard)
        ranks, apart = zero_size(strategy, self._num_ranks), strategy.tensor_parallel_size
        seconds = 0.0
        if strategy.zero_stage < 2:
            exposed = _EXPOSED_FRACTION if strategy.zero_stage and overlaps(strategy) else 1.0
            seconds += exposed * self._gradients_s(strategy, trained)
        if strategy.zero_stage or has_bf16_optimizer(strategy):
            # New weights are gathered, by `bf16_optimizer.py` as well.
            seconds += self._ring_s(e * trained, ranks, apart)
        return seconds

    def _gradients_s(self, strategy: Strategy, trained: int) -> float:
        """Seconds to reduce all gradients once.

        Only ZeRO-3 reduce-scatters. ZeRO-1 and ZeRO-2 all-reduce, and drop the partitions of other
        ranks (`stage_1_and_2.py`, `allreduce_bucket`). With Ulysses, gradients are copied to fp32
        and reduced in it.
        """
        ranks, apart = zero_size(strategy, self._num_ranks), strategy.tensor_parallel_size
        if ranks == 1:
            return 0.0
        e = travel = element_bytes(strategy)
        copied = 0
        if strategy.sequence_parallel_size > 1:
            travel = FP32_BYTES
            copied = 2 * (e + travel)
        passes = 2.0
        if strategy.zero_stage == 3:
            passes = _4BIT_FRACTION if strategy.zero_quantized_gradients else 1.0
        seconds = self._ring_s(passes * travel * trained, ranks, apart)
        seconds += copied * trained / self._rates.traffic_bytes_per_s
        return seconds + self._starts_s(strategy, trained, ranks)

    def _gathers_s(self, strategy: Strategy, num_bytes: float) -> float:
        """Seconds to gather weights in forward, and in backward, from a second copy if any.

        ZeRO++ gathers the first copy in 8 bit (`partition_parameters.py`,
        `_all_gather_coalesced`).
        """
        ranks, apart = zero_size(strategy, self._num_ranks), strategy.tensor_parallel_size
        first = num_bytes * (_8BIT_FRACTION if strategy.zero_quantized_weights else 1.0)
        hpz = strategy.zero_hpz_partition_size
        whole = self._ring_s(first, ranks, apart)
        return whole + (self._ring_s(num_bytes, hpz, apart) if hpz > 1 else whole)

    def _starts_s(self, strategy: Strategy, num_elements: float, ranks: int) -> float:
        """Additional latency of many small buckets, compared with a single one."""
        if ranks == 1:
            return 0.0
        buckets = num_elements // max(1, strategy.reduce_bucket_size)
        return buckets * self._start_s(ranks, strategy.tensor_parallel_size)

    def _tensor_s(self, strategy: Strategy, shard: RankShard) -> float:
        """Seconds of AutoTP's all-reduces, none of which is hidden.

        It reduces each row-parallel output, and the gradient of each column-parallel input
        (`module_inject/layers.py`, `RowParallel` and `ColumnParallel`). The head gathers its
        logits, unless it shares the embedding's weights.
        """
        degree = strategy.tensor_parallel_size
        if degree == 1:
            return 0.0
        shape, hidden = self._workload.model, self._hidden_bytes(strategy)
        sums = shard.num_layers * tensor_sums(shape, strategy)
        seconds = sums * self._all_reduce_s(hidden, degree)
        if shard.has_head and not shape.tie_word_embeddings:
            logits = hidden * shape.vocab_size / shape.hidden_size
            seconds += self._ring_s(logits, degree, 1) + self._all_reduce_s(hidden, degree)
        return seconds

    def _sequence_s(self, strategy: Strategy, shard: RankShard) -> float:
        """Seconds of Ulysses: each attention exchanges query, key, value, output and gradients.

        It is an all-to-all, which sends (s - 1) / s of the bytes: Jacobs et al. (arXiv
        2309.14509), section 3.2.
        """
        degree = strategy.sequence_parallel_size
        if degree == 1:
            return 0.0
        shape = self._workload.model
        queries = shape.num_attention_heads * shape.head_dim
        keys = shape.num_key_value_heads * shape.head_dim
        width = 2 * queries + 2 * keys
        passes = 2 + repeats(strategy).attention
        moved = self._hidden_bytes(strategy) * width / shape.hidden_size
        apart = strategy.tensor_parallel_size
        once = self._ring_s(moved, degree, apart) + 4 * self._start_s(degree, apart)
        return shard.num_layers * passes * once

    def _between_stages_s(self, strategy: Strategy) -> float:
        """Seconds to send hidden states to the next stage, and gradients back (`pipe/p2p.py`)."""
        apart = self._num_ranks // strategy.pipeline_parallel_size
        rates = self._rates
        is_near = self._num_ranks <= self._per_node or apart < self._per_node
        bandwidth = rates.link_bytes_per_s if is_near else rates.network_bytes_per_s
        return 2 * (self._hidden_bytes(strategy) / bandwidth + self._start_s(2, apart))

    def _hidden_bytes(self, strategy: Strategy) -> float:
        """Bytes of the hidden states of one micro-batch on one rank."""
        tokens = computed_tokens(self._workload, strategy)
        return tokens * self._workload.model.hidden_size * element_bytes(strategy)

    def _all_reduce_s(self, num_bytes: float, ranks: int) -> float:
        return 2 * self._ring_s(num_bytes, ranks, 1) + self._start_s(ranks, 1)

    def _ring_s(self, num_bytes: float, ranks: int, apart: int) -> float:
        """Seconds of a reduce-scatter or all-gather over a ring, without latency.

        (n - 1) / n of the bytes pass each link: Patarasuk and Yuan, Bandwidth optimal all-reduce
        (JPDC 69(2), 2009). Between hosts there are as many rings as the group has ranks on each
        host, each over its own port.

        Args:
            num_bytes: bytes of the whole tensor.
            ranks: number of ranks in the group.
            apart: distance from one rank of the group to the next.
        """
        if ranks == 1:
            return 0.0
        bandwidth, here = self._rates.link_bytes_per_s, self._ranks_here(ranks, apart)
        if here < ranks:
            bandwidth = min(bandwidth, here * self._rates.network_bytes_per_s)
        return num_bytes * (ranks - 1) / ranks / bandwidth

    def _start_s(self, ranks: int, apart: int) -> float:
        """Latency of a collective until its first byte: a tree over ranks, and over hosts.

        Sanders et al., Two-tree algorithms (Parallel Computing 35(12), 2009), which NCCL uses.
        """
        num_hosts = ranks / self._ranks_here(ranks, apart)
        if ranks == 1:
            return 0.0
        return COLLECTIVE_S + self._rates.level_s * (math.log2(ranks) + math.log2(num_hosts))

    def _ranks_here(self, ranks: int, apart: int) -> int:
        """Number of ranks of a group on one host."""
        return max(1, min(ranks, self._per_node // apart))
