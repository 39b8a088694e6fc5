"""Whether anything of a space can fit its question, and if not, by how much and what would.

Predicts; runs nothing, and does not know how the answer is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass, replace
from typing import Any

from autotune.errors import ConfigError, LaunchError
from autotune.machine.hardware import DeviceType, Hardware
from autotune.nothing_fits.alternatives import Larger, alternatives_to
from autotune.nothing_fits.command_line import CommandLine
from autotune.nothing_fits.shortfall import Shortfall
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
    "refuse_empty_space",
    "refuse_large_model_on_cpu",
    "shortfall",
    "shortfall_if_nothing_fits",
]

NUM_CLOSEST = 3
"""Strategies that are named where nothing fits."""

_MAX_CPU_PARAMETERS = 1_000_000_000
"""Larger models take minutes a step on a CPU: no search of them ends."""


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


def refuse_large_model_on_cpu(workload: Workload, hardware: Hardware) -> None:
    """Refuse a model that a CPU takes minutes a step for.

    Raises:
        LaunchError: it is one, and there is no GPU.
    """
    num_parameters = workload.model.num_parameters
    if hardware.device_type is DeviceType.CUDA or num_parameters <= _MAX_CPU_PARAMETERS:
        return
    raise LaunchError(
        f"--model {workload.model.name} has {num_parameters / 1e9:.1f} billion parameters, and "
        "NVML sees no GPU on this machine. Run this on a machine with a GPU (`autotune doctor` "
        "says what is missing), or try the CPU preset: "
        "autotune search --model tiny --budget 2m"
    )


def refuse_empty_space(space: SearchSpace, found: Sized, name: str) -> None:
    """Refuse a space that has no strategy at all for its question.

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


def shortfall_if_nothing_fits(
    asked: Asked, *, traces: bool = True
) -> tuple[Shortfall | None, AnalyticPredictor]:
    """What is missing where no strategy of the space can fit; None where one might.

    Args:
        asked: the question.
        traces: whether a model may be traced where what is counted leaves it open.

    Returns:
        What is missing, and the predictor that was asked, which knows the space's table by now.

    Raises:
        ConfigError: the space has no strategy at all.
    """
    question, table = asked.question, asked.space.table
    refuse_empty_space(asked.space, table, asked.space_name)
    # What is counted has the wider bounds, and costs no trace where these say enough.
    for may_trace in (False, True)[: 1 + traces]:
        predictor = AnalyticPredictor(question.workload, question.hardware, traces=may_trace)
        predicted = predictor.predict_table(table)
        if not predicted.might_fit(question.limits).any():
            return shortfall(asked, predictor, predicted), predictor
        if predictor.uncertainty is None:
            break
    return None, predictor


def shortfall(asked: Asked, predictor: Predictor, predicted: PredictionTable) -> Shortfall:
    """What is missing, and what would fit instead.

    Args:
        asked: what nothing fits.
        predictor: says more of single strategies.
        predicted: of the space's table.
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
    return Shortfall(
        closest=tuple(closest),
        limits=question.limits,
        hardware=question.hardware,
        alternatives=tuple(found),
        uncertainty=getattr(predictor, "uncertainty", None),
        remarks=question.workload.remarks,
    )


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
