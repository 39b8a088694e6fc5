"""The options that ask about the training itself, shared by the commands that take them.

Does not know the commands.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from autotune.question.workload import ModelShape, Workload

__all__ = [
    "MOST_DEVICES",
    "MOST_GIB",
    "MOST_TRIALS",
    "AsJson",
    "GlobalBatch",
    "Headroom",
    "HostHeadroom",
    "LoraRank",
    "LoraTargets",
    "Method",
    "SeqLen",
    "Storage",
    "announced_batch",
    "check_headroom",
    "default_batch",
    "member",
    "nearest_batches",
    "read_workload",
]

_Member = TypeVar("_Member", bound=StrEnum)

_SEQ_LEN = 1024
"""Tokens of a sample where none are named, or the model's maximum if that is less."""

_GLOBAL_BATCH = 32
"""Samples of an optimizer step where none are named, or the multiple of the devices next to it."""

MOST_DEVICES = 1_000_000
"""Ten times what the largest clusters have. Above this and what follows, figures mean nothing."""

MOST_GIB = 1_000_000
"""A pebibyte, of one host."""

MOST_TRIALS = 1_000_000

_MOST_TOKENS = 2**27
_MOST_SAMPLES = 2**24
_MOST_RANK = 2**16

_RANK = 16
"""Of adapters where none is named, whatever the model."""

SeqLen = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=_MOST_TOKENS,
        help="Tokens of a sample: the longest that you will train on.",
        show_default="1024, or the model's maximum if less",
    ),
]
GlobalBatch = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=_MOST_SAMPLES,
        help="Samples of one optimizer step, over all devices. It is held fixed: divided into "
        "micro-batches and accumulation.",
        show_default="32, or the multiple of the devices nearest to it",
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
        min=1,
        max=_MOST_RANK,
        help="Rank of the LoRA adapters, where --space has no lora_rank. No use with full.",
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
Storage = Annotated[
    str | None,
    typer.Option(
        envvar="AUTOTUNE_STORAGE",
        help="The Optuna storage URL of the trials, such as postgresql://…; in the environment "
        "its password is not among the arguments that others see.",
        show_default="study.db in the study's folder",
    ),
]
HostHeadroom = Annotated[
    float,
    typer.Option(
        help="Share of the host's memory that a strategy must leave free, for the system and for "
        "loading data: 0.05 is 5 %. What saving a checkpoint takes for a moment is counted apart."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as one JSON document.")]


def member(enumeration: type[_Member], value: str, flag: str) -> _Member:
    """One of a closed set, or a message that names the flag and the set.

    Raises:
        ConfigError: the set has no such member.
    """
    from autotune.errors import ConfigError

    try:
        return enumeration(value)
    except ValueError:
        choices = ", ".join(str(each) for each in enumeration)
        raise ConfigError(f"{flag} {value!r}: choose from {choices}") from None


def check_headroom(headroom: float, host_headroom: float) -> None:
    """Raises ConfigError for what is no share of a device's or the host's memory."""
    from autotune.errors import ConfigError

    for flag, share in (("--headroom", headroom), ("--host-headroom", host_headroom)):
        if not 0 <= share < 1:
            raise ConfigError(f"{flag} must be at least 0 and less than 1, got {share}")


def default_batch(num_devices: int) -> int:
    """The global batch where none is named: the multiple of the devices that is nearest to 32."""
    return num_devices * max(1, round(_GLOBAL_BATCH / num_devices))


def announced_batch(num_devices: int, console: Console) -> int:
    """The same, and a word to the user where it is not 32."""
    batch = default_batch(num_devices)
    if batch != _GLOBAL_BATCH:
        console.print(
            f"--global-batch is left out: {batch} is taken, the multiple of {num_devices} devices "
            f"that is nearest to {_GLOBAL_BATCH}",
            markup=False,
            soft_wrap=True,
        )
    return batch


def nearest_batches(global_batch: int, num_devices: int) -> str:
    """The multiples of the devices below and above a global batch, in words."""
    below = global_batch // num_devices * num_devices
    above = below + num_devices
    return f"the nearest that work are {below} and {above}" if below else f"the least is {above}"


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
    from autotune.question import workload

    _check_adapters(shape, lora_rank, lora_targets)
    return workload.Workload(
        model=shape,
        seq_len=seq_len if seq_len is not None else min(_SEQ_LEN, shape.max_position_embeddings),
        global_batch_size=global_batch,
        method=member(workload.Method, method, "--method"),
        lora_rank=lora_rank,
        lora_targets=tuple(part.strip() for part in lora_targets.split(",") if part.strip()),
    )


def _check_adapters(shape: ModelShape, rank: int, targets: str) -> None:
    """Refuse adapters that no method has, whether or not this one has any."""
    from autotune.errors import ConfigError
    from autotune.question.adapter_targets import ALL_LINEAR, read_targets

    widest = max(shape.hidden_size, shape.intermediate_size)
    if rank > max(widest, _RANK):
        raise ConfigError(
            f"--lora-rank {rank}: the widest layer of {shape.name} has {widest} rows; "
            f"choose {widest} or less"
        )
    names = read_targets(targets)
    if not names or targets.count(",") >= len(names):
        raise ConfigError(
            f"--lora-targets {targets!r} names no layer beside a comma; give {ALL_LINEAR}, or "
            "names such as q_proj,v_proj"
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"--lora-targets names {twice} twice; name each layer once")
    if ALL_LINEAR in names and len(names) > 1:
        raise ConfigError(
            f"--lora-targets {targets}: {ALL_LINEAR} is every linear layer already; "
            "name it alone, or the layers without it"
        )
    unknown = shape.unknown_target(names)
    if unknown:
        raise ConfigError(f"--lora-targets: {unknown}")
