"""The workload: the model, the sequence length, the global batch, the method.

Does not know what it runs on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from autotune.errors import ConfigError
from autotune.question.adapter_targets import ALL_LINEAR, read_targets
from autotune.question.lengths import Lengths
from autotune.question.model_reader import Vision, load_model_shape
from autotune.question.model_shape import ModelShape

__all__ = ["Method", "ModelShape", "Vision", "Workload", "load_model_shape"]


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
    """Tokens of every sample; those of the longest where there are `lengths`."""
    global_batch_size: int
    """Samples of one optimizer step over all ranks."""
    method: Method = Method.FULL
    lora_rank: int = 16
    """Rank of the adapters where the method has any and the space does not search it."""
    lora_targets: tuple[str, ...] = (ALL_LINEAR,)
    lengths: Lengths | None = None
    """Of the samples, cut off at `seq_len`; None where all have that many tokens."""

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
        if self.lengths is not None:
            object.__setattr__(self, "lengths", self.lengths.cut(self.seq_len))
        if self.method is Method.FULL:
            return
        if self.model.trains_tower:
            raise ConfigError(
                f"--vision trained: --method {self.method} trains adapters of the language part "
                "alone; choose --vision frozen, or --method full"
            )
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
        """Tokens of one optimizer step over all ranks, without padding: in the mean."""
        if self.lengths is not None:
            return round(self.lengths.mean * self.global_batch_size)
        return self.seq_len * self.global_batch_size

    def tokens_fed(self, *, is_packed: bool) -> int:
        """Tokens of one optimizer step without padding; packed samples fill all of `seq_len`."""
        return self.seq_len * self.global_batch_size if is_packed else self.tokens_per_step

    @property
    def longest(self) -> int:
        """Tokens of the longest sample."""
        return self.seq_len if self.lengths is None else self.lengths.longest

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

    @property
    def adapters_in_words(self) -> str | None:
        """Whether the experts of a mixture have adapters, a sentence; None for other models."""
        experts = self.model.experts_in_words(self.lora_targets)
        if self.method is Method.FULL or experts is None:
            return None
        num = self.num_trainable_parameters(self.lora_rank)
        of_experts = self.model.num_expert_adapters(self.lora_rank, self.lora_targets)
        share = f", {of_experts / 1e6:,.1f} million of them in" if of_experts else ";"
        return (
            f"LoRA of rank {self.lora_rank} on {', '.join(self.lora_targets)} trains "
            f"{num / 1e6:,.1f} million parameters{share} {experts}."
        )

    @property
    def towers_in_words(self) -> str | None:
        """What trials train of a vision-language model, sentences; None for language models."""
        model = self.model
        if not model.whole_type:
            return None
        own, tower = map(_in_words, (model.num_language_parameters, model.tower_parameters))
        words = (
            f"Trials train the language part of {model.whole_type} on text alone "
            f"({own} parameters, as {model.model_type}); no images are measured."
        )
        if not model.tower_parameters:
            return f"{words} Its vision tower is left away (--vision absent)."
        words += f" Its vision tower ({tower} parameters) is "
        if model.trains_tower:
            return (
                f"{words}trained: its weights, gradients and optimizer states count in memory, "
                "its activations do not."
            )
        return (
            f"{words}frozen, by `autotune.apply` in your own model: its weights count in memory, "
            "its activations do not."
        )

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader must know of what is trained, a sentence or two each."""
        return tuple(filter(None, (self.towers_in_words, self.adapters_in_words)))

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
            lengths = rest.get("lengths")
            rest["lengths"] = None if lengths is None else Lengths.from_dict(lengths)
            return cls(model=model, **rest)
        except (KeyError, TypeError) as error:
            raise ConfigError(f"this is not a workload of autotune: {error}") from error


def _in_words(number: int) -> str:
    """A large number, as people say it."""
    return f"{number / 1e9:,.2f} billion" if number >= 1e9 else f"{number / 1e6:,.1f} million"
