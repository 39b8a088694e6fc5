"""`autotune search`: measures strategies and hands back the best."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.cli.options import (
    MOST_DEVICES,
    MOST_TRIALS,
    AsJson,
    GlobalBatch,
    Headroom,
    HostHeadroom,
    LoraRank,
    LoraTargets,
    Method,
    SeqLen,
    Storage,
    announced_batch,
    check_headroom,
    default_batch,
    nearest_batches,
    read_workload,
)

if TYPE_CHECKING:
    from rich.console import Console

    from autotune.machine.hardware import Hardware
    from autotune.question.workload import Workload

__all__ = ["EXAMPLES", "search"]

EXAMPLES = """\
Examples:
  autotune search --model tiny --budget 2m                 no GPU needed
  autotune search --model 13B --method lora --budget 10m
  autotune search --model ./my-model --space memory --objective memory
  autotune search --model 1.1B --space my.yaml --trials 20 --reuse auto
  autotune search --model tiny --budget 2m --json > answer.json
  autotune search --model 7B --ray auto --gpus-per-trial 8 --budget 4h

Durations are 90s, 30m, 2h or 1h30m. Exit status: 0 something fits,
1 nothing fits or the run failed, 2 wrong use."""
"""Shown below the options."""

_MOST_OF_A_NAME = 150
"""Bytes of a model's name in that of a folder, which has 255 at most."""

_MOST_SEED = 2**32 - 1
"""NumPy's generators, which the samplers use, take no others."""


def search(
    model: Annotated[
        str,
        typer.Option(
            help="A preset (tiny, 125M, 350M, 1.1B, 3B, 7B, 13B, 34B, 70B, 175B), a folder with "
            "config.json, or a Hugging Face id. Weights are random: nothing is downloaded for "
            "a preset or a folder, and only the configuration for an id.",
            show_default=False,
        ),
    ],
    budget: Annotated[
        str,
        typer.Option(
            help="Wall-clock time for the whole command, imports included: 90s, 30m, 2h. No trial "
            "is started that is not expected to finish in it."
        ),
    ] = "30m",
    seq_len: SeqLen = None,
    global_batch: GlobalBatch = None,
    method: Method = "full",
    lora_rank: LoraRank = 16,
    lora_targets: LoraTargets = "all-linear",
    space: Annotated[
        str,
        typer.Option(
            help="What to search: default (loss-neutral knobs), memory (fit at any cost), full "
            "(everything), or a YAML file."
        ),
    ] = "default",
    objective: Annotated[
        str,
        typer.Option(
            help="What trials are chosen for, and which is exported: front (the whole front of "
            "throughput against memory; exports the fastest), balanced (the same; exports the "
            "knee), throughput, memory or energy (per token). All of them are measured and shown "
            "whatever you choose."
        ),
    ] = "front",
    sampler: Annotated[
        str,
        typer.Option(
            help="What proposes trials: predicted (the largest expected improvement per second of "
            "trial, by predictions that each trial corrects), or Optuna's tpe, nsga2, gp, random, "
            "grid, which know neither --objective nor --min-gain."
        ),
    ] = "predicted",
    min_gain: Annotated[
        float,
        typer.Option(
            help="End before the budget does when nothing that is left is likely to improve the "
            "objective by more than this share; 0 never does."
        ),
    ] = 0.01,
    devices: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_DEVICES,
            help="GPUs to use, one rank each; without a GPU, CPU ranks.",
            show_default="all; without a GPU 2",
        ),
    ] = None,
    devices_per_trial: Annotated[
        int | None,
        typer.Option(
            "--devices-per-trial",
            "--gpus-per-trial",
            min=1,
            max=MOST_DEVICES,
            help="Devices that one trial trains on; as many trials as fit run side by side. With "
            "1 a host of 8 GPUs answers for one. Trials that work in the host's memory run alone. "
            "With --ray packed on one node where they fit.",
            show_default="all of a node: one trial at a time; with --ray, without a GPU 2",
        ),
    ] = None,
    nvme_path: Annotated[
        Path | None,
        typer.Option(
            help="A folder on a fast local disk, for strategies that offload to NVMe. Each trial "
            "has a fresh folder in it, which is removed when the trial ends.",
            show_default="none: nothing is offloaded to NVMe",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_TRIALS,
            help="Launch at most so many trials, those of earlier sessions of this study counted.",
            show_default="as many as the budget allows",
        ),
    ] = None,
    force_pruned: Annotated[
        int,
        typer.Option(
            min=0,
            max=MOST_TRIALS,
            help="Launch so many strategies all the same that their prediction had pruned, the "
            "nearest to the memory limit first: to check the predictor. They are marked as "
            "forced, and may run out of memory.",
        ),
    ] = 0,
    confirm: Annotated[
        int,
        typer.Option(
            min=0,
            max=MOST_TRIALS,
            help="At the end run so many of the best trials again, longer and in turns, until "
            "their order is beyond the noise or a tie. Up to a fifth of the budget is kept for "
            "it. 0: do not.",
        ),
    ] = 3,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The study's folder. Where it holds the same question, the search goes on from "
            "there; where it holds another, nothing is touched. The default is named after "
            "model, method, length and hardware.",
            show_default="results/<name>",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Insist that the folder holds this study already. Resuming needs no flag: asking "
            "the same question again does.",
        ),
    ] = False,
    reuse: Annotated[
        str | None,
        typer.Option(
            help="Take over what an earlier study measured instead of launching it again: its "
            "folder, or auto for all studies beside this one's. Only of the same model, method, "
            "length, batch, hardware and versions; such trials are named as reused.",
            show_default="nothing is reused",
        ),
    ] = None,
    storage: Storage = None,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Run trials over a Ray cluster: auto for the one that this machine is part of, "
            "local for a new one of this machine alone (auto too, where there is none), or the "
            "host:port of its head.",
            show_default="this machine, without Ray",
        ),
    ] = None,
    nodes_per_trial: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_DEVICES,
            help="With --ray: spread the devices of a trial over so many nodes.",
            show_default="as few as it takes",
        ),
    ] = None,
    max_concurrent: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_DEVICES,
            help="With --ray: run at most so many trials at once.",
            show_default="as many as the nodes hold",
        ),
    ] = None,
    device_kind: Annotated[
        str | None,
        typer.Option(
            help="With --ray: use the nodes with this kind of device only, such as H100-80GB.",
            show_default="the most numerous",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=_MOST_SEED, help="For weights, data and proposals.")
    ] = 0,
    trial_timeout: Annotated[
        str, typer.Option(help="A trial that runs longer is taken for hung: 90s, 5m.")
    ] = "5m",
    headroom: Headroom = 0.05,
    host_headroom: HostHeadroom = 0.05,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", help="Let the model's own Python code run, if it brings any."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure training strategies and hand back the fastest that fit.

    Each trial is a short, real DeepSpeed training of a few steps.
    The answer is the Pareto front of throughput and memory, and an
    export of what is best for --objective to train with.

    Ctrl-C ends the search, prints the answer so far and keeps everything;
    the same command goes on from there.
    """
    started = time.monotonic()
    from autotune.cli.cluster import ClusterOptions
    from autotune.cli.console import error_console
    from autotune.cli.members import member
    from autotune.cli.refusal import Asked, refuse_if_nothing_fits, refuse_large_model_on_cpu
    from autotune.cli.session import Session
    from autotune.drivers.budget import Budget, parse_duration
    from autotune.errors import ConfigError, LaunchError
    from autotune.machine.software import detect_software
    from autotune.nothing_fits.command_line import CommandLine
    from autotune.nothing_fits.larger_hardware import larger_than_searched
    from autotune.question.goal import Goal
    from autotune.question.question import Question
    from autotune.question.workload import load_model_shape
    from autotune.samplers import SamplerKind
    from autotune.space.search_space import MOST_STRATEGIES
    from autotune.space.space_file import load_search_space

    limit = Budget(parse_duration(budget, "--budget"), started=started)
    timeout_s = parse_duration(trial_timeout, "--trial-timeout")
    check_headroom(headroom, host_headroom)
    if not 0 <= min_gain < 1:
        raise ConfigError(f"--min-gain must be at least 0 and less than 1, got {min_gain}")
    kind = member(SamplerKind, sampler, "--sampler")
    goal = member(Goal, objective, "--objective")
    shape = load_model_shape(model, trust_remote_code=trust_remote_code)
    workload = read_workload(
        shape,
        seq_len=seq_len,
        # Of how many devices a multiple is wanted is known once their cluster has been asked.
        global_batch=global_batch if global_batch is not None else default_batch(1),
        method=method,
        lora_rank=lora_rank,
        lora_targets=lora_targets,
    )
    site = ClusterOptions(
        address=ray,
        devices=devices,
        devices_per_trial=devices_per_trial,
        nodes_per_trial=nodes_per_trial,
        max_concurrent=max_concurrent,
        device_kind=device_kind,
        nvme_path=nvme_path,
    )
    console = error_console()
    with site.open(console) as place:
        hardware = place.hardware
        workload = _in_whole_batches(workload, global_batch, hardware, console)
        software = detect_software()
        search_space = load_search_space(space, workload, hardware, software)
        refuse_large_model_on_cpu(workload, hardware, console)
        question = Question(
            workload=workload,
            hardware=hardware,
            space_name=search_space.name,
            space_text=search_space.text,
            headroom=headroom,
            host_headroom=host_headroom,
            seed=seed,
        )
        command = CommandLine.typed()
        asked = Asked(
            question=question,
            space=search_space,
            space_name=space,
            command=command,
            larger=lambda _: larger_than_searched(
                question, command=command, space_name=space, is_here=ray is None
            ),
        )
        if len(search_space.table) > MOST_STRATEGIES:
            words = f"ranking {len(search_space.table):,} strategies by what is predicted of them"
            console.print(words, markup=False, highlight=False)
        predictor = refuse_if_nothing_fits(asked, console, as_json=as_json)
        session = Session(
            question,
            search_space,
            software,
            predictor,
            path=out or Path("results") / _default_name(workload, hardware),
            storage_url=storage,
            must_exist=resume,
            reuse=reuse,
            num_places=place.num_places,
        )
        with session:
            error: LaunchError | None = None
            try:
                session.search(
                    limit,
                    sampler=kind,
                    goal=goal,
                    min_gain=min_gain,
                    max_trials=trials,
                    num_forced=force_pruned,
                    num_confirmed=confirm,
                    trial_timeout_s=timeout_s,
                    console=console,
                    cluster=place.cluster,
                )
            except LaunchError as caught:
                # What was measured before is an answer all the same.
                error = caught
            found = session.answer(as_json=as_json, console=console)
            if error is not None:
                raise error
    raise typer.Exit(0 if found else 1)


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
    return workload


def _default_name(workload: Workload, hardware: Hardware) -> str:
    name = workload.model.name
    model = Path(name).resolve().name if Path(name).is_dir() else name.replace("/", "-")
    # The rest of the name has to find room beside it.
    model = model.encode()[:_MOST_OF_A_NAME].decode(errors="ignore")
    nodes = f"{hardware.num_nodes}x" if hardware.num_nodes > 1 else ""
    machine = f"{nodes}{hardware.devices_per_node}x{hardware.device_kind}".replace(" ", "-")
    return f"{model}-{workload.method}-{workload.seq_len}-{machine}"
