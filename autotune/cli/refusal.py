"""Questions that this machine cannot answer, refused before anything runs: exit status 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import typer
from rich.console import Console

from autotune.cli.console import print_document
from autotune.errors import ConfigError
from autotune.machine.hardware import DeviceType, Hardware
from autotune.nothing_fits.alternatives import Larger, alternatives_to
from autotune.nothing_fits.command_line import CommandLine
from autotune.nothing_fits.shortfall import nothing_fits, shortfall_json
from autotune.predictor import AnalyticPredictor
from autotune.question.limits import Limits
from autotune.question.question import Question
from autotune.question.workload import Workload
from autotune.space.search_space import SearchSpace
from autotune.space.strategy_table import StrategyTable
from autotune.trials.prediction_table import PredictionTable
from autotune.trials.protocols import Predictor

__all__ = [
    "Asked",
    "refuse_as_nothing_fits",
    "refuse_empty_space",
    "refuse_if_nothing_fits",
    "refuse_large_model_on_cpu",
]

NUM_CLOSEST = 3
"""Strategies that are named where nothing fits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A question as a command asks it."""

    question: Question
    space: SearchSpace
    space_name: str
    """--space, as the user named it."""
    command: CommandLine
    larger: Callable[[int | None], Iterable[Larger]]
    """Hardware with more memory, the nearest first; told the least host memory that would do."""


_MAX_CPU_PARAMETERS = 1_000_000_000
"""Larger models take minutes a step on a CPU: no search of them ends."""


def refuse_large_model_on_cpu(workload: Workload, hardware: Hardware, console: Console) -> None:
    """Say at once that the CPU would not end with this model."""
    if hardware.device_type is DeviceType.CUDA:
        return
    if workload.model.num_parameters > _MAX_CPU_PARAMETERS:
        billions = workload.model.num_parameters / 1e9
        console.print(
            f"autotune: --model {workload.model.name} has {billions:.1f} billion parameters and "
            "this machine has no GPU that NVML can see. Run this on a machine with one "
            "(`autotune doctor` says what is missing), or try the CPU preset: "
            "autotune search --model tiny --budget 2m",
            soft_wrap=True,
            markup=False,
        )
        raise typer.Exit(1)


def refuse_if_nothing_fits(
    asked: Asked, console: Console, *, as_json: bool, traces: bool = True
) -> AnalyticPredictor:
    """Say at once what is missing where no strategy of the space can fit.

    Args:
        asked: the question.
        console: where the words go.
        as_json: print a document on stdout besides.
        traces: whether a model may be traced where what is counted leaves it open.

    Returns:
        What was asked, which knows the space's table.
    """
    question, table = asked.question, asked.space.table
    refuse_empty_space(asked.space, table, asked.space_name)
    # What is counted has the wider bounds, and costs no trace where these say enough.
    for may_trace in (False, True)[: 1 + traces]:
        predictor = AnalyticPredictor(question.workload, question.hardware, traces=may_trace)
        predicted = predictor.predict_table(table)
        if not predicted.might_fit(question.limits).any():
            refuse_as_nothing_fits(asked, predictor, predicted, console, as_json=as_json)
        if predictor.doubt is None:
            break
    return predictor


def refuse_empty_space(space: SearchSpace, found: Sized, name: str) -> None:
    """Say why a space has no strategy at all for its question.

    Args:
        space: the space.
        found: what it gave.
        name: --space, as the user typed it.

    Raises:
        ConfigError: it gave nothing.
    """
    if not found:
        raise ConfigError(
            f"--space {name}: no combination of its values is possible for this question; "
            f"for one, {space.first_conflict()}"
        )


def refuse_as_nothing_fits(
    asked: Asked,
    predictor: Predictor,
    predicted: PredictionTable,
    console: Console,
    *,
    as_json: bool,
) -> NoReturn:
    """Say what is missing, and what would fit instead; ends with exit status 1.

    Args:
        asked: what nothing fits.
        predictor: says more of single strategies.
        predicted: of the space's table.
        console: where the words go.
        as_json: print a document on stdout besides.
    """
    question, table = asked.question, asked.space.table
    rows = _closest(table, predicted, question.limits)
    closest = [(strategy, predictor.predict(strategy)) for strategy in map(table.strategy, rows)]
    found = alternatives_to(
        question,
        asked.space,
        space_name=asked.space_name,
        larger=asked.larger(_least_host_bytes(predicted, question.limits)),
        command=asked.command,
    )
    if as_json:
        document = shortfall_json(closest, limits=question.limits, alternatives=found)
        print_document(document)
    console.print(
        nothing_fits(
            closest,
            limits=question.limits,
            hardware=question.hardware,
            alternatives=found,
            doubt=getattr(predictor, "doubt", None),
        ),
        crop=False,
    )
    if question.workload.adapters_in_words:
        console.print(question.workload.adapters_in_words, markup=False)
    raise typer.Exit(1)


def _closest(table: StrategyTable, predicted: PredictionTable, limits: Limits) -> list[int]:
    """Rows that miss the least memory: of each place that states and weights lie in."""
    rows: dict[tuple[Any, ...], int] = {}
    nearest = predicted.closest(len(predicted), limits)
    for row in nearest:
        place = tuple(table.value(knob, row) for knob in ("offload_optimizer", "offload_param"))
        rows.setdefault(place, row)
    first = list(rows.values())[:NUM_CLOSEST]
    more = [row for row in nearest[: 2 * NUM_CLOSEST] if row not in first]
    chosen = {*first, *more[: NUM_CLOSEST - len(first)]}
    return [row for row in nearest if row in chosen]


def _least_host_bytes(predicted: PredictionTable, limits: Limits) -> int | None:
    """Host memory with which something would fit its device and disk; None where nothing would."""
    unlimited = replace(limits, host_bytes=2**62)
    fits = predicted.missing_bytes(unlimited) == 0
    return int(predicted.peak_host_bytes[fits].min()) if fits.any() else None
