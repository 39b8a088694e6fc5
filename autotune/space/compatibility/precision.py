"""Checks precisions against the device, and the model's shape."""

from __future__ import annotations

from autotune.knob_values import FP8_MULTIPLE, GroupPrecision, ModuleGroup, Precision
from autotune.machine.hardware import DeviceType, Hardware
from autotune.machine.software import Software
from autotune.question.workload import Method, ModelShape, Workload
from autotune.space.strategy import Strategy

__all__ = ["conflict"]


def conflict(
    strategy: Strategy, workload: Workload, hardware: Hardware, software: Software
) -> str | None:
    """Why the question does not allow these knobs, in words; None where it does."""
    return (
        _device(strategy, hardware)
        or _fp8(strategy, workload, hardware)
        or _groups(strategy, workload)
    )


def _device(strategy: Strategy, hardware: Hardware) -> str | None:
    if Precision.BF16 in strategy.parameter_precisions and not hardware.supports_bf16:
        return _without_bf16(hardware)
    # Without ZeRO, or beside other precisions, fp16 does without DeepSpeed's, which asks for it.
    needs_fp16 = strategy.parameter_precisions == {Precision.FP16} and not strategy.scales_own_loss
    if needs_fp16 and not hardware.supports_fp16:
        return "DeepSpeed computes fp16 on CPUs with AVX512-FP16 only, and this one has none"
    if strategy.tf32 and not hardware.supports_tf32:
        return (
            "tf32 needs a GPU of compute capability 8.0 or above: "
            f"{hardware.device_kind} is not one"
        )
    return None


def _without_bf16(hardware: Hardware) -> str:
    if hardware.device_type is DeviceType.CPU:
        return "this CPU has no instructions for bf16, which it computes far slower than fp32"
    return f"{hardware.device_kind} has no bf16"


def _fp8(strategy: Strategy, workload: Workload, hardware: Hardware) -> str | None:
    groups = [group for group in ModuleGroup if strategy.precision_of(group) is GroupPrecision.FP8]
    for group in groups:
        knob = f"{group}_precision"
        if not hardware.supports_fp8:
            return (
                f"{knob} fp8 needs a GPU of compute capability 8.9 or above: "
                f"{hardware.device_kind} is not one"
            )
        if workload.method is Method.QLORA:
            return f"{knob} fp8 does not go with qlora, whose weights have 4 bits"
        if words := _unfit_for_fp8(group, workload.model):
            return f"{knob} fp8 {words}"
    return None


def _unfit_for_fp8(group: ModuleGroup, model: ModelShape) -> str | None:
    """Why the products of a group cannot be in 8 bit."""
    if group is not ModuleGroup.LM_HEAD and model.model_type == "gpt2":
        return f"needs linear layers, and {model.name} has convolutions instead"
    if group is ModuleGroup.MLP and model.num_experts > 1:
        return f"needs linear layers, and the experts of {model.name} are not linear layers"
    linears = {
        ModuleGroup.ATTENTION: model.attention_linears,
        ModuleGroup.MLP: model.mlp_linears,
        ModuleGroup.LM_HEAD: {"the head": (model.embedding_size, model.vocab_size)},
    }[group]
    for name, sides in linears.items():
        if any(side % FP8_MULTIPLE for side in sides):
            return (
                f"needs sides that are multiples of {FP8_MULTIPLE}, got {sides[0]} x {sides[1]} "
                f"({name} of {model.name})"
            )
    return None


def _groups(strategy: Strategy, workload: Workload) -> str | None:
    own = {group: strategy.parameter_precision(group) for group in ModuleGroup}
    embedding, head = own[ModuleGroup.EMBEDDING], own[ModuleGroup.LM_HEAD]
    if workload.model.tie_word_embeddings and embedding is not head:
        return (
            f"embedding and lm_head of {workload.model.name} share their weights: their "
            f"precisions must be equal, got {embedding} and {head}"
        )
    if workload.method is Method.QLORA:
        for group in (ModuleGroup.ATTENTION, ModuleGroup.MLP):
            if own[group] is not strategy.precision:
                return (
                    f"{group}_precision {own[group]} does not go with qlora, whose 4-bit layers "
                    f"compute in precision {strategy.precision}"
                )
    return None
