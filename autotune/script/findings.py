"""What the user's own run shows of the question: model, method, lengths, batch, settings.

Written by rank 0 of the first run, as JSON; read where the question is put together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from autotune.knob_values import Optimizer
from autotune.names import PrintableText
from autotune.script.replaced_optimizer import kind_of
from autotune.techniques.blocks import causal_model
from autotune.techniques.parameter_counts import count, count_trainable

__all__ = ["Findings", "findings_of"]

_MOST = 2**60


class Findings(BaseModel):
    """The facts of one run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_class: PrintableText
    model_config_record: dict[str, Any] = {}
    """transformers' configuration of the model; empty where it is no model of transformers."""
    model_name: PrintableText = "the command's model"
    num_parameters: int = Field(ge=0, le=_MOST)
    num_trainable_parameters: int = Field(ge=0, le=_MOST)
    lora_rank: int = Field(default=0, ge=0, le=2**16)
    lora_targets: list[PrintableText] = Field(default=[], max_length=1000)
    is_quantized: bool = False
    """Whether the base model is in 4 bit."""
    attention: PrintableText = ""
    recomputes: bool = False
    """Whether the program recomputes activations."""
    has_liger: bool = False
    optimizer: PrintableText = ""
    """The class of the optimizer."""
    optimizer_knob: Optimizer | None = None
    """Which optimizer of the search space it is; None if none."""
    deepspeed_config: dict[str, Any] = {}
    micro_batch_size: int = Field(ge=1, le=2**31)
    gradient_accumulation_steps: int = Field(ge=1, le=2**31)
    global_batch_size: int = Field(ge=1, le=2**31)
    rows_per_batch: int = Field(default=0, ge=0, le=2**31)
    """Rows that one micro-batch feeds the model."""
    joins_batches: bool = False
    """Whether its trainer's batches can be joined: they are padded, and a trainer makes them."""
    has_tokens: bool = False
    is_joined: bool = False
    longest: int = Field(default=0, ge=0, le=2**27)
    """Tokens of the longest row, with padding."""
    lengths: list[int] = Field(default=[], max_length=100_000)
    """Tokens of each sample that was seen, without padding."""


def findings_of(
    engine: Any,
    call: Mapping[str, Any],
    *,
    config: Mapping[str, Any],
    lengths: Sequence[int],
    rows: Sequence[int],
    longest: int,
    is_joined: bool,
    joins_batches: bool = False,
) -> Findings:
    """What an engine of the user's program shows.

    Args:
        engine: DeepSpeed's.
        call: the arguments of `deepspeed.initialize` that made it.
        config: the user's DeepSpeed configuration.
        lengths: tokens of the samples that were fed, without padding.
        rows: rows of each micro-batch that was fed.
        longest: tokens of the longest row; 0 where no tokens are fed.
        is_joined: whether samples were joined in rows.
        joins_batches: whether they could be.
    """
    model: nn.Module = engine.module
    base: Any = causal_model(model)
    record = (
        base.config.to_dict()
        if hasattr(base, "config") and hasattr(base.config, "to_dict")
        else {}
    )
    peft = getattr(model, "peft_config", {}) or {}
    adapter = next(iter(peft.values()), None)
    optimizer = call.get("optimizer") or _named(config)
    kind = kind_of(optimizer) if optimizer is not None else None
    name = optimizer if isinstance(optimizer, str) else type(optimizer).__name__
    targets = getattr(adapter, "target_modules", None) or ()
    return Findings(
        model_class=type(base).__name__,
        model_config_record=_plain(record),
        model_name=str(
            getattr(getattr(base, "config", None), "_name_or_path", "") or type(base).__name__
        ),
        num_parameters=count(model.parameters()),
        num_trainable_parameters=count_trainable(model.parameters()),
        lora_rank=int(getattr(adapter, "r", 0) or 0),
        lora_targets=[targets] if isinstance(targets, str) else sorted(map(str, targets)),
        is_quantized=any(hasattr(p, "quant_state") for p in model.parameters()),
        attention=str(getattr(getattr(base, "config", None), "_attn_implementation", "") or ""),
        recomputes=any(getattr(m, "gradient_checkpointing", False) for m in model.modules()),
        has_liger=any(_is_ligers(m) for m in model.modules()),
        optimizer=name,
        optimizer_knob=kind,
        deepspeed_config=_plain(config),
        micro_batch_size=engine.train_micro_batch_size_per_gpu(),
        gradient_accumulation_steps=engine.gradient_accumulation_steps(),
        global_batch_size=engine.train_batch_size(),
        rows_per_batch=max(rows, default=0),
        joins_batches=joins_batches,
        has_tokens=bool(longest),
        is_joined=is_joined,
        longest=longest,
        lengths=list(lengths)[:20_000],
    )


def _named(config: Mapping[str, Any]) -> str | None:
    named = config.get("optimizer")
    return str(named.get("type")) if isinstance(named, Mapping) else None


def _is_ligers(module: nn.Module) -> bool:
    forward = getattr(module, "forward", None)
    return "liger" in getattr(getattr(forward, "__func__", forward), "__module__", "")


def _plain(value: Any) -> Any:
    """As JSON values: what has none is left out."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items() if _is_plain(v)}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value if _is_plain(v)]
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return value


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(
        value, str | int | float | bool | Mapping | list | tuple | torch.dtype
    )
