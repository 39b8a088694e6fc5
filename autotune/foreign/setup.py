"""What a file of another tool says: of the question, and the strategy that its training has.

Does not know the tools, nor how a file is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from autotune.errors import ConfigError
from autotune.foreign.keys import AUTO, MOST_SAMPLES
from autotune.foreign.tool import Tool
from autotune.knob_values import (
    DEFAULT_BUCKET_SIZE,
    PARALLEL_DEGREES,
    GroupPrecision,
    ModuleGroup,
    Precision,
)
from autotune.machine.hardware import Hardware
from autotune.machine.software import Software
from autotune.names import visible
from autotune.question.adapter_targets import ALL_LINEAR
from autotune.question.workload import Method, Workload
from autotune.space.compatibility import conflict, reference_strategy
from autotune.space.strategy import FACTS, KNOBS, Strategy

__all__ = ["TRAINERS_MICRO_BATCH", "Setup", "StrategyMade"]

TRAINERS_MICRO_BATCH = 8
"""Samples of a micro-batch where nobody says: `per_device_train_batch_size` of transformers'
`TrainingArguments`, which LLaMA-Factory and `"auto"` in a DeepSpeed JSON take."""

_DEFAULTS = {knob.name: knob.default for knob in fields(Strategy)}

_IGNORED = (
    "reduce_bucket_size",
    "overlap_comm",
    "master_weights",
    "offload_param",
    *(knob for knob in KNOBS if knob.startswith("zero_") and knob != "zero_stage"),
)
"""Knobs that DeepSpeed ignores where another does not have the value that they need."""

_REPLACEABLE = ("attention", "fused_kernels", "torch_compile", "tf32", "precision")
"""Knobs that a machine may lack something for, while the rest of the strategy can be measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StrategyMade:
    """The strategy of a file, for one question."""

    strategy: Strategy | None
    """None where it cannot run."""
    problem: str | None = None
    """Why it cannot, in words."""
    notes: tuple[str, ...] = ()
    """What was filled in or replaced, a clause each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What one file says; None where it says nothing."""

    tool: Tool
    file: str
    """Its name, as the user gave it."""
    model: str | None = None
    seq_len: int | None = None
    method: Method | None = None
    lora_rank: int | None = None
    lora_targets: tuple[str, ...] | None = None
    """Linear layers with adapters, as the question has them."""
    adapter_targets: tuple[str, ...] | None = None
    """Those of the strategy."""
    train_batch_size: int | None = None
    """Samples of an optimizer step, where the file says them as one number."""
    accumulation_steps: int | None = None
    num_ranks: int | None = None
    """Processes that the file starts."""
    knobs: Mapping[str, Any] = field(default_factory=dict)
    """Values of the strategy's knobs, of the kinds that they have there."""
    noted: Mapping[str, Any] = field(default_factory=dict)
    """Those that an export of ours has noted, since the tool has no key for them."""
    has_auto_bucket: bool = False
    """Whether a bucket's size is left to transformers and Accelerate: the square of the width."""
    problem: str | None = None
    """Why its strategy has no counterpart here, in words."""
    left_out: tuple[str, ...] = ()
    """Keys that have no counterpart here."""
    notes: tuple[str, ...] = ()
    """How other things than one would expect were understood, a clause each."""

    def global_batch(self, num_devices: int) -> int | None:
        """Samples of an optimizer step; None where the file says nothing of them.

        Args:
            num_devices: that train, where the file does not say how many processes it starts.

        Raises:
            ConfigError: there are more than anybody has.
        """
        if self.train_batch_size is not None:
            return self.train_batch_size
        micro_batch = self._said("micro_batch_size")
        if micro_batch is None and self.accumulation_steps is None:
            return None
        size = (micro_batch or TRAINERS_MICRO_BATCH) * (self.accumulation_steps or 1)
        batch = int(size * self._data_parallel_size(self.num_ranks or num_devices))
        if batch > MOST_SAMPLES:
            raise ConfigError(
                f"--from {self.file}: its global batch has {batch:,} samples; {MOST_SAMPLES:,} at "
                "most: give --global-batch"
            )
        return batch

    def samples_at_once(self, num_devices: int) -> int:
        """Samples of one micro-batch on all devices; 1 where the file leaves its size open."""
        micro_batch = self._said("micro_batch_size")
        return 1 if micro_batch is None else micro_batch * self._data_parallel_size(num_devices)

    def _said(self, knob: str) -> Any:
        return self.noted.get(knob, self.knobs.get(knob))

    def _data_parallel_size(self, num_ranks: int) -> int:
        for degree in PARALLEL_DEGREES:
            num_ranks = max(1, num_ranks // int(self._said(degree) or 1))
        return num_ranks

    def strategy(
        self, workload: Workload, hardware: Hardware, software: Software | None = None
    ) -> StrategyMade:
        """The strategy that the file trains with, as this question has it.

        Args:
            workload: of the question.
            hardware: all ranks.
            software: what is installed; whether the strategy can run is not asked if left out.
        """
        if self.problem is not None:
            return StrategyMade(strategy=None, problem=self.problem)
        values, notes = self.values(workload, hardware)
        try:
            strategy = Strategy(**values)
        except ConfigError as error:
            return StrategyMade(strategy=None, problem=visible(str(error)), notes=tuple(notes))
        problem = None
        if software is not None:
            strategy, problem = _possible(strategy, workload, hardware, software, notes)
        return StrategyMade(
            strategy=None if problem else strategy, problem=problem, notes=tuple(notes)
        )

    def values(self, workload: Workload, hardware: Hardware) -> tuple[dict[str, Any], list[str]]:
        """The value of every knob, whether they go together or not, and what was filled in.

        What the file does not say is as in the question's reference.
        """
        reference, notes = reference_strategy(workload, hardware), list[str]()
        values: dict[str, Any] = {knob: getattr(reference, knob) for knob in KNOBS}
        values |= {**self.knobs, **self.noted}
        if self._said("micro_batch_size") is None:
            values["micro_batch_size"] = self._filled_micro_batch(workload, hardware, values)
            notes.append(
                f"micro_batch_size {values['micro_batch_size']} (the Trainer's default of "
                f"{TRAINERS_MICRO_BATCH}, as far as it divides the global batch)"
            )
        if self._said("precision") is None:
            notes.append(f"precision {values['precision']} (the file leaves it open)")
        if values["mlp_tiles"] == AUTO:
            # Axolotl's documentation of `tiled_mlp_num_shards`.
            values["mlp_tiles"] = -(-workload.seq_len // workload.model.hidden_size)
        if self.has_auto_bucket:
            values["reduce_bucket_size"] = workload.model.hidden_size**2
        if "lora_targets" not in self.knobs and self.adapter_targets is not None:
            values["lora_targets"] = _targets_knob(self.adapter_targets, workload)
        if not values["lora_rank"]:
            values |= {"lora_alpha": 0, "lora_targets": ""}
        if values["precision"] is not Precision.FP32 and not _has_fp32_group(values):
            # There are no fp32 products that it would change.
            values["tf32"] = False
        _reset_what_has_no_effect(values, workload, hardware)
        return values | dict(self.noted), notes

    def _filled_micro_batch(
        self, workload: Workload, hardware: Hardware, values: Mapping[str, Any]
    ) -> int:
        ranks = hardware.num_devices
        for degree in PARALLEL_DEGREES:
            ranks = max(1, ranks // int(values[degree]))
        share = workload.global_batch_size // ranks // (self.accumulation_steps or 1)
        most = min(TRAINERS_MICRO_BATCH, max(1, share))
        return next(size for size in range(most, 0, -1) if share % size == 0 or size == 1)


def _has_fp32_group(values: Mapping[str, Any]) -> bool:
    groups = (f"{group}_precision" for group in ModuleGroup)
    return any(values[group] is GroupPrecision.FP32 for group in groups)


def _targets_knob(targets: tuple[str, ...], workload: Workload) -> str:
    """The knob's text for linear layers: the shortest that stands for them."""
    model = workload.model
    attention, mlp = frozenset(model.attention_linears), frozenset(model.mlp_linears)

    def meant(names: tuple[str, ...]) -> frozenset[str]:
        groups = {ALL_LINEAR: attention | mlp, "attention": attention, "mlp": mlp}
        return frozenset().union(*(groups.get(name, frozenset((name,))) for name in names))

    wanted = meant(targets)
    for names in (workload.lora_targets, (ALL_LINEAR,), ("attention",), ("mlp",)):
        if meant(names) == wanted:
            return "" if names == workload.lora_targets else ",".join(names)
    return ",".join(targets)


def _reset_what_has_no_effect(
    values: dict[str, Any], workload: Workload, hardware: Hardware
) -> None:
    """Give a knob its default where DeepSpeed ignores what a file says of it."""
    rank, targets = values["lora_rank"], values["lora_targets"]
    if workload.model.unknown_target(workload.adapter_targets(targets)) is None:
        trained = workload.num_trainable_parameters(rank, targets)
        if values["reduce_bucket_size"] >= trained:
            values["reduce_bucket_size"] = DEFAULT_BUCKET_SIZE
    if hardware.num_devices == 1:
        values["overlap_comm"] = _DEFAULTS["overlap_comm"]
    for knob in _IGNORED:
        if any(values[need.knob] not in need.values for need in FACTS[knob].needs):
            values[knob] = _DEFAULTS[knob]


def _possible(
    strategy: Strategy,
    workload: Workload,
    hardware: Hardware,
    software: Software,
    notes: list[str],
) -> tuple[Strategy, str | None]:
    """The strategy with stand-ins for what the machine lacks, and what keeps it from running."""
    reference = reference_strategy(workload, hardware)
    while (problem := conflict(strategy, workload, hardware, software)) is not None:
        for other, words in _stand_ins(strategy, reference):
            if conflict(other, workload, hardware, software) != problem:
                notes.append(f"{words} ({problem})")
                strategy = other
                break
        else:
            return strategy, problem
    return strategy, None


def _stand_ins(strategy: Strategy, reference: Strategy) -> Iterator[tuple[Strategy, str]]:
    for knob in _REPLACEABLE:
        own, usual = getattr(strategy, knob), getattr(reference, knob)
        if own == usual:
            continue
        try:
            other = replace(strategy, **{knob: usual})
        except ConfigError:
            continue
        shown = [str(each).lower() if isinstance(each, bool) else each for each in (own, usual)]
        yield other, f"{knob} {shown[1]} stands for {shown[0]}"
