"""What is trained: the model, the sequence length, the global batch, the method.

Does not know what it runs on. A preset is read without transformers; a folder or a Hugging Face id
is read by transformers' own `AutoConfig`, which knows each architecture's defaults.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from autotune.errors import ConfigError
from autotune.question.adapter_targets import ALL_LINEAR, read_targets
from autotune.question.census import take_census
from autotune.question.model_shape import ModelShape
from autotune.question.presets import PRESETS

__all__ = ["Method", "ModelShape", "Workload", "load_model_shape"]

_WIDTHS = ("intermediate_size", "ffn_dim", "n_inner")
_NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""Names of the MLP's width and of the number of experts, which differ between architectures."""


class Method(StrEnum):
    """What is learned: all parameters, or adapters on a frozen base (4-bit for QLoRA)."""

    FULL = "full"
    LORA = "lora"
    QLORA = "qlora"


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """The training that a strategy is sought for.

    Raises:
        ConfigError: a length, a batch or LoRA settings that cannot be; the message names the flag.
    """

    model: ModelShape
    seq_len: int
    """Tokens of every sample; trials always run the longest sample."""
    global_batch_size: int
    """Samples of one optimizer step over all ranks."""
    method: Method = Method.FULL
    lora_rank: int = 16
    """Rank of the adapters where the method has any and the space does not search it."""
    lora_targets: tuple[str, ...] = (ALL_LINEAR,)

    def __post_init__(self) -> None:
        """Refuse what no strategy can train."""
        longest = self.model.max_position_embeddings
        if not 1 <= self.seq_len <= longest:
            raise ConfigError(
                f"--seq-len {self.seq_len}: {self.model.name} takes 1 to {longest} tokens; "
                f"choose --seq-len {longest} or less"
            )
        if self.global_batch_size < 1:
            raise ConfigError(f"--global-batch must be at least 1, got {self.global_batch_size}")
        if self.method is Method.FULL:
            return
        if self.lora_rank < 1:
            raise ConfigError(f"--lora-rank must be at least 1, got {self.lora_rank}")
        if not self.lora_targets:
            raise ConfigError(
                f"--lora-targets names no layer; give {ALL_LINEAR}, or names such as q_proj,v_proj"
            )
        unknown = self.model.unknown_target(self.lora_targets)
        if unknown:
            raise ConfigError(f"--lora-targets: {unknown}")

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step over all ranks."""
        return self.seq_len * self.global_batch_size

    def adapter_targets(self, lora_targets: str) -> tuple[str, ...]:
        """The targets that a strategy's `lora_targets` stands for."""
        return read_targets(lora_targets) or self.lora_targets

    def num_trainable_parameters(self, lora_rank: int, lora_targets: str = "") -> int:
        """Parameters that the optimizer sees.

        Args:
            lora_rank: rank of the adapters; 0 stands for full fine-tuning.
            lora_targets: the strategy's, as text; empty for the workload's own.
        """
        if lora_rank == 0:
            return self.model.num_parameters
        return self.model.num_lora_parameters(lora_rank, self.adapter_targets(lora_targets))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; `from_dict` reads it back."""
        record: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Workload:
        """Read back what `to_dict` wrote.

        Raises:
            ConfigError: a key is missing or has a value of the wrong kind.
        """
        try:
            model = ModelShape(**record["model"])
            rest = {key: value for key, value in record.items() if key != "model"}
            rest["method"] = Method(rest["method"])
            rest["lora_targets"] = tuple(rest["lora_targets"])
            return cls(model=model, **rest)
        except (KeyError, TypeError) as error:
            raise ConfigError(f"this is no workload of autotune: {error}") from error


def load_model_shape(name: str, *, trust_remote_code: bool = False) -> ModelShape:
    """Read a preset, a local folder with config.json, or a Hugging Face id, in this order.

    Args:
        name: what the user gave to --model.
        trust_remote_code: allow the model's own Python code to run.

    Raises:
        ConfigError: there is no such model, or its configuration cannot be read.
    """
    if name in PRESETS:
        return _shape_of(name, PRESETS[name].config, source=None)
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"--model {name}: the folder has no config.json")
    elif name.count("/") != 1 or name.startswith((".", "/", "~")):
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"--model {name}: no such preset or folder. {hint}Presets: {', '.join(PRESETS)}; "
            "or a local folder with config.json, or a Hugging Face id such as org/name"
        )
    config = _read_config(name, trust_remote_code)
    if trust_remote_code and "auto_map" in config:
        return _shape_of(name, config, source=name)
    shape = _shape_of(name, config, source=None)
    return replace(shape, census=take_census(config, shape.num_hidden_layers))


def _read_config(name: str, trust_remote_code: bool) -> dict[str, Any]:
    """The whole configuration of a folder or a Hugging Face id, defaults filled in."""
    from transformers import AutoConfig

    if Path(name).is_dir():
        try:
            raw = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"--model {name}: config.json cannot be read: {error}") from error
        if not isinstance(raw, dict) or "model_type" not in raw:
            raise ConfigError(f"--model {name}: config.json names no model_type")
        if "auto_map" in raw and not trust_remote_code:
            raw.pop("auto_map")
    # It would tell of every attempt to connect, in lines of its own.
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"--model {name}: its configuration cannot be read: {reason}") from error
    finally:
        hub.setLevel(level)
    record: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    # Names that an architecture keeps under its own words, under the common ones too.
    for common in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        record.setdefault(common, getattr(config, common, None))
    record.setdefault("max_position_embeddings", getattr(config, "max_position_embeddings", None))
    return record


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    """The first value that is given, and not zero, under these keys."""
    return next((config[key] for key in keys if config.get(key)), None)


def _shape_of(name: str, config: Mapping[str, Any], source: str | None) -> ModelShape:
    """Take the numbers out of a configuration."""
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        kv_heads = config.get("num_key_value_heads") or heads
        is_mixture = _first(config, _NUM_EXPERTS)
        widths = ("moe_intermediate_size", *_WIDTHS) if is_mixture else _WIDTHS
        width = _first(config, widths) or 4 * hidden
        return ModelShape(
            name=name,
            model_type=str(config["model_type"]),
            hidden_size=hidden,
            intermediate_size=int(width),
            num_hidden_layers=int(config["num_hidden_layers"]),
            num_attention_heads=heads,
            num_key_value_heads=int(kv_heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            vocab_size=int(config["vocab_size"]),
            max_position_embeddings=int(config.get("max_position_embeddings") or 2**31),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            embedding_size=int(config.get("word_embed_proj_dim") or hidden),
            num_experts=int(_first(config, _NUM_EXPERTS) or 1),
            config=dict(config),
            source=source,
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(
            f"--model {name}: not a decoder-only language model that autotune knows: "
            f"its configuration lacks or misstates {error}"
        ) from error
