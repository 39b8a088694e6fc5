"""The record of a question in `question.json` and in a storage, checked when it is read.

Types as the dataclasses have them, figures within what a machine or a model can have, names that
may be shown. Does not know where a record was kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from autotune.errors import ConfigError
from autotune.machine.hardware import Hardware
from autotune.names import PrintableText, visible
from autotune.question.own_training import OwnTraining
from autotune.question.workload import Workload

__all__ = ["check_figures", "read_record"]

_MOST = 2**60
"""Upper limit of a figure, in its own unit: bytes, operations per second, parameters."""

_MOST_COUNTS = {
    "seq_len": 2**27,
    "global_batch_size": 2**24,
    "lora_rank": 2**16,
    "hidden_size": 2**24,
    "intermediate_size": 2**24,
    "embedding_size": 2**24,
    "num_hidden_layers": 2**14,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "head_dim": 2**16,
    "vocab_size": 2**31,
    "num_experts": 2**16,
    "num_devices": 2**30,
    "num_nodes": 2**20,
}
"""Upper limit of each count: far above what exists, and low enough for products in 64 bit."""

_MAY_BE_ZERO = frozenset(
    (
        "nvme_free_bytes",
        "seed",
        "experts",
        "expert_sides",
        "tower_parameters",
        "lm_head",
        "norm",
        "headroom",
        "host_headroom",
        "embedding",
        "attention",
        "mlp",
    )
)


@cache
def _record_model() -> type[BaseModel]:
    """Made when the first record is read: a command that reads none does without."""

    class Record(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

        workload: Workload
        hardware: Annotated[Hardware, AfterValidator(_check_nodes)]
        space_name: PrintableText
        space_text: str
        headroom: float = Field(default=0.05, ge=0, lt=1)
        host_headroom: float = Field(default=0.05, ge=0, lt=1)
        seed: int = Field(default=0, ge=0, lt=2**32)
        own_training: dict[str, Any] | None = None

    return Record


def read_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a question.

    Args:
        record: what `Question.to_dict` wrote, or what somebody has made of it.

    Raises:
        ConfigError: it is none; the message says which part is wrong.
    """
    try:
        read = _record_model().model_validate_json(json.dumps(record))
    except ValidationError as error:
        raise ConfigError(f"this is not a question of autotune: {_words(error)}") from error
    except (RecursionError, TypeError, ValueError) as error:
        raise ConfigError(f"this is not a question of autotune: {error}") from error
    values = {name: getattr(read, name) for name in type(read).model_fields}
    if values["own_training"] is not None:
        values["own_training"] = OwnTraining.from_dict(values["own_training"])
    try:
        for part in ("workload", "hardware"):
            check_figures(values[part], part)
    except ValueError as error:
        raise ConfigError(f"this is not a question of autotune: {error}") from error
    return values


def _words(error: ValidationError) -> str:
    mistake = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in mistake["loc"])
    return visible(f"{where}: {mistake['msg'][0].lower()}{mistake['msg'][1:]}")


def _check_nodes(hardware: Hardware) -> Hardware:
    if hardware.num_nodes < 1 or hardware.num_devices % hardware.num_nodes:
        raise ValueError(
            f"{hardware.num_devices} devices are not spread evenly over {hardware.num_nodes} nodes"
        )
    return hardware


def check_figures(part: Any, where: str) -> None:
    """Refuse figures that no machine and no model has.

    Args:
        part: a dataclass of the question, with others in it.
        where: its name in messages.

    Raises:
        ValueError: a figure is negative, zero, too large or no number.
    """
    for name, value in _figures(part, where):
        key = name.rpartition(".")[2]
        least, most = (0 if key in _MAY_BE_ZERO else 1e-12), _MOST_COUNTS.get(key, _MOST)
        if not least <= value <= most:
            raise ValueError(
                f"{name} must be {'at least 0' if not least else 'more than 0'} and "
                f"at most {most:,}, got {value:.4g}"
            )


def _figures(part: Any, where: str) -> Iterator[tuple[str, float]]:
    """Each number of a dataclass and of those in it, by its place."""
    for field in fields(part):
        value, name = getattr(part, field.name), f"{where}.{field.name}"
        if is_dataclass(value):
            yield from _figures(value, name)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value
