"""One session of a search: holds the study's folder, opens its record, runs the trials."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console

from autotune.answer.best import best_words
from autotune.answer.export import export_into
from autotune.answer.report import format_duration, render_report
from autotune.answer.report_document import report_json
from autotune.cli.cluster import Cluster
from autotune.cli.console import (
    answer_console,
    can_be_redrawn,
    file_console,
    print_document,
)
from autotune.cli.interrupt import Interrupt
from autotune.cli.progress import LiveProgress, PlainProgress
from autotune.cli.reuse import earlier_studies, take_over
from autotune.drivers.budget import Budget
from autotune.drivers.context import DriverContext
from autotune.drivers.local import LocalDriver
from autotune.drivers.side_by_side import SideBySideDriver
from autotune.errors import AutotuneError, LaunchError
from autotune.launch.launcher import Launcher
from autotune.launch.watched_runner import WatchedRunner
from autotune.learner import CalibratedPredictor
from autotune.machine.extensions import compiled_extension
from autotune.machine.hardware import DeviceType
from autotune.machine.software import Software
from autotune.predictor import AnalyticPredictor
from autotune.profile import ScriptsAhead
from autotune.pruners import DominancePruner, PredictedMemoryPruner
from autotune.question.goal import Goal
from autotune.question.question import Question
from autotune.samplers import OptunaSampler, PredictedSampler, SamplerKind
from autotune.samplers.enqueued import EnqueuedSampler
from autotune.space.search_space import SearchSpace
from autotune.study.folder import StudyFolder
from autotune.study.pareto import incumbents
from autotune.study.storage_address import check_works
from autotune.study.stored import open_record, summarize
from autotune.study.study import Study
from autotune.trials.composition import composition_of
from autotune.trials.durations import TrialDurations
from autotune.trials.protocols import Driver, Sampler
from autotune.trials.trial import Trial, TrialSpec

__all__ = ["Session"]

_BUILD_S = 60.0
"""To compile CPU Adam, as measured on the host of an H100; not known of a cluster's nodes."""


class Session:
    """Holds a study from its opening to its answer.

    Args:
        question: what is asked.
        space: the strategies that may be tried.
        software: what is installed, for the record.
        predictor: of the question, which knows the space's table by now.
        path: the study's folder.
        storage_url: where trials are kept; the folder's own file if left out.
        must_exist: refuse to start a new study.
        reuse: what --reuse names, if anything.
        num_places: run so many trials side by side, each on as many devices as the question says.
    """

    def __init__(
        self,
        question: Question,
        space: SearchSpace,
        software: Software,
        predictor: AnalyticPredictor,
        *,
        path: Path,
        storage_url: str | None,
        must_exist: bool,
        reuse: str | None = None,
        num_places: int = 1,
    ) -> None:
        self._question = question
        self._num_places = num_places
        self._space = space
        self._software = software
        self._predictor = predictor
        self._folder = StudyFolder(path)
        self._storage_url = storage_url
        self._must_exist = must_exist
        self._reuse = reuse
        self._end_reason: str | None = None

    def __enter__(self) -> Session:
        """Lock the folder and open the record; nothing is written before what can be checked is.

        Raises:
            ConfigError: the folder holds something else, or --reuse names what cannot be reused.
            StorageError: the folder or the storage cannot be used.
        """
        self._earlier = (
            earlier_studies(self._reuse, self._question, self._software, beside=self._folder.path)
            if self._reuse is not None
            else []
        )
        if self._storage_url is not None:
            check_works(self._storage_url)
        self._is_resumed = self._folder.open(self._question, must_exist=self._must_exist)
        try:
            self._record = open_record(
                self._folder, self._space, self._question, self._storage_url
            )
            self._num_recovered = self._record.recover()
        except BaseException:
            self._folder.undo()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._record.close()
        self._folder.close()

    def search(
        self,
        budget: Budget,
        *,
        sampler: SamplerKind,
        goal: Goal,
        min_gain: float,
        max_trials: int | None,
        num_forced: int,
        num_confirmed: int,
        trial_timeout_s: float,
        console: Console,
        cluster: Cluster | None = None,
    ) -> None:
        """Run trials until the budget is spent, the space exhausted or the user has enough.

        Raises:
            LaunchError: trials cannot be started on this machine.
            StorageError: the record cannot be written.
        """
        question, limit = self._question, self._question.memory_limit_bytes
        scripts = ScriptsAhead()
        predictor = self._predictor.simulating(scripts)
        table = self._space.table
        predicted = predictor.predict_table(table)
        missing_bytes = predicted.missing_bytes(question.limits)
        num_reused = take_over(self._earlier, self._record, self._space, predictor)

        durations = TrialDurations(
            composition_of=lambda strategy: composition_of(
                question.workload, strategy, question.hardware.num_devices
            ),
            build_s=0.0 if cluster or compiled_extension("cpu_adam") else _BUILD_S,
        )
        proposals: Sampler
        if sampler is SamplerKind.PREDICTED:
            proposals = PredictedSampler(
                table,
                predictor,
                limits=question.limits,
                goal=goal,
                min_gain=min_gain,
                durations=durations,
            )
        else:
            proposals = OptunaSampler(self._space, kind=sampler, seed=question.seed)
        if num_forced:
            too_large = np.flatnonzero(missing_bytes > 0)
            nearest = too_large[np.argsort(missing_bytes[too_large], kind="stable")][:num_forced]
            proposals = EnqueuedSampler(map(table.strategy, nearest.tolist()), proposals)
        study = Study(
            self._record,
            sampler=proposals,
            predictor=predictor,
            learn=CalibratedPredictor(predictor).learn,
            pruners=(
                PredictedMemoryPruner(
                    limit,
                    host_memory_bytes=question.host_limit_bytes,
                    disk_bytes=question.hardware.nvme_free_bytes,
                    is_patient=bool(len(table) and missing_bytes.min() > 0),
                ),
                DominancePruner(),
            ),
            max_trials=max_trials,
            num_forced=num_forced,
            num_confirmed=num_confirmed,
            durations=durations,
        )
        elapsed_before_s = float(self._folder.read_environment().get("elapsed_s", 0.0))
        view = LiveProgress if can_be_redrawn(console) else PlainProgress
        launchers = [
            Launcher(
                question.hardware,
                model_type=question.workload.model.model_type,
                folder=self._folder.path,
                place=place,
                num_places=self._num_places,
            )
            for place in range(self._num_places if cluster is None else 0)
        ]

        def say_goodbye() -> None:
            progress.note("ending: the running trial is stopped; Ctrl-C again kills")

        with (
            view(console, budget) as progress,
            Interrupt(say_goodbye) as interrupt,
            ExitStack() as stack,
        ):
            for launcher in launchers:
                stack.enter_context(launcher)
            self._greet(progress, study, is_here=cluster is None)
            if self._reuse is not None:
                progress.note(f"--reuse {self._reuse}: {num_reused} measurements taken over")

            def reason_to_stop() -> str | None:
                progress.refresh()
                return "stopped" if interrupt.check() or budget.remaining_s <= 0 else None

            seconds = _start(launchers, reason_to_stop) if cluster is None else 0.0
            if seconds:
                progress.note(f"libraries loaded in {seconds:.1f} s; trials start warm from here")

            def spec_of(trial: Trial) -> TrialSpec:
                for reason in scripts.failures():
                    progress.note(
                        f"the code of {question.workload.model.name} could not be followed for "
                        f"some strategies, whose memory a formula estimates: {reason}"
                    )
                # The slower in no less memory may still use the least energy.
                return self._spec_of(trial, () if goal is Goal.ENERGY else study.trials)

            context = DriverContext(
                budget=budget,
                spec_of=spec_of,
                folder_of=self._folder.trial_folder,
                progress=progress,
                is_interrupted=interrupt.check,
                trial_timeout_s=trial_timeout_s,
            )
            driver = self._driver(context, launchers, cluster)
            try:
                driver.run(study)
                if interrupt.check():
                    self._end_reason = "interrupted"
                elif seconds is None:
                    self._end_reason = (
                        f"--budget {budget.seconds:.0f}s was spent before the libraries were "
                        "loaded, so no trial could start; give it more"
                    )
                else:
                    self._end_reason = study.end_reason
                    if proposals.end_reason and budget.remaining_s > 0:
                        unused = format_duration(budget.remaining_s)
                        self._end_reason = f"{study.end_reason}; {unused} of the budget given back"
            except LaunchError as error:
                self._end_reason = str(error)
                raise
            finally:
                if cluster is not None:
                    # Before the answer: what Ray prints must not come between its lines.
                    cluster.ray.close()
                self._folder.write_environment(
                    {
                        "versions": self._software.versions,
                        "hardware": asdict(question.hardware),
                        "sampler": str(sampler),
                        "objective": str(goal),
                        "budget_s": budget.seconds,
                        "trials_side_by_side": self._num_places,
                        "elapsed_s": elapsed_before_s + budget.elapsed_s,
                        "end_reason": self._end_reason,
                    }
                )

    def _driver(
        self, context: DriverContext, launchers: Sequence[Launcher], cluster: Cluster | None
    ) -> Driver:
        """Who owns the loop."""
        if cluster is not None:
            from autotune.drivers.ray_tune import RayTuneDriver

            return RayTuneDriver(
                cluster.ray,
                context,
                max_concurrent=cluster.max_concurrent,
                study_name=self._folder.name,
                log=self._folder.path / "ray.log",
            )
        runners = [WatchedRunner(each, self._question.hardware) for each in launchers]
        if len(runners) == 1:
            return LocalDriver(runners[0], context)
        return SideBySideDriver(runners, context)

    def _greet(
        self, progress: LiveProgress | PlainProgress, study: Study, *, is_here: bool
    ) -> None:
        progress.trials_changed(study.trials)
        hardware = self._question.hardware
        if hardware.device_type is DeviceType.CPU and not hardware.supports_bf16:
            progress.note(
                "this CPU has no instructions for bf16 (avx512_bf16, amx_bf16 or ARM's bf16): "
                "trials train in fp32, which strategies are compared with"
            )
        if self._is_resumed:
            words = f"going on with {self._folder.path}: {len(study.trials)} trials so far"
            if self._num_recovered:
                words += f", {self._num_recovered} of them cut off and run again"
            progress.note(words)
        elif is_here:
            progress.note("loading the libraries, once for all trials")
        else:
            progress.note("the nodes load the libraries, each once for all its trials")

    def _spec_of(self, trial: Trial, others: Sequence[Trial]) -> TrialSpec:
        spec = TrialSpec(
            workload=self._question.workload,
            strategy=trial.strategy,
            num_ranks=self._question.hardware.num_devices,
            seed=self._question.seed,
            nvme_path=self._question.hardware.nvme_path,
            incumbents=incumbents(others),
        )
        return spec if trial.confirms is None else spec.to_confirm()

    def answer(self, *, as_json: bool, console: Console) -> bool:
        """Export the best, print the report and keep it in the folder; whether anything fits.

        Raises:
            ConfigError: the place of an export is taken.
            StorageError: the export or the report cannot be written; the report is printed then.
        """
        summary = summarize(self._folder, self._record, self._question, self._storage_url)
        best = summary.best
        exported: Path | None = None
        failed: AutotuneError | None = None
        if best is not None:
            try:
                exported = export_into(summary, best, self._folder.exports)
            except AutotuneError as error:
                failed = error
        out = answer_console()
        if as_json:
            print_document(report_json(summary, exported))
        else:
            out.print(render_report(summary, exported), crop=False)
        text = io.StringIO()
        file_console(text).print(render_report(summary, exported), crop=False)
        self._folder.write_report(text.getvalue())
        if failed is not None:
            raise failed
        if best is not None:
            words = best_words(summary, exported)
            console.print(words, markup=False, soft_wrap=True)
        console.print(
            f"The same command goes on from here: the study is kept in {self._folder.path}",
            markup=False,
            soft_wrap=True,
        )
        return best is not None


def _start(
    launchers: Sequence[Launcher], reason_to_stop: Callable[[], str | None]
) -> float | None:
    """Start all at once; the seconds that the slowest took, or None if it was stopped."""
    if len(launchers) == 1:
        return launchers[0].start(reason_to_stop)
    reason: str | None = None
    with ThreadPoolExecutor(len(launchers)) as pool:
        starting = [pool.submit(launcher.start, lambda: reason) for launcher in launchers]
        while wait(starting, timeout=0.1).not_done:
            reason = reason or reason_to_stop()
    seconds = [start.result() for start in starting]
    known = [s for s in seconds if s is not None]
    return max(known) if len(known) == len(seconds) else None
