"""The question of a search: it decides whether two searches may share one study.

Budget, sampler and timeouts are not part of it: they say how long and how, not what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from autotune.machine.hardware import Hardware
from autotune.names import plain_name, printable
from autotune.question.limits import Limits
from autotune.question.own_training import OwnTraining
from autotune.question.workload import ModelShape, Workload

__all__ = ["Question"]

_LONGEST_PATH = 4096
"""A model's name may be the path of a folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question: this workload, on this hardware, over this space, with so much to spare."""

    workload: Workload
    hardware: Hardware
    space_name: str
    space_text: str
    """The search space file, whole."""
    headroom: float = 0.05
    """Share of device memory that a strategy must leave free."""
    host_headroom: float = 0.05
    """Share of the host's memory that it must leave free."""
    seed: int = 0
    own_training: OwnTraining | None = None
    """The user's own command, where trials run that; None for a training of autotune's own."""

    def __post_init__(self) -> None:
        """Refuse names that must not be written where they go: reports, scripts, Markdown.

        Raises:
            ConfigError: such a name; the message has its flag.
        """
        plain_name(self.workload.model.name, "--model", longest=_LONGEST_PATH)
        printable(self.space_name, "--space")

    @property
    def memory_limit_bytes(self) -> int:
        """What a strategy may use of each device."""
        return int(self.hardware.device_memory_bytes * (1 - self.headroom))

    @property
    def host_limit_bytes(self) -> int:
        """What the ranks of one host may use of its memory together."""
        return int(self.hardware.host_memory_bytes * (1 - self.host_headroom))

    @property
    def limits(self) -> Limits:
        """Room on each device, on the host and on disk."""
        return Limits(
            device_bytes=self.memory_limit_bytes,
            host_bytes=self.host_limit_bytes,
            disk_bytes=self.hardware.nvme_free_bytes,
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; `from_dict` reads it back."""
        return asdict(self) | {
            "workload": self.workload.to_dict(),
            "hardware": asdict(self.hardware) | {"device_type": str(self.hardware.device_type)},
            "own_training": None if self.own_training is None else self.own_training.to_dict(),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Question:
        """Read back what `to_dict` wrote.

        Raises:
            ConfigError: it is no question of autotune.
        """
        from autotune.question.question_record import read_record

        return cls(**read_record(record))

    def differences(self, other: Question) -> list[str]:
        """What another question asks differently, in words; empty where both are the same.

        The exact size of host memory does not count: it moves by a few pages from boot to boot.
        """
        pairs = {
            "--model": (_without_tower(self), _without_tower(other)),
            "--vision": (_tower_in_words(self), _tower_in_words(other)),
            "--seq-len": (self.workload.seq_len, other.workload.seq_len),
            "--lengths": (self.workload.lengths, other.workload.lengths),
            "--global-batch": (self.workload.global_batch_size, other.workload.global_batch_size),
            "--method": (str(self.workload.method), str(other.workload.method)),
            "--lora-rank": (self.workload.lora_rank, other.workload.lora_rank),
            "--lora-targets": (self.workload.lora_targets, other.workload.lora_targets),
            "hardware": (str(self.hardware), str(other.hardware)),
            "bf16 on the device": (
                "computed" if self.hardware.supports_bf16 else "not computed",
                "computed" if other.hardware.supports_bf16 else "not computed",
            ),
            "--nvme-path": (
                self.hardware.nvme_path or "not given",
                other.hardware.nvme_path or "not given",
            ),
            "--headroom": (self.headroom, other.headroom),
            "--host-headroom": (self.host_headroom, other.host_headroom),
            "--seed": (self.seed, other.seed),
            "-- COMMAND": (_command_of(self), _command_of(other)),
        }
        words = [
            f"{name} {_in_words(theirs)} there, {_in_words(ours)} here"
            for name, (ours, theirs) in pairs.items()
            if ours != theirs
        ]
        if self.space_text != other.space_text:
            words.append(f"--space {other.space_name} there, {self.space_name} here (or edited)")
        return words


def _command_of(question: Question) -> str:
    own = question.own_training
    return "none" if own is None else f"{own.command} (in {own.command.folder})"


def _without_tower(question: Question) -> ModelShape:
    return replace(question.workload.model, tower_parameters=0, trains_tower=False)


def _tower_in_words(question: Question) -> str:
    model = question.workload.model
    if not model.tower_parameters:
        return "absent"
    return "trained" if model.trains_tower else "frozen"


def _in_words(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if value is None:
        return "none"
    return str(getattr(value, "name", value))
