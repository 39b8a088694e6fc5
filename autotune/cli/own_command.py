"""`autotune search … -- COMMAND`: the user's own run comes first, and teaches the question.

Does not know how the trials after it are chosen.
"""

from __future__ import annotations

import contextlib
import importlib
import shutil
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.answer.figures import format_gib
from autotune.cli.console import can_be_redrawn
from autotune.cli.interrupt import Interrupt
from autotune.cli.progress import LiveProgress, PlainProgress
from autotune.drivers.context import DriverContext
from autotune.errors import ConfigError, LaunchError
from autotune.foreign.reader import setup_of
from autotune.foreign.tool import Tool
from autotune.names import one_line
from autotune.question.command import TrainingCommand
from autotune.question.question import Question
from autotune.question.unknown_model import unknown_model
from autotune.question.workload import Workload
from autotune.script.asked import AskedByRun, asked_by
from autotune.script.batch_control import check_batches
from autotune.script.findings import Findings
from autotune.script.launch_words import LaunchedCommand, read_command
from autotune.sites.site import OF_ANY_MODEL
from autotune.space.strategy import Strategy
from autotune.study.folder import StudyFolder
from autotune.study.stored import read_record
from autotune.trials.protocols import Progress
from autotune.trials.script_run import ScriptRun
from autotune.trials.trial import Outcome, Trial, TrialSpec, TrialState

if TYPE_CHECKING:
    from rich.console import Console

    from autotune.cli.search_options import SearchOptions
    from autotune.cli.settings import SearchSettings
    from autotune.sites import Site

__all__ = ["FirstRun", "first_run", "launched_command", "resumed"]

_TAUGHT = {
    "model": "--model",
    "seq_len": "--seq-len",
    "lengths": "--lengths",
    "data": "--data",
    "tokenizer": "--tokenizer",
    "method": "--method",
    "lora_rank": "--lora-rank",
    "lora_targets": "--lora-targets",
    "from_file": "--from",
}
"""Options whose answer the command gives."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstRun:
    """The user's own run, and what it asks."""

    asked: AskedByRun
    outcome: Outcome
    folder: Path
    """Where its output lies."""


def launched_command(options: SearchOptions) -> LaunchedCommand:
    """The command after `--`, checked as far as nothing runs.

    Raises:
        ConfigError: it cannot be run or steered, or an option asks for what it says itself.
    """
    from autotune.nothing_fits.command_line import CommandLine

    typed = CommandLine.typed()
    for flag in _TAUGHT.values():
        if typed.has(flag):
            raise ConfigError(f"{flag}: the command after -- says this itself; leave {flag} out")
    launched = read_command(options.command or (), Path.cwd())
    check_batches(launched.command)
    _check_placeholders(launched.command)
    return launched


def _check_placeholders(command: TrainingCommand) -> None:
    counts = ("micro_batch_size", "gradient_accumulation_steps")
    needed = [name for name in counts if name in command.placeholders]
    lacking = [name for name in needed if name not in command.first_values]
    if lacking:
        raise ConfigError(
            f"-- COMMAND: {{{lacking[0]}}} needs the value of your own run, which is measured "
            f"first: write {{{lacking[0]}=4}}, with your number"
        )


def resumed(
    folder: StudyFolder, launched: LaunchedCommand, options: SearchOptions
) -> Question | None:
    """The question that a study of this very command has asked; None where none has begun.

    Args:
        folder: the study's, which is locked.
        launched: the command.
        options: what was typed.

    Raises:
        ConfigError: the folder has a study of something else, or --global-batch contradicts it.
        StorageError: its trials cannot be read.
    """
    if not (folder.path / "question.json").exists():
        return None
    question = folder.read_question()
    if question.own_training is None or question.own_training.command != launched.command:
        raise ConfigError(
            f"--out {folder.path} holds another question: -- COMMAND is another there. Repeat its "
            "command to resume it, or choose another folder"
        )
    _check_global_batch(options, question.workload.global_batch_size)
    if options.storage is None and not folder.has_storage:
        return None
    with closing(read_record(folder, question, options.storage)) as record:
        # A search that was killed before it wrote its first trial down begins anew.
        return question if any(trial.measurement for trial in record.trials()) else None


def _check_global_batch(options: SearchOptions, trained: int) -> None:
    given = options.global_batch
    if given is not None and given != trained:
        raise ConfigError(
            f"--global-batch {given}: the command trains {trained} samples a step; leave "
            "--global-batch out, or change the command"
        )


class _OneTrial:
    """A `TrialSource` of one trial that belongs to no study yet."""

    def __init__(self) -> None:
        self.outcome: Outcome | None = None
        self._trial: Trial | None = Trial(
            number=0, strategy=Strategy(), state=TrialState.RUNNING, prediction=None
        )

    @property
    def trials(self) -> Sequence[Trial]:
        """None of them counts."""
        return ()

    def ask(self, remaining_s: float) -> Trial | None:
        """The trial, once."""
        trial, self._trial = self._trial, None
        return trial

    def tell(self, trial: Trial, outcome: Outcome) -> Trial:
        """Keep how it ended."""
        self.outcome = outcome
        return replace(trial, state=outcome.state, measurement=outcome.measurement)


class _OwnProgress:
    """Shows the user's own run, which is no trial of a strategy.

    Args:
        progress: shows everything else.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.note = progress.note
        self.cluster_changed = progress.cluster_changed
        self.refresh = progress.refresh

    def trial_event(self, event: Mapping[str, Any]) -> None:
        """What a rank wrote; what of the program's settings is replaced is said."""
        if event.get("event") == "changed":
            self.note(one_line(event["words"]))
        self._progress.trial_event(event)

    def trials_changed(self, trials: Sequence[Trial]) -> None:
        """There are none yet."""

    def trial_started(self, trial: Trial) -> None:
        """It was said before the libraries were loaded."""

    def trial_ended(self, trial: Trial) -> None:
        """What it measured; a failure is said by whoever asked."""
        measured = trial.measurement
        if measured is not None:
            rate = f"{measured.tokens_per_second:,.0f} {measured.unit}/s"
            self.note(f"Your own run: {rate} in {format_gib(measured.peak_memory_bytes)} GiB")


def first_run(
    launched: LaunchedCommand,
    *,
    folder: StudyFolder,
    site: Site,
    options: SearchOptions,
    settings: SearchSettings,
    console: Console,
) -> FirstRun:
    """Run the user's command as it is, and find out what it asks.

    Args:
        launched: what to run.
        folder: the study's, which is locked; output goes below it.
        site: where it runs.
        options: what was typed.
        settings: its budget and its time limit for a trial.
        console: for progress.

    Raises:
        LaunchError: it did not run, or taught too little; says where its output is.
        ConfigError: it contradicts --global-batch.
    """
    place = folder.first_run
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(mode=0o700)
    outcome = _run(launched.command, place, site, settings, console, folder.path)
    if outcome.failure is not None or outcome.findings is None:
        raise LaunchError(_why_failed(outcome, place))
    findings = Findings.model_validate(outcome.findings)
    hardware = site.hardware
    _check_global_batch(options, findings.global_batch_size)
    said = _said(findings)
    asked = asked_by(findings, launched.command, hardware, folder.path, said)
    for words in _in_words(findings, asked):
        console.print(one_line(words), markup=False, highlight=False, soft_wrap=True)
    return FirstRun(asked=asked, outcome=replace(outcome, findings=None), folder=place)


def _run(
    command: TrainingCommand,
    place: Path,
    site: Site,
    settings: SearchSettings,
    console: Console,
    study: Path,
) -> Outcome:
    """One trial of the untouched command.

    Raises:
        LaunchError: the budget or the user ended it.
    """
    workload = Workload(model=unknown_model("command", 1), seq_len=1, global_batch_size=1)
    spec = TrialSpec(
        workload=workload,
        strategy=Strategy(),
        num_ranks=site.hardware.num_devices,
        nvme_path=site.hardware.nvme_path,
        composes=False,
        script=ScriptRun(command=command, is_untouched=True),
    )
    view = LiveProgress if can_be_redrawn(console) else PlainProgress
    source, budget = _OneTrial(), settings.budget
    with view(console, budget) as progress, Interrupt(lambda: None) as interrupt:

        def reason_to_stop() -> str | None:
            progress.refresh()
            return "stopped" if interrupt.check() or budget.remaining_s <= 0 else None

        _load_ahead()
        progress.note(f"{site.loading} Then your own run: {one_line(str(command))}")
        seconds = site.start(
            folder=study,
            study_name=study.name,
            model_type=OF_ANY_MODEL,
            reason_to_stop=reason_to_stop,
        )
        if seconds is None:
            raise LaunchError(_stopped(is_interrupted=interrupt.check()))
        context = DriverContext(
            budget=budget,
            spec_of=lambda trial: spec,
            folder_of=lambda number: place,
            progress=_OwnProgress(progress),
            is_interrupted=interrupt.check,
            trial_timeout_s=settings.trial_timeout_s,
        )
        site.driver(context).run(source)
        if source.outcome is None:
            raise LaunchError(_stopped(is_interrupted=interrupt.check()))
    return source.outcome


def _load_ahead() -> None:
    """Import what the question will need while the user's own run is on its way."""

    def load() -> None:
        for module in ("transformers.models.auto.modeling_auto", "autotune.predictor"):
            # A failure is raised again where the module is used.
            with contextlib.suppress(ImportError):
                importlib.import_module(module)

    threading.Thread(target=load, daemon=True).start()


def _stopped(*, is_interrupted: bool) -> str:
    """Why the user's own run has no outcome, and what to do."""
    if is_interrupted:
        return "interrupted before your own run had ended; the same command starts it anew"
    return "the budget ended before your own run had ended; use a larger --budget"


def _why_failed(outcome: Outcome, place: Path) -> str:
    failure = outcome.failure
    if failure is None:
        return "your own run has shown nothing of its model; its output is in " + str(place)
    kind = str(failure.kind).replace("_", " ")
    where = place / f"rank{failure.rank or 0}.err"
    return f"-- COMMAND: your own run failed ({kind}): {failure.message}; its output: {where}"


def _said(findings: Findings) -> dict[str, Any]:
    """Values of knobs that the run's DeepSpeed configuration says; none where it is not read."""
    try:
        setup = setup_of(Tool.DEEPSPEED, None, findings.deepspeed_config)
    except ConfigError:
        return {}
    return dict(setup.knobs)


def _in_words(findings: Findings, asked: AskedByRun) -> list[str]:
    """What was found, a sentence each."""
    num = findings.num_parameters
    learned = f"{findings.num_trainable_parameters:,} of {num:,} parameters"
    words = [
        f"Your own run: {findings.model_class}, trains {learned}, {findings.global_batch_size} "
        f"samples a step ({findings.micro_batch_size} x {findings.gradient_accumulation_steps})"
        + (f", up to {findings.longest:,} tokens" if findings.has_tokens else "")
        + f"; as a strategy: {asked.baseline}"
    ]
    if findings.optimizer_knob is not asked.baseline.optimizer:
        words.append(
            f"No strategy has {findings.optimizer} under ZeRO {asked.baseline.zero_stage}: trials "
            f"train with {asked.baseline.optimizer} in its place, at your learning rate"
        )
    if asked.why_unknown is not None:
        words.append(
            f"The predictor does not know this model ({asked.why_unknown}): the search runs on "
            "measurements alone, and prunes nothing by prediction"
        )
    return words
