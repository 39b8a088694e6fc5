"""Time of what travels between ranks: gradients, weights, activations.

All ranks are on one host. Does not know what is computed meanwhile, only what part of the
communication it hides.
"""

from __future__ import annotations

from autotune.hardware import DeviceType, Hardware
from autotune.predictor.precision import element_bytes, has_hbm
from autotune.predictor.shares import RankShare, tokens_of_rank, zero_size
from autotune.predictor.states import StatesModel, has_bf16_optimizer, overlaps
from autotune.predictor.work import repeats
from autotune.strategy import Strategy
from autotune.workload import Workload

__all__ = ["LinkModel"]

_NVLINK_BYTES_PER_S = 150e9
_PCIE_LINK_BYTES_PER_S = 15e9
_LOOPBACK_BYTES_PER_S = 1e9
"""Attained by collectives: between GPUs with HBM, other GPUs, processes on the CPU."""

_EXPOSED_SHARE = 0.5
"""Part of the gradients' communication that backward does not hide (`overlap_comm`)."""

_COLLECTIVE_S = 20e-6
"""Until a collective's first byte travels. Assumed: launch and handshake of NCCL's rings."""

_8BIT_SHARE = 0.5
_4BIT_SHARE = 0.25
"""Of the bytes at 16 bit, without the scales of blocks. ZeRO++ (arXiv 2306.10209), section 3."""


class LinkModel:
    """Communication of any strategy, for one workload on one machine."""

    def __init__(self, workload: Workload, hardware: Hardware, states: StatesModel) -> None:
        self._workload = workload
        self._num_ranks = hardware.num_devices
        self._states = states
        self._bytes_per_s = _link_bytes_per_s(hardware)

    def micro_step_s(self, strategy: Strategy, share: RankShare) -> float:
        """Of every micro-step, beside what a pipeline hides.

        ZeRO (arXiv 1910.02054), section 7: stages 2 and 3 reduce-scatter gradients, and stage 3
        gathers the weights in forward and again in backward.
        """
        if self._num_ranks == 1:
            return 0.0
        seconds = self._tensor_s(strategy, share) + self._sequence_s(strategy, share)
        if not share.is_whole:
            seconds += self._between_stages_s(strategy)
        if strategy.zero_stage < 2:
            return seconds
        exposed = _EXPOSED_SHARE if overlaps(strategy) else 1.0
        e, trained = element_bytes(strategy), self._states.trained_of(strategy, share)
        seconds += exposed * self._reduce_scatter_s(strategy, e * trained)
        if strategy.zero_stage == 3:
            seconds += exposed * self._gathers_s(strategy, e * share.parameters.total)
        return seconds

    def step_s(self, strategy: Strategy, share: RankShare) -> float:
        """Of every step: stages 0 and 1 reduce, stages 1 and 2 gather what is new."""
        e, trained = element_bytes(strategy), self._states.trained_of(strategy, share)
        exposed = _EXPOSED_SHARE if overlaps(strategy) else 1.0
        passes = {0: 2.0, 1: 2 * exposed + 1, 2: 1.0, 3: 0.0}[strategy.zero_stage]
        if not passes:
            return 0.0
        ranks = zero_size(strategy, self._num_ranks)
        if has_bf16_optimizer(strategy):
            # Gradients are reduced, then new weights gathered (`bf16_optimizer.py`).
            passes = 3.0
        return self._ring_s(passes * e * trained, ranks) + self._starts_s(strategy, trained, ranks)

    def _reduce_scatter_s(self, strategy: Strategy, num_bytes: float) -> float:
        ranks = zero_size(strategy, self._num_ranks)
        starts = self._starts_s(strategy, num_bytes / element_bytes(strategy), ranks)
        share = _4BIT_SHARE if strategy.zero_quantized_gradients else 1.0
        return self._ring_s(share * num_bytes, ranks) + starts

    def _gathers_s(self, strategy: Strategy, num_bytes: float) -> float:
        """Weights in forward, and in backward from the second copy where there is one.

        ZeRO++ gathers in 8 bit what comes from the first copy (`partition_parameters.py`,
        `_all_gather_coalesced`).
        """
        ranks = zero_size(strategy, self._num_ranks)
        first = num_bytes * (_8BIT_SHARE if strategy.zero_quantized_weights else 1.0)
        hpz = strategy.zero_hpz_partition_size
        again = self._ring_s(num_bytes, hpz) if hpz > 1 else self._ring_s(first, ranks)
        return self._ring_s(first, ranks) + again

    def _starts_s(self, strategy: Strategy, num_elements: float, ranks: int) -> float:
        """What many small buckets cost beyond one."""
        if ranks == 1:
            return 0.0
        return _COLLECTIVE_S * (num_elements // max(1, strategy.reduce_bucket_size))

    def _tensor_s(self, strategy: Strategy, share: RankShare) -> float:
        """AutoTP's sums: of each row-parallel output, of each column-parallel input's gradient.

        `module_inject/layers.py`, `RowParallel` and `ColumnParallel`; nothing of it is hidden. The
        head gathers its logits, unless it shares the embedding's weights.
        """
        degree = strategy.tensor_parallel_size
        if degree == 1:
            return 0.0
        shape, times = self._workload.model, repeats(strategy)
        num_columns = len(shape.attention_linears) + len(shape.mlp_linears) - 2
        sums = 2 + times.attention + times.mlp + num_columns
        hidden = self._hidden_bytes(strategy)
        seconds = share.num_layers * sums * self._all_reduce_s(hidden, degree)
        if share.has_head and not shape.tie_word_embeddings:
            logits = hidden * shape.vocab_size / shape.hidden_size
            seconds += self._ring_s(logits, degree) + self._all_reduce_s(hidden, degree)
        return seconds

    def _sequence_s(self, strategy: Strategy, share: RankShare) -> float:
        """Ulysses: query, key, value and output exchanged in each attention, and their gradients.

        Jacobs et al. (arXiv 2309.14509), section 3.2: all-to-all, of which (s - 1) / s travels.
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
        once = self._ring_s(moved, degree) + 4 * _COLLECTIVE_S
        return share.num_layers * passes * once

    def _between_stages_s(self, strategy: Strategy) -> float:
        """Hidden states to the next stage, and their gradients back (`pipe/p2p.py`)."""
        return 2 * (self._hidden_bytes(strategy) / self._bytes_per_s + _COLLECTIVE_S)

    def _hidden_bytes(self, strategy: Strategy) -> float:
        """Of the hidden states of one micro-batch on one rank."""
        tokens = tokens_of_rank(strategy, self._workload.seq_len)
        return tokens * self._workload.model.hidden_size * element_bytes(strategy)

    def _all_reduce_s(self, num_bytes: float, ranks: int) -> float:
        return 2 * self._ring_s(num_bytes, ranks) + _COLLECTIVE_S

    def _ring_s(self, num_bytes: float, ranks: int) -> float:
        """A reduce-scatter or an all-gather over a ring: (n - 1) / n of the bytes pass each link.

        Patarasuk and Yuan, Bandwidth optimal all-reduce (JPDC 69(2), 2009).
        """
        return num_bytes * (ranks - 1) / ranks / self._bytes_per_s


def _link_bytes_per_s(hardware: Hardware) -> float:
    if hardware.device_type is DeviceType.CPU:
        return _LOOPBACK_BYTES_PER_S
    return _NVLINK_BYTES_PER_S if has_hbm(hardware) else _PCIE_LINK_BYTES_PER_S
