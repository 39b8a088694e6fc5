"""`autotune plan`: predicts the best strategies for hardware that is not here."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.cli import plan_options as declared
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
    Tokenizer,
    Vision,
    announced_batch,
    check_headroom,
    nearest_batches,
)
from autotune.cli.plan_options import PlanOptions

if TYPE_CHECKING:
    from autotune.machine.hardware_spec import HardwareSpec
    from autotune.nothing_fits.feasibility import Asked
    from autotune.plan.plan import Plan
    from autotune.predictor import AnalyticPredictor, ScriptSource
    from autotune.profile import AllocationScript, Recipe
    from autotune.question.goal import Goal
    from autotune.question.question import Question
    from autotune.question.workload import ModelShape
    from autotune.space.search_space import SearchSpace
    from autotune.study.summary import StudySummary

__all__ = ["EXAMPLES", "plan"]

EXAMPLES = """\
Examples:
  autotune plan --model 70B --hardware 8xH100-80GB --explain
  autotune plan --model 70B --hardware 8xH100-80GB --nodes 8
  autotune plan --model 7B --method lora --hardware 1xRTX4090
  autotune plan --model 13B --hardware my-host.yaml --space memory
  autotune plan --model 13B --hardware 4xA100-40GB --out my-training
  autotune plan --from axolotl.yaml --hardware 8xH100     is mine good, and what beats it?
  autotune plan --model 7B --hardware 8xH100 --calibrate-from results/my-study

A file for --hardware names a known device kind, or gives the figures of a new one:
  device: MyGPU
  count: 8
  memory_gib: 96
  tflops: 400                 peak, dense, 16 bit
  bandwidth_gb_per_s: 2000
  host_memory_gib: 1024
  nvme_gib: 4000              free disk space for offloading to NVMe
  nvme_path: /local_nvme
  compute_capability: 9.0     implies bf16, fp8 and kernels; bf16: and fp8: override it
  rates:                      measured rates, all optional
    matmul_tflops: 310
    memory_gb_per_s: 1700
    kernel_launch_us: 6
    host_to_device_gb_per_s: 25
    device_to_host_gb_per_s: 25
    host_memory_gb_per_s: 200
    nvme_gb_per_s: 6
    link_gb_per_s: 180
    collective_us: 25

Exit status: 0 a strategy fits, 1 nothing fits, 2 wrong use."""
"""The text below the options of --help."""


def plan(
    hardware: declared.Hardware,
    model: declared.Model = None,
    from_file: From = None,
    nodes: declared.Nodes = 1,
    host_memory: declared.HostMemory = None,
    nvme: declared.Nvme = None,
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
    headroom: Headroom = 0.05,
    host_headroom: HostHeadroom = 0.05,
    calibrate_from: declared.CalibrateFrom = None,
    explain: declared.Explain = False,
    pick: declared.Pick = "throughput",
    out: declared.Out = None,
    quick: declared.Quick = False,
    all_rows: AllRows = False,
    as_json: AsJson = False,
) -> None:
    """Predict the best strategies for hardware that you do not have.

    Prints the predicted Pareto front of throughput and memory. This
    takes seconds and needs no GPU. Nothing is measured: autotune search
    measures on the machine itself.
    """
    _plan(PlanOptions(**locals()))


def _plan(options: PlanOptions) -> None:
    """Predict, export and print.

    Raises:
        ConfigError: options that cannot be, or contradict each other.
        Exit: nothing of the space can fit.
    """
    from autotune.cli.console import error_console

    check_headroom(options.headroom, options.host_headroom)
    goal, spec = options.goal(), options.spec()
    given = FromFile.read(options.from_file, error_console())
    options = replace(options, **given.filled(options))
    made = _made(options, spec, _asked(options, spec, given), given)
    if options.out is not None:
        # Before the answer: if the folder cannot be written, there is no answer.
        _export(made, goal, options.out)
    if options.as_json:
        _print_json(made, goal, options)
    else:
        _print(made, goal, options)


def _asked(options: PlanOptions, spec: HardwareSpec, given: FromFile) -> Asked:
    """The question that the options ask, and its search space.

    Raises:
        ConfigError: a value that cannot be; the message names its flag.
    """
    from autotune.nothing_fits.command_line import CommandLine
    from autotune.nothing_fits.feasibility import Asked
    from autotune.nothing_fits.larger_hardware import larger_than_planned

    question, search_space = _question(options, spec, given)
    return Asked(
        question=question,
        space=search_space,
        space_name=options.space,
        command=CommandLine.typed(),
        larger=partial(
            larger_than_planned,
            spec,
            text=options.hardware,
            host_memory_gib=options.host_memory,
            nvme_gib=options.nvme,
        ),
    )


def _question(
    options: PlanOptions, spec: HardwareSpec, given: FromFile
) -> tuple[Question, SearchSpace]:
    """The question and its search space.

    Raises:
        ConfigError: a value that cannot be; the message names its flag.
    """
    from autotune.plan.plan import ASSUMED_SOFTWARE
    from autotune.question.question import Question
    from autotune.space.space_file import load_search_space

    ranks = spec.all_ranks
    batch = given.global_batch(options.global_batch, ranks)
    batch = _announced_batch(ranks.num_devices) if batch is None else batch
    workload = given.checked(partial(options.workload, batch))
    search_space = load_search_space(options.space, workload, ranks, ASSUMED_SOFTWARE)
    if not len(search_space.table):
        _check_divisible(workload.global_batch_size, ranks.num_devices)
    question = Question(
        workload=workload,
        hardware=ranks,
        space_name=search_space.name,
        space_text=search_space.text,
        headroom=options.headroom,
        host_headroom=options.host_headroom,
    )
    return question, search_space


def _announced_batch(num_devices: int) -> int:
    """The default global batch, where none was asked for."""
    from autotune.cli.console import error_console

    return announced_batch(num_devices, error_console())


def _check_divisible(global_batch: int, num_devices: int) -> None:
    """Raises ConfigError for a global batch that is no multiple of the devices."""
    from autotune.errors import ConfigError

    if global_batch % num_devices:
        raise ConfigError(
            f"--global-batch {global_batch} is not divisible by {num_devices} devices; "
            f"{nearest_batches(global_batch, num_devices)}"
        )


def _made(options: PlanOptions, spec: HardwareSpec, asked: Asked, given: FromFile) -> Plan:
    """The plan, which has a strategy that fits.

    Raises:
        ConfigError: --calibrate-from cannot be read, or the space has no strategy at all.
        Exit: nothing of the space can fit.
    """
    from autotune.cli.refusal import refuse
    from autotune.nothing_fits.feasibility import refuse_empty_space, shortfall
    from autotune.plan.calibration import learn_from
    from autotune.plan.plan import ASSUMED_SOFTWARE, make_plan
    from autotune.predictor import AnalyticPredictor
    from autotune.profile import known_script_of

    question, folder = asked.question, options.calibrate_from
    known = _refuse_if_nothing_fits(options, asked) if folder is None else None
    script_of = None if options.quick else _announced()
    calibration = learn_from(_measured_study(folder), question, script_of) if folder else None
    made = make_plan(question, spec, asked.space, calibration, script_of, known)
    baseline = given.baseline(question.workload, question.hardware, ASSUMED_SOFTWARE)
    made = replace(made, baseline=baseline)
    refuse_empty_space(asked.space, made.candidates, options.space)
    if not made.front:
        _say_baseline(made)
        predictor = calibration or AnalyticPredictor(
            question.workload, question.hardware, known_script_of
        )
        missing = shortfall(asked, predictor, made.candidates.predicted)
        refuse(missing, as_json=options.as_json)
    return made


def _say_baseline(made: Plan) -> None:
    """How what the user has is predicted, where no plan is printed."""
    from autotune.cli.console import error_console
    from autotune.plan.report import planned_baseline_words

    if words := planned_baseline_words(made):
        error_console().print(words, markup=False, highlight=False, soft_wrap=True)


def _refuse_if_nothing_fits(options: PlanOptions, asked: Asked) -> AnalyticPredictor:
    """Say at once what is missing where no strategy of the space can fit.

    Returns:
        The question's predictor, which knows the table of the space.
    """
    from autotune.cli.refusal import refuse
    from autotune.nothing_fits.feasibility import shortfall_if_nothing_fits

    missing, predictor = shortfall_if_nothing_fits(asked, traces=False)
    if missing is not None:
        refuse(missing, as_json=options.as_json)
    return predictor


def _export(made: Plan, goal: Goal, folder: Path) -> None:
    """Write the pick to a folder, and say so.

    Raises:
        ConfigError: the folder holds something else.
        StorageError: the folder cannot be written.
    """
    from autotune.cli.console import error_console
    from autotune.plan.export import export_plan

    export_plan(made, goal, folder)
    error_console().print(
        f"Exported {made.picks[goal].strategy} ({goal.words}; not measured) to {folder}",
        markup=False,
        soft_wrap=True,
    )


def _print(made: Plan, goal: Goal, options: PlanOptions) -> None:
    """Print the plan for people; with --explain, the parts of its pick."""
    from autotune.cli.console import answer_console
    from autotune.plan.explanation import render_explanation
    from autotune.plan.report import render_plan

    console = answer_console()
    console.print(render_plan(made, all_rows=options.all_rows), crop=False)
    if options.explain:
        console.print()
        console.print(render_explanation(made, goal), crop=False)


def _print_json(made: Plan, goal: Goal, options: PlanOptions) -> None:
    """Print the plan as one JSON document."""
    from autotune.cli.console import print_document
    from autotune.plan.explanation import explanation_json
    from autotune.plan.report import plan_json

    document = plan_json(made)
    if options.explain:
        document["explanation"] = explanation_json(made, goal)
    if options.out is not None:
        document["exported"] = {"pick": str(goal), "folder": str(options.out)}
    print_document(document)


def _announced() -> ScriptSource:
    """A source of scripts that tells the user when it traces a model, and why that fails."""
    from autotune.cli.console import error_console
    from autotune.profile import known_script_of, script_of

    has_said, failures = False, set[str]()

    def find(shape: ModelShape, recipe: Recipe, seq_len: int) -> AllocationScript | str:
        nonlocal has_said
        if not has_said and known_script_of(shape, recipe, seq_len) is None:
            has_said = True
            error_console().print(
                f"Tracing the code of {shape.name} to simulate its memory (once per model; "
                "--quick skips it)…",
                markup=False,
                soft_wrap=True,
            )
        found = script_of(shape, recipe, seq_len)
        if isinstance(found, str) and found not in failures:
            failures.add(found)
            error_console().print(
                f"Could not trace the code of {shape.name} for some strategies; a formula "
                f"estimates their memory: {found}",
                markup=False,
                soft_wrap=True,
            )
        return found

    return find


def _measured_study(folder: Path) -> StudySummary:
    """The study in a folder.

    Raises:
        ConfigError: the folder has no study, or the study cannot be read.
    """
    from autotune.errors import ConfigError, StorageError
    from autotune.study.stored import read_study

    try:
        return read_study(folder, None)
    except StorageError as error:
        raise ConfigError(f"--calibrate-from {folder}: {error}") from error
