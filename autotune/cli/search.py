"""`autotune search`: measures strategies and hands back the best."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from autotune.cli import search_options as declared
from autotune.cli.from_file import From, FromFile
from autotune.cli.options import (
    AllRows,
    AsJson,
    Data,
    GlobalBatch,
    Headroom,
    HostHeadroom,
    LengthsFile,
    LoraRank,
    LoraTargets,
    Method,
    SeqLen,
    Storage,
    Tokenizer,
    Vision,
    announced_batch,
    nearest_batches,
)
from autotune.cli.search_options import SearchOptions

if TYPE_CHECKING:
    from rich.console import Console

    from autotune.cli.own_command import FirstRun
    from autotune.cli.session import Session
    from autotune.cli.settings import SearchSettings, StudyLocation
    from autotune.machine.hardware import Hardware
    from autotune.predictor import AnalyticPredictor, UnknownModelPredictor
    from autotune.question.own_training import OwnTraining
    from autotune.question.question import Question
    from autotune.question.workload import Workload
    from autotune.sites import Site
    from autotune.space.search_space import SearchSpace

__all__ = ["EXAMPLES", "search"]

EXAMPLES = """\
Examples:
  autotune search --model tiny --budget 2m                 no GPU needed
  autotune search --model 13B --method lora --budget 10m
  autotune search --model ./my-model --space memory --objective memory
  autotune search --model 1.1B --space my.yaml --trials 20 --reuse auto
  autotune search --model tiny --budget 2m --json > answer.json
  autotune search --from axolotl.yaml --budget 20m         is mine good?
  autotune search --budget 20m -- torchrun train.py --deepspeed ds.json
  autotune search -- train.py --bs {micro_batch_size=4}    your own script
  autotune search --model 7B --ray auto --gpus-per-trial 8 --budget 4h

Durations are 90s, 30m, 2h or 1h30m. Exit status: 0 something fits,
1 nothing fits or the run failed, 2 wrong use."""
"""Shown below the options."""

_MOST_OF_A_NAME = 150
"""Bytes of a model's name in that of a folder, which has 255 at most."""


def search(
    model: declared.Model = None,
    from_file: From = None,
    budget: declared.Budget = "30m",
    seq_len: SeqLen = None,
    lengths: LengthsFile = None,
    data: Data = None,
    tokenizer: Tokenizer = None,
    global_batch: GlobalBatch = None,
    method: Method = "full",
    lora_rank: LoraRank = 16,
    lora_targets: LoraTargets = "all-linear",
    vision: Vision = "frozen",
    space: declared.Space = "default",
    objective: declared.Objective = "front",
    sampler: declared.Sampler = "predicted",
    min_gain: declared.MinGain = 0.01,
    devices: declared.Devices = None,
    devices_per_trial: declared.DevicesPerTrial = None,
    nvme_path: declared.NvmePath = None,
    trials: declared.Trials = None,
    force_pruned: declared.ForcePruned = 0,
    confirm: declared.Confirm = 3,
    out: declared.Out = None,
    resume: declared.Resume = False,
    reuse: declared.Reuse = None,
    storage: Storage = None,
    ray: declared.Ray = None,
    nodes_per_trial: declared.NodesPerTrial = None,
    max_concurrent: declared.MaxConcurrent = None,
    device_kind: declared.DeviceKind = None,
    seed: declared.Seed = 0,
    trial_timeout: declared.TrialTimeout = "5m",
    headroom: Headroom = 0.05,
    host_headroom: HostHeadroom = 0.05,
    trust_remote_code: declared.TrustRemoteCode = False,
    all_rows: AllRows = False,
    as_json: AsJson = False,
    command: declared.Command = None,
) -> None:
    """Measure training strategies and export the fastest that fits.

    Each trial is a short, real DeepSpeed training of a few steps.
    The answer is the Pareto front of throughput and memory, and an
    export of the best trial for --objective to train with.

    Ctrl-C ends the search, prints the answer so far and keeps everything;
    the same command resumes it.
    """
    has_answer = _search(SearchOptions(**locals()), started=time.monotonic())
    raise typer.Exit(0 if has_answer else 1)


def _search(options: SearchOptions, *, started: float) -> bool:
    """Whether anything fits.

    Raises:
        ConfigError: options that cannot be, or contradict each other.
        StorageError: the study's folder or storage cannot be used.
        LaunchError: trials cannot be started.
        Exit: nothing of the space can fit.
    """
    from autotune.cli.console import error_console
    from autotune.machine.software import detect_software
    from autotune.nothing_fits.feasibility import refuse_large_model_on_cpu
    from autotune.sites import open_site

    settings, console = options.settings(started), error_console()
    if options.command:
        return _search_own(options, settings, console)
    given = FromFile.read(options.from_file, console)
    options = replace(options, **given.filled(options))
    workload = given.checked(options.workload)
    with closing(open_site(options.site())) as site:
        for line in site.introduction:
            console.print(line, markup=False, soft_wrap=True)
        hardware, software = site.hardware, detect_software()
        batch = given.whole_batch(options.global_batch, hardware)
        workload = _in_whole_batches(workload, batch, hardware, console)
        refuse_large_model_on_cpu(workload, hardware)
        settings = replace(settings, baseline=given.baseline(workload, hardware, software))
        location = _location(options, _default_name(workload, hardware))
        return _run(options, settings, workload, location, site, console)


def _search_own(options: SearchOptions, settings: SearchSettings, console: Console) -> bool:
    """As `_search`, of the user's own command."""
    from autotune.cli.own_command import first_run, launched_command, resumed
    from autotune.sites import open_site
    from autotune.study.baseline import Baseline
    from autotune.study.folder import StudyFolder

    launched = launched_command(options)
    asked_site = options.site()
    if asked_site.devices is None and asked_site.devices_per_trial is None:
        num = launched.num_processes
        is_cluster = asked_site.ray is not None
        asked_site = (
            replace(asked_site, devices_per_trial=num)
            if is_cluster
            else replace(asked_site, devices=num)
        )
    with closing(open_site(asked_site)) as site:
        for line in site.introduction:
            console.print(line, markup=False, soft_wrap=True)
        name = f"{Path(launched.command.target).stem}-{_machine_name(site.hardware)}"
        location = _location(options, name)
        folder = StudyFolder(location.path)
        folder.reserve(must_exist=options.resume)
        with closing(folder):
            first = None
            question = resumed(folder, launched, options)
            if question is not None:
                workload, own = question.workload, question.own_training
            else:
                first = first_run(
                    launched,
                    folder=folder,
                    site=site,
                    options=options,
                    settings=settings,
                    console=console,
                )
                workload, own = first.asked.workload, first.asked.own_training
                told = Baseline(source="your command", strategy=first.asked.baseline)
                settings = replace(settings, baseline=told)
            location = replace(location, reserved=folder)
            return _run(options, settings, workload, location, site, console, own, first)


def _location(options: SearchOptions, default_name: str) -> StudyLocation:
    from autotune.cli.settings import StudyLocation

    return StudyLocation(
        path=options.out or Path("results") / default_name,
        storage_url=options.storage,
        must_exist=options.resume,
        reuse=options.reuse,
    )


def _run(
    options: SearchOptions,
    settings: SearchSettings,
    workload: Workload,
    location: StudyLocation,
    site: Site,
    console: Console,
    own: OwnTraining | None = None,
    first: FirstRun | None = None,
) -> bool:
    """Search for this workload at this site; whether anything fits."""
    from autotune.cli.session import Session
    from autotune.machine.software import detect_software
    from autotune.question.question import Question
    from autotune.space.search_space import MOST_STRATEGIES
    from autotune.space.space_file import load_search_space

    hardware, software = site.hardware, detect_software()
    space = load_search_space(options.space, workload, hardware, software, own)
    question = Question(
        workload=workload,
        hardware=hardware,
        space_name=space.name,
        space_text=space.text,
        headroom=options.headroom,
        host_headroom=options.host_headroom,
        seed=options.seed,
        own_training=own,
    )
    if len(space.table) > MOST_STRATEGIES:
        words = f"Ranking {len(space.table):,} strategies by their predictions…"
        console.print(words, markup=False, highlight=False)
    predictor = _predictor(options, question, space, site, location, first)
    session = Session(
        question, space, software, predictor, location=location, site=site, first_run=first
    )
    with session:
        return _answered(session, settings, console, options)


def _predictor(
    options: SearchOptions,
    question: Question,
    space: SearchSpace,
    site: Site,
    location: StudyLocation,
    first: FirstRun | None,
) -> AnalyticPredictor | UnknownModelPredictor:
    """The question's predictor; one that knows the user's own run alone, where no other does.

    Raises:
        Exit: nothing of the space can fit.
        StorageError: the first trial of an earlier search cannot be read.
    """
    from autotune.predictor import UnknownModelPredictor
    from autotune.study.folder import StudyFolder
    from autotune.study.stored import read_record

    if question.own_training is None or question.own_training.is_predictable:
        return _refuse_if_nothing_fits(options, question, space, site)
    if first is not None and first.outcome.measurement is not None:
        return UnknownModelPredictor(first.outcome.measurement)
    with closing(
        read_record(StudyFolder(location.path), question, location.storage_url)
    ) as record:
        # `resumed` has seen that there is one.
        measured = (trial.measurement for trial in record.trials())
        return UnknownModelPredictor(next(filter(None, measured)))


def _answered(
    session: Session, settings: SearchSettings, console: Console, options: SearchOptions
) -> bool:
    """Search and print the answer; what was measured before a failure is an answer all the same.

    Raises:
        LaunchError: trials cannot be started.
        StorageError: the record, an export or the report cannot be written.
    """
    from autotune.errors import LaunchError

    error: LaunchError | None = None
    try:
        session.search(settings, console)
    except LaunchError as caught:
        error = caught
    has_answer = session.answer(
        as_json=options.as_json, all_rows=options.all_rows, console=console
    )
    if error is not None:
        raise error
    return has_answer


def _refuse_if_nothing_fits(
    options: SearchOptions, question: Question, space: SearchSpace, site: Site
) -> AnalyticPredictor:
    """Say at once what is missing where no strategy of the space can fit.

    Returns:
        The question's predictor, which knows the table of the space.
    """
    from autotune.cli.refusal import refuse
    from autotune.nothing_fits.command_line import CommandLine
    from autotune.nothing_fits.feasibility import Asked, shortfall_if_nothing_fits
    from autotune.nothing_fits.larger_hardware import larger_than_searched

    command = CommandLine.typed()
    asked = Asked(
        question=question,
        space=space,
        space_name=options.space,
        command=command,
        larger=lambda _: larger_than_searched(
            question,
            command=command,
            space_name=options.space,
            num_gpus_here=site.num_gpus_here,
        ),
    )
    missing, predictor = shortfall_if_nothing_fits(asked)
    if missing is not None:
        refuse(missing, as_json=options.as_json)
    return predictor


def _in_whole_batches(
    workload: Workload, asked: int | None, hardware: Hardware, console: Console
) -> Workload:
    """The workload with a global batch that the devices share evenly.

    Raises:
        ConfigError: the user named another.
    """
    from autotune.errors import ConfigError

    if asked is None:
        batch = announced_batch(hardware.num_devices, console)
        return replace(workload, global_batch_size=batch)
    if asked % hardware.num_devices:
        raise ConfigError(
            f"--global-batch {asked} is not divisible by {hardware.num_devices} devices; "
            f"{nearest_batches(asked, hardware.num_devices)}"
        )
    return replace(workload, global_batch_size=asked)


def _default_name(workload: Workload, hardware: Hardware) -> str:
    name = workload.model.name
    model = Path(name).resolve().name if Path(name).is_dir() else name.replace("/", "-")
    # The rest of the name has to find room beside it.
    model = model.encode()[:_MOST_OF_A_NAME].decode(errors="ignore")
    return f"{model}-{workload.method}-{workload.seq_len}-{_machine_name(hardware)}"


def _machine_name(hardware: Hardware) -> str:
    nodes = f"{hardware.num_nodes}x" if hardware.num_nodes > 1 else ""
    return f"{nodes}{hardware.devices_per_node}x{hardware.device_kind}".replace(" ", "-")
