"""LoRA adapters on a frozen model, by PEFT."""

from __future__ import annotations

from torch import nn

from autotune.workload import ALL_LINEAR

__all__ = ["wrap_lora"]


def wrap_lora(model: nn.Module, rank: int, targets: tuple[str, ...]) -> nn.Module:
    """PEFT's adapters, in the precision of the base model, alpha at twice the rank."""
    from peft import LoraConfig, PeftModel, get_peft_model

    is_wrapped = isinstance(model, PeftModel)
    if is_wrapped:
        return model
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=ALL_LINEAR if ALL_LINEAR in targets else list(targets),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    wrapped: nn.Module = get_peft_model(model, config, autocast_adapter_dtype=False)
    return wrapped
