"""LoRA adapters on a frozen model, by PEFT."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

from torch import nn

from autotune.errors import ConfigError
from autotune.knob_values import ModuleGroup
from autotune.question.adapter_targets import ALL_LINEAR, EXPERTS, can_have_adapter, has_adapter
from autotune.question.census import has_implementations
from autotune.techniques.blocks import is_attention

__all__ = ["linear_layers", "wrap_lora"]


def wrap_lora(
    model: nn.Module, layers: Iterable[nn.Module], *, rank: int, alpha: int, targets: Sequence[str]
) -> nn.Module:
    """PEFT's adapters, in the precision of the base model; a wrapped model is left as it is.

    Args:
        model: a causal language model of transformers; its own weights are frozen.
        layers: its decoder layers; nothing outside of them has adapters.
        rank: of each adapter's two matrices.
        alpha: the adapters' output is scaled by alpha / rank; 0 stands for twice the rank.
        targets: the linear layers that have adapters, as `adapter_targets` reads them. For some
            mixtures PEFT adapts the experts in their place (`question/expert_adapters.py`).

    Raises:
        ConfigError: a target names no linear layer of the decoder layers, or PEFT refuses it.
    """
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers.pytorch_utils import Conv1D

    is_wrapped = isinstance(model, PeftModel)
    if is_wrapped:
        return model
    model_type = str(model.config.model_type)  # type: ignore[union-attr]
    linears = {
        path: group
        for path, group in linear_layers(model, layers).items()
        if can_have_adapter(_name(path), model_type)
    }
    chosen = [path for path, group in linears.items() if has_adapter(_name(path), group, targets)]
    _check_targets(targets, linears, has_experts=bool(_expert_weights(model)))
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha or 2 * rank,
        # Whole paths, since a name may stand for layers of both groups (GPT-2's c_proj).
        target_modules=chosen,
        target_parameters=_expert_weights(model) if EXPERTS in targets else None,
        lora_dropout=0.0,
        fan_in_fan_out=any(isinstance(model.get_submodule(path), Conv1D) for path in chosen),
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            # Ranks of the experts' parameters, which do apply, are looked for among modules only.
            warnings.filterwarnings("ignore", r"The following (rank|alpha)_pattern keys")
            wrapped: nn.Module = get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        raise ConfigError(f"lora_targets: PEFT refuses them for this model: {error}") from error
    return wrapped


def linear_layers(model: nn.Module, layers: Iterable[nn.Module]) -> dict[str, ModuleGroup]:
    """The linear layers of the decoder layers: their group by their path in the model.

    What lies in a module that is called attention belongs to it, all else to the MLP.
    """
    from transformers.pytorch_utils import Conv1D

    paths = {module: path for path, module in model.named_modules()}
    return {
        f"{paths[layer]}.{path}": (
            ModuleGroup.ATTENTION if _is_in_attention(path) else ModuleGroup.MLP
        )
        for layer in layers
        for path, module in layer.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }


def _is_in_attention(path: str) -> bool:
    *parents, _ = path.split(".")
    return any(is_attention(parent) for parent in parents)


def _name(path: str) -> str:
    return path.rpartition(".")[2]


def _expert_weights(model: nn.Module) -> list[str]:
    """Paths of the weights of routed experts: of each layer one tensor for all experts."""
    return [
        f"{path}.{name}"
        for path, module in model.named_modules()
        if has_implementations(module)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3
    ]


def _check_targets(
    targets: Sequence[str], linears: dict[str, ModuleGroup], *, has_experts: bool
) -> None:
    names = (_name(path) for path in linears)
    experts = (EXPERTS,) if has_experts else ()
    known = dict.fromkeys((ALL_LINEAR, *map(str, linears.values()), *names, *experts))
    for target in targets:
        if target not in known:
            raise ConfigError(
                f"lora_targets: the model's decoder layers have no linear layer {target!r}; "
                f"choose from {', '.join(known)}"
            )
