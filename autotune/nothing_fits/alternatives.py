"""Alternatives to a question that nothing fits: changes that do fit, the cheapest first.

Each is predicted as the question itself is, and offered only if it fits. No model is traced for
it. Does not know how the answer is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import chain

import numpy as np

from autotune.errors import ConfigError
from autotune.knob_values import LossClass
from autotune.machine.hardware import DeviceType, Hardware
from autotune.machine.software import Software
from autotune.nothing_fits.command_line import CommandLine
from autotune.nothing_fits.shortfall import Alternative
from autotune.predictor import AnalyticPredictor
from autotune.question.question import Question
from autotune.question.workload import Method, Workload
from autotune.space.compatibility import reference_strategy
from autotune.space.search_space import SearchSpace
from autotune.space.space_file import bundled_spaces, load_search_space
from autotune.space.strategy import Strategy

__all__ = ["Change", "Larger", "LargerKind", "alternatives_to"]

DEFAULT_SPACE = "default"
"""The bundled space of loss-neutral strategies."""

_LEANEST_SPACE = "memory"
"""The bundled space of whatever saves memory."""

_WIDEST_SPACE = "full"
"""The bundled space of everything, which takes long to list."""

_SHORTEST_SEQ_LEN = 128

_MICRO = "micro_batch_size"


class LargerKind(StrEnum):
    """What there is more of."""

    DEVICES = "devices"
    """More devices of the same kind."""
    HOST_MEMORY = "host memory"
    OTHER_DEVICES = "other devices"
    """As many devices, of a kind with more memory."""


_LENGTHS = (f"{Method.LORA} and length", f"{Method.QLORA} and length")

_ORDER = (
    *("neutral", "memory", "method", "length", *_LENGTHS, "method and devices"),
    *(str(kind) for kind in LargerKind),
)
"""Kinds of changes, the cheapest first."""

_LADDERS = frozenset(("length", *_LENGTHS, *map(str, LargerKind)))
"""Kinds of which each change needs less than the one before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Larger:
    """Hardware with more memory, and how it is asked for."""

    words: str
    hardware: Hardware
    options: Mapping[str, str]
    command: CommandLine | None = None
    """The command that asks for it; the user's own if left out."""
    kind: LargerKind = LargerKind.DEVICES


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fitting:
    """What fits of one question; None where nothing does."""

    predictor: AnalyticPredictor | None = None
    strategy: Strategy | None = None
    neutral: Strategy | None = None
    """A fitting strategy that leaves the loss as it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A question near the one that nothing fits."""

    kind: str
    """The kind of change; the first of a kind that fits is offered."""
    words: str
    workload: Workload
    hardware: Hardware
    space_name: str
    options: Mapping[str, str] = field(default_factory=dict)
    command: CommandLine | None = None
    is_neutral: bool = False
    """Whether a strategy counts only if it leaves the loss as it is."""


def alternatives_to(
    question: Question,
    space: SearchSpace,
    *,
    space_name: str,
    larger: Iterable[Larger],
    command: CommandLine,
) -> list[Alternative]:
    """What fits of the changes of a question, the cheapest first, one of each kind.

    Two changes at once are looked at where one alone does not do.
    """
    larger = list(larger)
    asked = Change(
        kind="",
        words="",
        workload=question.workload,
        hardware=question.hardware,
        space_name=space_name,
    )
    predictions = _Predictions(question, space.software, command)
    found = predictions.first_fitting(
        chain(_of_space(asked), _of_training(asked), _of_hardware(asked, larger))
    )
    if not found.keys() & {"neutral", "method", "length"}:
        found |= predictions.first_fitting(_doubled(asked, larger))
    return [found[kind] for kind in _ORDER if kind in found]


class _Predictions:
    """Predicts changed questions; nothing is traced.

    Args:
        question: that is changed.
        software: what strategies find installed.
        command: that asks for it.
    """

    def __init__(self, question: Question, software: Software, command: CommandLine) -> None:
        self._question = question
        self._software = software
        self._command = command
        self._rows: dict[tuple[object, ...], _Fitting] = {}

    def first_fitting(self, changes: Iterable[Change]) -> dict[str, Alternative]:
        """The first change of each kind that fits.

        Where each needs less than the one before, none is taken to fit if the last does not.
        """
        by_kind: dict[str, list[Change]] = {}
        for change in changes:
            by_kind.setdefault(change.kind, []).append(change)
        found: dict[str, Alternative] = {}
        for kind, ladder in by_kind.items():
            if kind in _LADDERS and self._alternative(ladder[-1]) is None:
                continue
            if first := next(filter(None, map(self._alternative, ladder)), None):
                found[kind] = first
        return found

    def _alternative(self, change: Change) -> Alternative | None:
        fitting = self._fitting(change)
        strategy = fitting.neutral if change.is_neutral else fitting.strategy
        if strategy is None or fitting.predictor is None:
            return None
        return Alternative(
            words=change.words,
            command=(change.command or self._command).having(change.options),
            strategy=strategy,
            prediction=fitting.predictor.predict(strategy),
            loss_class=strategy.loss_class(reference_strategy(change.workload, change.hardware)),
        )

    def _fitting(self, change: Change) -> _Fitting:
        workload = change.workload
        key = (
            *(workload.method, workload.seq_len, workload.global_batch_size),
            *(change.hardware, change.space_name),
        )
        if key not in self._rows:
            self._rows[key] = self._predicted(change)
        return self._rows[key]

    def _predicted(self, change: Change) -> _Fitting:
        """The fastest that fit even with what they may need at most.

        Where there are none, and the model is known, the one that is expected to need least.
        """
        workload, hardware = change.workload, change.hardware
        try:
            space = load_search_space(change.space_name, workload, hardware, self._software)
            table = space.table
        except ConfigError:
            return _Fitting()
        if not len(table):
            return _Fitting()
        # The smallest micro-batches need least, and say whether anything fits.
        table = table.take(table.has(_MICRO, sorted(table.values_of(_MICRO))[:2]))
        limits = replace(self._question, workload=workload, hardware=hardware).limits
        predictor = AnalyticPredictor(workload, hardware, traces=False)
        predicted = predictor.predict_table(table)
        is_expected = predicted.missing_bytes(limits) == 0
        is_sure = predicted.peak_device_upper_bytes <= limits.device_bytes
        rows = np.flatnonzero(is_expected & is_sure)
        rows = rows[np.argsort(-predicted.tokens_per_second[rows], kind="stable")]
        if not len(rows) and predictor.uncertainty is None:
            rows = np.flatnonzero(is_expected)
            rows = rows[np.argsort(predicted.peak_memory_bytes[rows], kind="stable")][:1]
        strategies = [table.strategy(row) for row in rows.tolist()]
        is_neutral = (s.loss_class(space.reference) is LossClass.NEUTRAL for s in strategies)
        return _Fitting(
            predictor=predictor,
            strategy=next(iter(strategies), None),
            neutral=next(
                (s for s, neutral in zip(strategies, is_neutral, strict=True) if neutral), None
            ),
        )


def _of_space(asked: Change) -> Iterator[Change]:
    """Changes that keep the training and take strategies of another space."""
    if asked.space_name != DEFAULT_SPACE:
        yield replace(
            asked,
            kind="neutral",
            words="a loss-neutral strategy of another space",
            space_name=DEFAULT_SPACE,
            options={"--space": DEFAULT_SPACE},
        )
    if asked.space_name != _LEANEST_SPACE:
        leanest = replace(
            asked,
            kind="neutral",
            words="a loss-neutral strategy of the memory-saving space",
            space_name=_LEANEST_SPACE,
            options={"--space": _LEANEST_SPACE},
            is_neutral=True,
        )
        yield leanest
        words = "any strategy that saves memory; may change the loss"
        yield replace(leanest, kind="memory", words=words, is_neutral=False)


def _of_training(asked: Change) -> Iterator[Change]:
    """Adapters, then shorter samples."""
    for change in chain(_of_method(asked), _of_length(asked)):
        yield from _in_its_spaces(change)


def _in_its_spaces(change: Change) -> Iterator[Change]:
    """In the space that was asked for, and where that is a file, in the default one too.

    Where that is the widest one, in the default one alone: it leaves the loss as it is, and is
    looked through in no time.
    """
    if change.space_name != _WIDEST_SPACE:
        yield change
    if change.space_name == _WIDEST_SPACE or change.space_name not in bundled_spaces():
        options = {**change.options, "--space": DEFAULT_SPACE}
        yield replace(change, space_name=DEFAULT_SPACE, options=options)


def _of_method(asked: Change) -> Iterator[Change]:
    is_cuda = asked.hardware.device_type is DeviceType.CUDA
    methods = [Method.FULL, Method.LORA, *([Method.QLORA] if is_cuda else [])]
    names = {
        Method.LORA: "LoRA: train adapters only",
        Method.QLORA: "QLoRA: train adapters on 4-bit weights",
    }
    if asked.workload.method not in methods:
        return
    for method in methods[methods.index(asked.workload.method) + 1 :]:
        yield replace(
            asked,
            kind="method",
            words=names[method],
            workload=replace(asked.workload, method=method),
            options={**asked.options, "--method": str(method)},
        )


def _of_length(asked: Change) -> Iterator[Change]:
    seq_len = asked.workload.seq_len // 2
    while seq_len >= _SHORTEST_SEQ_LEN:
        yield replace(
            asked,
            kind="length",
            words=f"sequences of {seq_len:,} tokens",
            workload=replace(asked.workload, seq_len=seq_len),
            options={**asked.options, "--seq-len": str(seq_len)},
        )
        seq_len //= 2


def _of_hardware(asked: Change, larger: Iterable[Larger]) -> Iterator[Change]:
    """More of the same devices, more host memory, then other devices."""
    for other in larger:
        batch = asked.workload.global_batch_size
        # The multiple of the devices that is the same or the next.
        batch = -(-batch // other.hardware.num_devices) * other.hardware.num_devices
        options = {**asked.options, **other.options, "--global-batch": str(batch)}
        change = replace(
            asked,
            kind=str(other.kind),
            words=f"{other.words}{f', {asked.words}' if asked.words else ''}",
            workload=replace(asked.workload, global_batch_size=batch),
            hardware=other.hardware,
            options=options,
            command=other.command,
        )
        yield from _in_its_spaces(change)


def _doubled(asked: Change, larger: Iterable[Larger]) -> Iterator[Change]:
    """Two changes at once: adapters on shorter samples, and adapters on more devices."""
    for method in _of_method(asked):
        for length in _of_length(method):
            kind = f"{method.workload.method} and length"
            both = replace(length, kind=kind, words=f"{method.words}; {length.words}")
            yield from _in_its_spaces(both)
    for other in larger:
        if other.kind is LargerKind.DEVICES:
            for method in _of_method(asked):
                for change in _of_hardware(method, [other]):
                    yield replace(change, kind="method and devices")
