"""Which strategies a workload, a machine and its software allow.

The rules that need more than the strategy itself. Each answers in words, for the user.
"""

from __future__ import annotations

from autotune.hardware import DeviceType, Hardware
from autotune.software import Software
from autotune.strategy import MasterWeights, Offload, Optimizer, Precision, Strategy
from autotune.workload import Method, Workload

__all__ = ["LIGER_MODEL_TYPES", "conflict", "reference_strategy"]

LIGER_MODEL_TYPES = frozenset(
    ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "mixtral", "phi3", "qwen2", "qwen3")
)
"""Architectures for which Liger 0.8 has fused kernels."""


def reference_strategy(workload: Workload, hardware: Hardware) -> Strategy:
    """What a careful person would train with: loss-changing knobs are compared with its."""
    return Strategy(
        optimizer=Optimizer.ADAMW,
        master_weights=MasterWeights.FP32,
        precision=Precision.BF16 if hardware.supports_bf16 else Precision.FP16,
        lora_rank=0 if workload.method is Method.FULL else workload.lora_rank,
    )


def conflict(
    strategy: Strategy, workload: Workload, hardware: Hardware, software: Software
) -> str | None:
    """Why this strategy cannot run for this question, or None where it can."""
    batch, ranks = workload.global_batch_size, hardware.num_devices
    if not strategy.gradient_accumulation_steps(batch, ranks):
        return (
            f"micro_batch_size {strategy.micro_batch_size} x {ranks} ranks does not divide "
            f"the global batch {batch}"
        )
    if strategy.checkpoint_interval > workload.model.num_hidden_layers:
        return (
            f"checkpoint_interval {strategy.checkpoint_interval} is more than the model's "
            f"{workload.model.num_hidden_layers} layers"
        )
    if (strategy.lora_rank > 0) != (workload.method is not Method.FULL):
        return f"lora_rank {strategy.lora_rank} does not go with method {workload.method}"
    if strategy.precision is Precision.BF16 and not hardware.supports_bf16:
        return f"{hardware.device_kind} has no bf16"
    if strategy.precision is Precision.FP16 and not hardware.supports_fp16:
        return "DeepSpeed computes fp16 on CPUs with AVX512-FP16 only, and this one has none"
    if workload.method is Method.QLORA:
        if strategy.zero_stage == 3:
            return "ZeRO-3 does not divide 4-bit weights: QLoRA needs zero_stage 0, 1 or 2"
        if strategy.precision is Precision.FP32:
            return "QLoRA computes in 16 bit: precision must be bf16 or fp16"
    if strategy.offload_optimizer is Offload.CPU and not software.has_compiler:
        return "offload_optimizer cpu needs a C++ compiler and ninja, for DeepSpeed's CPU Adam"
    return _kernel_conflict(workload, hardware, software) if strategy.fused_kernels else None


def _kernel_conflict(workload: Workload, hardware: Hardware, software: Software) -> str | None:
    if hardware.device_type is not DeviceType.CUDA:
        return "fused_kernels needs a GPU"
    if not software.has_liger:
        return "fused_kernels needs Liger: pip install 'autotune[liger]'"
    if workload.model.model_type not in LIGER_MODEL_TYPES:
        return f"Liger has no fused kernels for {workload.model.model_type}"
    return None
