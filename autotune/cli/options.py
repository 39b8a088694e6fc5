"""Options that several commands share, such as those that describe the training.

Does not know the commands.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from autotune.question.lengths import Lengths
    from autotune.question.workload import ModelShape, Workload

__all__ = [
    "MOST_DEVICES",
    "MOST_GIB",
    "MOST_TRIALS",
    "AllRows",
    "AsJson",
    "Data",
    "GlobalBatch",
    "Headroom",
    "HostHeadroom",
    "LengthsFile",
    "LoraRank",
    "LoraTargets",
    "Method",
    "SeqLen",
    "Storage",
    "Tokenizer",
    "TrainingOptions",
    "Vision",
    "announced_batch",
    "check_headroom",
    "default_batch",
    "member",
    "nearest_batches",
    "read_training",
]

_Member = TypeVar("_Member", bound=StrEnum)

_SEQ_LEN = 1024
"""Default tokens per sample; the model's maximum if that is less."""

_GLOBAL_BATCH = 32
"""Default samples per optimizer step; the nearest multiple of the number of devices."""

MOST_DEVICES = 1_000_000
"""Ten times as many devices as the largest clusters have."""

MOST_GIB = 1_000_000
"""The most memory of one host: a pebibyte."""

MOST_TRIALS = 1_000_000

_MOST_TOKENS = 2**27
_MOST_SAMPLES = 2**24
_MOST_RANK = 2**16

_RANK = 16
"""Default rank of adapters."""

SeqLen = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=_MOST_TOKENS,
        help="Tokens per sample: the longest that you will train on.",
        show_default="1024, or the model's maximum if less",
    ),
]
LengthsFile = Annotated[
    Path | None,
    typer.Option(
        "--lengths",
        help="File with the lengths of your samples in tokens: one a line, JSON lines, or YAML "
        "(lengths: {380: 1200, …}, samples by their tokens). Batches are then drawn from it and "
        "padded, and throughput counts real tokens. --seq-len cuts longer samples off.",
        show_default="every sample has --seq-len tokens",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Data set in JSON lines (text, messages, or prompt and completion), whose lengths "
        "are counted with --tokenizer, in place of --lengths.",
        show_default="none",
    ),
]
Tokenizer = Annotated[
    Path | None,
    typer.Option(
        help="Local folder with a tokenizer of transformers, for --data.", show_default="none"
    ),
]
GlobalBatch = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=_MOST_SAMPLES,
        help="Samples per optimizer step, over all devices. It is fixed: strategies differ in "
        "micro-batch size and gradient accumulation only.",
        show_default="32, or the nearest multiple of the number of devices",
    ),
]
Method = Annotated[
    str,
    typer.Option(
        help="Training method: full (all weights), lora (adapters) or qlora (adapters on 4-bit "
        "weights)."
    ),
]
LoraRank = Annotated[
    int,
    typer.Option(
        min=1,
        max=_MOST_RANK,
        help="Rank of LoRA adapters, unless --space has lora_rank. Ignored with --method full.",
    ),
]
LoraTargets = Annotated[
    str,
    typer.Option(
        help="Linear layers that get adapters: all-linear, or names such as q_proj,v_proj. "
        "Routed experts get some with all-linear,experts."
    ),
]
Vision = Annotated[
    str,
    typer.Option(
        help="Vision tower of a vision-language model: frozen (its weights count in memory), "
        "trained (its gradients and optimizer states count too) or absent (the language part "
        "alone). Trials train on text, without images. Ignored for language models."
    ),
]
Headroom = Annotated[
    float,
    typer.Option(help="Fraction of device memory that a strategy must leave free: 0.05 is 5 %."),
]
Storage = Annotated[
    str | None,
    typer.Option(
        envvar="AUTOTUNE_STORAGE",
        help="Optuna storage URL for the trials, such as postgresql://…. Use the environment "
        "variable for a URL with a password: other users can see arguments.",
        show_default="study.db in the study folder",
    ),
]
HostHeadroom = Annotated[
    float,
    typer.Option(
        help="Fraction of host memory that a strategy must leave free for the system and for data "
        "loading: 0.05 is 5 %. The memory to save a checkpoint is counted in addition."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as one JSON document.")]
AllRows = Annotated[
    bool,
    typer.Option("--all", help="Show every row of the Pareto front. JSON always has all rows."),
]


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
    """Raises ConfigError for a value that is not a fraction of memory."""
    from autotune.errors import ConfigError

    for flag, fraction in (("--headroom", headroom), ("--host-headroom", host_headroom)):
        if not 0 <= fraction < 1:
            raise ConfigError(f"{flag} must be at least 0 and less than 1, got {fraction}")


def default_batch(num_devices: int) -> int:
    """The default global batch: the multiple of the number of devices that is nearest to 32."""
    return num_devices * max(1, round(_GLOBAL_BATCH / num_devices))


def announced_batch(num_devices: int, console: Console) -> int:
    """The default global batch; tells the user if it is not 32."""
    batch = default_batch(num_devices)
    if batch != _GLOBAL_BATCH:
        console.print(
            f"Using --global-batch {batch}: the multiple of {num_devices} devices that is nearest "
            f"to {_GLOBAL_BATCH}",
            markup=False,
            soft_wrap=True,
        )
    return batch


def nearest_batches(global_batch: int, num_devices: int) -> str:
    """The multiples of the devices below and above a global batch, in words."""
    below = global_batch // num_devices * num_devices
    above = below + num_devices
    return f"choose {below} or {above}" if below else f"choose {above} or a multiple of it"


def _read_workload(
    shape: ModelShape,
    *,
    seq_len: int | None,
    global_batch: int,
    method: str,
    lora_rank: int,
    lora_targets: str,
    lengths: Lengths | None = None,
) -> Workload:
    """The workload that the options describe.

    Raises:
        ConfigError: an option has an impossible value; the message names its flag.
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
        lengths=lengths,
    )


def _read_samples(
    lengths: Path | None, data: Path | None, tokenizer: Path | None
) -> Lengths | None:
    """The lengths that --lengths, or --data and --tokenizer, tell; None where none is given.

    Raises:
        ConfigError: they contradict each other, or a file cannot be read.
    """
    from autotune.errors import ConfigError

    if data is not None and lengths is not None:
        raise ConfigError("--lengths and --data both tell the lengths; give one of them")
    if (data is None) != (tokenizer is None):
        given, other = ("--tokenizer", "--data") if data is None else ("--data", "--tokenizer")
        raise ConfigError(f"{given} needs {other}: lengths are counted in its tokens")
    if data is None and lengths is None:
        return None
    from autotune.question.length_files import read_data, read_lengths

    if lengths is not None:
        return read_lengths(lengths)
    assert data is not None
    assert tokenizer is not None
    return read_data(data, tokenizer)


def _check_adapters(shape: ModelShape, rank: int, targets: str) -> None:
    """Refuse impossible adapters, even if the method has no adapters."""
    from autotune.errors import ConfigError
    from autotune.question.adapter_targets import ALL_LINEAR, EXPERTS, read_targets

    widest = max(shape.hidden_size, shape.intermediate_size)
    if rank > max(widest, _RANK):
        raise ConfigError(
            f"--lora-rank {rank}: the widest layer of {shape.name} has {widest} rows; "
            f"choose {widest} or less"
        )
    names = read_targets(targets)
    if not names or targets.count(",") >= len(names):
        raise ConfigError(
            f"--lora-targets {targets!r} has an empty name; give {ALL_LINEAR}, or names such as "
            "q_proj,v_proj"
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"--lora-targets names {twice} twice; name each layer once")
    if ALL_LINEAR in names and {ALL_LINEAR, EXPERTS} < {*names, EXPERTS}:
        raise ConfigError(
            f"--lora-targets {targets}: {ALL_LINEAR} includes every linear layer; "
            "give it alone, or give names without it"
        )
    unknown = shape.unknown_target(names)
    if unknown:
        raise ConfigError(f"--lora-targets: {unknown}")


class TrainingOptions(Protocol):
    """The options that describe the training, of whatever command."""

    @property
    def model(self) -> str | None: ...  # noqa: D102

    @property
    def seq_len(self) -> int | None: ...  # noqa: D102

    @property
    def lengths(self) -> Path | None: ...  # noqa: D102

    @property
    def data(self) -> Path | None: ...  # noqa: D102

    @property
    def tokenizer(self) -> Path | None: ...  # noqa: D102

    @property
    def method(self) -> str: ...  # noqa: D102

    @property
    def lora_rank(self) -> int: ...  # noqa: D102

    @property
    def lora_targets(self) -> str: ...  # noqa: D102

    @property
    def vision(self) -> str: ...  # noqa: D102


def read_training(
    options: TrainingOptions, global_batch: int, *, trust_remote_code: bool = False
) -> Workload:
    """What is trained, with this global batch.

    Raises:
        ConfigError: a value that cannot be; the message names its flag.
    """
    from autotune.question.workload import Vision as VisionTower
    from autotune.question.workload import load_model_shape

    assert options.model is not None, "it is asked for before"
    return _read_workload(
        load_model_shape(
            options.model,
            trust_remote_code=trust_remote_code,
            vision=member(VisionTower, options.vision, "--vision"),
        ),
        seq_len=options.seq_len,
        global_batch=global_batch,
        method=options.method,
        lora_rank=options.lora_rank,
        lora_targets=options.lora_targets,
        lengths=_read_samples(options.lengths, options.data, options.tokenizer),
    )
