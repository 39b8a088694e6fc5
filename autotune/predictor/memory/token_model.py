"""The memory of one token under each strategy of one workload: counted, or traced from real code.

Presets are counted from their published layers, so that planning for them loads no torch;
`tests/profile/` compares the counts with traces. All other models are traced. If a model cannot be
traced, it is counted as the most similar preset, and `uncertainty` says so.
"""

from __future__ import annotations

from dataclasses import replace

from autotune.predictor.memory.activations import TokenBytes, token_bytes
from autotune.predictor.memory.adapted_experts import with_adapted_experts
from autotune.predictor.memory.micro_batch import with_mask
from autotune.predictor.memory.precision import group_bytes
from autotune.predictor.memory.traced_activations import traced_token_bytes
from autotune.profile import ModelProfile, Variant, known_profile_of, profile_of
from autotune.question.presets import PRESETS
from autotune.question.workload import Workload
from autotune.space.read_knobs import ReadCache
from autotune.space.strategy import Strategy

__all__ = ["TokenModel"]


class TokenModel:
    """Bytes of a token, for any strategy.

    Args:
        workload: the model, the sequence length, the adapters.
        is_cpu: whether the device is the host.
        traces: whether a new model is traced, which takes seconds; otherwise it is counted.
    """

    def __init__(self, workload: Workload, *, is_cpu: bool, traces: bool = True) -> None:
        self._workload = workload
        self._profile_of = profile_of if traces else known_profile_of
        self._is_cpu = is_cpu
        shape = workload.model
        # Without a configuration there is nothing to build.
        self._is_traced = shape.name not in PRESETS and bool(shape.config)
        self._reason = ""
        self.of = ReadCache(self._token)
        """Bytes that one token holds on one rank, for a strategy."""
        self.uncertainty: str | None = None
        """Why some strategy was counted as another model; None if none was."""

    def _token(self, strategy: Strategy) -> TokenBytes:
        traced = self._traced(strategy) if self._is_traced else None
        return with_mask(traced or self._counted(strategy), self._workload, strategy)

    def _counted(self, strategy: Strategy) -> TokenBytes:
        counted = token_bytes(
            self._workload.model,
            strategy,
            lora_targets=self._workload.adapter_targets(strategy.lora_targets),
            seq_len=self._workload.seq_len,
            is_cpu=self._is_cpu,
        )
        return with_adapted_experts(counted, self._workload, strategy, num_traced=0)

    def _traced(self, strategy: Strategy) -> TokenBytes | None:
        profiles = self._profiles(strategy, has_liger=strategy.fused_kernels)
        has_liger = strategy.fused_kernels and profiles is not None
        if profiles is None and strategy.fused_kernels:
            # Liger may not be installed here. Its layers keep the same as compiled layers.
            profiles = self._profiles(strategy, has_liger=False)
        if profiles is None:
            self.uncertainty = self._reason
            return None
        traced = traced_token_bytes(
            profiles,
            strategy,
            has_liger=has_liger,
            is_tied=self._workload.model.tie_word_embeddings,
            is_cpu=self._is_cpu,
        )
        num_traced = next(iter(profiles.values())).num_tokens
        return with_adapted_experts(traced, self._workload, strategy, num_traced=num_traced)

    def _profiles(self, strategy: Strategy, *, has_liger: bool) -> dict[int, ModelProfile] | None:
        """One profile for each number of bytes of an element; None if one cannot be had."""
        targets = self._workload.adapter_targets(strategy.lora_targets)
        variant = Variant(
            attention=strategy.attention,
            element_bytes=2,
            fused_kernels=has_liger,
            experts=strategy.experts_implementation,
            lora_rank=strategy.lora_rank,
            lora_targets=targets if strategy.lora_rank else (),
        )
        e, profiles = group_bytes(strategy), {}
        for size in {e.residual, e.attention, e.mlp, e.norm, e.lm_head}:
            sized = replace(variant, element_bytes=size)
            found = self._profile_of(self._workload.model, sized, self._workload.seq_len)
            if isinstance(found, str):
                self._reason = found
                return None
            profiles[size] = found
        return profiles
