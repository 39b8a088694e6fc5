"""Peak memory of one rank: the greatest of a few moments of a training step.

Each moment holds what stays (weights, master weights, optimizer states) and what it needs itself.
Does not know time, nor what any trial measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autotune.hardware import DeviceType, Hardware
from autotune.knobs import CheckpointScope, Offload, Optimizer
from autotune.predictor.activations import TokenBytes, token_bytes
from autotune.predictor.precision import group_bytes
from autotune.predictor.shares import RankShare, tokens_of_rank
from autotune.predictor.states import States, StatesModel
from autotune.strategy import Strategy
from autotune.workload import Workload

__all__ = ["MemoryModel", "PeakMemory"]

_MIB = 2**20

_FRAGMENTED_SHARE = 0.25
_FRAGMENTED_SHARE_FUSED = 0.05
"""Part of what other moments need apart that the allocator keeps, unusable, at the peak.

Measured: 26 trials on one H100 with expandable segments. Pooled, 0.36 without Liger (0.06 to 0.24
at large batches, about 1 where the optimizer step is the peak) and 0.06 with it.
"""

_ALLOCATOR_BYTES = 256 * _MIB
"""Rounding of blocks and workspaces of libraries (cuBLAS 32 MiB a stream)."""

_PROCESS_BYTES = 100 * _MIB
_PROCESS_UPPER_BYTES = 800 * _MIB
"""On the CPU, growth of the resident set that is no tensor: libraries, threads, gloo's buffers.

Measured: 70 to 160 MiB, four trials of two ranks with the presets tiny and 125M.
"""

_LEAST_SHARES: Mapping[str, float] = {
    "weights": 0.98,
    "second copy of weights": 0.9,
    "master weights": 0.98,
    "optimizer states": 0.98,
    "paged optimizer states": 0.0,
    "offload buffers": 0.5,
    "gradients": 0.9,
    "gradient buckets": 0.5,
    "activations": 0.85,
    "logits": 0.85,
    "gathered weights": 0.0,
    "flattened weights": 0.0,
}
"""The part of each that is sure to be there: arithmetic is sure, a layer's unusual code is not.

Pages of optimizer states move to the host where the device has no room for them."""

_LEAST_SHARE_CPU = 0.6
"""The CPU counts pages that were touched, and its kernels keep other things for backward."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PeakMemory:
    """Of the worst rank, as the allocator holds it."""

    expected_bytes: int
    allocated_bytes: int
    """Of live tensors: what is expected without the allocator's slack."""
    lower_bytes: int
    upper_bytes: int
    moment: str
    breakdown_bytes: dict[str, int]
    """Sums up to `expected_bytes`."""


class MemoryModel:
    """Peak memory of any strategy, for one workload on one machine."""

    def __init__(self, workload: Workload, hardware: Hardware) -> None:
        self._workload = workload
        self._num_ranks = hardware.num_devices
        self._is_cpu = hardware.device_type is DeviceType.CPU
        self.states = StatesModel(workload, hardware)
        """Shared with who else asks for them: they keep what they have counted."""
        self._token_bytes: dict[tuple[object, ...], TokenBytes] = {}

    def peak(self, strategy: Strategy) -> PeakMemory:
        """The peak of the worst rank, and its doubt."""
        shares = self.states.shares(strategy)
        if len(shares) == 1:
            return self._peak_of(strategy, shares[0])
        peaks = [self._peak_of(strategy, share) for share in shares]
        return max(peaks, key=lambda peak: peak.expected_bytes)

    def host_bytes(self, strategy: Strategy) -> int:
        """What is moved to the host's memory of the activations, of all ranks together."""
        if self._is_cpu or strategy.offload_checkpoints is Offload.NONE:
            return 0
        shares = self.states.shares(strategy)
        token, tokens = self._token(strategy), tokens_of_rank(strategy, self._workload.seq_len)
        of_stages = sum(
            share.num_in_flight
            * tokens
            * (
                _num_inputs(strategy, share) * token.layer_input
                + share.num_layers * token.host_layer
            )
            for share in shares
        )
        return of_stages * self._num_ranks // len(shares)

    def _peak_of(self, strategy: Strategy, share: RankShare) -> PeakMemory:
        states = self.states.of(strategy, share)
        moments = self._moments(strategy, share, states)
        totals = {name: sum(parts.values()) for name, parts in moments.items()}
        moment = max(totals, key=totals.__getitem__)
        allocated = totals[moment]
        # At worst the optimizer step can use nothing again of what backward has freed.
        apart = states.step_buffers + max(totals["loss"], totals["backward"])
        least = max(
            sum(_LEAST_SHARES[part] * size for part, size in parts.items())
            for parts in moments.values()
        )
        if self._is_cpu:
            expected, lower = allocated + _PROCESS_BYTES, _LEAST_SHARE_CPU * least
            upper = 1.5 * apart + _PROCESS_UPPER_BYTES
            rest = "process"
        else:
            fragmented = _FRAGMENTED_SHARE_FUSED if strategy.fused_kernels else _FRAGMENTED_SHARE
            expected = allocated + int(fragmented * max(0, apart - allocated)) + _ALLOCATOR_BYTES
            lower = least
            upper = 1.05 * max(apart, allocated) + 2 * _ALLOCATOR_BYTES
            rest = "allocator"
        breakdown = {part: size for part, size in moments[moment].items() if size}
        return PeakMemory(
            expected_bytes=expected,
            allocated_bytes=allocated,
            lower_bytes=int(lower),
            upper_bytes=max(int(upper), expected),
            moment=moment,
            breakdown_bytes=breakdown | {rest: expected - allocated},
        )

    def _moments(
        self, strategy: Strategy, share: RankShare, states: States
    ) -> dict[str, dict[str, int]]:
        """What each moment holds.

        For a whole model, bf16, an fp32 master and AdamW on one rank, the optimizer step comes to
        22 bytes a parameter with ZeRO-1, 12 with master and states in bf16: as measured.
        """
        stays = {
            "weights": states.weights,
            "second copy of weights": states.second_weights,
            "master weights": states.master_weights,
            _name_of_states(strategy): states.optimizer_states,
            "offload buffers": states.offload_buffers,
        }
        token, tokens = self._token(strategy), tokens_of_rank(strategy, self._workload.seq_len)
        num_layers, num_inputs = share.num_layers, _num_inputs(strategy, share)
        is_moved = strategy.offload_checkpoints is Offload.CPU and not self._is_cpu
        # Of inputs on the host, one is back at a time.
        inputs = min(num_inputs, 1 if is_moved else num_inputs) * token.layer_input
        at_once = min(strategy.checkpoint_interval, num_layers) if num_inputs else num_layers
        # Of other micro-batches in the pipeline, and what is sent and received between stages.
        kept = inputs if num_inputs else num_layers * token.layer
        flying = (share.num_in_flight - 1) * kept + (
            0 if share.is_whole else 2
        ) * token.layer_input
        head = flying + (token.head if share.has_head else 0)
        # Loss in tiles: the output projection has a gradient after the first of them.
        first = states.first_gradient if strategy.loss_tiles > 1 and share.has_head else 0
        moments = {
            "initialisation": {
                "weights": states.init_weights,
                "flattened weights": states.init_buffers,
            },
            "loss": stays
            | {
                "gradients": states.accumulated_gradients + first,
                "gradient buckets": states.buckets_in_forward,
                "activations": tokens * (kept + head),
                "logits": tokens * token.loss if share.has_head else 0,
                "gathered weights": states.gathered_weights,
            },
            "backward": stays
            | {
                "gradients": states.accumulated_gradients + states.first_gradient,
                "gradient buckets": states.buckets,
                "activations": tokens
                * (
                    (inputs if num_inputs else 0)
                    + at_once * token.layer
                    + token.recomputed
                    + head
                    + token.layer_backward
                ),
                "gathered weights": states.gathered_weights,
            },
            "end of backward": stays
            | {
                "gradients": states.final_gradients,
                "gradient buckets": states.buckets,
                "activations": tokens
                * ((at_once if num_inputs else 1) * token.layer + token.recomputed + flying),
                "gathered weights": states.gathered_weights,
            },
            "optimizer step": stays
            | {
                "gradients": states.step_buffers,
                "gradient buckets": states.buckets_in_forward if strategy.zero_stage == 3 else 0,
            },
        }
        if num_inputs and strategy.checkpoint_interval > 1 and not is_moved:
            every_input = share.num_in_flight * num_layers * token.layer_input
            own_head = token.head if share.has_head else 0
            moments["first loss"] = self._first_loss(
                strategy, moments["loss"], tokens * (every_input + own_head)
            )
        return moments

    def _first_loss(
        self, strategy: Strategy, loss: Mapping[str, int], activations: int
    ) -> dict[str, int]:
        """The loss of the very first step.

        `techniques/checkpointing.py` keeps every layer's input in the first forward; stages 1 and
        2 have no optimizer states yet.
        """
        is_lazy = strategy.zero_stage in (1, 2)
        name = _name_of_states(strategy)
        return {**loss, name: 0 if is_lazy else loss[name], "activations": activations}

    def _token(self, strategy: Strategy) -> TokenBytes:
        key = (
            group_bytes(strategy),
            strategy.fused_kernels,
            strategy.torch_compile,
            strategy.lora_rank,
            strategy.lora_targets,
            strategy.attention,
            strategy.tensor_parallel_size,
            strategy.checkpoint_scope,
            strategy.offload_checkpoints,
            strategy.mlp_tiles,
            strategy.loss_tiles,
        )
        token = self._token_bytes.get(key)
        if token is None:
            token = self._token_bytes[key] = token_bytes(
                self._workload.model,
                strategy,
                lora_targets=self._workload.adapter_targets(strategy.lora_targets),
                seq_len=self._workload.seq_len,
                is_cpu=self._is_cpu,
            )
        return token


def _num_inputs(strategy: Strategy, share: RankShare) -> int:
    """Inputs of layers that checkpointing keeps; 0 where it keeps other things."""
    interval = strategy.checkpoint_interval
    if not interval or strategy.checkpoint_scope is not CheckpointScope.LAYER:
        return 0
    return -(-share.num_layers // interval)


def _name_of_states(strategy: Strategy) -> str:
    is_paged = strategy.optimizer is Optimizer.PAGED_ADAMW_8BIT
    return "paged optimizer states" if is_paged else "optimizer states"
