"""Peak memory of one rank: the greatest of a few moments of a training step.

Each moment holds what stays (weights, master weights, optimizer states) and what it needs itself.
Does not know time, nor what any trial measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autotune.hardware import DeviceType, Hardware
from autotune.predictor.activations import TokenBytes, token_bytes
from autotune.predictor.states import States, StatesModel, element_bytes
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
    "master weights": 0.98,
    "optimizer states": 0.98,
    "offload buffers": 0.5,
    "gradients": 0.9,
    "gradient buckets": 0.5,
    "activations": 0.85,
    "logits": 0.85,
    "gathered weights": 0.0,
    "flattened weights": 0.0,
}
"""The part of each that is sure to be there: arithmetic is sure, a layer's unusual code is not."""

_LEAST_SHARE_CPU = 0.6
"""The CPU counts pages that were touched, and its kernels keep other things for backward."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PeakMemory:
    """Of the worst rank, as the allocator holds it."""

    expected_bytes: int
    lower_bytes: int
    upper_bytes: int
    moment: str
    breakdown_bytes: dict[str, int]
    """Sums up to `expected_bytes`."""


class MemoryModel:
    """Peak memory of any strategy, for one workload on one machine."""

    def __init__(self, workload: Workload, hardware: Hardware) -> None:
        self._workload = workload
        self._num_layers = workload.model.num_hidden_layers
        self._is_cpu = hardware.device_type is DeviceType.CPU
        self._states = StatesModel(workload, hardware)
        self._token_bytes: dict[tuple[int, bool, int], TokenBytes] = {}

    def peak(self, strategy: Strategy) -> PeakMemory:
        """The peak and its doubt."""
        states = self._states.of(strategy)
        moments = self._moments(strategy, states)
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
            share = _FRAGMENTED_SHARE_FUSED if strategy.fused_kernels else _FRAGMENTED_SHARE
            expected = allocated + int(share * max(0, apart - allocated)) + _ALLOCATOR_BYTES
            lower = least
            upper = 1.05 * max(apart, allocated) + 2 * _ALLOCATOR_BYTES
            rest = "allocator"
        breakdown = {part: size for part, size in moments[moment].items() if size}
        return PeakMemory(
            expected_bytes=expected,
            lower_bytes=int(lower),
            upper_bytes=max(int(upper), expected),
            moment=moment,
            breakdown_bytes=breakdown | {rest: expected - allocated},
        )

    def _moments(self, strategy: Strategy, states: States) -> dict[str, dict[str, int]]:
        """What each moment holds.

        For a whole model, bf16, an fp32 master and AdamW on one rank, the optimizer step comes to
        22 bytes a parameter with ZeRO-1, 12 with master and states in bf16: as measured.
        """
        stays = {
            "weights": states.weights,
            "master weights": states.master_weights,
            "optimizer states": states.optimizer_states,
            "offload buffers": states.offload_buffers,
        }
        token = self._token(strategy)
        tokens = strategy.micro_batch_size * self._workload.seq_len
        interval, num_layers = strategy.checkpoint_interval, self._num_layers
        inputs = -(-num_layers // interval) * token.layer_input if interval else 0
        at_once = min(interval, num_layers) if interval else num_layers
        kept = inputs or num_layers * token.layer
        moments = {
            "initialisation": {
                "weights": states.weights,
                "flattened weights": states.init_buffers,
            },
            "loss": stays
            | {
                "gradients": states.accumulated_gradients,
                "gradient buckets": states.buckets_in_forward,
                "activations": tokens * (kept + token.head),
                "logits": tokens * token.loss,
                "gathered weights": states.gathered_weights,
            },
            "backward": stays
            | {
                "gradients": states.accumulated_gradients + states.first_gradient,
                "gradient buckets": states.buckets,
                "activations": tokens
                * (inputs + at_once * token.layer + token.head + token.layer_backward),
                "gathered weights": states.gathered_weights,
            },
            "end of backward": stays
            | {
                "gradients": states.final_gradients,
                "gradient buckets": states.buckets,
                "activations": tokens * ((at_once if interval else 1) * token.layer),
                "gathered weights": states.gathered_weights,
            },
            "optimizer step": stays
            | {
                "gradients": states.step_buffers,
                "gradient buckets": states.buckets_in_forward if strategy.zero_stage == 3 else 0,
            },
        }
        if interval > 1:
            moments["first loss"] = self._first_loss(strategy, moments["loss"], tokens, token)
        return moments

    def _first_loss(
        self, strategy: Strategy, loss: Mapping[str, int], tokens: int, token: TokenBytes
    ) -> dict[str, int]:
        """The loss of the very first step.

        `worker/checkpointing.py` keeps every layer's input in the first forward; stages 1 and 2
        have no optimizer states yet.
        """
        is_lazy = strategy.zero_stage in (1, 2)
        return {
            **loss,
            "optimizer states": 0 if is_lazy else loss["optimizer states"],
            "activations": tokens * (self._num_layers * token.layer_input + token.head),
        }

    def _token(self, strategy: Strategy) -> TokenBytes:
        key = (element_bytes(strategy), strategy.fused_kernels, strategy.lora_rank)
        if key not in self._token_bytes:
            self._token_bytes[key] = token_bytes(
                self._workload.model,
                element_bytes=key[0],
                has_fused_kernels=key[1],
                lora_rank=key[2],
                lora_targets=self._workload.lora_targets,
            )
        return self._token_bytes[key]
