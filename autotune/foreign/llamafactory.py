"""A LLaMA-Factory YAML, both ways.

Keys as its dataclasses have them (`src/llamafactory/hparams/`) and, beneath them, transformers'
`TrainingArguments`. Does not know how the file is found, nor what it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autotune.errors import ConfigError
from autotune.foreign.keys import MOST_RANK, Keys, shown
from autotune.foreign.optimizers import OPTIMIZER_NAMES
from autotune.foreign.rows import Count, Flag, Named, Row
from autotune.knob_values import Attention, MasterWeights, Optimizer, Precision
from autotune.question.adapter_targets import ALL_LINEAR
from autotune.question.workload import Method
from autotune.space.strategy import Strategy

__all__ = ["DEFAULT_LENGTH", "ROWS", "adapter_keys", "read_adapters", "read_precision"]

DEFAULT_LENGTH = 2048
"""`cutoff_len` of its `DataArguments`."""

_DEFAULT_RANK = 8
"""`lora_rank` of its `LoraArguments`."""

_ALL = "all"
"""LLaMA-Factory's word for every linear layer."""


@dataclass(frozen=True, slots=True)
class _Checkpoints:
    """Gradient checkpointing, which is on unless it is turned off."""

    def read(self, keys: Keys) -> dict[str, Any]:
        """See `Row`."""
        keys.expect("gradient_checkpointing", True)
        return {"checkpoint_interval": 0 if keys.flag("disable_gradient_checkpointing") else 1}

    def write(self, strategy: Strategy) -> dict[str, Any]:
        """See `Row`."""
        return {} if strategy.checkpoint_interval else {"disable_gradient_checkpointing": True}


@dataclass(frozen=True, slots=True)
class _Optimizer:
    """The optimizer, which has a key of its own for Muon."""

    def read(self, keys: Keys) -> dict[str, Any]:
        """See `Row`."""
        if keys.flag("use_muon"):
            keys.value("optim")
            return {"optimizer": Optimizer.MUON}
        return Named("optimizer", "optim", OPTIMIZER_NAMES).read(keys)

    def write(self, strategy: Strategy) -> dict[str, Any]:
        """See `Row`."""
        if strategy.optimizer is Optimizer.MUON:
            return {"use_muon": True}
        return Named("optimizer", "optim", OPTIMIZER_NAMES).write(strategy)


@dataclass(frozen=True, slots=True)
class _Masters:
    """Weights that are updated in bf16."""

    def read(self, keys: Keys) -> dict[str, Any]:
        """See `Row`."""
        return {"master_weights": MasterWeights.BF16} if keys.flag("pure_bf16") else {}

    def write(self, strategy: Strategy) -> dict[str, Any]:
        """See `Row`. An export has it in its DeepSpeed JSON."""
        return {}


ROWS: tuple[Row, ...] = (
    Count("micro_batch_size", "per_device_train_batch_size"),
    _Optimizer(),
    Flag("tf32", "tf32"),
    Flag("torch_compile", "torch_compile"),
    Named(
        "attention",
        "flash_attn",
        {"sdpa": Attention.SDPA, "fa2": Attention.FLASH, "disabled": Attention.EAGER},
    ),
    _Checkpoints(),
    _Masters(),
    Flag("fused_kernels", "enable_liger_kernel", ("use_liger_kernel",)),
)
"""Which key of LLaMA-Factory's stands for which knob. `batching` belongs here too, once it is a
knob: `packing` and `neat_packing`."""


def read_precision(keys: Keys) -> Precision | None:
    """The precision of forward and backward; None for that of the model's file."""
    is_bf16, is_fp16 = keys.flag("bf16") or keys.flag("pure_bf16"), keys.flag("fp16")
    if is_bf16 and is_fp16:
        raise ConfigError(f"{keys.file}: bf16 and fp16 are both true; let one of them be true")
    if is_bf16 or is_fp16:
        return Precision.BF16 if is_bf16 else Precision.FP16
    return None


def read_adapters(keys: Keys, notes: list[str]) -> dict[str, Any]:
    """Method, rank, scale and targets, by the names of `Setup`, and `lora_alpha` of the knob."""
    kind = keys.word("finetuning_type") or "lora"
    if kind == "full":
        return {"method": Method.FULL}
    if kind != "lora":
        words = f"finetuning_type {shown(kind)} has no counterpart"
        return {"problem": f"{words}: autotune trains full, lora or qlora"}
    bits = keys.count("quantization_bit")
    if bits not in (None, 4):
        notes.append(
            f"quantization_bit {bits} is left out: weights under adapters are in 16 bit or 4 bit "
            "here"
        )
    names = keys.words("lora_target")
    return {
        "method": Method.QLORA if bits == 4 else Method.LORA,
        "lora_rank": keys.count("lora_rank", most=MOST_RANK) or _DEFAULT_RANK,
        "lora_alpha": keys.count("lora_alpha"),
        "lora_targets": (ALL_LINEAR,) if _ALL in names or not names else names,
    }


def adapter_keys(
    method: Method, rank: int, alpha: int, targets: tuple[str, ...]
) -> dict[str, Any]:
    """The keys that say a method and its adapters."""
    if method is Method.FULL:
        return {"finetuning_type": "full"}
    keys = {
        "finetuning_type": "lora",
        "lora_rank": rank,
        "lora_alpha": alpha,
        "lora_target": _ALL if targets == (ALL_LINEAR,) else ",".join(targets),
    }
    return keys | ({"quantization_bit": 4} if method is Method.QLORA else {})
