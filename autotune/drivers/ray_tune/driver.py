"""The loop on a cluster: Ray Tune's, over a study that its searcher asks and tells."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from autotune.cluster.messages import TrialOrder
from autotune.cluster.node_software import own_versions
from autotune.drivers.context import BUDGET_ENDED, DriverContext
from autotune.drivers.ray_tune.cluster import RayCluster
from autotune.drivers.ray_tune.ray_log import ray_log_into
from autotune.drivers.ray_tune.searcher import StudySearcher
from autotune.errors import AutotuneError, LaunchError
from autotune.launch.scratch_folder import ScratchFolder
from autotune.trials.protocols import TrialSource
from autotune.trials.trial import FailureKind, Trial

__all__ = ["RayTuneDriver"]

_MAX_LOST_IN_A_ROW = 12
"""So many trials lost one after the other are no accident any more."""

_MAX_RESTARTS = 3
"""So often Tune's loop is begun again after it broke down before any trial has ended."""

_TUNE_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # An actor that does not answer is killed after so many seconds.
    "TUNE_FORCE_TRIAL_CLEANUP_S": "10",
    # Tune's own record is not used: the study has one.
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),
    # The searcher says how many trials there may be, from the nodes that are there.
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",
    "TUNE_RESULT_BUFFER_LENGTH": "1",
    "TUNE_WARN_THRESHOLD_S": "1000",
}


class RayTuneDriver:
    """Has Tune run a study's trials over a cluster.

    Args:
        cluster: where.
        context: what every driver is told.
        max_concurrent: run at most so many trials at once.
        study_name: for the names of folders on the nodes.
        log: file for whatever Ray has to say.
        trainable: what runs a trial, as `RayTrial` does if left out.
    """

    def __init__(
        self,
        cluster: RayCluster,
        context: DriverContext,
        *,
        max_concurrent: int | None,
        study_name: str,
        log: Path,
        trainable: type | None = None,
    ) -> None:
        self._cluster = cluster
        self._context = context
        self._max_concurrent = max_concurrent
        self._study_name = study_name
        self._log = log
        self._trainable = trainable
        self._versions = own_versions()

    def run(self, study: TrialSource) -> None:
        """Until the study has nothing left, the budget is spent or the user interrupts.

        Raises:
            LaunchError: trials are lost one after the other.
            StorageError: the record cannot be written.
        """
        searcher = StudySearcher(
            study,
            nodes=self._cluster,
            budget=self._context.budget,
            order_of=self._order_of,
            folder_of=self._context.folder_of,
            progress=self._context.progress,
            is_over=self._is_over,
            max_concurrent=self._max_concurrent,
        )
        with ray_log_into(self._log):
            num_restarts = num_ended = 0
            while not self._has_ended_well(searcher):
                num_restarts = 0 if searcher.num_ended > num_ended else num_restarts + 1
                num_ended = searcher.num_ended
                if num_restarts > _MAX_RESTARTS:
                    raise LaunchError(f"Ray Tune fails at once; see {self._log}")
                self._context.progress.note("Ray Tune failed and is started again; see ray.log")
        reason = self._context.reason_to_stop() or BUDGET_ENDED
        searcher.end_all(FailureKind.INTERRUPTED, reason)
        if searcher.num_lost_in_a_row >= _MAX_LOST_IN_A_ROW:
            raise LaunchError(
                f"{_MAX_LOST_IN_A_ROW} trials were lost one after the other; see {self._log}"
            )

    def _has_ended_well(self, searcher: StudySearcher) -> bool:
        """One life of Tune's loop; whether it came to its end."""
        try:
            self._fit(searcher)
        except AutotuneError:
            raise
        except Exception as error:
            cause = _ours(error)
            if cause is not None:
                raise cause from error
            logging.getLogger("ray").exception("Tune's loop broke down")
            searcher.end_all(FailureKind.LOST_NODE, "Ray Tune failed while it ran")
            return False
        return True

    def _fit(self, searcher: StudySearcher) -> None:
        for name, value in _TUNE_SETTINGS.items():
            os.environ.setdefault(name, value)
        from ray import tune

        from autotune.drivers.ray_tune.callbacks import ForgetReports, SearchStopper
        from autotune.drivers.ray_tune.trainable import RayTrial

        def should_stop() -> bool:
            self._context.progress.refresh()
            return self._is_over() or searcher.num_lost_in_a_row >= _MAX_LOST_IN_A_ROW

        # Tune keeps a folder of its own; the study's is not its business.
        with ScratchFolder("tune") as folder:
            tune.Tuner(
                self._trainable or RayTrial,
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    num_samples=-1,
                    reuse_actors=True,
                    trial_name_creator=_name_of,
                    trial_dirname_creator=_name_of,
                ),
                run_config=tune.RunConfig(
                    name=self._study_name,
                    storage_path=str(folder),
                    verbose=0,
                    # There is nothing in a trial to go on with.
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                    stop=SearchStopper(should_stop),
                    callbacks=[ForgetReports()],
                    log_to_file=False,
                ),
            ).fit()

    def _is_over(self) -> bool:
        return self._context.reason_to_stop() is not None

    def _order_of(self, trial: Trial) -> TrialOrder:
        return TrialOrder(
            number=trial.number,
            spec=self._context.spec_of(trial),
            hardware=self._cluster.hardware,
            timeout_s=self._context.trial_timeout_s,
            placement=self._cluster.placement,
            study=self._study_name,
            versions=self._versions,
        )


def _name_of(trial: object) -> str:
    """The name of a trial in Tune: short, whatever its configuration."""
    return str(getattr(trial, "trial_id", trial))


def _ours(error: BaseException) -> AutotuneError | None:
    """The error of ours that Tune has wrapped, if it has."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, AutotuneError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None
