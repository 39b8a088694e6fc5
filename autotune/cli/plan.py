"""`autotune plan`: predicts what trains best on hardware that is not here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.cli.options import (
    MOST_DEVICES,
    MOST_GIB,
    AsJson,
    GlobalBatch,
    Headroom,
    HostHeadroom,
    LoraRank,
    LoraTargets,
    Method,
    SeqLen,
    announced_batch,
    check_headroom,
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

A file for --hardware names a device kind, or gives the figures of another:
  device: MyGPU
  count: 8
  memory_gib: 96
  tflops: 400                 dense, 16 bit
  bandwidth_gb_per_s: 2000
  host_memory_gib: 1024
  nvme_gib: 4000              free disk, for what is offloaded to NVMe
  nvme_path: /local_nvme
  compute_capability: 9.0     tells bf16, fp8 and kernels; bf16: and fp8: go before it
  rates:                      what was measured there, all optional
    matmul_tflops: 310
    memory_gb_per_s: 1700
    kernel_launch_us: 6
    host_to_device_gb_per_s: 25
    device_to_host_gb_per_s: 25
    host_memory_gb_per_s: 200
    nvme_gb_per_s: 6
    link_gb_per_s: 180
    collective_us: 25

Exit status: 0 something fits, 1 nothing fits, 2 wrong use."""
"""Shown below the options."""


def plan(
    model: Annotated[
        str,
        typer.Option(
            help="A preset (tiny, 125M, 350M, 1.1B, 3B, 7B, 13B, 34B, 70B, 175B), a folder with "
            "config.json, or a Hugging Face id. Nothing is downloaded for a preset or a folder, "
            "and only the configuration for an id.",
            show_default=False,
        ),
    ],
    hardware: Annotated[
        str,
        typer.Option(
            help="One host: a number of devices and their kind, such as 8xH100-80GB, or a YAML "
            "file (see below).",
            show_default=False,
        ),
    ],
    nodes: Annotated[
        int,
        typer.Option(
            min=1,
            max=MOST_DEVICES,
            help="So many such hosts. Memory is predicted as for one; links between hosts are not "
            "modelled, so tokens/s are what they are at most.",
        ),
    ] = 1,
    host_memory: Annotated[
        float | None,
        typer.Option(
            max=MOST_GIB,
            help="GiB of memory of each host.",
            show_default="three times that of its GPUs, 256 GiB a GPU at most",
        ),
    ] = None,
    nvme: Annotated[
        float | None,
        typer.Option(
            max=MOST_GIB,
            help="GiB of free NVMe disk of each host, for strategies that offload to it (--space "
            "full has some).",
            show_default="none: nothing is offloaded to NVMe",
        ),
    ] = None,
    seq_len: SeqLen = None,
    global_batch: GlobalBatch = None,
    method: Method = "full",
    lora_rank: LoraRank = 16,
    lora_targets: LoraTargets = "all-linear",
    space: Annotated[
        str,
        typer.Option(
            help="What to choose from: default (loss-neutral knobs), memory (fit at any cost), "
            "full (everything; a fair part of it is drawn), or a YAML file."
        ),
    ] = "default",
    headroom: Headroom = 0.05,
    host_headroom: HostHeadroom = 0.05,
    calibrate_from: Annotated[
        Path | None,
        typer.Option(
            help="A study's folder, such as results/my-study, of any model: what its trials show "
            "to be off is corrected here too. Of other GPUs memory alone is learned; of CPU "
            "ranks, nothing.",
            show_default="none: predicted from arithmetic and data sheets",
        ),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Say what the memory of one strategy goes to, and why nothing faster fits.",
        ),
    ] = False,
    pick: Annotated[
        str,
        typer.Option(
            help="Which strategy of the front --explain and --out are about: throughput (the "
            "fastest), memory (the leanest) or balanced (the knee between them)."
        ),
    ] = "throughput",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the pick as a folder to train with, marked as not measured.",
            show_default="nothing is written",
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Estimate by how much the allocator's peak exceeds live tensors, instead of "
            "following the model's code to simulate it for what is shown. That takes some "
            "seconds for a model seen for the first time. What fits is then decided by the "
            "estimate's upper bound.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Predict what would train best on hardware you do not have.

    Gives the Pareto front of throughput and memory as the predictor
    expects it, in seconds, without a GPU. Nothing is measured: a search
    on the machine itself is.
    """
    from functools import partial

    from autotune.cli.console import answer_console, error_console, print_document
    from autotune.cli.refusal import (
        Asked,
        refuse_as_nothing_fits,
        refuse_empty_space,
        refuse_if_nothing_fits,
    )
    from autotune.errors import ConfigError
    from autotune.machine.hardware_spec import read_hardware
    from autotune.nothing_fits.command_line import CommandLine
    from autotune.nothing_fits.larger_hardware import larger_than_planned
    from autotune.plan.calibration import learn_from
    from autotune.plan.explanation import explanation_json, render_explanation
    from autotune.plan.export import export_plan
    from autotune.plan.plan import ASSUMED_SOFTWARE, make_plan
    from autotune.plan.report import plan_json, render_plan
    from autotune.predictor import AnalyticPredictor
    from autotune.profile import known_script_of
    from autotune.question.question import Question
    from autotune.question.workload import load_model_shape
    from autotune.space.space_file import load_search_space

    check_headroom(headroom, host_headroom)
    which = _pick(pick)
    spec = read_hardware(hardware, num_nodes=nodes, host_memory_gib=host_memory, nvme_gib=nvme)
    ranks = spec.all_ranks
    if ranks.num_devices > MOST_DEVICES:
        raise ConfigError(
            f"--hardware and --nodes: {ranks.num_devices:,} devices in all; "
            f"{MOST_DEVICES:,} are the most that can be planned for"
        )
    batch = global_batch
    if batch is None:
        batch = announced_batch(ranks.num_devices, error_console())
    workload = read_workload(
        load_model_shape(model),
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
        known = refuse_if_nothing_fits(asked, error_console(), as_json=as_json, traces=False)
    script_of = None if quick else _announced()
    calibration = None
    if calibrate_from is not None:
        calibration = learn_from(_measured_study(calibrate_from), question, script_of)
    made = make_plan(question, spec, search_space, calibration, script_of, known)
    refuse_empty_space(search_space, made.candidates, space)
    if not made.front:
        of_known = calibration or AnalyticPredictor(workload, ranks, known_script_of)
        predicted = made.candidates.predicted
        refuse_as_nothing_fits(asked, of_known, predicted, error_console(), as_json=as_json)
    if out is not None:
        # Before the answer, in whose place it is told that the folder cannot be written.
        export_plan(made, which, out)
        error_console().print(
            f"{made.picks[which].strategy}, {which.words}, is exported to {out}; it was not "
            "measured",
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
        console.print(render_plan(made), crop=False)
        if explain:
            console.print()
            console.print(render_explanation(made, which), crop=False)


def _pick(name: str) -> Goal:
    """Raises ConfigError where nothing of a plan has that name: energy is not predicted."""
    from autotune.errors import ConfigError
    from autotune.question.goal import FRONT_PICKS, Goal

    if name not in FRONT_PICKS:
        raise ConfigError(f"--pick {name!r}: choose from {', '.join(FRONT_PICKS)}")
    return Goal(name)


def _announced() -> ScriptSource:
    """Gives scripts; says so before the first that has to be traced, and why one cannot be."""
    from autotune.cli.console import error_console
    from autotune.profile import known_script_of, script_of

    has_said, failures = False, set[str]()

    def find(shape: ModelShape, recipe: Recipe, seq_len: int) -> AllocationScript | str:
        nonlocal has_said
        if not has_said and known_script_of(shape, recipe, seq_len) is None:
            has_said = True
            error_console().print(
                f"following the code of {shape.name} to simulate its memory, once; "
                "--quick leaves it out",
                markup=False,
                soft_wrap=True,
            )
        found = script_of(shape, recipe, seq_len)
        if isinstance(found, str) and found not in failures:
            failures.add(found)
            error_console().print(
                f"for some strategies the code of {shape.name} is not followed, and what they "
                f"hold is counted by a formula: {found}",
                markup=False,
                soft_wrap=True,
            )
        return found

    return find


def _measured_study(folder: Path) -> StudySummary:
    """The study in a folder.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    from autotune.cli.stored import read_study
    from autotune.errors import ConfigError, StorageError

    try:
        return read_study(folder, None)
    except StorageError as error:
        raise ConfigError(f"--calibrate-from {folder}: {error}") from error
