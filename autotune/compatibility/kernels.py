"""Kernels against the device, what is installed and the architecture."""

from __future__ import annotations

from autotune.hardware import DeviceType, Hardware
from autotune.software import Software
from autotune.strategy import Strategy
from autotune.workload import Workload

__all__ = ["LIGER_MODEL_TYPES", "conflict"]

LIGER_MODEL_TYPES = frozenset(
    ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "mixtral", "phi3", "qwen2", "qwen3")
)
"""Architectures for which Liger 0.8 has fused kernels."""


def conflict(
    strategy: Strategy, workload: Workload, hardware: Hardware, software: Software
) -> str | None:
    """Why the question does not allow these knobs, in words; None where it does."""
    if not strategy.fused_kernels:
        return None
    if hardware.device_type is not DeviceType.CUDA:
        return "fused_kernels needs a GPU"
    if not software.has_liger:
        return "fused_kernels needs Liger: pip install 'autotune[liger]'"
    if workload.model.model_type not in LIGER_MODEL_TYPES:
        return f"Liger has no fused kernels for {workload.model.model_type}"
    return None
