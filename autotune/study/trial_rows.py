"""A trial's rows in Optuna's tables: written at its start and at its end, and read.

Optuna's own functions write the same rows one at a time, and look into the database before each:
some hundred statements a trial, and most of what a search cost. Here each half is one transaction
of six, so that no killed search leaves a part of it. Read are states and attributes alone: Optuna
builds parameters, distributions and values of each trial too, which takes 2,000 trials 4 s and
0.25 GiB. Does not know what the rows mean.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from autotune.errors import StorageError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.storages import RDBStorage
    from optuna.trial import TrialState
    from sqlalchemy import Connection

__all__ = ["StoredTrial", "TrialRows"]

_NUM_TRIES = 5
_LONGEST_PAUSE_S = 2.0
"""Searches that write at once can stand in each other's way; the database then ends one's
transaction, which is begun again a little later."""

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTrial:
    """A trial as its rows have it."""

    number: int
    state: TrialState
    attributes: dict[str, Any] = field(default_factory=dict)
    """Its user attributes, read from JSON."""


class TrialRows:
    """Writes the trials of one study.

    Args:
        storage: where the study is.
        study_id: which it is.
        distributions: of every parameter that a trial has.
    """

    def __init__(
        self, storage: RDBStorage, study_id: int, distributions: Mapping[str, BaseDistribution]
    ) -> None:
        from optuna.distributions import distribution_to_json

        self._engine = storage.engine
        self._study_id = study_id
        self._open_ids: set[int] = set()
        self._last_id = -1
        self._distributions = distributions
        self._distributions_json = {
            name: distribution_to_json(distribution)
            for name, distribution in distributions.items()
        }

    def add(
        self, state: TrialState, params: Mapping[str, Any], attributes: Mapping[str, Any]
    ) -> int:
        """Write a trial; its number.

        Numbers are given one after the other, under a lock of the study's row.
        """
        return self._in_transaction(
            lambda connection: self._add(connection, state, params, attributes)
        )

    def _add(
        self,
        connection: Connection,
        state: TrialState,
        params: Mapping[str, Any],
        attributes: Mapping[str, Any],
    ) -> int:
        import sqlalchemy as sql
        from optuna.storages._rdb import models

        studies, trials = _table(models.StudyModel), _table(models.TrialModel)
        of_study = studies.c.study_id == self._study_id
        connection.execute(sql.select(studies.c.study_id).where(of_study).with_for_update())
        row = {"study_id": self._study_id, "state": state, "datetime_start": _now()}
        if state.is_finished():
            row["datetime_complete"] = row["datetime_start"]
        inserted = connection.execute(trials.insert().values(row)).inserted_primary_key
        assert inserted is not None
        trial_id = inserted[0]
        earlier = (trials.c.study_id == self._study_id) & (trials.c.trial_id < trial_id)
        number = connection.scalar(sql.select(sql.func.count()).where(earlier)) or 0
        connection.execute(
            trials.update().where(trials.c.trial_id == trial_id).values(number=number)
        )
        if params:
            connection.execute(
                _table(models.TrialParamModel).insert(),
                [
                    {
                        "trial_id": trial_id,
                        "param_name": name,
                        "param_value": self._distributions[name].to_internal_repr(value),
                        "distribution_json": self._distributions_json[name],
                    }
                    for name, value in params.items()
                ],
            )
        _write_attributes(connection, models.TrialUserAttributeModel, trial_id, attributes)
        return number

    def end(
        self,
        number: int,
        state: TrialState,
        *,
        values: Sequence[float] = (),
        attributes: Mapping[str, Any],
        constraints: Mapping[str, float] | None = None,
    ) -> None:
        """Write down how a running trial ended.

        Args:
            number: the trial's.
            state: which it ended in.
            values: of its metrics, if it has any.
            attributes: beside those that it has.
            constraints: as `optuna.trial.Trial.set_constraint` takes them.

        Raises:
            StorageError: it does not run.
        """
        self._in_transaction(
            lambda connection: self._end(
                connection, number, state, values, attributes, constraints or {}
            )
        )

    def _end(
        self,
        connection: Connection,
        number: int,
        state: TrialState,
        values: Sequence[float],
        attributes: Mapping[str, Any],
        constraints: Mapping[str, float],
    ) -> None:
        import sqlalchemy as sql
        from optuna.storages._rdb import models
        from optuna.trial import TrialState as OptunaState

        trials = _table(models.TrialModel)
        which = (trials.c.study_id == self._study_id) & (trials.c.number == number)
        is_running = trials.c.state == OptunaState.RUNNING
        trial_id = connection.scalar(
            sql.select(trials.c.trial_id).where(which & is_running).with_for_update()
        )
        if trial_id is None:
            raise StorageError(f"trial {number} was already ended by another search")
        connection.execute(
            trials.update()
            .where(trials.c.trial_id == trial_id)
            .values(state=state, datetime_complete=_now())
        )
        _write_attributes(connection, models.TrialUserAttributeModel, trial_id, attributes)
        # As Optuna names them; its own function reads the whole trial first.
        named = {f"constraints:{name}": value for name, value in constraints.items()}
        _write_attributes(connection, models.TrialSystemAttributeModel, trial_id, named)
        rows = [
            {"trial_id": trial_id, "objective": index, "value": stored, "value_type": kind}
            for index, value in enumerate(values)
            for stored, kind in [models.TrialValueModel.value_to_stored_repr(value)]
        ]
        if rows:
            connection.execute(_table(models.TrialValueModel).insert(), rows)

    def read_new(self) -> list[StoredTrial]:
        """The trials that were not read yet, or had no end when they were; by number.

        What has ended changes no more, so each end is read once, whoever wrote it.
        """
        import sqlalchemy as sql
        from optuna.storages._rdb import models

        trials, values = _table(models.TrialModel), _table(models.TrialUserAttributeModel)
        is_new = (trials.c.trial_id > self._last_id) | trials.c.trial_id.in_(self._open_ids)
        # One statement, so that state and attributes of a trial are of one moment.
        query = (
            sql.select(
                *(trials.c.trial_id, trials.c.number, trials.c.state),
                *(values.c.key, values.c.value_json),
            )
            .outerjoin_from(trials, values, trials.c.trial_id == values.c.trial_id)
            .where((trials.c.study_id == self._study_id) & is_new)
        )
        found: dict[int, StoredTrial] = {}
        with self._engine.connect() as connection:
            for trial_id, number, state, key, text in connection.execute(query):
                trial = found.setdefault(trial_id, StoredTrial(number=number, state=state))
                if key is not None:
                    trial.attributes[key] = json.loads(text)
        self._last_id = max(self._last_id, *found) if found else self._last_id
        self._open_ids = {key for key, trial in found.items() if not trial.state.is_finished()}
        return sorted(found.values(), key=lambda trial: trial.number)

    def _in_transaction(self, write: Callable[[Connection], _T]) -> _T:
        from sqlalchemy.exc import OperationalError

        for _ in range(_NUM_TRIES - 1):
            try:
                with self._engine.begin() as connection:
                    return write(connection)
            except OperationalError:
                time.sleep(random.uniform(0.0, _LONGEST_PAUSE_S))
        with self._engine.begin() as connection:
            return write(connection)


def _write_attributes(
    connection: Connection, model: Any, trial_id: int, attributes: Mapping[str, Any]
) -> None:
    import sqlalchemy as sql

    if not attributes:
        return
    table = _table(model)
    among = (table.c.trial_id == trial_id) & table.c.key.in_(attributes)
    # A search that was killed while it wrote an end with an earlier version left some.
    if connection.scalar(sql.select(sql.func.count()).where(among)):
        connection.execute(table.delete().where(among))
    connection.execute(
        table.insert(),
        [
            {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
            for key, value in attributes.items()
        ],
    )


def _table(model: Any) -> Any:
    return model.__table__


def _now() -> datetime:
    """Optuna keeps times without their zone, which is that of Greenwich."""
    return datetime.now(UTC).replace(tzinfo=None)
