"""Checks kernels against the device, what is installed and the architecture."""

from __future__ import annotations

from autotune.knob_values import Attention, Experts
from autotune.machine.hardware import DeviceType, Hardware
from autotune.machine.liger import liger_model_types
from autotune.machine.software import Software
from autotune.question.workload import Workload
from autotune.space.compatibility.attention import ATTENTIONS_MISSING
from autotune.space.strategy import Strategy

__all__ = ["conflict"]

_KNOWN_TO_LIGER = frozenset(
    ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "mixtral", "phi3", "qwen2", "qwen3")
)
"""Architectures that Liger 0.8 has fused kernels for, where none is installed to be asked, as when
planning: a part of them."""

_MAX_FLASH_HEAD_DIM = 256
"""The largest head of FlashAttention 2."""


def conflict(
    strategy: Strategy, workload: Workload, hardware: Hardware, software: Software
) -> str | None:
    """Why the question does not allow these knobs, in words; None where it does."""
    return (
        _fused_kernels(strategy, workload, hardware, software)
        or _attention(strategy, workload, hardware, software)
        or _experts(strategy, workload)
        or _torch_compile(strategy, hardware, software)
    )


def _fused_kernels(
    strategy: Strategy, workload: Workload, hardware: Hardware, software: Software
) -> str | None:
    if not strategy.fused_kernels:
        return None
    if hardware.device_type is not DeviceType.CUDA:
        return "fused_kernels needs a GPU"
    if not hardware.runs_triton:
        return f"fused_kernels: Liger uses Triton, which makes kernels {_too_old(hardware)}"
    if not software.has_liger:
        return "fused_kernels needs Liger: pip install 'autotune[liger]'"
    known = liger_model_types()
    model = workload.model
    # The user's own model is the whole of it where it has a tower.
    kinds = (model.model_type, *((model.whole_type,) if model.tower_parameters else ()))
    lacking = next((k for k in kinds if k not in (known or _KNOWN_TO_LIGER)), None)
    if lacking is None:
        return None
    if known is None:
        return f"no Liger is installed here to say whether it has fused kernels for {lacking}"
    return f"the installed Liger has no fused kernels for {lacking}"


def _attention(
    strategy: Strategy, workload: Workload, hardware: Hardware, software: Software
) -> str | None:
    attention, model = strategy.attention, workload.model
    if model.model_type in ATTENTIONS_MISSING[attention]:
        return f"transformers has no {attention} attention for {model.model_type}"
    if attention is not Attention.FLASH:
        return None
    if hardware.device_type is not DeviceType.CUDA:
        return f"attention {attention} needs a GPU"
    if not hardware.runs_triton:
        return f"attention {attention}: FlashAttention 2 has kernels {_too_old(hardware)}"
    if not software.has_flash_attention:
        return f"attention {attention} needs FlashAttention: pip install flash-attn"
    if model.head_dim > _MAX_FLASH_HEAD_DIM:
        return (
            f"attention {attention} takes heads of at most {_MAX_FLASH_HEAD_DIM}, "
            f"{model.name} has {model.head_dim}"
        )
    return None


def _experts(strategy: Strategy, workload: Workload) -> str | None:
    experts, model = strategy.experts_implementation, workload.model
    if experts is Experts.GROUPED_MM or model.expert_parameters:
        return None
    return f"experts_implementation {experts} needs routed experts; {model.name} has none"


def _torch_compile(strategy: Strategy, hardware: Hardware, software: Software) -> str | None:
    if not strategy.torch_compile:
        return None
    if hardware.device_type is DeviceType.CUDA:
        if not hardware.runs_triton:
            return f"torch_compile uses Triton, which makes kernels {_too_old(hardware)}"
        if not software.has_gpu_inductor:
            return "torch_compile needs Triton and a C compiler, to make code for a GPU"
    elif not software.has_cpu_inductor:
        return "torch_compile needs a C++ compiler, to make code for a CPU"
    return None


def _too_old(hardware: Hardware) -> str:
    """Why a GPU cannot have kernels, after what they are.

    Triton's documentation, "Compatibility", and that of FlashAttention 2: Ampere or later.
    """
    capability = hardware.compute_capability
    has = "less" if capability is None else f"{capability[0]}.{capability[1]}"
    return f"for GPUs of compute capability 8.0 or above: {hardware.device_kind} has {has}"
