"""Questions that this machine cannot answer, refused before anything runs: exit status 1."""

from __future__ import annotations

import json
from collections.abc import Sequence, Sized
from typing import NoReturn

import typer
from rich.console import Console

from autotune.answer.shortfall import nothing_fits, related_questions, shortfall_json
from autotune.cli.console import answer_console
from autotune.errors import ConfigError
from autotune.machine.hardware import DeviceType, Hardware
from autotune.predictor import AnalyticPredictor
from autotune.question.question import Question
from autotune.question.workload import Workload
from autotune.space.search_space import SearchSpace
from autotune.space.space_file import load_search_space
from autotune.space.strategy import Strategy
from autotune.trials.trial import Prediction

__all__ = [
    "NUM_CLOSEST",
    "refuse_as_nothing_fits",
    "refuse_empty_space",
    "refuse_if_nothing_fits",
    "refuse_large_model_on_cpu",
]

NUM_CLOSEST = 3
"""Strategies that are named where nothing fits."""

_LEANEST_SPACE = "memory"
"""The bundled space of whatever saves memory."""

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
    question: Question, space: SearchSpace, space_file: str, console: Console, *, as_json: bool
) -> None:
    """Say at once what is missing where no strategy of the space can fit."""
    predictor = AnalyticPredictor(question.workload, question.hardware)
    refuse_empty_space(space, space.table)
    predicted = predictor.predict_table(space.table)
    if not predicted.might_fit(**question.limits).any():
        rows = predicted.closest(NUM_CLOSEST, **question.limits)
        closest = [(s, predictor.predict(s)) for s in map(space.table.strategy, rows)]
        refuse_as_nothing_fits(question, space, closest, space_file, console, as_json=as_json)


def refuse_empty_space(space: SearchSpace, found: Sized) -> None:
    """Say why a space has no strategy at all for its question.

    Raises:
        ConfigError: `found`, what the space gave, is empty.
    """
    if not found:
        raise ConfigError(
            f"--space {space.name}: no combination of its values is possible for this question; "
            f"for one, {space.first_conflict()}"
        )


def refuse_as_nothing_fits(
    question: Question,
    space: SearchSpace,
    closest: Sequence[tuple[Strategy, Prediction]],
    space_file: str,
    console: Console,
    *,
    as_json: bool,
) -> NoReturn:
    """Say what is missing, and what would fit instead; ends with exit status 1.

    Args:
        question: what nothing fits.
        space: its strategies.
        closest: the strategies that miss the least memory, with their predictions, least first.
        space_file: --space, as the user named it.
        console: where the words go.
        as_json: print a document on stdout besides.
    """
    limit = question.memory_limit_bytes
    alternatives = _alternatives(question, space, space_file)
    if as_json:
        answer_console().print_json(
            json.dumps(
                shortfall_json(
                    closest,
                    limit_bytes=limit,
                    host_limit_bytes=question.host_limit_bytes,
                    hardware=question.hardware,
                    alternatives=alternatives,
                )
            )
        )
    console.print(
        nothing_fits(
            closest,
            limit_bytes=limit,
            host_limit_bytes=question.host_limit_bytes,
            hardware=question.hardware,
            alternatives=alternatives,
        )
    )
    raise typer.Exit(1)


def _alternatives(
    question: Question, space: SearchSpace, space_file: str
) -> dict[str, Prediction]:
    """The leanest prediction of each related question that fits, the nearest of each kind."""
    limits = question.limits
    alternatives: dict[str, Prediction] = {}
    kinds_found = set()
    asked = [
        (*related, space_file)
        for related in related_questions(question.workload, question.hardware)
    ]
    if space_file != _LEANEST_SPACE:
        # The question itself, by whatever saves memory.
        words = f"--space {_LEANEST_SPACE}, which may change the loss"
        asked.insert(0, (words, question.workload, question.hardware, _LEANEST_SPACE))
    for words, workload, hardware, name in asked:
        # --space, --method, --seq-len, --model, or a number of devices: the nearest of each kind
        # is enough.
        kind = words.split()[0].strip("0123456789")
        if kind in kinds_found:
            continue
        related = load_search_space(name, workload, hardware, space.software)
        other = AnalyticPredictor(workload, hardware)
        rows = other.predict_table(related.table).closest(1, **limits)
        leanest = other.predict(related.table.strategy(rows[0])) if rows else None
        if leanest is not None and not leanest.missing_bytes(**limits):
            kinds_found.add(kind)
            alternatives[words] = leanest
    return alternatives
