"""`autotune plan`: predicts the best strategies for hardware that is not here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.cli.options import (
    MOST_DEVICES,
    MOST_GIB,
    AllRows,
    AsJson,
    GlobalBatch,
    Headroom,
    HostHeadroom,
    LoraRank,
    LoraTargets,
    Method,
    SeqLen,
    Vision,
    announced_batch,
    check_headroom,
    member,
    nearest_batches,
    read_workload,
)

if TYPE_CHECKING:
    from autotune.predictor import ScriptSource
    from autotune.profile import AllocationScript, Recipe
    from autotune.question.goal import Goal
    from autotune.question.workload import ModelShape
    from autotune.study.summary import StudySummary

__all__ = ["EXAMPLES", "plan"]

EXAMPLES = """\
Examples:
  autotune plan --model 70B --hardware 8xH100-80GB --explain
  autotune plan --model 70B --hardware 8xH100-80GB --nodes 8
  autotune plan --model 7B --method lora --hardware 1xRTX4090
  autotune plan --model 13B --hardware my-host.yaml --space memory
  autotune plan --model 13B --hardware 4xA100-40GB --out my-training
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
    model: Annotated[
        str,
        typer.Option(
            help="A preset (tiny, 125M, 350M, 1.1B, 3B, 7B, 13B, 34B, 70B, 175B), a folder with "
            "config.json, or a Hugging Face id. Weights are never downloaded: an id needs only "
            "its configuration.",
            show_default=False,
        ),
    ],
    hardware: Annotated[
        str,
        typer.Option(
            help="One host: number and kind of its devices, such as 8xH100-80GB, or a YAML file "
            "(see below).",
            show_default=False,
        ),
    ],
    nodes: Annotated[
        int,
        typer.Option(
            min=1,
            max=MOST_DEVICES,
            help="Number of hosts; links between hosts use assumed rates.",
        ),
    ] = 1,
    host_memory: Annotated[
        float | None,
        typer.Option(
            max=MOST_GIB,
            help="Memory of each host in GiB.",
            show_default="3x GPU memory, at most 256 GiB per GPU",
        ),
    ] = None,
    nvme: Annotated[
        float | None,
        typer.Option(
            max=MOST_GIB,
            help="Free NVMe disk of each host in GiB, for strategies that offload to it (--space "
            "full has some).",
            show_default="no offloading to NVMe",
        ),
    ] = None,
    seq_len: SeqLen = None,
    global_batch: GlobalBatch = None,
    method: Method = "full",
    lora_rank: LoraRank = 16,
    lora_targets: LoraTargets = "all-linear",
    vision: Vision = "frozen",
    space: Annotated[
        str,
        typer.Option(
            help="Search space: default (loss-neutral knobs), memory (fit at any cost), full "
            "(everything; a random sample if it is large), or a YAML file."
        ),
    ] = "default",
    headroom: Headroom = 0.05,
    host_headroom: HostHeadroom = 0.05,
    calibrate_from: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a study of any model, such as results/my-study. Its trials correct "
            "the predictions. A study on another kind of GPU corrects memory only.",
            show_default="no correction",
        ),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Show the memory and the step time of one strategy in parts, and why nothing "
            "faster fits.",
        ),
    ] = False,
    pick: Annotated[
        str,
        typer.Option(
            help="Strategy for --explain and --out: throughput (the fastest), memory (the least "
            "memory) or balanced (the knee between them)."
        ),
    ] = "throughput",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Export the pick to this folder, marked as not measured.",
            show_default="no export",
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Estimate reserved memory by a formula. Without it, the allocator is simulated "
            "on the model's code, which takes some seconds for a new model. With it, a strategy "
            "fits if the upper bound of the formula does.",
        ),
    ] = False,
    all_rows: AllRows = False,
    as_json: AsJson = False,
) -> None:
    """Predict the best strategies for hardware that you do not have.

    Prints the predicted Pareto front of throughput and memory. This
    takes seconds and needs no GPU. Nothing is measured: autotune search
    measures on the machine itself.
    """
    from functools import partial

    from autotune.cli.console import answer_console, error_console, print_document
    from autotune.cli.refusal import refuse
    from autotune.errors import ConfigError
    from autotune.machine.hardware_spec import read_hardware
    from autotune.nothing_fits.command_line import CommandLine
    from autotune.nothing_fits.feasibility import (
        Asked,
        refuse_empty_space,
        shortfall,
        shortfall_if_nothing_fits,
    )
    from autotune.nothing_fits.larger_hardware import larger_than_planned
    from autotune.plan.calibration import learn_from
    from autotune.plan.explanation import explanation_json, render_explanation
    from autotune.plan.export import export_plan
    from autotune.plan.plan import ASSUMED_SOFTWARE, make_plan
    from autotune.plan.report import plan_json, render_plan
    from autotune.predictor import AnalyticPredictor
    from autotune.profile import known_script_of
    from autotune.question.question import Question
    from autotune.question.workload import Vision as VisionTower
    from autotune.question.workload import load_model_shape
    from autotune.space.space_file import load_search_space

    check_headroom(headroom, host_headroom)
    which = _pick(pick)
    spec = read_hardware(hardware, num_nodes=nodes, host_memory_gib=host_memory, nvme_gib=nvme)
    ranks = spec.all_ranks
    if ranks.num_devices > MOST_DEVICES:
        raise ConfigError(
            f"--hardware and --nodes: {ranks.num_devices:,} devices in total; "
            f"choose at most {MOST_DEVICES:,}"
        )
    batch = global_batch
    if batch is None:
        batch = announced_batch(ranks.num_devices, error_console())
    workload = read_workload(
        load_model_shape(model, vision=member(VisionTower, vision, "--vision")),
        seq_len=seq_len,
        global_batch=batch,
        method=method,
        lora_rank=lora_rank,
        lora_targets=lora_targets,
    )
    search_space = load_search_space(space, workload, ranks, ASSUMED_SOFTWARE)
    question = Question(
        workload=workload,
        hardware=ranks,
        space_name=search_space.name,
        space_text=search_space.text,
        headroom=headroom,
        host_headroom=host_headroom,
    )
    if not len(search_space.table) and batch % ranks.num_devices:
        raise ConfigError(
            f"--global-batch {batch} is not divisible by {ranks.num_devices} devices; "
            f"{nearest_batches(batch, ranks.num_devices)}"
        )
    asked = Asked(
        question=question,
        space=search_space,
        space_name=space,
        command=CommandLine.typed(),
        larger=partial(
            larger_than_planned,
            spec,
            text=hardware,
            host_memory_gib=host_memory,
            nvme_gib=nvme,
        ),
    )
    known = None
    if calibrate_from is None:
        missing, known = shortfall_if_nothing_fits(asked, traces=False)
        if missing is not None:
            refuse(missing, as_json=as_json)
    script_of = None if quick else _announced()
    calibration = None
    if calibrate_from is not None:
        calibration = learn_from(_measured_study(calibrate_from), question, script_of)
    made = make_plan(question, spec, search_space, calibration, script_of, known)
    refuse_empty_space(search_space, made.candidates, space)
    if not made.front:
        of_known = calibration or AnalyticPredictor(workload, ranks, known_script_of)
        refuse(shortfall(asked, of_known, made.candidates.predicted), as_json=as_json)
    if out is not None:
        # Before the answer: if the folder cannot be written, there is no answer.
        export_plan(made, which, out)
        error_console().print(
            f"Exported {made.picks[which].strategy} ({which.words}; not measured) to {out}",
            markup=False,
            soft_wrap=True,
        )
    console = answer_console()
    if as_json:
        document = plan_json(made)
        if explain:
            document["explanation"] = explanation_json(made, which)
        if out is not None:
            document["exported"] = {"pick": str(which), "folder": str(out)}
        print_document(document)
    else:
        console.print(render_plan(made, all_rows=all_rows), crop=False)
        if explain:
            console.print()
            console.print(render_explanation(made, which), crop=False)


def _pick(name: str) -> Goal:
    """Raises ConfigError for a name that a plan has no pick for; energy is not predicted."""
    from autotune.errors import ConfigError
    from autotune.question.goal import FRONT_PICKS, Goal

    if name not in FRONT_PICKS:
        raise ConfigError(f"--pick {name!r}: choose from {', '.join(FRONT_PICKS)}")
    return Goal(name)


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
                f"The code of {shape.name} could not be traced for some strategies. Their memory "
                f"is estimated by a formula. Reason: {found}",
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
