"""The specification of a trial: all that its processes are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from autotune.knob_values import Batching
from autotune.question.workload import Workload
from autotune.space.strategy import Strategy
from autotune.trials.composition import Composition, composition_of
from autotune.trials.script_run import ScriptRun

__all__ = ["CONFIRMING_S", "TIMED_S", "Incumbent", "TrialSpec"]

TIMED_S = 4.0
"""Timed steps of a trial end after so many seconds together, but not before two."""

CONFIRMING_S = 6.0
"""Timed steps of a run that confirms a trial end after so many seconds together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Incumbent:
    """A trial on the front so far: what another one has to beat in speed or in memory."""

    number: int
    tokens_per_second: float
    """At least."""
    peak_memory_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialSpec:
    """All that the processes of one trial are told."""

    workload: Workload
    strategy: Strategy
    num_ranks: int
    seed: int = 0
    learning_rate: float = 1e-5
    """Learning rate of the optimizer; time and memory do not depend on it."""
    warmup_steps: int | None = None
    """Optimizer steps before the clock starts; as many as the strategy needs if left out."""
    timed_steps: int = 20
    """Timed optimizer steps at most."""
    timed_s: float = TIMED_S
    """Seconds after which timed steps end; at least two steps are timed."""
    relative_half_width: float = 0.02
    """Timed steps end once the half width of the 95 % interval of their mean, over the mean, is at
    most this; 0: they do not end by it."""
    composes: bool = True
    """Whether only a part of a long optimizer step runs, and its time is composed; losses are then
    those of smaller batches."""
    incumbents: tuple[Incumbent, ...] = ()
    """The trial ends early, as pruned, once it cannot beat one of these any more."""
    evaluates: bool = False
    """Whether an evaluation pass follows the steps, where samples have lengths of their own."""
    nvme_path: str | None = None
    """Folder for what is offloaded to NVMe; the runner gives each trial a fresh one below it."""
    script: ScriptRun | None = None
    """The user's own command that is run; None for a training of autotune's own."""

    @property
    def composition(self) -> Composition:
        """How the optimizer steps of the trial are run."""
        found = composition_of(self.workload, self.strategy, self.num_ranks)
        return found if self.composes else replace(found, num_run=found.num_micro_steps)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step over all ranks, without padding: in the mean."""
        is_packed = self.strategy.batching is Batching.PACKED
        return self.workload.tokens_fed(is_packed=is_packed)

    @property
    def num_warm_up_steps(self) -> int:
        """Optimizer steps before the clock starts, at least."""
        return self.composition.num_warm_up if self.warmup_steps is None else self.warmup_steps

    def to_confirm(self) -> TrialSpec:
        """The spec of a confirming run: longer, and never stopped early."""
        return replace(
            self,
            timed_steps=2 * self.timed_steps,
            timed_s=CONFIRMING_S,
            relative_half_width=self.relative_half_width / 2,
            evaluates=True,
            incumbents=(),
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; `from_dict` reads it back."""
        return asdict(self) | {
            "workload": self.workload.to_dict(),
            "strategy": self.strategy.to_dict(),
            "script": None if self.script is None else self.script.to_dict(),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> TrialSpec:
        """Read back what `to_dict` wrote, through JSON or not."""
        values = dict(record)
        values["workload"] = Workload.from_dict(values["workload"])
        values["strategy"] = Strategy.from_dict(values["strategy"])
        script = values.get("script")
        values["script"] = None if script is None else ScriptRun.from_dict(script)
        # Earlier versions wrote `rivals`.
        incumbents = values.pop("rivals", ()) or values.get("incumbents", ())
        values["incumbents"] = tuple(Incumbent(**each) for each in incumbents)
        return cls(**values)
