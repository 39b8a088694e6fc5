"""Optuna's own samplers, asked for strategies instead of numbers.

Keeps an Optuna study of its own in memory, which may hold more than the record does: choices that
are impossible, and predicted values of what ran out of memory. Does not know the record.
"""

from __future__ import annotations

import contextlib
import logging
import random
import warnings
from collections.abc import Iterator, Sequence

import optuna
from optuna.samplers import (
    BaseSampler,
    GPSampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)
from optuna.study import StudyDirection
from optuna.trial import TrialState as OptunaState

from autotune.errors import ConfigError
from autotune.samplers.kind import SamplerKind
from autotune.samplers.observation import Observation, impossible, observation_of
from autotune.samplers.parameters import Parameters
from autotune.space.search_space import SearchSpace
from autotune.space.strategy import Strategy
from autotune.trials.trial import METRICS, Direction, Trial

__all__ = ["OptunaSampler"]

_MAX_ASKS = 10
"""So often a sampler is asked for one new strategy before a random one is taken.

On a synthetic objective over `search_spaces/full.yaml`, two seeds, TPE came to need 20 to 27 after
150 trials: 130 ms each time, for a front no better than with random strategies in between.
"""

_MAX_ASKS_GP = 3
"""How often a Gaussian process sampler is asked; it is fitted again each time."""

_POPULATION_SIZE = 16
"""The population of NSGA-II. With 50, Optuna's default, most studies would stay random."""

_CONSTRAINT = "memory"

_DIRECTIONS = {
    Direction.MAXIMIZE: StudyDirection.MAXIMIZE,
    Direction.MINIMIZE: StudyDirection.MINIMIZE,
}


class OptunaSampler:
    """Proposes strategies of a space that no trial has yet; the same ones for the same seed.

    Args:
        space: what to choose from.
        kind: which of Optuna's samplers chooses; not `PREDICTED`, which is none of them.
        seed: of all its randomness.

    Raises:
        ConfigError: the sampler needs a package that is not installed.
    """

    end_reason: str | None = None
    """It has no reason to end before every strategy was tried."""

    def __init__(self, space: SearchSpace, *, kind: SamplerKind, seed: int) -> None:
        self._kind = kind
        self._capacity_bytes = space.hardware.device_memory_bytes
        self._strategies = tuple(space.strategies())
        self._parameters = Parameters(space)
        self._distributions = self._parameters.distributions
        self._random = random.Random(seed)
        self._rows = {strategy: row for row, strategy in enumerate(self._strategies)}
        self._row_of: dict[Strategy, int | None] = {}
        self._asked: dict[Strategy, optuna.Trial] = {}
        self._learned: set[Strategy] = set()
        with _quiet():
            self._study = optuna.create_study(
                directions=[_DIRECTIONS[metric.direction] for metric in METRICS],
                sampler=_sampler(kind, seed),
            )

    def propose(self, trials: Sequence[Trial]) -> Strategy | None:
        """A possible strategy that none of `trials` has, or None when there is none left."""
        tried = {trial.strategy for trial in trials}
        taken = self._rows_of(tried)
        untried = [s for row, s in enumerate(self._strategies) if row not in taken]
        if not untried:
            return None
        if self._kind is SamplerKind.GRID:
            # Optuna's own lists every combination of values first, of which a wide space has more
            # than memory holds.
            return self._random.choice(untried)
        with _quiet():
            self._forget_what_was_not_taken(tried)
            if self._kind.learns:
                self._learn(trials)
            return self._draw(tried) or self._random.choice(untried)

    def _rows_of(self, tried: set[Strategy]) -> set[int | None]:
        """Where in the space they are; each is looked for once, since that compares all knobs."""
        for strategy in tried:
            if strategy not in self._row_of:
                self._row_of[strategy] = self._rows.get(strategy)
        return {self._row_of[strategy] for strategy in tried}

    def _forget_what_was_not_taken(self, tried: set[Strategy]) -> None:
        """A proposal that was put off may be drawn again."""
        for strategy in [strategy for strategy in self._asked if strategy not in tried]:
            self._tell(self._asked.pop(strategy), Observation(state=OptunaState.FAIL))

    def _draw(self, tried: set[Strategy]) -> Strategy | None:
        """Ask until something new comes; None when it takes too long."""
        repeats: list[optuna.Trial] = []
        proposal = None
        for _ in range(_MAX_ASKS_GP if self._kind is SamplerKind.GP else _MAX_ASKS):
            inner = self._study.ask(self._distributions)
            strategy = self._parameters.strategy(inner.params)
            if strategy is None:
                self._tell(inner, impossible(self._capacity_bytes))
            elif strategy in tried:
                # Left running until the end of the draw: TPE and GP keep away from what runs. Told
                # as complete, a good one would draw them to itself ever more.
                repeats.append(inner)
            else:
                self._asked[strategy] = inner
                proposal = strategy
                break
        for inner in repeats:
            self._tell(inner, Observation(state=OptunaState.FAIL))
        return proposal

    def _learn(self, trials: Sequence[Trial]) -> None:
        """Take in what ended since the last time, or in an earlier session."""
        for trial in trials:
            if trial.strategy in self._learned:
                continue
            observation = observation_of(trial, self._capacity_bytes)
            if observation is None:
                continue
            self._learned.add(trial.strategy)
            inner = self._asked.pop(trial.strategy, None)
            if inner is not None:
                self._tell(inner, observation)
            else:
                self._add(trial.strategy, observation)

    def _add(self, strategy: Strategy, observation: Observation) -> None:
        """Take in an observation about a strategy that the Optuna study was not asked for."""
        params = self._parameters.params(strategy)
        if params is None:
            return
        if self._kind is SamplerKind.NSGA2:
            # Only a trial that was asked for gets a generation, without which it has no children.
            self._study.enqueue_trial(params)
            self._tell(self._study.ask(self._distributions), observation)
            return
        added = optuna.trial.create_trial(
            state=observation.state,
            values=observation.values,
            params=params,
            distributions=self._distributions,
        )
        if observation.violation is not None:
            added.set_constraint(_CONSTRAINT, observation.violation)
        self._study.add_trial(added)

    def _tell(self, inner: optuna.Trial, observation: Observation) -> None:
        if not self._kind.learns:
            return
        if observation.violation is not None:
            inner.set_constraint(_CONSTRAINT, observation.violation)
        self._study.tell(inner, observation.values, state=observation.state)


def _sampler(kind: SamplerKind, seed: int) -> BaseSampler:
    match kind:
        case SamplerKind.TPE:
            # Every draw has every parameter, so there are no groups to tell apart (`group=True`).
            return TPESampler(multivariate=True, seed=seed)
        case SamplerKind.NSGA2:
            return NSGAIISampler(population_size=_POPULATION_SIZE, seed=seed)
        case SamplerKind.GP:
            _require_gp_packages()
            return GPSampler(seed=seed, warn_independent_sampling=False)
        case SamplerKind.RANDOM | SamplerKind.GRID:
            return RandomSampler(seed=seed)
        case SamplerKind.PREDICTED:
            raise ValueError(f"{kind} is none of Optuna's samplers")


def _require_gp_packages() -> None:
    try:
        import scipy  # type: ignore[import-untyped,import-not-found,unused-ignore]  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--sampler gp needs scipy and torch: {error}; "
            "type `pip install scipy torch`, or choose --sampler tpe"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna's notes on its private study, and on what is experimental, from the user."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        logger.setLevel(level)
