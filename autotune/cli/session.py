"""One session of a search: holds the study's folder, opens its record, runs the trials."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from autotune.answer.best import best_words
from autotune.answer.export import export_into
from autotune.answer.report import format_duration, render_report
from autotune.answer.report_document import report_json
from autotune.cli.console import (
    answer_console,
    can_be_redrawn,
    file_console,
    print_document,
)
from autotune.cli.interrupt import Interrupt
from autotune.cli.own_command import FirstRun
from autotune.cli.progress import LiveProgress, PlainProgress
from autotune.cli.reuse import earlier_studies, take_over
from autotune.cli.settings import SearchSettings, StudyLocation
from autotune.cli.wiring import wired_study
from autotune.drivers.context import DriverContext
from autotune.errors import AutotuneError, LaunchError
from autotune.machine.hardware import DeviceType
from autotune.machine.software import Software
from autotune.predictor import AnalyticPredictor, UnknownModelPredictor
from autotune.profile import ScriptsAhead
from autotune.question.goal import Goal
from autotune.question.question import Question
from autotune.sites import Site
from autotune.space.search_space import SearchSpace
from autotune.study.folder import StudyFolder
from autotune.study.pareto import incumbents
from autotune.study.storage_address import check_works
from autotune.study.stored import open_record, summarize
from autotune.study.study import Study
from autotune.trials.protocols import Predictor, Sampler
from autotune.trials.script_run import script_run
from autotune.trials.trial import Trial, TrialSpec

__all__ = ["Session"]


class Session:
    """Holds a study from its opening to its answer.

    Args:
        question: what is asked.
        space: the strategies that may be tried.
        software: what is installed, for the record.
        predictor: of the question; it knows the table of the space by now.
        location: where the study is kept.
        site: where its trials run.
        first_run: the user's own run, which becomes the first trial.
    """

    def __init__(
        self,
        question: Question,
        space: SearchSpace,
        software: Software,
        predictor: AnalyticPredictor | UnknownModelPredictor,
        *,
        location: StudyLocation,
        site: Site,
        first_run: FirstRun | None = None,
    ) -> None:
        self._question = question
        self._space = space
        self._software = software
        self._predictor = predictor
        self._location = location
        self._site = site
        self._first_run = first_run
        self._folder = location.reserved or StudyFolder(location.path)
        self._end_reason: str | None = None
        self._baseline: dict[str, Any] | None = None

    def __enter__(self) -> Session:
        """Lock the folder and open the record; nothing is written before what can be checked is.

        Raises:
            ConfigError: the folder holds something else, or --reuse names what cannot be reused.
            StorageError: the folder or the storage cannot be used.
        """
        reuse, path = self._location.reuse, self._folder.path
        self._earlier = (
            earlier_studies(reuse, self._question, self._software, beside=path)
            if reuse is not None
            else []
        )
        if self._location.storage_url is not None:
            check_works(self._location.storage_url)
        self._is_resumed = self._folder.open(self._question, must_exist=self._location.must_exist)
        try:
            self._record = open_record(
                self._folder, self._space, self._question, self._location.storage_url
            )
            self._num_recovered = self._record.recover()
        except BaseException:
            self._folder.undo()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._record.close()
        self._folder.close()

    def search(self, settings: SearchSettings, console: Console) -> None:
        """Run trials until the budget is spent, the space exhausted or the user has enough.

        Args:
            settings: how.
            console: where progress is shown.

        Raises:
            LaunchError: trials cannot be started at the site.
            StorageError: the record cannot be written.
        """
        question, budget = self._question, settings.budget
        scripts = ScriptsAhead()
        predictor = self._predictor.simulating(scripts)
        self._record_first_run(predictor)
        num_reused = take_over(self._earlier, self._record, self._space, predictor)
        study, sampler = wired_study(
            self._record, question, self._space, predictor, settings, build_s=self._site.build_s
        )
        before = self._folder.read_environment()
        elapsed_before_s = float(before.get("elapsed_s", 0.0))
        self._baseline = _baseline_of(settings, before)
        if settings.baseline is not None:
            # Now, so that a search that is killed has told of it too.
            self._folder.write_environment({**before, "baseline": self._baseline})
        view = LiveProgress if can_be_redrawn(console) else PlainProgress

        def acknowledge() -> None:
            progress.note("Stopping the running trial; press Ctrl-C again to kill it")

        with (
            view(console, budget) as progress,
            Interrupt(acknowledge) as interrupt,
            # Before the answer: nothing that ends here may print between its lines.
            closing(self._site),
        ):
            self._greet(progress, study)
            if self._location.reuse is not None:
                progress.note(
                    f"--reuse {self._location.reuse}: took over {num_reused} measurements"
                )

            def reason_to_stop() -> str | None:
                progress.refresh()
                return "stopped" if interrupt.check() or budget.remaining_s <= 0 else None

            def spec_of(trial: Trial) -> TrialSpec:
                for reason in scripts.failures():
                    progress.note(
                        f"Could not trace the code of {question.workload.model.name} for some "
                        f"strategies; a formula estimates their memory: {reason}"
                    )
                # A slower trial in no less memory may still use the least energy.
                others = () if settings.goal is Goal.ENERGY else study.trials
                return self._spec_of(trial, others)

            seconds = self._site.start(
                folder=self._folder.path,
                study_name=self._folder.name,
                model_type=question.workload.model.model_type,
                reason_to_stop=reason_to_stop,
            )
            if seconds:
                progress.note(f"Imported in {seconds:.1f} s; trials start from there")
            context = DriverContext(
                budget=budget,
                spec_of=spec_of,
                folder_of=self._folder.trial_folder,
                progress=progress,
                is_interrupted=interrupt.check,
                trial_timeout_s=settings.trial_timeout_s,
            )
            driver = self._site.driver(context)
            try:
                driver.run(study)
                self._end_reason = self._reason_of_end(
                    study,
                    settings,
                    sampler,
                    is_interrupted=interrupt.check(),
                    has_started=seconds is not None,
                )
            except LaunchError as error:
                self._end_reason = str(error)
                raise
            finally:
                self._write_environment(settings, elapsed_before_s + budget.elapsed_s)

    def _record_first_run(self, predictor: Predictor) -> None:
        """Write the user's own run down as the first trial, with its output."""
        first = self._first_run
        if first is None:
            return
        strategy = first.asked.baseline
        trial = self._record.start(strategy, predictor.predict(strategy))
        place = self._folder.trial_folder(trial.number)
        place.rmdir()
        first.folder.rename(place)
        self._record.finish(trial, first.outcome)

    @staticmethod
    def _reason_of_end(
        study: Study,
        settings: SearchSettings,
        sampler: Sampler,
        *,
        is_interrupted: bool,
        has_started: bool,
    ) -> str | None:
        """Why no more trials are launched, in words."""
        budget = settings.budget
        if is_interrupted:
            return "interrupted"
        if not has_started:
            return (
                f"--budget {budget.seconds:.0f}s ended while PyTorch and DeepSpeed were imported, "
                "so no trial started; use a larger budget"
            )
        if sampler.end_reason and budget.remaining_s > 0:
            return f"{study.end_reason}; stopped with {format_duration(budget.remaining_s)} unused"
        return study.end_reason

    def _write_environment(self, settings: SearchSettings, elapsed_s: float) -> None:
        self._folder.write_environment(
            {
                "versions": self._software.versions,
                "hardware": asdict(self._question.hardware),
                "sampler": str(settings.sampler),
                "objective": str(settings.goal),
                "budget_s": settings.budget.seconds,
                "trials_side_by_side": self._site.trials_side_by_side,
                "elapsed_s": elapsed_s,
                "end_reason": self._end_reason,
                "baseline": self._baseline,
            }
        )

    def _greet(self, progress: LiveProgress | PlainProgress, study: Study) -> None:
        progress.trials_changed(study.trials)
        hardware = self._question.hardware
        if hardware.device_type is DeviceType.CPU and not hardware.supports_bf16:
            progress.note(
                "This CPU has no bf16 instructions (avx512_bf16, amx_bf16 or ARM bf16): trials "
                "train in fp32, and so does the reference"
            )
        if self._is_resumed:
            words = f"Resuming {self._folder.path}: {len(study.trials)} trials so far"
            if self._num_recovered:
                words += f"; {self._num_recovered} of them were cut off and run again"
            progress.note(words)
        elif self._first_run is None:
            progress.note(self._site.loading)

    def _spec_of(self, trial: Trial, others: Sequence[Trial]) -> TrialSpec:
        own = self._question.own_training
        spec = TrialSpec(
            workload=self._question.workload,
            strategy=trial.strategy,
            script=None if own is None else script_run(own),
            num_ranks=self._question.hardware.num_devices,
            seed=self._question.seed,
            nvme_path=self._question.hardware.nvme_path,
            incumbents=incumbents(others),
        )
        return spec if trial.confirms is None else spec.to_confirm()

    def answer(self, *, as_json: bool, all_rows: bool, console: Console) -> bool:
        """Export the best, print the report and keep it in the folder; whether anything fits.

        Raises:
            ConfigError: the export's folder is taken.
            StorageError: the export or the report cannot be written; the report is printed then.
        """
        summary = summarize(self._folder, self._record, self._question, self._location.storage_url)
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
            out.print(render_report(summary, exported, all_rows=all_rows), crop=False)
        text = io.StringIO()
        file_console(text).print(render_report(summary, exported, all_rows=True), crop=False)
        self._folder.write_report(text.getvalue())
        if failed is not None:
            raise failed
        if best is not None:
            words = best_words(summary, exported)
            console.print(words, markup=False, soft_wrap=True)
        console.print(
            f"To resume, run the same command again; the study is in {self._folder.path}",
            markup=False,
            soft_wrap=True,
        )
        return best is not None


def _baseline_of(settings: SearchSettings, before: Mapping[str, Any]) -> dict[str, Any] | None:
    """The baseline of this search, or else that of the searches before it, as JSON values."""
    if settings.baseline is not None:
        return settings.baseline.to_dict()
    told: dict[str, Any] | None = before.get("baseline")
    return told
