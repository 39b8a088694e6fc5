"""What a run of the user's command is told: the strategy in it, or nothing but to be watched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from autotune.space.strategy import Strategy

__all__ = ["Steering", "Watcher"]


class Watcher(Protocol):
    """Hears of the engine that trains."""

    def engine_made(self, engine: Any, call: Mapping[str, Any]) -> None:
        """The engine that trains is there.

        Args:
            engine: DeepSpeed's.
            call: the arguments of `deepspeed.initialize` that made it.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Steering:
    """How a run of the user's command differs from what the user wrote."""

    strategy: Strategy | None
    """What takes the place of the user's settings; None leaves them all."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """DeepSpeed's JSON of the strategy."""
    accumulation: int = 1
    """Micro-batches of one optimizer step."""
    knows_layers: bool = True
    """Whether the strategy is put on the model's layers; transformers' own switch for
    recomputation is used otherwise."""
    output_folder: str | None = None
    """Where a trial's own files go. None in a run to the end: the user's own folders are used,
    and checkpoints, evaluation and loggers stay on."""
    by_trainer: set[str] = field(default_factory=set)
    """Knobs that a trainer has put on the model in its own way by now, by name."""
    on_change: Callable[[str], None] = lambda words: None
    """Told in a sentence what of the user's settings is replaced or left off."""

    @property
    def is_trial(self) -> bool:
        """Whether nothing may be written, uploaded or evaluated."""
        return self.output_folder is not None

    @property
    def micro_batch_size(self) -> int | None:
        """Samples of a micro-batch of one rank; None leaves the user's."""
        return None if self.strategy is None else self.strategy.micro_batch_size
