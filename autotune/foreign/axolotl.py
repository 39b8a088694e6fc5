"""An Axolotl YAML, both ways.

Keys as Axolotl's schema has them (`src/axolotl/utils/schemas/`, `integrations/liger/args.py`),
older names too. Does not know how the file is found, nor what it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autotune.errors import ConfigError
from autotune.foreign.keys import AUTO, MOST_RANK, MOST_SAMPLES, Keys, shown
from autotune.foreign.optimizers import OPTIMIZER_NAMES
from autotune.foreign.rows import Count, Flag, Named, Row
from autotune.knob_values import Attention, Offload, Precision
from autotune.question.adapter_targets import ALL_LINEAR
from autotune.question.workload import Method
from autotune.space.strategy import Strategy

__all__ = ["ROWS", "adapter_keys", "liger_note", "read_adapters", "read_batch", "read_precision"]

_LIGER_PLUGIN = "axolotl.integrations.liger.LigerPlugin"

_LIGER_LOSS = "liger_fused_linear_cross_entropy"

_LIGER_KEYS = ("liger_rope", "liger_rms_norm", "liger_glu_activation", _LIGER_LOSS)
"""What Liger's plugin is told to replace; the knob stands for all of it."""

_OTHER_LIGER_KEYS = ("liger_layer_norm", "liger_swiglu", "liger_cross_entropy")

_DEFAULT_RANK = 8
"""PEFT's, which Axolotl takes where `lora_r` is missing."""


_ATTENTION_FLAGS = {
    "flash_attention": Attention.FLASH,
    "sdp_attention": Attention.SDPA,
    "eager_attention": Attention.EAGER,
}

_ATTENTION_WORDS = {str(attention): attention for attention in Attention} | {
    "flash": Attention.FLASH,
    "sdp": Attention.SDPA,
}


@dataclass(frozen=True, slots=True)
class _AttentionFlags:
    """Attention: one key with a word in newer files, a key for each kind in older ones."""

    def read(self, keys: Keys) -> dict[str, Any]:
        """See `Row`."""
        for key in ("attn_implementation", "attention"):
            if knobs := Named("attention", key, _ATTENTION_WORDS).read(keys):
                return knobs
        said = [attention for key, attention in _ATTENTION_FLAGS.items() if keys.flag(key)]
        for other in ("flex_attention", "xformers_attention", "s2_attention"):
            keys.expect(other, False)
        return {"attention": said[0]} if said else {}

    def write(self, strategy: Strategy) -> dict[str, Any]:
        """See `Row`."""
        written = {attention: key for key, attention in _ATTENTION_FLAGS.items()}
        return {written[strategy.attention]: True}


@dataclass(frozen=True, slots=True)
class _Checkpoints:
    """Gradient checkpointing, and where what it keeps waits."""

    def read(self, keys: Keys) -> dict[str, Any]:
        """See `Row`."""
        word = keys.word("gradient_checkpointing")
        if word in (None, "false"):
            keys.expect("activation_offloading", False)
            return {"checkpoint_interval": 0}
        knobs: dict[str, Any] = {"checkpoint_interval": 1}
        offloading = keys.word("activation_offloading")
        if word in ("offload", "unsloth") or offloading in ("true", "legacy"):
            knobs["offload_checkpoints"] = Offload.CPU
        elif offloading not in (None, "false"):
            keys.leave("activation_offloading")
        if word not in ("true", "offload", "unsloth"):
            keys.leave("gradient_checkpointing")
        return knobs

    def write(self, strategy: Strategy) -> dict[str, Any]:
        """See `Row`."""
        if not strategy.checkpoint_interval:
            return {}
        keys: dict[str, Any] = {"gradient_checkpointing": True}
        if strategy.offload_checkpoints is Offload.CPU:
            keys["activation_offloading"] = True
        return keys


@dataclass(frozen=True, slots=True)
class _Liger:
    """Liger's kernels: a plugin, and what it replaces."""

    def read(self, keys: Keys) -> dict[str, Any]:
        """See `Row`."""
        plugins = keys.words("plugins")
        if _LIGER_PLUGIN not in plugins:
            if plugins:
                keys.leave("plugins")
            return {}
        if len(plugins) > 1:
            keys.leave("plugins")
        asked = [key for key in (*_LIGER_KEYS, *_OTHER_LIGER_KEYS) if keys.flag(key)]
        if _LIGER_LOSS in asked:
            return {"fused_kernels": True}
        # The loss without logits is what saves memory; without it the knob would mislead.
        for key in asked:
            keys.leave(key)
        return {}

    def write(self, strategy: Strategy) -> dict[str, Any]:
        """See `Row`."""
        if not strategy.fused_kernels:
            return {}
        return {"plugins": [_LIGER_PLUGIN], **dict.fromkeys(_LIGER_KEYS, True)}


@dataclass(frozen=True, slots=True)
class _TiledMlp:
    """MLPs in tiles; `AUTO` for as many as the sequence has widths, if there is no number."""

    def read(self, keys: Keys) -> dict[str, Any]:
        """See `Row`."""
        is_tiled, number = keys.flag("tiled_mlp"), keys.count("tiled_mlp_num_shards")
        return {"mlp_tiles": number or AUTO} if is_tiled else {}

    def write(self, strategy: Strategy) -> dict[str, Any]:
        """See `Row`."""
        if strategy.mlp_tiles == 1:
            return {}
        return {"tiled_mlp": True, "tiled_mlp_num_shards": strategy.mlp_tiles}


ROWS: tuple[Row, ...] = (
    Count("micro_batch_size", "micro_batch_size"),
    Count("tensor_parallel_size", "tensor_parallel_size", omits=1),
    Count(
        "sequence_parallel_size", "context_parallel_size", ("sequence_parallel_degree",), omits=1
    ),
    Named("optimizer", "optimizer", OPTIMIZER_NAMES),
    Flag("tf32", "tf32"),
    Flag("torch_compile", "torch_compile"),
    _AttentionFlags(),
    _Checkpoints(),
    _Liger(),
    _TiledMlp(),
)
"""Which key of Axolotl's stands for which knob. `batching` belongs here too, once it is a knob:
`sample_packing`, and `batch_flattening` for samples that are joined without padding."""


def liger_note(keys: Keys) -> str | None:
    """That the knob, which is on, replaces more than a file asks for; None where it does not."""
    older = {"liger_glu_activation": "liger_swiglu"}
    missing = [
        key
        for key in _LIGER_KEYS
        if not keys.flag(key) and not (key in older and keys.flag(older[key]))
    ]
    if not missing:
        return None
    return f"all of Liger's kernels are measured, {', '.join(missing)} too"


def read_batch(keys: Keys) -> int | None:
    """Micro-batches of a step; `batch_size` is what one device takes in a step."""
    accumulation = keys.count("gradient_accumulation_steps", most=MOST_SAMPLES)
    size, micro_batch = keys.count("batch_size", most=MOST_SAMPLES), keys.count("micro_batch_size")
    if accumulation is None and size is not None and micro_batch is not None:
        return max(1, size // micro_batch)
    return accumulation


def read_precision(keys: Keys) -> Precision | None:
    """The precision of forward and backward; None for the best that the device has."""
    is_bf16, is_fp16 = bool(keys.flag("bf16")), bool(keys.flag("fp16"))
    # Without autocast; weights have the precision in any case.
    is_bf16, is_fp16 = (
        is_bf16 or bool(keys.flag("bfloat16")),
        is_fp16 or bool(keys.flag("float16")),
    )
    if is_bf16 and is_fp16:
        raise ConfigError(f"{keys.file}: bf16 and fp16 are both true; let one of them be true")
    if is_bf16 or is_fp16:
        return Precision.BF16 if is_bf16 else Precision.FP16
    is_left = "bf16" not in keys or keys.value("bf16") == AUTO
    return None if is_left and not keys.flag("float32") else Precision.FP32


def read_adapters(keys: Keys, notes: list[str]) -> dict[str, Any]:
    """Method, rank, scale and targets, by the names of `Setup`, and `lora_alpha` of the knob."""
    adapter = keys.word("adapter")
    is_4bit, is_8bit = keys.flag("load_in_4bit"), keys.flag("load_in_8bit")
    if adapter is None:
        return {"method": Method.FULL}
    if adapter not in ("lora", "qlora"):
        words = f"adapter {shown(adapter)} has no counterpart"
        return {"problem": f"{words}: autotune trains full, lora or qlora"}
    if is_8bit:
        notes.append(
            "load_in_8bit is left out: weights under adapters are in 16 bit or 4 bit here"
        )
    names = keys.words("lora_target_modules")
    if keys.flag("lora_target_linear") or not names or names == (ALL_LINEAR,):
        names = (ALL_LINEAR,)
    return {
        "method": Method.QLORA if adapter == "qlora" or is_4bit else Method.LORA,
        "lora_rank": keys.count("lora_r", most=MOST_RANK) or _DEFAULT_RANK,
        "lora_alpha": keys.count("lora_alpha"),
        "lora_targets": names,
    }


def adapter_keys(
    method: Method, rank: int, alpha: int, targets: tuple[str, ...]
) -> dict[str, Any]:
    """The keys that say a method and its adapters."""
    if method is Method.FULL:
        return {}
    keys: dict[str, Any] = {"adapter": str(method), "lora_r": rank, "lora_alpha": alpha}
    if method is Method.QLORA:
        keys["load_in_4bit"] = True
    if targets == (ALL_LINEAR,):
        return keys | {"lora_target_linear": True}
    return keys | {"lora_target_modules": list(targets)}
