"""`--reuse`: finds earlier studies and takes over what they measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from autotune.errors import AutotuneError, ConfigError, StorageError
from autotune.machine.software import Software
from autotune.question.question import Question
from autotune.space.search_space import SearchSpace
from autotune.study.record import TrialRecord
from autotune.study.reuse import difference, reusable_trials
from autotune.study.stored import read_study
from autotune.study.summary import StudySummary
from autotune.trials.protocols import Predictor
from autotune.trials.trial import Outcome

__all__ = ["AUTO", "earlier_studies", "take_over"]

AUTO = "auto"


def earlier_studies(
    reuse: str, question: Question, software: Software, *, beside: Path
) -> list[tuple[Path, StudySummary]]:
    """The studies that --reuse names, whose measurements answer the question.

    Args:
        reuse: a study's folder, or `auto` for all that lie beside this study's.
        question: what is asked.
        software: what is installed.
        beside: this study's folder.

    Raises:
        ConfigError: the named study answers another question.
        StorageError: it cannot be read.
    """
    if reuse == AUTO:
        return list(_all_beside(beside, question, software))
    path = Path(reuse)
    if path.resolve() == beside.resolve():
        raise ConfigError(f"--reuse {reuse} is this study's own folder; leave it out to resume it")
    try:
        study = read_study(path, None)
    except StorageError as error:
        raise StorageError(f"--reuse {reuse}: {error}") from error
    if reason := difference(study, question, software.versions):
        raise ConfigError(f"--reuse {reuse} cannot be reused: {reason}")
    return [(path, study)]


def _all_beside(
    own: Path, question: Question, software: Software
) -> Iterator[tuple[Path, StudySummary]]:
    for file in sorted(own.parent.glob("*/question.json")):
        if file.parent.resolve() == own.resolve():
            continue
        try:
            study = read_study(file.parent, None)
        except AutotuneError:
            # What lies beside is none of the user's concern here.
            continue
        if difference(study, question, software.versions) is None:
            yield file.parent, study


def take_over(
    studies: list[tuple[Path, StudySummary]],
    record: TrialRecord,
    space: SearchSpace,
    predictor: Predictor,
) -> int:
    """Write down what the studies measured of this space and the record does not hold yet.

    Returns:
        How many trials these are.

    Raises:
        StorageError: the record cannot be written.
    """
    known = {trial.strategy for trial in record.trials() if trial.measurement is not None}
    num = 0
    for path, study in studies:
        for trial in reusable_trials(study, space):
            if trial.strategy in known:
                continue
            known.add(trial.strategy)
            source = trial.reused_from or f"trial {trial.number} of {path}"
            prediction = predictor.predict(trial.strategy)
            started = record.start(trial.strategy, prediction, reused_from=source)
            record.finish(started, Outcome(measurement=trial.measurement))
            num += 1
    return num
