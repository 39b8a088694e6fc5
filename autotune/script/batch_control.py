"""Whether a command lets its batches be steered, as far as its text shows before it runs."""

from __future__ import annotations

import re
from pathlib import Path

from autotune.errors import ConfigError
from autotune.question.command import CommandKind, TrainingCommand

__all__ = ["check_batches"]

_STEERED = (
    # Of a kind, such as Seq2SeqTrainingArguments.
    r"\w*TrainingArguments",
    "HfArgumentParser",
    "TrlParser",
    "SFTConfig",
    "DPOConfig",
    "ORPOConfig",
    "KTOConfig",
    "CPOConfig",
    "GRPOConfig",
    "RewardConfig",
    r"\w*Trainer",
    "Accelerator",
    "training_data",
    # A call of the engine's; the key in a configuration says nothing of the loader.
    r"train_micro_batch_size_per_gpu\s*\(\s*\)",
)
"""Names in a program that say that its batches follow a trainer's arguments, Accelerate's
`prepare` or DeepSpeed's configuration."""

_MOST_CHARACTERS = 2**20


def check_batches(command: TrainingCommand) -> None:
    """Refuse a program whose micro-batch nothing could change.

    A module's or a package's own program is not read: it shows when it runs.

    Raises:
        ConfigError: it has no placeholder and uses nothing that is known; says what to write.
    """
    if "micro_batch_size" in command.placeholders or command.kind is not CommandKind.FILE:
        return
    path = Path(command.folder) / command.target
    text = path.read_bytes()[:_MOST_CHARACTERS].decode("utf-8", errors="replace")
    if any(re.search(rf"\b{name}(?!\w)", text) for name in _STEERED):
        return
    raise ConfigError(
        f"-- COMMAND: {command.target} uses neither a Trainer nor Accelerate, so autotune cannot "
        "tell how its batch size is set; name the option in the command, such as "
        f"{command.target} --batch-size {{micro_batch_size=4}} "
        "--accumulation {gradient_accumulation_steps=8}, with your own values behind ="
    )
