"""The options that ask about the training itself, shared by the commands that take them.

Does not know the commands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from autotune.question.workload import ModelShape, Workload

__all__ = [
    "AsJson",
    "Headroom",
    "HostHeadroom",
    "LoraRank",
    "LoraTargets",
    "Method",
    "SeqLen",
    "check_headroom",
    "read_workload",
]

_SEQ_LEN = 1024
"""Tokens of a sample where none are named, or the model's maximum if that is less."""

SeqLen = Annotated[
    int | None,
    typer.Option(
        help="Tokens of a sample: the longest that you will train on.",
        show_default="1024, or the model's maximum if less",
    ),
]
Method = Annotated[
    str,
    typer.Option(
        help="What is trained: full (all weights), lora (adapters) or qlora (adapters on "
        "4-bit weights)."
    ),
]
LoraRank = Annotated[
    int,
    typer.Option(
        help="Rank of the LoRA adapters, where --space has no lora_rank. No use with full."
    ),
]
LoraTargets = Annotated[
    str,
    typer.Option(help="Linear layers with adapters: all-linear, or names such as q_proj,v_proj."),
]
Headroom = Annotated[
    float,
    typer.Option(help="Share of device memory that a strategy must leave free: 0.05 is 5 %."),
]
HostHeadroom = Annotated[
    float,
    typer.Option(
        help="Share of the host's memory that a strategy must leave free, for the system and for "
        "loading data: 0.05 is 5 %. What saving a checkpoint takes for a moment is counted apart."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as one JSON document.")]


def check_headroom(headroom: float, host_headroom: float) -> None:
    """Raises ConfigError for what is no share of a device's or the host's memory."""
    from autotune.errors import ConfigError

    for flag, share in (("--headroom", headroom), ("--host-headroom", host_headroom)):
        if not 0 <= share < 1:
            raise ConfigError(f"{flag} must be at least 0 and less than 1, got {share}")


def read_workload(
    shape: ModelShape,
    *,
    seq_len: int | None,
    global_batch: int,
    method: str,
    lora_rank: int,
    lora_targets: str,
) -> Workload:
    """What the options ask to be trained.

    Raises:
        ConfigError: an option that cannot be; the message names its flag.
    """
    from autotune.cli.members import member
    from autotune.question import workload

    return workload.Workload(
        model=shape,
        seq_len=seq_len if seq_len is not None else min(_SEQ_LEN, shape.max_position_embeddings),
        global_batch_size=global_batch,
        method=member(workload.Method, method, "--method"),
        lora_rank=lora_rank,
        lora_targets=tuple(part.strip() for part in lora_targets.split(",") if part.strip()),
    )
